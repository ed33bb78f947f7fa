#!/usr/bin/env bash
# Cost against work: time, calls, CPU time and memory against file size, number of files, dirty data,
# cache size, number of sessions, round trip, rate and stripes; and what the link itself takes for it,
# by iperf3 in the same repetition. Each figure is a metric of its own, "… by NAME (UNIT)".
# shellcheck disable=SC2154 # set by lib.sh and parts.sh
set -euo pipefail
experiment=cost
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=../parts.sh
. "$here/parts.sh"
# shellcheck source-path=SCRIPTDIR source=../cache/names.sh
. "$here/cache/names.sh"

parts() { # FULL
    local repeats=3 needs=(root iperf3 memory:1024 disk:1024)
    [[ -z $1 ]] || repeats=5
    part file-size "one file of 1 to 256 MiB" 20 "$repeats" "${needs[@]}"
    part files "10 to 1,000 small files" 20 "$repeats" "${needs[@]}"
    part dirty "1 to 64 MiB of random writes" 12 "$repeats" "${needs[@]}"
    part cache-size "a cache of a quarter to twice the working set" 20 "$repeats" "${needs[@]}" fio
    part sessions "1 to 8 sessions at once" 20 "$repeats" "${needs[@]}"
    part rtt "round trips of 1 to 100 ms" 25 "$repeats" "${needs[@]}"
    part rate "rates of 100 to 1,000 Mbit/s" 15 "$repeats" "${needs[@]}"
    part stripes "1 to 8 stripes" 15 "$repeats" "${needs[@]}"
}

# --- Measuring ------------------------------------------------------------------------------

WRITE_BACK=write_policy=write-back,consistency=dedicated,writeback_delay=3600,writeback_age=3600

# Sets `took` (µs), `calls` and `cpu` (seconds, of the mount and its ssh processes).
measured() { # COMMAND...
    local before_calls before_ticks
    before_calls=$(status_of .link.calls) before_ticks=$(ticks "$pid")
    timed "$@"
    calls=$(($(status_of .link.calls) - before_calls))
    cpu=$(calc "($(ticks "$pid") - $before_ticks) / $(getconf CLK_TCK)")
}
# Tells what `measured` has found. FIGURE: what the x axis is.
tell() { # SERIES X FIGURE
    sample "$1" "$2" "time by $3" s "$(seconds "$took")"
    sample "$1" "$2" "calls by $3" calls "$calls"
    sample "$1" "$2" "CPU time by $3" s "$cpu"
}
# What the link takes for so many MiB, at the rate that `limit` told.
tell_link() { # X FIGURE MIB MBIT [read|written]
    sample "the link${5:+, $5}" "$1" "time by $2" s "$(calc "$3 * 8.388608 / $4")"
}
read_all() { dd if="$mnt/$1" of=/dev/null bs=1M; }
write_all() { dd if="$work/near/$1" of="$mnt/$2" bs=1M conv=fsync; }
# A file on the server, and the same to be written.
make_file() { # MIB [NAME]
    head -c "${1}M" /dev/urandom >"$work/far/${2:-$1}"
    ln "$work/far/${2:-$1}" "$work/near/${2:-$1}"
}
# With an empty disk cache, and nothing in the kernel's page cache.
mount_cold() { # OPTIONS [FOLDER]
    rm -rf "$disk/cache"
    forget
    mount_far "cache_dir=$disk/cache${1:+,$1}" "${2-}"
    # Further stripes log in in the background.
    sleep 0.5
}

# --- The figures -----------------------------------------------------------------------------

part_file_size() {
    local figure="file size (MiB)" mib carried_to carried_from
    note "cold read" "file-size: disk cache and kernel's page cache empty of the file; the server's files in its memory"
    note "warm read" "file-size: disk cache filled by the cold read; mounted anew, kernel's page cache dropped"
    note "written, write-through" "file-size: a new file, with fsync, which then is on the server"
    note "written, write-back" "file-size: the same, which then is on the local disk; the sending is in \"dirty\""
    for mib in 1 4 16 64 256; do make_file "$mib"; done
    carried_from=$(limit 64 -R) carried_to=$(limit 64)
    mount_cold ""
    for mib in 1 4 16 64 256; do
        measured read_all "$mib"
        tell "cold read" "$mib" "$figure"
        tell_link "$mib" "$figure" "$mib" "$carried_from" read
    done
    unmount
    forget
    mount_far "cache_dir=$disk/cache"
    for mib in 1 4 16 64 256; do
        measured read_all "$mib"
        tell "warm read" "$mib" "$figure"
    done
    for mib in 1 4 16 64; do
        measured write_all "$mib" written
        tell "written, write-through" "$mib" "$figure"
        tell_link "$mib" "$figure" "$mib" "$carried_to" written
        compared "$work/far/written" "$work/near/$mib" file-size
    done
    unmount
    mount_cold "$WRITE_BACK"
    for mib in 1 4 16 64; do
        measured write_all "$mib" "written$mib"
        tell "written, write-back" "$mib" "$figure"
        # What is never sent costs the other figures nothing.
        rm "$mnt/written$mib"
    done
    unmount
}

part_files() {
    local figure="number of files" number far=$work/far
    note "cold read" "files: 5 to 15 KiB each, read by tar; disk cache and kernel's page cache empty; dedicated"
    note "warm read" "files: again after umount, mount and drop_caches"
    note "created" "files: the same tree unpacked by tar --no-same-owner, write-back"
    note "sent" "files: then sent by gridvfs writeback"
    for number in 10 100 1000; do
        DIRECTORIES=$(((number + 49) / 50))
        FILES=$((number / DIRECTORIES))
        mkdir -p "$far/$number" "$work/near/$number"
        make_tree "$far/$number/tree"
        tar -cf "$work/near/$number.tar" -C "$far/$number" tree
        mount_cold "$WRITE_BACK" "$number"
        measured_tree "$number" "cold read"
        unmount
        forget
        mount_far "cache_dir=$disk/cache,$WRITE_BACK" "$number"
        measured_tree "$number" "warm read"
        mkdir "$mnt/new"
        measured tar --no-same-owner -xf "$work/near/$number.tar" -C "$mnt/new"
        tell created "$number" "$figure"
        measured "$gridvfs" writeback "$mnt" >"$work/words.writeback"
        tell sent "$number" "$figure"
        unmount
        diff -r "$far/$number/tree" "$far/$number/new/tree" >&2 || die "files: what was created is not on the server"
    done
}
measured_tree() { # NUMBER SERIES
    local before_calls before_ticks
    before_calls=$(status_of .link.calls) before_ticks=$(ticks "$pid")
    read_tree "$mnt" "$work/far/$1"
    calls=$(($(status_of .link.calls) - before_calls))
    cpu=$(calc "($(ticks "$pid") - $before_ticks) / $(getconf CLK_TCK)")
    tell "$2" "$1" "number of files"
}

part_dirty() {
    local figure="dirty data (MiB)" mib sent carried
    note "written" "dirty: random 4 KiB writes into a file of 256 MiB that is not cached, and fsync; write-back"
    note "sent" "dirty: then sent by gridvfs writeback, and compared on the server"
    make_file 256 data
    cp "$work/far/data" "$work/near/mirror"
    carried=$(limit 64)
    mount_cold "$WRITE_BACK"
    for mib in 1 4 16 64; do
        measured "$programs/gridvfs-pwrites" --count $((mib * 256)) --seed "$repetition$mib" "$mnt/data" >"$work/words.writes"
        tell written "$mib" "$figure"
        "$programs/gridvfs-pwrites" --count $((mib * 256)) --seed "$repetition$mib" "$work/near/mirror" >"$work/words.writes"
        sent=$(status_of .link.sent_bytes)
        measured "$gridvfs" writeback "$mnt" >"$work/words.writeback"
        tell sent "$mib" "$figure"
        sample sent "$mib" "sent by $figure" MiB "$(calc "($(status_of .link.sent_bytes) - $sent) / 1048576")"
        tell_link "$mib" "$figure" "$mib" "$carried"
        compared "$work/far/data" "$work/near/mirror" dirty
    done
    unmount
}

part_cache_size() {
    local figure="cache size (MiB)" mib misses series="random reads"
    note "$series" "cache-size: 200 reads of 64 KiB, O_DIRECT, at random in a file of 128 MiB that has been read once from end to end; kernel's page cache dropped; options: cache_banks=16"
    make_file 128 data
    for mib in 32 64 96 128 256; do
        mount_cold "cache_size=${mib}M,cache_banks=16"
        read_all data 2>"$work/words.dd"
        forget
        misses=$(status_of .cache.misses)
        measured fio --name=r --filename="$mnt/data" --readonly --rw=randread --bs=64k --direct=1 --ioengine=psync \
            --number_ios=200 --randseed="$repetition" --output="$work/fio.json" --output-format=json
        took=$(jq '.jobs[0].read.runtime * 1000' "$work/fio.json")
        tell "$series" "$mib" "$figure"
        sample "$series" "$mib" "misses by $figure" misses "$(($(status_of .cache.misses) - misses))"
        sample "$series" "$mib" "memory by $figure" MiB "$(calc "$(peak_kib "$pid") / 1024")"
        unmount
    done
}

part_sessions() {
    local figure="sessions at once" count number all=$mnt carried begin reader readers memory used
    note "cold read" "sessions: each reads 32 MiB of its own; a process, a cache and four stripes each; all caches empty; memory and CPU time of all together"
    carried=$(limit 64 -R)
    for ((number = 1; number <= 8; number++)); do
        make_file 32 "$number"
        mkdir "$work/mnt$number"
    done
    for count in 1 2 4 8; do
        local pids=()
        rm -rf "$disk"/cache*
        forget
        for ((number = 1; number <= count; number++)); do
            mnt=$work/mnt$number
            mount_far "cache_dir=$disk/cache$number"
            pids+=("$pid")
        done
        sleep 0.5
        used=$(ticks "${pids[@]}")
        readers=() begin=$(now)
        for ((number = 1; number <= count; number++)); do
            dd if="$work/mnt$number/$number" of=/dev/null bs=1M status=none &
            readers+=($!)
        done
        for reader in "${readers[@]}"; do wait "$reader" || die "a session cannot read"; done
        took=$(($(now) - begin))
        sample "cold read" "$count" "time by $figure" s "$(seconds "$took")"
        tell_link "$count" "$figure" $((32 * count)) "$carried"
        sample "cold read" "$count" "CPU time by $figure" s "$(calc "($(ticks "${pids[@]}") - $used) / $(getconf CLK_TCK)")"
        memory=0
        for pid in "${pids[@]}"; do memory=$((memory + $(peak_kib "$pid"))); done
        sample "cold read" "$count" "memory by $figure" MiB "$(calc "$memory / 1024")"
        for ((number = 1; number <= count; number++)); do
            mnt=$work/mnt$number
            unmount
        done
    done
    mnt=$all
}

# Over the link as it is: a file read and written, small files, and single reads. MIB of the file.
over_link() { # X FIGURE MIB
    local x=$1 figure=$2 mib=$3
    tell_link "$x" "$figure" "$mib" "$(limit "$mib" -R)" read
    tell_link "$x" "$figure" "$mib" "$(limit "$mib")" written
    mount_cold ""
    measured read_all data
    tell "cold read of $mib MiB" "$x" "$figure"
    measured write_all data written
    compared "$work/far/written" "$work/near/data" "$experiment"
    tell "$mib MiB written, write-through" "$x" "$figure"
    rm "$mnt/written"
    measured read_tree "$mnt"
    tell "cold read of 100 files" "$x" "$figure"
    unmount
}
part_rtt() {
    local ms
    note "cold read of 48 MiB" "rtt: 1 Gbit/s; disk cache and kernel's page cache empty; mounted anew at each round trip"
    make_file 48 data
    DIRECTORIES=10 FILES=10 make_tree "$work/far/tree"
    for ms in 1 10 32 100; do
        "$wan" set "$link" --rtt "${ms}ms" >"$work/words.wan"
        over_link "$ms" "round trip (ms)" 48
    done
}
part_rate() {
    local mbit
    note "cold read of 24 MiB" "rate: 32 ms; otherwise as rtt"
    make_file 24 data
    DIRECTORIES=10 FILES=10 make_tree "$work/far/tree"
    for mbit in 100 300 1000; do
        "$wan" set "$link" --rate "${mbit}mbit" >"$work/words.wan"
        over_link "$mbit" "rate (Mbit/s)" 24
    done
}

part_stripes() {
    local figure=stripes stripes carried_from carried_to
    note "cold read of 96 MiB" "stripes: ssh processes, each with a window of 2 MiB; disk cache and kernel's page cache empty; the link's limit by four TCP connections"
    make_file 96 data
    carried_from=$(limit 96 -R) carried_to=$(limit 96)
    for stripes in 1 2 4 8; do
        mount_cold "stripes=$stripes"
        measured read_all data
        tell "cold read of 96 MiB" "$stripes" "$figure"
        measured write_all data written
        compared "$work/far/written" "$work/near/data" stripes
        tell "96 MiB written, write-through" "$stripes" "$figure"
        sample mount "$stripes" "memory by $figure" MiB "$(calc "$(peak_kib "$pid") / 1024")"
        tell_link "$stripes" "$figure" 96 "$carried_from" read
        tell_link "$stripes" "$figure" 96 "$carried_to" written
        rm "$mnt/written"
        unmount
    done
}

run_part() {
    link_up 32ms 1gbit "$folder"
    in_group "part_${1//-/_}"
}

main "$@"
