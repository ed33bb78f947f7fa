#!/usr/bin/env bash
# Eight compute servers clone the same golden VM at once, through one LAN cache: a standing
# proxy with a disk cache on this side of the emulated link. Each compute server is a network
# namespace of its own, joined to the proxy's by a pair of virtual interfaces; each has a
# session with an empty cache. A clone here is `gridvfs clone` and the reading of what a resume
# may need: the whole memory file, the device state, kernel and initrd; no guest is started. With
# --resume a second pair of rows has QEMU resume each, until its guest answers: on a machine of few
# processors guests wait for each other.
#
# The paper's goals: all eight in at most 1.14 times the time of one, at most 1.05 times its bytes
# over the link. Prints a table and leaves it in bench/results. A missed goal is an exit status of 1.
# The compute servers, the proxy and the state server are all on this machine: the table says how
# many seconds of its processors were used meanwhile, and how many of them by the proxy. Where that
# is near the time times the number of processors, the time tells how fast this machine computes.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: fleet.sh [--sessions N] [--rounds N] [--golden DIR] [--size MIB] [--disk DIR]
                [--rtt DELAY] [--rate RATE] [--resume]
  --sessions 8   at once
  --rounds 3     the table has medians
  --golden DIR   a suspended VM (default: target/golden/debian of bench-clone; if there is none, a
                 file like a guest's memory)
  --size 300     MiB of that file       --disk /var/tmp  where caches and clones are
  --rtt 32ms     round trip             --rate 1gbit     capacity of the link
USAGE
}

sessions=8 rounds=3 golden="" size=300 folder=/var/tmp rtt=32ms rate=1gbit guests=""
while (($#)); do
    case $1 in
        --sessions) sessions=${2:?}; shift 2 ;;
        --rounds) rounds=${2:?}; shift 2 ;;
        --golden) golden=$(realpath "${2:?}"); shift 2 ;;
        --size) size=${2:?}; shift 2 ;;
        --disk) folder=$(realpath "${2:?}"); shift 2 ;;
        --rtt) rtt=${2:?}; shift 2 ;;
        --rate) rate=${2:?}; shift 2 ;;
        --resume) guests=yes; shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
[[ $sessions =~ ^[1-9][0-9]?$ && $rounds =~ ^[1-9][0-9]*$ ]] || { usage >&2; exit 2; }

bench='fleet'
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=lan.sh
. "$(dirname "${BASH_SOURCE[0]}")/lan.sh"
needs ip nsenter jq python3
link_up "$rtt" "$rate" "$folder"

# --- What is cloned ----------------------------------------------------------------------

default=${CARGO_TARGET_DIR:-$root/target}/golden/debian
if [[ -z $golden && -s $default/state ]]; then golden=$default; fi
mkdir -p "$work/far/golden"
if [[ -n $golden ]]; then
    cp --sparse=always "$golden"/* "$work/far/golden/"
    what="Debian, $(($(stat -c %s "$golden/memory") >> 20)) MiB of memory"
else
    python3 - "$work/far/golden/memory" "$size" <<'PYTHON'
import os, random, sys
path, pages = sys.argv[1], int(sys.argv[2]) * 256
random.seed(1)
with open("/proc/self/exe", "rb") as program:
    text = program.read()
with open(path, "wb") as out:
    done = 0
    while done < pages:
        run = min(1 + int(random.expovariate(1 / 32)), pages - done)
        kind = random.random()
        if kind < 0.58:
            out.write(bytes(4096) * run)
        elif kind < 0.8:
            out.write(os.urandom(4096 * run))
        else:
            at = random.randrange(0, max(1, len(text) - 4096 * run))
            out.write(text[at:at + 4096 * run].ljust(4096 * run, b"\1"))
        done += run
PYTHON
    what="a file of $size MiB, 58 % zeros, half of the rest random"
fi
if "$gridvfs" meta build --help >/dev/null 2>&1; then
    for file in "$work"/far/golden/*; do
        case ${file##*/} in
            memory) "$gridvfs" meta build --zero --hash --block-size 4K --action zstd "$file" ;;
            disk.raw | vmlinuz | initrd.img) "$gridvfs" meta build --zero --hash "$file" ;;
        esac >"$work/words.meta" 2>&1 || die "meta build: $(tail -n 1 "$work/words.meta")"
    done
fi

lan_up "$sessions" "$work/far/golden"

# --- Measuring --------------------------------------------------------------------------------

# fleet N read|resume: sets `took`, `spent` and `proxy_spent` (s), and `bytes` (over the link, towards us).
fleet() {
    resume=""
    if [[ $2 == resume ]]; then resume=yes; fi
    fleet_up "$1"
    fleet_clone "$1"
    fleet_down "$1"
}

median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
modes=(read)
if [[ -n $guests ]]; then
    [[ -n $golden ]] || die "--resume needs a suspended VM (--golden DIR; make bench-clone makes one)"
    modes+=(resume)
fi
for ((round = 1; round <= rounds; round++)); do
    for mode in "${modes[@]}"; do
        for count in 1 "$sessions"; do
            fleet "$count" "$mode"
            echo "$took $bytes $spent $proxy_spent" >>"$work/$mode.$count"
            say "$mode, $count at once: $took s, $((bytes >> 20)) MiB, $spent s of processors ($proxy_spent of the proxy)"
        done
    done
done
column() { cut -d' ' -f"$3" "$work/$1.$2" | median; } # MODE COUNT NUMBER
table=$results/fleet.md
missed=
{
    echo "Link: $rtt, $rate. $what. Medians of $rounds. $(nproc) processors for everything."
    echo
    echo "| | seconds | MiB over the link | seconds of processors | of these the LAN proxy's |"
    echo "|---|---|---|---|---|"
    for mode in "${modes[@]}"; do
        case $mode in
            read) words="memory and device state read whole, no guest" ;;
            resume) words="resumed, until the guest answers" ;;
        esac
        for count in 1 "$sessions"; do
            printf '| %s at once through an empty LAN cache: %s | %.2f | %.1f | %.2f | %.2f |\n' "$count" "$words" \
                "$(column "$mode" "$count" 1)" "$(calc "$(column "$mode" "$count" 2) / 1048576")" \
                "$(column "$mode" "$count" 3)" "$(column "$mode" "$count" 4)"
        done
        time_ratio=$(calc "$(column "$mode" "$sessions" 1) / $(column "$mode" 1 1)")
        byte_ratio=$(calc "$(column "$mode" "$sessions" 2) / $(column "$mode" 1 2)")
        printf '| ratio (goal) | %.2f (1.14) | %.3f (1.05) | | |\n' "$time_ratio" "$byte_ratio"
        [[ $(calc "($time_ratio <= 1.14 && $byte_ratio <= 1.05)") == 1 ]] || missed=yes
    done
} >"$table"
cat "$table"
[[ -z $missed ]] || { say "a goal is missed"; exit 1; }
