#!/usr/bin/env bash
# How fast `gridvfs meta build` reads, against reading the same file and doing
# nothing with it, in one run on one machine: with one thread on one core, from the
# page cache and from the disk, and with all cores.
#
# Three files: `data` without zeros, `memory` of which 70 % of the 8 KiB blocks are
# zero in runs of all lengths (or a guest's own memory, --memory FILE), and `sparse`,
# the same with holes for the zeros. Prints a table and leaves it, with the raw
# figures as JSON, in bench/results.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: meta.sh [--size MIB] [--rounds N] [--disk DIR] [--memory FILE]
  --size 1024    MiB of each file
  --rounds 3     the table has medians
  --disk DIR     where the files are (default: /var/tmp): not a file system in memory
  --memory FILE  a guest's memory, instead of one that is made up
USAGE
}

size=1024 rounds=3 folder=/var/tmp memory=""
while (($#)); do
    case $1 in
        --size) size=${2:?}; shift 2 ;;
        --rounds) rounds=${2:?}; shift 2 ;;
        --disk) folder=${2:?}; shift 2 ;;
        --memory) memory=${2:?}; shift 2 ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done

bench=meta
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
needs jq python3 taskset
((EUID == 0)) || die "dropping the page cache needs root"
[[ -x $gridvfs ]] || die "not built: run \`make build\`"
disk=$(mktemp -d "$folder/gridvfs-$bench.XXXXXX")
trap 'rm -rf "$disk"' EXIT
trap 'exit 130' INT TERM HUP
mkdir -p "$results"
samples=$disk/samples
: >"$samples"

# --- The files --------------------------------------------------------------------

head -c "${size}M" /dev/urandom >"$disk/data"
if [[ -n $memory ]]; then
    cp --sparse=never "$memory" "$disk/memory"
else
    python3 - "$disk/memory" "$size" <<'PYTHON'
import os, random, sys
random.seed(1)
left, zero = int(sys.argv[2]) << 7, False
with open(sys.argv[1], "wb") as out:
    while left:
        mean = 21 if zero else 9
        run = min(left, 1 + int(random.expovariate(1 / mean)))
        out.write(bytes(run << 13) if zero else os.urandom(run << 13))
        left, zero = left - run, not zero
PYTHON
fi
cp --sparse=always "$disk/memory" "$disk/sparse"
sync

# --- Measuring ----------------------------------------------------------------------

cores=$(nproc)
# Any core that this process may use.
core=$(taskset -pc $$ | sed 's/.*: //; s/[-,].*//')
one=(taskset -c "$core")

# sample FILE FROM HOW COMMAND...
sample() {
    local file=$1 from=$2 how=$3 words seconds user system bytes
    shift 3
    if [[ $from == disk ]]; then forget; else cat "$disk/$file" >/dev/null; fi
    local TIMEFORMAT='%R %U %S'
    words=$({ time "$@" >/dev/null 2>"$disk/words"; } 2>&1) || die "failed: $*: $(tail -n 3 "$disk/words")"
    read -r seconds user system <<<"$words"
    bytes=$(stat -c %s "$disk/$file")
    jq -n -c --arg file "$file" --arg from "$from" --arg how "$how" --argjson bytes "$bytes" \
        --argjson seconds "$seconds" --argjson cpu "$(calc "$user + $system")" \
        '{file: $file, from: $from, how: $how, bytes: $bytes, seconds: $seconds, cpu_seconds: $cpu}' >>"$samples"
}
for ((round = 1; round <= rounds; round++)); do
    say "round $round of $rounds"
    for file in data memory sparse; do
        for from in cache disk; do
            sample $file $from read "${one[@]}" dd if="$disk/$file" of=/dev/null bs=128K
            sample $file $from zero "${one[@]}" "$gridvfs" meta build --jobs 1 --zero "$disk/$file"
            sample $file $from both "${one[@]}" "$gridvfs" meta build --jobs 1 --zero --hash "$disk/$file"
            sample $file $from cores "$gridvfs" meta build --zero --hash "$disk/$file"
            "$gridvfs" meta verify "$disk/$file" >/dev/null || die "$file: the metadata is not true"
            "$gridvfs" meta remove "$disk/$file" >/dev/null
        done
    done
done

# --- The table ----------------------------------------------------------------------

jq -s --argjson cores "$cores" --arg memory "${memory:-made up}" '
    def median: sort | (.[((length - 1) / 2 | floor)] + .[(length / 2 | floor)]) / 2;
    {cores: $cores, memory: $memory, rows: (group_by([.file, .from]) | map({file: .[0].file, from: .[0].from,
        bytes: .[0].bytes, of: (group_by(.how) | map({key: .[0].how, value: {
            mb_per_second: (map(.bytes / .seconds / 1e6) | median),
            mb_per_cpu_second: (map(.bytes / ([.cpu_seconds, 0.001] | max) / 1e6) | median)}}) | from_entries)})),
     samples: .}' "$samples" >"$results/meta.json"

table() {
    echo "Files of $size MiB; \`memory\` is ${memory:-made up} and \`sparse\` the same with holes. Medians of $rounds rounds."
    echo "One thread on one core (the last column: one thread for each of $cores cores). MB/s of the file's"
    echo "size, holes included; in brackets MB for each second of CPU time, which other load changes less."
    echo
    echo "| file | from | dd bs=128K | --zero | --zero --hash | of dd | all cores, of dd |"
    echo "|---|---|---|---|---|---|---|"
    jq -r '.rows[] | .of as $of | def cell(x): "\(x.mb_per_second | round) (\(x.mb_per_cpu_second | round))";
        def share(a; b): "\(a / b * 100 | round / 100)";
        "| \(.file) | \(if .from == "cache" then "page cache" else "disk" end) | \(cell($of.read)) | \(cell($of.zero)) | \(cell($of.both)) "
        + "| \(share($of.both.mb_per_second; $of.read.mb_per_second)) (\(share($of.both.mb_per_cpu_second; $of.read.mb_per_cpu_second))) "
        + "| \(share($of.cores.mb_per_second; $of.read.mb_per_second)) |"' "$results/meta.json"
}
table | tee "$results/meta.md"

# A claim that does not hold is a failure. Where the source is a disk, the wall clock
# counts; from the page cache, the CPU time of the core.
missed=$(jq -r '[.rows[] | .of as $of | select(.file != "sparse")
    | {what: "\(.file) from \(.from)", share: (if .from == "disk" then $of.both.mb_per_second / $of.read.mb_per_second
        else $of.both.mb_per_cpu_second / $of.read.mb_per_cpu_second end)}
    | select(.share < 0.8) | "\(.what): \(.share * 100 | round / 100)"] | join("; ")' "$results/meta.json")
if [[ -n $missed ]]; then
    echo "MISSED: 0.8 of the sequential speed per core: $missed"
    exit 1
fi
echo "Goal met: 0.8 of the sequential speed of page cache and disk per core."
