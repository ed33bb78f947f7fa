#!/usr/bin/env bash
# Cloning a suspended VM over the emulated link: the time from the start of the clone to
# the guest's first answer, and the bytes that crossed the link for it, against a local
# clone and against what one would do without GridVFS. The guest is a Debian of 320 MB
# memory and a 1.6 GB disk (bench/guest/debian.sh), under QEMU's own CPU emulation.
#
# Prints a table and leaves it, with every figure as JSON, in bench/results. A missed
# goal is an exit status of 1. What this build does not have (metadata, profiles) is
# skipped, and said.
set -euo pipefail

ROWS=(meta peers first other boot)

usage() {
    cat <<'USAGE'
usage: clone.sh [--rows NAME,...] [--rounds N] [--golden DIR] [--other DIR]
                [--disk DIR] [--rtt DELAY] [--rate RATE]
  --rows         some of: meta peers first other boot
  --rounds 3     the table has medians
  --golden DIR   a suspended VM of bench/guest/suspend.sh (default: a Debian, made if missing)
  --other DIR    another one from the same base (the same)
  --disk DIR     where clones, caches and local copies are (default: /var/tmp)
  --rtt 32ms     round trip          --rate 1gbit  capacity of the link
USAGE
}

rows="" rounds=3 golden="" other="" folder=/var/tmp rtt=32ms rate=1gbit
while (($#)); do
    case $1 in
        --rows) rows=${2:?}; shift 2 ;;
        --rounds) rounds=${2:?}; shift 2 ;;
        --golden) golden=$(realpath "${2:?}"); shift 2 ;;
        --other) other=$(realpath "${2:?}"); shift 2 ;;
        --disk) folder=$(realpath "${2:?}"); shift 2 ;;
        --rtt) rtt=${2:?}; shift 2 ;;
        --rate) rate=${2:?}; shift 2 ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
[[ $rounds =~ ^[1-9][0-9]*$ ]] || { usage >&2; exit 2; }
IFS=, read -r -a chosen <<<"${rows:-$(IFS=,; echo "${ROWS[*]}")}"
for row in "${chosen[@]}"; do
    [[ " ${ROWS[*]} " == *" $row "* ]] || { echo "clone: no row $row: ${ROWS[*]}" >&2; exit 2; }
done

bench='clone'
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"
# shellcheck source-path=SCRIPTDIR source=rows.sh
. "$here/rows.sh"
# shellcheck source-path=SCRIPTDIR source=cloning.sh
. "$here/cloning.sh"

wants() { [[ " ${chosen[*]} " == *" $1 "* ]]; }

needs qemu-system-x86_64 qemu-img zstd
[[ -x $programs/gridvfs-ask ]] || die "not built: run \`make build\`"
golden=${golden:-$(make_golden debian)}
if wants other && [[ -z $other ]]; then
    other=$(make_golden debian-other --add "${goldens%/*}/guest-debian/other.tar")
fi

link_up "$rtt" "$rate" "$folder"
cp --sparse=always -rH "$golden" "$work/far/golden"
if wants other; then cp --sparse=always -rH "$other" "$work/far/other"; fi
# What is built on the server: without it, reads are plain ones.
metadata=without
if has meta build; then
    metadata=with
    meta_build "$work/far/golden"
    if wants other; then meta_build "$work/far/other"; fi
fi

# --- Measuring ---------------------------------------------------------------------------

# One that is not counted: programs and the golden VM are in the page cache then.
warm() { local_clone; }

mount_golden() {
    # Nobody changes a golden VM.
    mount_far "cache_dir=$disk/cache,consistency=read-only-shared"
    # Its further channels log in in the background: by whatever shell the account has.
    sleep 1
}
kept() { # NAME: the figure that another row has left, or nothing
    jq -s --arg name "$1" '[.[] | select(.kind == "kept" and .name == $name) | .value] | sort | .[length / 2 | floor] // empty' "$work/lines"
}
keep() { line kept "$1" --arg name "$1" --argjson value "$2"; }

# --- Rows ----------------------------------------------------------------------------------

# What the page cache has of a file goes.
evict() { dd if="$1" iflag=nocache count=0 status=none; }
# meta_speed ROW FILE COMMAND...: how fast one core makes the metadata of a file, against reading it;
# COMMAND goes before each.
meta_speed() {
    local row=$1 file=$2 begin read built size
    shift 2
    size=$(stat -c %s "$file")
    "$@"
    begin=$(now)
    taskset -c 0 dd if="$file" of=/dev/null bs=1M status=none
    read=$(($(now) - begin))
    "$@"
    begin=$(now)
    taskset -c 0 "$gridvfs" meta build --zero --hash "$file" >"$work/words.meta" 2>&1 ||
        die "meta build: $(tail -n 1 "$work/words.meta")"
    built=$(($(now) - begin))
    sample "$row" "$(calc "$size / $built")" "$(calc "$size / $read")"
}
row_meta() {
    local round file=$disk/dense
    row meta "meta build --zero --hash of 1 GiB without zeros on disk, on one core" MB/s "sequential read" ">=0.8"
    row meta-cached "the same file in the page cache" MB/s "sequential read" ""
    row meta-memory "the same of the VM's memory, in the page cache" MB/s "sequential read" ""
    has meta build || { skip meta "this build has no gridvfs meta"; return; }
    head -c 1G /dev/urandom >"$file"
    sync "$file"
    for ((round = 1; round <= rounds; round++)); do
        meta_speed meta "$file" evict "$file"
        meta_speed meta-cached "$file" true
        meta_speed meta-memory "$work/far/golden/memory" true
    done
    rm -f "$file"
    meta_build "$work/far/golden"
}

tar_all() {
    mkdir "$disk/copy"
    # shellcheck disable=SC2016 # for the inner shell
    "${near[@]}" bash -c 'ssh -F "$1" gvhost "tar -C $2 -S -c golden | zstd -3 -T0" | zstd -d | tar -x --strip-components=1 -C "$3"' \
        tar "$config" "$work/far" "$disk/copy"
}
peer() { # NAME GOLDEN [COMMAND...]
    clone_and_ask "${@:2}"
    sample "$1" "$took"
    detail "$1" "MiB over the link" "$(mib "$bytes")"
    keep "$1" "$took"
}
# A peer's mount; what it keeps is dropped first.
mounted_peer() { # NAME
    forget
    case $1 in
        sshfs) mount_sshfs ;;
        rclone) rm -rf "$disk/rclone"; mount_rclone --vfs-cache-mode full --cache-dir "$disk/rclone" ;;
    esac
    peer "$1" "$mnt/golden"
    if [[ $1 == rclone ]]; then peer rclone-again "$mnt/golden"; fi
    fusermount3 -u "$mnt"
}
row_peers() {
    row scp "scp of the whole state, then a local clone" s "" ""
    row tar "tar -S, zstd -3 over ssh, then a local clone" s "" ""
    row sshfs "a clone of what sshfs mounts" s "" ""
    row rclone "a clone of what rclone mounts, --vfs-cache-mode full" s "" ""
    row rclone-again "the same again" s "" ""
    warm
    rm -rf "$disk/copy"
    peer scp "$disk/copy" scp_golden
    rm -rf "$disk/copy"
    peer tar "$disk/copy" tar_all
    rm -rf "$disk/copy"
    for name in sshfs rclone; do
        if command -v "$name" >/dev/null; then mounted_peer "$name"; else skip "$name" "not installed"; fi
    done
}

# What QEMU has read of the memory file, and what the zero map has answered of it, if this
# build tells that: in blocks of 8 KiB, which were a read each where the paper counted.
tell_zeros() {
    local read asked zeros
    read=$(status_of '.metadata.files[]? | select(.path == "golden/memory") | "\(.guided_bytes) \(.zero_bytes)"')
    if [[ -z $read ]]; then
        note first "zero map: this build tells no share of the memory file"
        return
    fi
    read -r asked zeros <<<"$read"
    detail first "memory file: blocks of 8 KiB read (paper: 65,750)" "$((asked / 8192))"
    detail first "memory file: blocks that the zero map answered (paper: 60,452)" "$((zeros / 8192))"
    detail first "memory file: that is (%; paper: 91.9)" "$(calc "100 * $zeros / $asked")"
}

row_first() {
    local round local_time bound needed link_mbit
    row first "first clone, empty cache, to the first answer ($metadata metadata)" s \
        "local + compressed state at link rate + 1 s" "<=1"
    row first-scp "the same" s "scp" "<=0.0667"
    row first-rclone "the same" s "rclone's first" "<=0.2"
    row second "second clone" s "local" "<=1.1"
    row remounted "after a remount" s "local" "<=1.1"
    link_mbit=$("$wan" status "$link" --json | jq '.conditions.rate_bits | if . > 0 then . else 1e12 end')
    needed=$(cat "$golden"/{memory,state,vmlinuz,initrd.img} | zstd -3 -c | wc -c)
    note first "memory, devices, kernel and initrd have $(mib "$needed") MiB after zstd -3"
    warm
    for ((round = 1; round <= rounds; round++)); do
        local_clone
        local_time=$took
        detail first "local clone s" "$took"
        detail first "of it: gridvfs clone s" "$made"
        rm -rf "$disk/cache"
        forget
        # Programs are there again, as when another clone was made an hour ago.
        warm
        mount_golden
        clone_and_ask "$mnt/golden"
        bound=$(calc "$local_time + $needed * 8 / $link_mbit + 1")
        sample first "$took" "$bound"
        detail first "MiB over the link" "$(mib "$bytes")"
        detail first "gridvfs clone s" "$made"
        keep first-bytes "$bytes"
        for peer in scp rclone; do
            if [[ -n $(kept "$peer") ]]; then sample "first-$peer" "$took" "$(kept "$peer")"; fi
        done
        tell_zeros
        clone_and_ask "$mnt/golden"
        sample second "$took" "$local_time"
        detail second "MiB over the link" "$(mib "$bytes")"
        unmount
        mount_golden
        clone_and_ask "$mnt/golden"
        sample remounted "$took" "$local_time"
        detail remounted "MiB over the link" "$(mib "$bytes")"
        unmount
    done
    for peer in scp rclone; do
        if [[ -z $(kept "$peer") ]]; then skip "first-$peer" "the row peers has not run"; fi
    done
}

row_other() {
    local first
    row other "first clone of another VM of the same base: bytes over the link ($metadata metadata)" bytes \
        "the first one's" "<=0.3"
    rm -rf "$disk/cache"
    forget
    warm
    mount_golden
    clone_and_ask "$mnt/golden"
    first=$bytes
    clone_and_ask "$mnt/other"
    sample other "$bytes" "$first"
    detail other "s to the first answer" "$took"
    unmount
}

# boot_clone [GOLDEN]: boots (does not resume) a clone of it, or of the mounted VM, from its disk.
boot_clone() {
    local begin place=$disk/clones/boot
    rm -rf "$place"
    "$gridvfs" clone "${1:-$mnt/golden}" "$place" --memory none --json >"$work/clone.json"
    begin=$(now)
    resume "$place"
    took=$(calc "($answered - $begin) / 1e6")
    rm -rf "$place"
}
row_boot() {
    # The guest's own work, under emulation, is most of a boot: what is compared is what the link adds.
    row boot "boot with an empty cache: what the link adds to a local boot, on demand" s \
        "with a recorded working set" ">=3"
    has profile || { skip boot "this build has no gridvfs profile"; return; }
    local round demand at_home
    local_golden
    boot_clone "$disk/golden"
    for ((round = 1; round <= rounds; round++)); do
        boot_clone "$disk/golden"
        at_home=$took
        "$gridvfs" meta remove "$work/far/golden/disk.raw" >"$work/words.meta" 2>&1 || die "$(tail -n 1 "$work/words.meta")"
        meta_build "$work/far/golden"
        rm -rf "$disk/cache"
        forget
        mount_golden
        boot_clone
        demand=$took
        unmount
        rm -rf "$disk/cache"
        mount_golden
        "$gridvfs" profile start "$mnt" >"$work/words.profile" 2>&1 || die "$(tail -n 1 "$work/words.profile")"
        boot_clone
        "$gridvfs" profile stop "$mnt" --json >"$work/recorded.json" 2>"$work/words.profile" ||
            die "$(tail -n 1 "$work/words.profile")"
        unmount
        # The mount may not write there.
        "$gridvfs" meta build --from-profile "$(jq -r .profile "$work/recorded.json")" \
            "$work/far/golden/disk.raw" >"$work/words.meta" 2>&1 || die "$(tail -n 1 "$work/words.meta")"
        rm -rf "$disk/cache"
        forget
        mount_golden
        boot_clone
        detail boot "ahead of need (MiB)" "$(mib "$(status_of .metadata.ahead_bytes)")"
        unmount
        detail boot "local s" "$at_home"
        detail boot "on demand s" "$demand"
        detail boot "with a recorded working set s" "$took"
        sample boot "$(calc "$demand - $at_home")" "$(calc "($took - $at_home > 0.1 ? $took - $at_home : 0.1)")"
    done
}

between_rows() {
    rm -rf "${disk:?}"/*
    mkdir -p "$disk/clones" "$disk/xdg"
}
between_rows
run_rows
report clone "$(qemu-system-x86_64 --version | head -n 1)" "$(rclone version 2>/dev/null | head -n 1)"
