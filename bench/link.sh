#!/usr/bin/env bash
# Sequential transfer through a mount over the emulated link, against what iperf3
# carries on it and against scp, sshfs and rclone, in one run on one machine.
#
# Everything is read from and written to memory (/dev/shm), so that the link is
# what is measured, and goes through the same SSH server. Every read begins with
# a fresh mount and cold caches, and fills GridVFS's disk cache on its way; every
# write ends with fsync. Prints a table and leaves it, with the raw figures as
# JSON, in bench/results.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: link.sh [--rtt DELAY] [--rate RATE] [--size MIB] [--rounds N] [--no-peers]
  --rtt 32ms     round trip          --rate 1gbit  capacity of the link
  --size 1024    MiB moved by gridvfs, scp and rclone (sshfs: a quarter of it)
  --rounds 3     the table has medians
  --disk DIR     where the disk cache is (default: /var/tmp)
  --no-peers     only iperf3 and gridvfs
USAGE
}

rtt=32ms rate=1gbit size=1024 rounds=3 peers=1 folder=/var/tmp
while (($#)); do
    case $1 in
        --rtt) rtt=${2:?}; shift 2 ;;
        --rate) rate=${2:?}; shift 2 ;;
        --size) size=${2:?}; shift 2 ;;
        --rounds) rounds=${2:?}; shift 2 ;;
        --disk) folder=${2:?}; shift 2 ;;
        --no-peers) peers=""; shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done

bench='link'
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
link_up "$rtt" "$rate" "$folder"
samples=$work/samples
: >"$samples"

head -c "${size}M" /dev/urandom >"$work/far/data"
ln "$work/far/data" "$work/near/data"
head -c "$((size / 4))M" "$work/far/data" >"$work/far/quarter"
ln "$work/far/quarter" "$work/near/quarter"

# --- Measuring ------------------------------------------------------------------

# sample WHAT DIRECTION MBIT [CPU_SECONDS_PER_GIB [PEAK_KIB]]
sample() {
    printf '%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "${4:-}" "${5:-}" >>"$samples"
    say "$1 $2: $3 Mbit/s${4:+, $4 CPU s/GiB}${5:+, peak $(($5 / 1024)) MiB}"
}
gridvfs_read() {
    read_cold "$size" data
    sample gridvfs read "$(mbit "$size" "$took")" "$cpu" "$peak"
}
gridvfs_write() {
    write_cold "$size" data
    sample gridvfs write "$(mbit "$size" "$took")" "$cpu" "$peak"
}

scp_both() {
    timed "${near[@]}" scp -q -F "$config" "gvhost:$work/far/data" "$work/near/arrived"
    sample scp read "$(mbit "$size" "$took")"
    timed "${near[@]}" scp -q -F "$config" "$work/near/data" "gvhost:$work/far/written"
    sample scp write "$(mbit "$size" "$took")"
    rm "$work/near/arrived" "$work/far/written"
}
mount_both() { # NAME FILE MIB: with the peer's mount at $mnt
    forget
    timed dd if="$mnt/$2" of=/dev/null bs=1M
    sample "$1" read "$(mbit "$3" "$took")"
    timed dd if="$work/near/$2" of="$mnt/written" bs=1M conv=fsync
    # What is only sent when the file is closed, or later, counts.
    begin=$(now)
    fusermount3 -u "$mnt"
    while pgrep -f "$mnt" >/dev/null; do sleep 0.05; done
    took=$((took + $(now) - begin))
    sample "$1" write "$(mbit "$3" "$took")"
    compared "$work/far/written" "$work/far/$2" "$1"
    rm "$work/far/written"
}
sshfs_both() {
    mount_sshfs
    mount_both sshfs quarter $((size / 4))
}
rclone_both() {
    mount_rclone --vfs-cache-mode off
    mount_both rclone data "$size"
}

for ((round = 1; round <= rounds; round++)); do
    say "round $round of $rounds"
    sample iperf3 read "$(limit "$size" -R)"
    gridvfs_read
    sample iperf3 write "$(limit "$size")"
    gridvfs_write
done
if [[ -n $peers ]]; then
    scp_both
    for peer in sshfs rclone; do
        if command -v "$peer" >/dev/null; then "${peer}_both"; else say "$peer is not installed: left out"; fi
    done
fi

# --- The table ---------------------------------------------------------------------

median() { # WHAT DIRECTION COLUMN
    awk -F '\t' -v w="$1" -v d="$2" -v c="$3" '$1 == w && $2 == d && $c != "" { print $c }' "$samples" | sort -n |
        awk '{ v[NR] = $1 } END { if (NR) print (NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2) }'
}
ratio() { awk -v part="$1" -v all="$2" 'BEGIN { if (part != "") printf "%.2f", part / all }'; }
table() {
    echo "Link: $rtt, $rate. Moved: $size MiB (sshfs: $((size / 4)) MiB). Medians of $rounds rounds (peers: one)."
    echo
    echo "| | read Mbit/s | of iperf3 | write + fsync Mbit/s | of iperf3 | CPU s/GiB read, write | peak memory MiB |"
    echo "|---|---|---|---|---|---|---|"
    local what read write cpu peak
    for what in iperf3 gridvfs scp rclone sshfs; do
        read=$(median "$what" read 3) write=$(median "$what" write 3) cpu="" peak=""
        [[ -n $read ]] || continue
        if [[ $what == gridvfs ]]; then
            cpu="$(median gridvfs read 4), $(median gridvfs write 4)"
            peak=$(cut -f 1,5 "$samples" | awk '$2 > max { max = $2 } END { printf "%.1f", max / 1024 }')
        fi
        echo "| $what | $read | $(ratio "$read" "$(median iperf3 read 3)") | $write | $(ratio "$write" "$(median iperf3 write 3)") | $cpu | $peak |"
    done
    echo
    echo "CPU: the mount process and its ssh processes together. Memory: the mount process."
}
table | tee "$results/link.md"
jq -R -s --arg rtt "$rtt" --arg rate "$rate" --argjson size "$size" '{rtt: $rtt, rate: $rate, size_mib: $size,
    samples: [split("\n")[] | select(. != "") | split("\t") | {what: .[0], direction: .[1], mbit_per_second: (.[2] | tonumber),
    cpu_seconds_per_gib: (.[3] | if . == "" then null else tonumber end), peak_kib: (.[4] | if . == "" then null else tonumber end)}]}' \
    "$samples" >"$results/link.json"

# A claim that does not hold is a failure.
missed=""
for direction in read write; do
    got=$(ratio "$(median gridvfs $direction 3)" "$(median iperf3 $direction 3)")
    awk -v got="$got" 'BEGIN { exit !(got >= 0.8) }' || missed+=" $direction $got < 0.8 of iperf3;"
done
worst=$(awk -F '\t' '$5 > max { max = $5 } END { print max + 0 }' "$samples")
((worst <= 65536)) || missed+=" peak memory $worst KiB > 64 MiB;"
if [[ -n $missed ]]; then
    echo "MISSED:$missed"
    exit 1
fi
echo "Goals met: read and write at 0.8 of iperf3 or better, within 64 MiB."
