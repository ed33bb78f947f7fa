# shellcheck shell=bash
# A LaTeX document like the paper's, for the benchmarks that have one: 190 pages of words
# that are always the same, with figures and references. Sourced after lib.sh.
# shellcheck disable=SC2154 # set by who sources it

# make_document FOLDER [CHAPTERS]: main.tex and a file for each chapter and figure. 15 chapters
# are 190 pages.
make_document() {
    local folder=$1 chapters=${2:-15} figure
    mkdir -p "$folder"
    for ((figure = 1; figure <= 2 * chapters; figure++)); do
        awk -v seed="$figure" 'BEGIN {
            srand(seed)
            print "\\documentclass{article}\\pagestyle{empty}\\begin{document}\\begin{picture}(300,300)"
            for (i = 0; i < 400; i++)
                printf "\\put(%d,%d){\\line(%d,%d){%d}}\n", rand() * 250, rand() * 250, 1 + rand() * 4, (i % 2 ? 1 : -1), 5 + rand() * 40
            print "\\end{picture}\\end{document}"
        }' >"$folder/figure$figure.tex"
        (cd "$folder" && pdflatex -interaction=batchmode "figure$figure.tex" >"$work/words.app") ||
            die "pdflatex cannot make a figure: $(tail -n 2 "$work/words.app")"
        rm -f "$folder/figure$figure".{aux,log,tex}
    done
    (cd "$folder" && awk -v chapters="$chapters" 'BEGIN {
        srand(1)
        print "\\documentclass[11pt]{article}\\usepackage{graphicx}\\begin{document}\\tableofcontents"
        for (chapter = 1; chapter <= chapters; chapter++) {
            printf "\\input{chapter%d}\n", chapter
            file = "chapter" chapter ".tex"
            printf "\\section{Number %d}\\label{s%d}\n", chapter, chapter > file
            for (paragraph = 0; paragraph < 44; paragraph++) {
                if (paragraph % 22 == 18) {
                    figure++
                    printf "\\begin{figure}\\includegraphics[width=6cm,clip]{figure%d}\\caption{Figure %d}\\end{figure}\n", figure, figure > file
                }
                for (word = 0; word < 90; word++) {
                    length_of = 2 + rand() * 9
                    for (i = 0; i < length_of; i++) printf "%c", 97 + rand() * 26 > file
                    printf " " > file
                }
                printf "$\\sum_{i=%d}^n x_i^2$ (see section~\\ref{s%d}).\n\n", paragraph, 1 + rand() * chapters > file
            }
            close(file)
        }
        print "\\end{document}"
    }' >main.tex)
}
