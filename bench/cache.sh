#!/usr/bin/env bash
# The disk cache against what a machine can do without it: a bare FUSE program, the
# local file system, the emulated link. Every row is a ratio (or a limit) of one run
# on one machine: what is compared is measured in turns within each round, and the
# table has the median of the rounds' ratios. Prints it and leaves it, with every
# figure as JSON, in bench/results. A missed goal is an exit status of 1.
#
# The server's files are in memory; caches, and the local files that they are
# compared with, are side by side on one disk (--disk).
set -euo pipefail

ROWS=(hit passthrough writes tree cold latex build kernel open git)

usage() {
    cat <<'USAGE'
usage: cache.sh [--rows NAME,...] [--rounds N] [--peers] [--kernel DIR] [--disk DIR]
                [--rtt DELAY] [--rate RATE] [--seconds S] [--size MIB]
  --rows         some of: hit passthrough writes tree cold latex build kernel open git
  --rounds 5     the table has medians
  --peers        tree: sshfs and rclone too (they take minutes)
  --kernel DIR   the row kernel, which is left out otherwise: a Linux source tree is built
  --disk DIR     where caches and their local counterparts are (default: /var/tmp)
  --rtt 32ms     round trip          --rate 1gbit  capacity of the link
  --seconds 2    length of one slice of random reads
  --size 1024    MiB that the row cold moves
USAGE
}

rows="" rounds=5 peers="" kernel="" folder=/var/tmp rtt=32ms rate=1gbit seconds=2 size=1024
while (($#)); do
    case $1 in
        --rows) rows=${2:?}; shift 2 ;;
        --rounds) rounds=${2:?}; shift 2 ;;
        --peers) peers=1; shift ;;
        --kernel) kernel=$(realpath "${2:?}"); shift 2 ;;
        --disk) folder=$(realpath "${2:?}"); shift 2 ;;
        --rtt) rtt=${2:?}; shift 2 ;;
        --rate) rate=${2:?}; shift 2 ;;
        --seconds) seconds=${2:?}; shift 2 ;;
        --size) size=${2:?}; shift 2 ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
[[ $rounds =~ ^[1-9][0-9]*$ ]] || { usage >&2; exit 2; }
IFS=, read -r -a chosen <<<"$rows"
for row in ${chosen[@]+"${chosen[@]}"}; do
    [[ " ${ROWS[*]} " == *" $row "* ]] || { echo "cache: no row $row: ${ROWS[*]}" >&2; exit 2; }
done
if ((${#chosen[@]} == 0)); then
    for row in "${ROWS[@]}"; do
        [[ $row == kernel && -z $kernel ]] || chosen+=("$row")
    done
fi

bench='cache'
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"
# shellcheck source-path=SCRIPTDIR source=rows.sh
. "$here/rows.sh"
# shellcheck source-path=SCRIPTDIR source=document.sh
. "$here/document.sh"
# shellcheck source-path=SCRIPTDIR source=cache/hit.sh
. "$here/cache/hit.sh"
# shellcheck source-path=SCRIPTDIR source=cache/transfer.sh
. "$here/cache/transfer.sh"
# shellcheck source-path=SCRIPTDIR source=cache/names.sh
. "$here/cache/names.sh"
# shellcheck source-path=SCRIPTDIR source=cache/applications.sh
. "$here/cache/applications.sh"

# --- Running them -----------------------------------------------------------------------

needs fio
[[ -x $programs/gridvfs-bare ]] || die "not built: run \`make build\`"
link_up "$rtt" "$rate" "$folder"
between_rows() {
    rm -rf "$work/far" "$work/near" "${disk:?}"/*
    mkdir -p "$work/far" "$work/near" "$disk/xdg"
}
run_rows

report cache "$(fio --version)" "$(iperf3 --version | head -n 1)"
