# shellcheck shell=bash disable=SC2154,SC2034 # sourced by experiments that have a link up
# What is done on a mount, whoever has mounted it: large files, random reads and writes, a tree of
# small files. Sourced after parts.sh, by one that defines
#
#   mount_it     mounts the server's folder at $mnt, and sets `pid`
#   unmount_it   ends the mount when all data is on the server
#   drop_own     empties the mount's own cache
#
# Cold is: own cache empty, the kernel's dropped, a new mount. Warm is: a new mount with the own
# cache of the last. The server's files are in its memory, always.

# shellcheck source-path=SCRIPTDIR source=cache/names.sh
. "$root/bench/cache/names.sh"

# MiB of a large file; how many random reads; random writes (of 4 KiB: 8 MiB).
LARGE_MIB=${GRIDVFS_BENCH_LARGE_MIB:-128} RANDOM_READS=${GRIDVFS_BENCH_READS:-100} WRITES=2048

# Files for the server and for us: the same in each run.
make_large() { head -c "${LARGE_MIB}M" /dev/urandom >"$1/large"; }
large_files() {
    kept "large-$LARGE_MIB" make_large
    cp "$place/large" "$work/far/large"
    ln "$work/far/large" "$work/near/large"
}
rate_of() { calc "$LARGE_MIB / ($took / 1e6)"; } # MiB/s
cold() {
    drop_own
    forget
    mount_it
}
again() {
    unmount_it
    mount_it
}

read_large() { timed dd if="$mnt/large" of=/dev/null bs=1M; }
# Reads of 4 KiB at places that are the same for all; sets `took`.
read_randomly() {
    fio --name=random --readonly --rw=randread --bs=4k --size="${LARGE_MIB}m" --number_ios="$RANDOM_READS" \
        --randseed="$repetition" --ioengine=psync --invalidate=1 --allow_file_create=0 --filename="$mnt/large" \
        --output-format=json --output="$work/fio.json" >"$work/fio.words" 2>&1 || die "fio: $(tail -n 2 "$work/fio.words")"
    took=$(jq '.jobs[0].read.runtime * 1000' "$work/fio.json")
    (($(jq '.jobs[0].read.total_ios' "$work/fio.json") == RANDOM_READS)) || die "fio made other reads"
}
# A new file, until it is on the server; sets `took`, and `work_ticks` of the mount in it.
write_large() {
    local begin before
    before=$(ticks "$pid")
    begin=$(now)
    dd if="$work/near/large" of="$mnt/written" bs=1M conv=fsync 2>"$work/dd.words" || die "$(tail -n 1 "$work/dd.words")"
    work_ticks=$(($(ticks "$pid") - before))
    unmount_it
    took=$(($(now) - begin))
    compared "$work/far/written" "$work/far/large" "$series"
    rm "$work/far/written"
}
# Writes of 4 KiB into a file that is there, and fsync; sets `took` until the data is on the server,
# `answered` until the application goes on (microseconds), and `sent` (bytes over the link).
write_randomly() {
    local before begin
    cp "$work/near/large" "$work/far/target"
    cp "$work/near/large" "$work/near/target"
    "$programs/gridvfs-pwrites" --count "$WRITES" --seed "$repetition" "$work/near/target" >/dev/null
    cold
    before=$(carried a_to_b) begin=$(now)
    "$programs/gridvfs-pwrites" --count "$WRITES" --seed "$repetition" "$mnt/target" >"$work/writes.json" ||
        die "the random writes failed"
    answered=$(($(now) - begin))
    unmount_it
    took=$(($(now) - begin))
    sent=$(($(carried a_to_b) - before))
    compared "$work/far/target" "$work/near/target" "$series"
    rm "$work/far/target" "$work/near/target"
}
# small_files: the tree of names.sh, on the server.
make_small() { make_tree "$1/tree"; }
small_files() {
    kept "small-$FILES" make_small
    cp -a "$place/tree" "$work/far/tree"
}
