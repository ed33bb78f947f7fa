#!/usr/bin/env bash
# The paper's Figure 6 and Table 2: clones of suspended Debians (320 MB of memory, a disk of 1.6 GB)
# under QEMU's own CPU emulation, from the start of the clone to the guest's first answer: on local
# disk; over the WAN the same VM again and again (WAN-S1), different ones (WAN-S2), different ones that
# a LAN cache has (WAN-S3), eight at once (WAN-P); beside them scp of the whole state, and reading on
# demand without metadata.
# shellcheck disable=SC2154,SC2034 # set by lib.sh and parts.sh, or for lan.sh
set -euo pipefail
experiment=clone
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=../parts.sh
. "$here/parts.sh"
# shellcheck source-path=SCRIPTDIR source=../cloning.sh
. "$here/cloning.sh"

CLONES=8
# Different VMs, for WAN-S2 and WAN-S3: each takes a minute to make, once, and 2 GiB of disk.
DIFFERENT=4 DIFFERENT_FULL=8

parts() { # FULL
    local repeats=3 needs=(root "${CLONE_NEEDS[@]}")
    [[ -z $1 ]] || repeats=5
    part local "Local: eight clones in sequence" 15 "$repeats" "${needs[@]}"
    part wan-s1 "WAN-S1: eight clones of one VM in sequence" 20 "$repeats" "${needs[@]}"
    part wan-s1-cold "WAN-S1: eight clones of one VM, each with empty caches" 50 "$repeats" "${needs[@]}"
    different_parts "$DIFFERENT" ""
    [[ -z $1 ]] || different_parts "$DIFFERENT_FULL" -full
    part wan-p "WAN-P: eight compute servers clone at once, cold and warm" 50 "$repeats" "${needs[@]}"
    part scp "scp of the whole state, and a local clone of it" 50 3 "${needs[@]}"
    part plain "a clone that reads on demand, without metadata" 15 "$repeats" "${needs[@]}"
}

different_parts() { # COUNT SUFFIX
    part "wan-s2$2" "WAN-S2: clones of $1 different VMs in sequence" $((10 + 5 * $1)) "$repeats" "${needs[@]}"
    part "wan-s3$2" "WAN-S3: clones of $1 different VMs that a LAN cache has" $((20 + 8 * $1)) "$repeats" "${needs[@]}" ip nsenter
}

told() { # NUMBER
    sample "$series" "$1" time s "$took"
    sample "$series" "$1" "bytes over the WAN" MiB "$(mib "$bytes")"
}
total() { # cold|warm SECONDS
    sample "$series" "$1" "total of $CLONES" s "$2"
}
mount_golden() {
    mount_far "cache_dir=$disk/cache,consistency=read-only-shared"
    # Its further channels log in in the background.
    sleep 1
}
# Programs, firmware and what QEMU needs are in memory, as when another clone was made before.
programs_in_memory() {
    forget
    local_clone
}
# clones FROM...: in sequence; adds up `all` (s).
clones() {
    local from number=0
    all=0
    for from; do
        clone_and_ask "$from"
        told "$((++number))"
        all=$(calc "$all + $took")
    done
}
many() { yes "$1" | head -n "$CLONES"; } # WORD

part_local() {
    series=Local
    local from
    programs_in_memory
    mapfile -t from < <(many "$disk/golden")
    clones "${from[@]}"
    total warm "$all"
    note "$series" "golden VM, programs and firmware are in the page cache"
}
part_wan_s1() {
    local from number
    series=WAN-S1
    programs_in_memory
    mount_golden
    mapfile -t from < <(many "$mnt/golden")
    clones "${from[@]}"
    note "$series" "with metadata (zero map, block hashes, compressed memory); own cache empty before the first clone; programs and firmware in the page cache"
    # All but the first found the caches warm.
    unmount
    mount_golden
    all=0
    for ((number = 1; number <= CLONES; number++)); do
        clone_and_ask "$mnt/golden"
        all=$(calc "$all + $took")
    done
    total warm "$all"
    unmount
}
part_wan_s1_cold() {
    local number
    series=WAN-S1 all=0
    for ((number = 1; number <= CLONES; number++)); do
        rm -rf "$disk/cache"
        programs_in_memory
        mount_golden
        clone_and_ask "$mnt/golden"
        all=$(calc "$all + $took")
        unmount
    done
    total cold "$all"
}
different_vms() { # COUNT
    local number
    for ((number = 1; number < $1; number++)); do
        cp --sparse=always --preserve=timestamps -rH "${vms[number]}" "$work/far/golden$number"
    done
    mv "$work/far/golden" "$work/far/golden0"
    note "$series" "$1 different VMs: one base, booted apart, the second with further packages, the others with a file of 8 MiB and another name"
}
part_wan_s2() { # COUNT NAME
    series="WAN-S2${2:+, $2}"
    different_vms "$1"
    programs_in_memory
    mount_golden
    clones "$mnt"/golden*
    unmount
}
part_wan_s3() { # COUNT NAME
    local from
    series="WAN-S3${2:+, $2}"
    # shellcheck source-path=SCRIPTDIR source=../lan.sh
    . "$here/lan.sh"
    different_vms "$1"
    lan_up 2 "$work/far"
    proxy_start
    # Another compute server has cloned them before.
    session_start 2
    for from in "$work/session2/mnt"/golden*; do clone_and_ask "$from"; done
    session_end 2
    programs_in_memory
    session_start 1
    clones "$work/session1/mnt"/golden*
    session_end 1
    proxy_stop
    note "$series" "the LAN is a pair of virtual interfaces: no delay is emulated on it"
}
at_session() { # NUMBER COMMAND...: with its mount point in place of ours
    local mnt=$work/session$1/mnt
    "${@:2}"
}
# A clone of its own of session NUMBER's mount, to the answer.
clone_at_once() { # NUMBER
    local own=$work/session$1 place=$disk/clones/$1 guest
    rm -rf "$place"
    "$gridvfs" clone "$own/mnt/golden" "$place" --name "clone$1" --json >/dev/null
    "$place/start" </dev/null >"$own/guest" 2>&1 &
    guest=$!
    started "$guest"
    "$programs/gridvfs-ask" --timeout 600 "$place/shell.sock" >/dev/null
    printf '%s\n' "${EPOCHREALTIME/[.,]/}" >"$own/answered"
    kill "$guest"
    wait "$guest" 2>/dev/null || true
}
part_wan_p() {
    local number how begin before pids
    series=WAN-P
    programs_in_memory
    for ((number = 1; number <= CLONES; number++)); do
        mkdir -p "$work/session$number/mnt"
        at_session "$number" mount_far "cache_dir=$disk/cache$number,consistency=read-only-shared"
    done
    sleep 1
    for how in cold warm; do
        before=$(carried) begin=$(now) pids=()
        for ((number = 1; number <= CLONES; number++)); do
            clone_at_once "$number" 2>"$work/session$number/words" &
            pids+=($!)
        done
        for number in "${pids[@]}"; do wait "$number" || die "a clone failed: $(cat "$work"/session*/words | tail -n 3)"; done
        total "$how" "$(calc "($(cat "$work"/session*/answered | sort -n | tail -n 1) - $begin) / 1e6")"
        sample "$series" "$how" "bytes over the WAN for $CLONES" MiB "$(mib $(($(carried) - before)))"
    done
    for ((number = 1; number <= CLONES; number++)); do at_session "$number" unmount; done
    note "$series" "eight sessions with caches of their own on one machine of $(nproc) processors: their guests wait for each other"
}
part_scp() {
    series="scp, then local"
    programs_in_memory
    clone_and_ask "$disk/copy" scp_golden
    told 1
}
part_plain() {
    series="on demand, no metadata"
    programs_in_memory
    mount_golden
    clones "$mnt/golden" "$mnt/golden"
    unmount
}

run_part() {
    local count=1 how="" name=${1%-full}
    case $1 in
        wan-s2 | wan-s3) count=$DIFFERENT ;;
        wan-s2-full | wan-s3-full) count=$DIFFERENT_FULL how="$DIFFERENT_FULL VMs" ;;
    esac
    golden_needed "$count"
    link_up 32ms 1gbit "$folder"
    case $name in
        scp | plain) golden_up "$golden" ;;
        *) golden_up "${vms[0]}" ;;
    esac
    "part_${name//-/_}" "$count" "$how"
}

main "$@"
