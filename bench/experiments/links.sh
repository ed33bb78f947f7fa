#!/usr/bin/env bash
# The same work on links of different round trip and rate: what the model (docs/performance.md) is
# found with, and what it is checked against.
# shellcheck disable=SC2154,SC2034 # set by lib.sh and parts.sh, or for workloads.sh
set -euo pipefail
experiment=links
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=../parts.sh
. "$here/parts.sh"
# shellcheck source-path=SCRIPTDIR source=../workloads.sh
. "$here/workloads.sh"

# NAME PART RTT RATE, and the last two again in ms and Mbit/s. The model goes by the names LAN and WAN.
LINKS=(
    "LAN lan 170us 1gbit 0.17 1000"
    "WAN wan 32ms 1gbit 32 1000"
    "100ms far 100ms 1gbit 100 1000"
    "100Mbit/s slow 32ms 100mbit 32 100"
)

parts() { # FULL
    local line name of rtt rate
    for line in "${LINKS[@]}"; do
        read -r name of rtt rate _ <<<"$line"
        part "$of" "$name: $rtt, $rate" 60 5 root fio disk:2048 memory:2048
    done
}
mount_it() {
    mount_far "cache_dir=$disk/cache,consistency=dedicated,write_policy=write-back"
    # Its further channels log in in the background.
    sleep 1
}
unmount_it() { unmount; }
drop_own() { rm -rf "$disk/cache"; }

# measured WHAT DIRECTION COMMAND...: DIRECTION is that of most bytes.
measured() {
    local what=$1 way=$2 before
    before=$(carried "$way")
    "${@:3}"
    sample "$series" "$what" time s "$(seconds "$took")"
    sample "$series" "$what" "bytes over the link" MiB "$(calc "($(carried "$way") - $before) / 1048576")"
}
run_part() {
    local line name of rtt rate rtt_ms rate_mbit
    for line in "${LINKS[@]}"; do
        read -r name of rtt rate rtt_ms rate_mbit <<<"$line"
        [[ $of != "$1" ]] || break
    done
    link_up "$rtt" "$rate" "$folder"
    series=$name
    sample "$series" link "round trip" ms "$rtt_ms"
    sample "$series" link rate Mbit/s "$rate_mbit"
    note "" "consistency=dedicated, write_policy=write-back; cold and warm as in peers"
    large_files
    small_files
    cold
    measured "read, cold" b_to_a read_large
    again
    measured "read, warm" b_to_a read_large
    unmount_it
    cold
    measured "$RANDOM_READS random reads, cold" b_to_a read_randomly
    unmount_it
    cold
    measured "tree, cold" b_to_a read_tree "$mnt"
    again
    measured "tree, warm" b_to_a read_tree "$mnt"
    unmount_it
    cold
    measured "write, until on the server" a_to_b write_large
    measured "8 MiB of random writes, until on the server" a_to_b write_randomly
}

main "$@"
