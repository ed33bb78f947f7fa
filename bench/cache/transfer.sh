# shellcheck shell=bash disable=SC2154 # sourced by cache.sh
# Data on its way: random writes that are sent later (row writes), a large file in
# one go with the cache filling (row cold).

WRITES=2048 BLOCK=4096 WRITTEN_MIB=256

pwrites() { # ours|reference SEED
    local file=$mnt/data
    [[ $1 == ours ]] || file=$disk/local
    # Nothing else is to wait for the disk.
    sync
    "$programs/gridvfs-pwrites" --count "$WRITES" --block "$BLOCK" --seed "$2" "$file" >"$work/writes.$1.json" ||
        die "gridvfs-pwrites failed"
}

row_writes() {
    local round seed sent
    row writes "8 MB of random 4 KiB writes into 256 MB, then fsync" s "local file" "<=1.3"
    row writes-sent "bytes on the link for them" bytes "dirty bytes" "<=1.1"
    head -c "${WRITTEN_MIB}M" /dev/urandom >"$disk/local"
    cp "$disk/local" "$work/far/data"
    # Sent when this says so.
    mount_far "cache_dir=$disk/cache,write_policy=write-back,consistency=dedicated,writeback_delay=3600,writeback_age=3600"
    for ((round = 1; round <= rounds; round++)); do
        seed=$((round * 1000 + RANDOM))
        in_turns "$round" pwrites "$seed"
        sample writes "$(jq .seconds "$work/writes.ours.json")" "$(jq .seconds "$work/writes.reference.json")"
        detail writes "fsync s: ours" "$(jq .fsync_seconds "$work/writes.ours.json")"
        detail writes "local" "$(jq .fsync_seconds "$work/writes.reference.json")"
        sent=$(status_of .link.sent_bytes)
        (($(status_of .cache.unsent_bytes) == WRITES * BLOCK)) ||
            die "$(status_of .cache.unsent_bytes) bytes are unsent: the writes are $((WRITES * BLOCK))"
        timed "$gridvfs" writeback "$mnt" >"$work/words.writeback"
        sample writes-sent $(($(status_of .link.sent_bytes) - sent)) $((WRITES * BLOCK))
        detail writes-sent "write-back s" "$(calc "$took / 1e6")"
        compared "$work/far/data" "$disk/local" "after write-back"
    done
    unmount
}

row_cold() {
    local round carried
    row cold-read "cold sequential read of $size MiB, the cache filling" Mbit/s "iperf3" ">=0.8"
    row cold-write "sequential write of $size MiB with fsync" Mbit/s "iperf3" ">=0.8"
    row cold-memory "the mount process's most memory in these" MiB "" "<=64" most
    head -c "${size}M" /dev/urandom >"$work/far/data"
    ln "$work/far/data" "$work/near/data"
    for ((round = 1; round <= rounds; round++)); do
        carried=$(limit "$size" -R)
        read_cold "$size" data
        sample cold-read "$(mbit "$size" "$took")" "$carried"
        detail cold-read "CPU s a GiB, ssh's too" "$cpu"
        sample cold-memory "$(calc "$peak / 1024")"
        carried=$(limit "$size")
        write_cold "$size" data
        sample cold-write "$(mbit "$size" "$took")" "$carried"
        detail cold-write "CPU s a GiB, ssh's too" "$cpu"
        sample cold-memory "$(calc "$peak / 1024")"
    done
}
