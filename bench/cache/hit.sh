# shellcheck shell=bash disable=SC2154 # sourced by cache.sh
# Reads of a file that is all in the cache: through the mount against a FUSE program
# that does nothing but one pread for a read (row hit), and by the kernel itself
# against the local file system (row passthrough).

HIT_MIB=512

# Copies the server's file into the cache, and makes sure that it is all there.
warmed() { # FILE
    "$gridvfs" cache warm "$mnt" "$mnt/$1" >"$work/words.warm" 2>&1 || die "cache warm: $(tail -n 2 "$work/words.warm")"
    cmp "$mnt/$1" "$disk/local" || die "the file in the mount is another"
    misses=$(status_of .cache.misses)
}
still_warm() { (($(status_of .cache.misses) == misses)) || die "reads missed the cache: nothing was measured"; }

# read_by FIO_ARGUMENTS...: sets `iops`, `mib` (a second) and `reads` for what fio reads.
read_by() {
    fio --name=hit --readonly --randrepeat=1 --norandommap --allow_file_create=0 --size="${HIT_MIB}m" \
        --output-format=json --output="$work/fio.json" "$@" >"$work/fio.words" 2>&1 ||
        die "fio: $(tail -n 2 "$work/fio.words")"
    read -r iops mib reads < <(jq -r '.jobs[0].read | "\(.iops) \(.bw_bytes / 1048576) \(.total_ios)"' "$work/fio.json")
}

# Adds what a slice did to totals of its side: rate[], cpu[] and slices[].
hit_slice() { # ours|reference FIELD DROP FIO_ARGUMENTS...
    local side=$1 field=$2 drop=$3 file=$mnt/data server=$pid before rate
    shift 3
    [[ $side == ours ]] || file=$work/bare/data server=$bare_pid
    [[ -z $drop ]] || forget
    before=$(cpu_ns "$server")
    read_by --filename="$file" "$@"
    rate=$iops
    [[ $field == iops ]] || rate=$mib
    rates[$side]=$(calc "${rates[$side]:-0} + $rate / $HIT_SLICES")
    cpus[$side]=$(calc "${cpus[$side]:-0} + ($(cpu_ns "$server") - $before) / 1000 / $reads / $HIT_SLICES")
}
# Within a round A, B, B, A and so on: what drifts, drifts for both. A slice is too short to be told
# from what else a virtual machine's host does.
HIT_SLICES=6
hit_round() { # ROW ROUND FIELD DROP FIO_ARGUMENTS...
    local row=$1 round=$2 slice
    shift 2
    local -A rates=() cpus=()
    for ((slice = 0; slice < HIT_SLICES; slice++)); do
        in_turns $((round + slice)) hit_slice "$@"
    done
    sample "$row" "${rates[ours]}" "${rates[reference]}"
    detail "$row" "CPU us a read: ours" "${cpus[ours]}"
    detail "$row" "bare" "${cpus[reference]}"
}

row_hit() {
    local random=(--rw=randread --bs=4k --direct=1 --time_based --runtime="$seconds")
    row hit-random-1 "4 KiB random O_DIRECT reads, one at a time" reads/s "bare FUSE" ">=0.90"
    row hit-random-16 "4 KiB random O_DIRECT reads, 16 at a time (libaio)" reads/s "bare FUSE" ">=0.90"
    row hit-direct-1m "1 MiB sequential O_DIRECT reads" MiB/s "bare FUSE" ">=0.90"
    row hit-buffered "128 KiB sequential reads, the mount's pages dropped" MiB/s "bare FUSE" ">=0.90"
    row hit-dropped "the same after drop_caches: the disk reads" MiB/s "bare FUSE" ">=0.90"
    head -c "${HIT_MIB}M" /dev/urandom >"$disk/local"
    cp "$disk/local" "$work/far/data"
    # What may be written is not put into passthrough; off all the same.
    chmod 644 "$work/far/data"
    mount_far "cache_dir=$disk/cache,passthrough=off"
    warmed data
    mkdir "$work/bare"
    "$programs/gridvfs-bare" "$disk/local" "$work/bare" 2>"$work/bare.words" &
    bare_pid=$!
    started "$bare_pid"
    local tries=0 round
    until [[ -e $work/bare/data ]]; do
        ((tries++ < 100)) || die "gridvfs-bare does not serve: $(cat "$work/bare.words")"
        sleep 0.05
    done
    cmp "$work/bare/data" "$disk/local" || die "gridvfs-bare serves another file"
    for ((round = 1; round <= rounds; round++)); do
        hit_round hit-random-1 "$round" iops "" --ioengine=psync "${random[@]}"
        hit_round hit-random-16 "$round" iops "" --ioengine=libaio --iodepth=16 "${random[@]}"
        hit_round hit-direct-1m "$round" mib "" --ioengine=psync --rw=read --bs=1m --direct=1
        # fio drops the pages of its file first, which here are the mount's.
        hit_round hit-buffered "$round" mib "" --ioengine=psync --rw=read --bs=128k --invalidate=1
        hit_round hit-dropped "$round" mib drop --ioengine=psync --rw=read --bs=128k --invalidate=1
    done
    still_warm
    fusermount3 -u "$work/bare"
    wait "$bare_pid" || true
    unmount
}

pass_slice() { # ours|reference FIELD FIO_ARGUMENTS...
    local side=$1 field=$2 file=$mnt/data rate
    shift 2
    [[ $side == ours ]] || file=$disk/local
    read_by --filename="$file" "$@"
    rate=$iops
    [[ $field == iops ]] || rate=$mib
    rates[$side]=$(calc "${rates[$side]:-0} + $rate / 2")
}
pass_round() { # ROW ROUND FIELD FIO_ARGUMENTS...
    local row=$1 round=$2
    shift 2
    local -A rates=()
    in_turns "$round" pass_slice "$@"
    in_turns $((round + 1)) pass_slice "$@"
    sample "$row" "${rates[ours]}" "${rates[reference]}"
}

# The first open of a file that is all there has a whole copy of it made; the kernel is given that
# at the first open after it is done. Sets `before`, the reads that the mount was asked for.
PASS_TRIES=200
passed_through() {
    local tries
    for ((tries = 0; tries < PASS_TRIES; tries++)); do
        before=$(status_of .requests.read)
        # Past the pages that the comparison left.
        dd if="$mnt/data" of=/dev/null bs=1M count=1 iflag=direct status=none
        (($(status_of .requests.read) > before)) || return 0
        sleep 0.1
    done
    return 1
}

row_passthrough() {
    local before round row
    row pass-random "passthrough: 4 KiB random reads, one at a time" reads/s "local file" ">=0.95"
    row pass-sequential "passthrough: 1 MiB sequential reads" MiB/s "local file" ">=0.95"
    head -c "${HIT_MIB}M" /dev/urandom >"$disk/local"
    cp "$disk/local" "$work/far/data"
    chmod 444 "$work/far/data"
    mount_far "cache_dir=$disk/cache"
    warmed data
    if ! passed_through; then
        for row in pass-random pass-sequential; do
            skip "$row" "the kernel still asks the mount for each read: it has no FUSE passthrough, or refuses it"
        done
        unmount
        return
    fi
    for ((round = 1; round <= rounds; round++)); do
        pass_round pass-random "$round" iops --ioengine=psync --rw=randread --bs=4k --time_based --runtime="$seconds" --invalidate=0
        pass_round pass-sequential "$round" mib --ioengine=psync --rw=read --bs=1m --invalidate=0
    done
    (($(status_of .requests.read) == before)) || die "the mount was asked to read: this was no passthrough"
    unmount
}
