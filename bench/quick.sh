#!/usr/bin/env bash
# The ratios that GridVFS has goals for, in ten minutes: transfer (link.sh), the disk cache (cache.sh) and
# clones (clone.sh), each with few rounds and short settings, in one table. What is left out is said. A
# missed goal is an exit status of 1. Figures of one round spread: for others to read, run the whole.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: quick.sh [--minutes N] [--disk DIR]
  --minutes 10   what is not done by then is left out
  --disk DIR     where caches and their local counterparts are (default: /var/tmp)
USAGE
}

minutes=10 folder=${GRIDVFS_BENCH_DISK:-/var/tmp}
while (($#)); do
    case $1 in
        --minutes) minutes=${2:?}; shift 2 ;;
        --disk) folder=$(realpath "${2:?}"); shift 2 ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
[[ $minutes =~ ^[1-9][0-9]*$ ]] || { usage >&2; exit 2; }

bench='quick'
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"
# shellcheck source-path=SCRIPTDIR source=cloning.sh
. "$here/cloning.sh"
((EUID == 0)) || die "the emulated link needs root (network namespaces)"
needs jq timeout
end=$((SECONDS + minutes * 60))
scratch=$(mktemp -d)
running=""
finish() {
    # It clears away before it ends.
    [[ -z $running ]] || { kill "$running" 2>/dev/null && wait "$running"; } || true
    rm -rf "$scratch"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

left_out=()
# stage NAME ARGUMENT...: bench/NAME.sh, for as long as there is time; what it tells is a folder's in $scratch.
stage() {
    local name=$1 left=$((end - SECONDS)) status=0 to
    shift
    if ((left < 30)); then
        left_out+=("$name.sh $*: the $minutes minutes were over")
        return
    fi
    to=$(mktemp -d "$scratch/$((++stages)).XXXX")
    say "$name.sh $*"
    GRIDVFS_BENCH_RESULTS=$to timeout --kill-after=60 "$left" "$here/$name.sh" "$@" --disk "$folder" \
        >"$to/out" 2>"$to/words" &
    running=$!
    wait "$running" || status=$?
    running=""
    if ((status == 124)); then
        left_out+=("$name.sh $*: the $minutes minutes were over")
    elif [[ ! -s $to/$name.json ]]; then
        # Otherwise 1 is a missed goal.
        left_out+=("$name.sh $*: it failed: $(tail -n 1 "$to/words")")
    elif [[ $name == link ]]; then
        link_rows "$to/link.json"
    else
        jq '.rows[]' "$to/$name.json"
    fi >>"$scratch/rows"
}
# What link.sh tells, as rows.
link_rows() { # FILE
    jq 'def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;
        .samples as $all | ["read", "write"][] as $way
        | ([$all[] | select(.what == "gridvfs" and .direction == $way).mbit_per_second]) as $ours
        | ([$all[] | select(.what == "iperf3" and .direction == $way).mbit_per_second]) as $reference
        | ([range($ours | length) | $ours[.] / $reference[.]]) as $ratios
        | {row: "link-\($way)", title: "cold sequential \($way) over the link", unit: "Mbit/s", against: "iperf3",
           goal: ">=0.8", ours: ($ours | median), reference: ($reference | median), value: ($ratios | median),
           least: ($ratios | min), most: ($ratios | max),
           verdict: (if ($ratios | median) >= 0.8 then "met" else "missed" end)}' "$1"
    jq '([.samples[].peak_kib // 0] | max / 1024) as $most
        | {row: "link-memory", title: "the mount process'"'"'s most memory in these", unit: "MiB", against: "",
           goal: "<=64", ours: $most, value: $most, verdict: (if $most <= 64 then "met" else "missed" end)}' "$1"
}

load_before=$(cut -d ' ' -f 1-3 /proc/loadavg) stages=0
stage link --size 256 --rounds 2 --no-peers
# A stage each, so that what there is time for is told.
stage cache --rows writes,passthrough --rounds 1 --seconds 1
stage cache --rows tree,git --rounds 1
stage cache --rows hit --rounds 1 --seconds 1
if [[ -s $goldens/debian/state && -s $goldens/debian-other/state ]]; then
    stage clone --rows first,other --rounds 1
    stage clone --rows meta --rounds 1
    left_out+=("clone.sh --rows peers,boot: minutes")
else
    left_out+=("clone.sh: the suspended VMs are not made yet (make bench-clone makes them, in a quarter of an hour)")
fi
stage cache --rows open --rounds 1
stage cache --rows latex,build --rounds 1
left_out+=("cache.sh --rows cold: it is what link.sh measures" "cache.sh --rows kernel: minutes")

# --- One table of all ------------------------------------------------------------------

[[ -s $scratch/rows ]] || die "nothing was measured: ${left_out[0]}"
disk=$folder rtt=32ms rate=1gbit rounds=1
# shellcheck source-path=SCRIPTDIR source=rows.sh
. "$here/rows.sh"
jq -s --argjson meta "$(meta quick)" '{meta: $meta, rows: .}' "$scratch/rows" | jq -r -f "$here/cache/table.jq"
echo
printf -- '- left out: %s\n' "${left_out[@]}"
jq -s -e '[.[] | select(.verdict == "missed" or .verdict == "failed")] == []' "$scratch/rows" >/dev/null || exit 1
