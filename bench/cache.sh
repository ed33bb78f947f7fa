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
# shellcheck source-path=SCRIPTDIR source=cache/hit.sh
. "$here/cache/hit.sh"
# shellcheck source-path=SCRIPTDIR source=cache/transfer.sh
. "$here/cache/transfer.sh"
# shellcheck source-path=SCRIPTDIR source=cache/names.sh
. "$here/cache/names.sh"
# shellcheck source-path=SCRIPTDIR source=cache/applications.sh
. "$here/cache/applications.sh"

# --- What rows tell: a line of JSON each --------------------------------------------

line() { # KIND ROW [--arg NAME TEXT|--argjson NAME VALUE]...
    local kind=$1 row=$2
    shift 2
    jq -n -c --arg kind "$kind" --arg row "$row" "$@" '$ARGS.named' >>"$work/lines"
}
# A row of the table. AGAINST: what the reference is; empty if the figure itself has
# the goal. GOAL: >=N or <=N, of the ratio or the figure; empty if there is none. It
# is for the median of the rounds, or with `most` for all of them.
row() { # ROW TITLE UNIT AGAINST GOAL [most]
    line row "$1" --arg title "$2" --arg unit "$3" --arg against "$4" --arg goal "$5" --arg by "${6:-median}"
}
sample() { # ROW OURS [REFERENCE]
    line sample "$1" --argjson ours "$2" --argjson reference "${3:-null}"
    say "$1: $2${3:+ against $3}"
}
# Something else that was measured with it: its median is shown below the table.
detail() { # ROW NAME VALUE
    line detail "$1" --arg name "$2" --argjson value "$3"
}
note() { # ROW TEXT
    line note "$1" --arg text "$2"
    say "$1: $2"
}
skip() { # ROW WHY: it has no figures
    line skip "$1" --arg why "$2"
    say "$1: skipped: $2"
}

# Calls FUNCTION ARGUMENTS... once with `ours` and once with `reference` in front; who
# is first changes from round to round.
in_turns() { # ROUND FUNCTION ARGUMENTS...
    local round=$1 function=$2
    shift 2
    if ((round % 2)); then
        "$function" ours "$@"
        "$function" reference "$@"
    else
        "$function" reference "$@"
        "$function" ours "$@"
    fi
}

# --- Running them -----------------------------------------------------------------------

needs fio
[[ -x $programs/gridvfs-bare ]] || die "not built: run \`make build\`"
link_up "$rtt" "$rate" "$folder"
: >"$work/lines"
load_before=$(cut -d ' ' -f 1-3 /proc/loadavg)

# Each in a shell of its own, so that one that fails leaves the others their turn.
for chosen_row in "${chosen[@]}"; do
    say "--- $chosen_row"
    (
        trap clear_mounts EXIT
        "row_$chosen_row"
    ) 2> >(tee "$work/words" >&2) &
    row_pid=$!
    if ! wait "$row_pid"; then
        line failed "$chosen_row" --arg why "$(grep -v "^$bench: $chosen_row" "$work/words" | tail -n 1)"
    fi
    row_pid=""
    rm -rf "$work/far" "$work/near" "${disk:?}"/*
    mkdir -p "$work/far" "$work/near" "$disk/xdg"
done

meta=$(jq -n -c --arg rtt "$rtt" --arg rate "$rate" --argjson rounds "$rounds" --arg date "$(date -u +%FT%TZ)" \
    --arg kernel "$(uname -sr)" --arg load_before "$load_before" --arg load "$(cut -d ' ' -f 1-3 /proc/loadavg)" --argjson processors "$(nproc)" \
    --arg disk "$(findmnt -n -o FSTYPE --target "$disk")" --arg gridvfs "$("$gridvfs" --version)" \
    --arg commit "$(git -C "$root" -c safe.directory='*' rev-parse --short HEAD 2>/dev/null || true)" \
    --arg fio "$(fio --version)" --arg iperf3 "$(iperf3 --version | head -n 1)" '$ARGS.named')
jq -s -f "$here/cache/report.jq" --argjson meta "$meta" "$work/lines" >"$results/cache.json"
jq -r -f "$here/cache/table.jq" "$results/cache.json" | tee "$results/cache.md"
jq -e '[.rows[] | select(.verdict == "missed" or .verdict == "failed")] == []' "$results/cache.json" >/dev/null || exit 1
