#!/usr/bin/env bash
# The paper's Table 1: a LaTeX document that is edited and typeset 20 times, and a seismic job in four
# phases, in a working folder on local disk, on a mount over a LAN without the disk cache, and over a
# WAN without and with it. Programs are local. At the end the server's files are compared, byte for
# byte, with those of a run in memory.
# shellcheck disable=SC2154 # set by lib.sh and parts.sh
set -euo pipefail
experiment=table1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=../parts.sh
. "$here/parts.sh"
# shellcheck source-path=SCRIPTDIR source=../document.sh
. "$here/document.sh"

# With its references, 14 chapters are 190 pages.
CHAPTERS=14 ITERATIONS=20 ITERATIONS_SHORT=2
# Of the trace file; gathers are as large, the result a sixteenth.
SEISMIC_MIB=192 SEISMIC_MIB_FULL=512

parts() { # FULL
    local name seconds latex=(root latex bibtex dvipdfmx extractbb pdflatex memory:512 disk:512)
    while read -r name seconds; do
        part "latex-$name" "LaTeX, $(iterations "$name") times: $name" "$seconds" 3 "${latex[@]}"
        part "seismic-$name" "a seismic job of $SEISMIC_MIB MiB: $name" 15 3 root memory:1024 disk:1024
        [[ -z $1 ]] ||
            part "seismic-large-$name" "a seismic job of $SEISMIC_MIB_FULL MiB: $name" 50 3 root memory:2560 disk:2560
    done <<'LIST'
local 20
lan-g 25
wan-g 90
wan-gc 25
LIST
    [[ -z $1 ]] || part latex-all-wan-g "LaTeX, $ITERATIONS times: wan-g" 900 3 "${latex[@]}"
    part lan-native "both jobs by a kernel's own NFS client: lan-n" 1 1 root
}
# Without a cache, the first takes a minute of round trips, and the second tells what the others take.
iterations() { if [[ $1 == wan-g ]]; then echo "$ITERATIONS_SHORT"; else echo "$ITERATIONS"; fi; }

# --- LaTeX --------------------------------------------------------------------------------

make_latex() { # FOLDER
    local place
    work=$(mktemp -d)
    make_document "$1" "$CHAPTERS"
    rm -rf "$work"
    awk 'BEGIN {
        srand(2)
        for (i = 1; i <= 60; i++)
            printf "@article{r%d, author = {Author, A. %d}, title = {Number %d}, journal = {Journal %d}, year = %d}\n",
                i, rand() * 100, i, rand() * 9, 1970 + rand() * 33
    }' >"$1/references.bib"
    sed -i 's/^\\end{document}/\\nocite{*}\\bibliographystyle{plain}\\bibliography{references}\n&/' "$1/main.tex"
    for place in "$1"/figure*.pdf; do
        (cd "$1" && extractbb -x "${place##*/}") || die "extractbb failed"
    done
}
# What the folder is at the end.
make_latex_final() { # FROM ITERATIONS FOLDER
    local iteration
    cp -a "$1/." "$3"
    for ((iteration = 1; iteration <= $2; iteration++)); do
        latex_once "$3" "$iteration" || die "LaTeX failed in memory: $(tail -n 3 "$3/main.log")"
    done
}
# One chapter is edited, the document is typeset. The date is always the same, and so is the result.
latex_once() { # FOLDER ITERATION
    (
        cd "$1" || exit
        export SOURCE_DATE_EPOCH=1000000000 FORCE_SOURCE_DATE=1
        printf 'Version %s.\n\n' "$2" >>"chapter$((($2 - 1) % CHAPTERS + 1)).tex" &&
            latex -interaction=batchmode -jobname=main '\PassOptionsToPackage{dvipdfmx}{graphicx}\input{main}' >/dev/null &&
            bibtex main >/dev/null && dvipdfmx -q main
    )
}
latex_job() {
    local iteration total=0 first
    mount_configured
    # The programs and what they read of TeX Live are in memory for all.
    mkdir "$work/near/warm"
    cp -a "$place/." "$work/near/warm"
    latex_once "$work/near/warm" 1
    note "$series" "LaTeX: kernel's page cache and disk cache empty of the document at first; TeX Live local and in memory; the server's files in its memory"
    for ((iteration = 1; iteration <= count; iteration++)); do
        timed latex_once "$top/latex" "$iteration"
        total=$((total + took))
        [[ -n ${first-} ]] || first=$took
    done
    submit
    diff -r -q -x '*.log' -x '*.blg' "$final/latex" "$latex_final" >&2 || die "the files on the server are not those of a run in memory"
    sample "$series" first "LaTeX time" s "$(seconds "$first")"
    sample "$series" "following, mean" "LaTeX time" s "$(calc "($total - $first) / 1e6 / ($count - 1)")"
    if ((count == ITERATIONS)); then
        told LaTeX "$(seconds "$total")"
    else
        note "$series" "LaTeX: $count iterations only, so there is no total"
    fi
}
told() { # JOB SECONDS: the submission is in the total, as in the paper
    [[ $series != WAN/GC ]] || sample "$series" submission "$1 time" s "$submitted"
    sample "$series" total "$1 time" s "$(calc "$2 + $submitted")"
    [[ -n $options ]] || return 0
    sample "$series" "$1" "calls to the server" calls "$calls"
    sample "$series" "$1" "bytes sent" bytes "$sent"
}

# --- Seismic ---------------------------------------------------------------------------------

PHASES=(generate sort stack migrate)
seismic_phase() { "$programs/gridvfs-seismic" "$1" "$2" --mib "$mib"; } # PHASE FOLDER
make_image() { # FOLDER
    local phase scratch
    scratch=$(mktemp -d -p /dev/shm)
    for phase in "${PHASES[@]}"; do
        seismic_phase "$phase" "$scratch" || { rm -rf "$scratch"; die "gridvfs-seismic failed in memory"; }
    done
    mv "$scratch/image.out" "$1"
    rm -rf "$scratch"
}
seismic_job() {
    local phase number=0 total=0 bytes left
    mkdir "$work/far/seismic"
    mount_configured
    note "$series" "seismic: $mib MiB of traces, the same of gathers, $((mib / 16)) MiB of result; nothing is fsynced; the folder is empty at first"
    for phase in "${PHASES[@]}"; do
        timed seismic_phase "$phase" "$top/seismic"
        total=$((total + took))
        sample "$series" "phase $((++number))" "$job time" s "$(seconds "$took")"
    done
    submit
    left=$(find "$final/seismic" -mindepth 1 -printf '%f ')
    [[ $left == "image.out " ]] || die "what is left is $left"
    compared "$final/seismic/image.out" "$image/image.out" "seismic"
    told "$job" "$(seconds "$total")"
    bytes=$(stat -c %s "$image/image.out")
    [[ $series != WAN/GC ]] || ((sent < bytes * 5 / 4)) ||
        die "$sent bytes were sent for a result of $bytes: temporaries were among them"
}

run_part() {
    local document name
    case $1 in
        lan-native)
            grep -qw nfs /proc/filesystems || modinfo nfs >/dev/null 2>&1 ||
                cannot "LAN/N needs an NFS client in the kernel: $(uname -r) has none"
            cannot "LAN/N: this experiment mounts no native NFS"
            ;;
        latex-*)
            kept "latex-$(stamp "$here/document.sh" "${BASH_SOURCE[0]}")" make_latex
            document=$place
            name=${1#latex-} count=$(iterations "${1#latex-}")
            kept "${place##*/}-final-$count" make_latex_final "$document" "$count"
            latex_final=$place
            place=$document
            configured "${name#all-}"
            cp -a "$document" "$work/far/latex"
            in_group latex_job
            ;;
        seismic-*)
            mib=$SEISMIC_MIB job=seismic
            [[ $1 != seismic-large-* ]] || mib=$SEISMIC_MIB_FULL job="large seismic"
            kept "seismic-$mib-$(stamp "$root/bench/src/bin/gridvfs-seismic.rs")" make_image
            image=$place
            name=${1#seismic-}
            configured "${name#large-}"
            in_group seismic_job
            ;;
    esac
}

main "$@"
