#!/usr/bin/env bash
# Compute servers clone the same VM at once through one LAN cache (lan.sh): the time until the last is
# done, what crossed the WAN for all of them, and what processor time it took. Nothing is resumed: on a
# machine of few processors, guests under emulation would be all that is measured (clone.sh has that).
# shellcheck disable=SC2154,SC2034 # set by lib.sh and parts.sh
set -euo pipefail
experiment=fleet
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=../parts.sh
. "$here/parts.sh"
# shellcheck source-path=SCRIPTDIR source=../cloning.sh
. "$here/cloning.sh"
# shellcheck source-path=SCRIPTDIR source=../lan.sh
. "$here/lan.sh"

parts() { # FULL
    local count counts=(1 2 4 8) repeats=3
    [[ -z $1 ]] || counts+=(16) repeats=5
    for count in "${counts[@]}"; do
        part "at-once-$count" "clones at once through one LAN cache: $count" $((12 + 2 * count)) "$repeats" \
            root ip nsenter "${CLONE_NEEDS[@]}"
    done
}
run_part() {
    local count=${1#at-once-} how
    golden_needed 1
    link_up 32ms 1gbit "$folder"
    golden_up "${vms[0]}"
    lan_up "$count" "$work/far/golden"
    fleet_up "$count"
    for how in cold warm; do
        fleet_clone "$count"
        sample "$how" "$count" time s "$took"
        sample "$how" "$count" "bytes over the WAN" MiB "$(mib "$bytes")"
        sample "$how" "$count" "processor time" s "$spent"
        sample "$how" "$count" processors processors "$(nproc)"
    done
    fleet_down "$count"
    note "" "cold: caches of the proxy and of all sessions are empty; warm: the same sessions again; all of them share this machine's processors and disk; no delay on the LAN"
}

main "$@"
