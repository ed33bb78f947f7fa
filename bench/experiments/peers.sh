#!/usr/bin/env bash
# GridVFS beside what people use instead, on a WAN of 32 ms and 1 Gbit/s: mounts (sshfs, rclone, a
# kernel's NFS client), programs that copy (scp, nfs-cp), and QEMU's own drivers. The same bytes on
# the same link in the same order, through the same SSH server, or an NFS-Ganesha beside it.
# shellcheck disable=SC2154,SC2034 # set by lib.sh and parts.sh, or for workloads.sh
set -euo pipefail
experiment=peers
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=../parts.sh
. "$here/parts.sh"
# shellcheck source-path=SCRIPTDIR source=../workloads.sh
. "$here/workloads.sh"
# shellcheck source-path=SCRIPTDIR source=../cloning.sh
. "$here/cloning.sh"

# Small files: 20 directories with so many each.
TREE=10 TREE_FULL=50

parts() { # FULL
    local room=(disk:2048 memory:2048 fio jq)
    part gridvfs "gridvfs as it mounts by default: large files" 35 5 "${room[@]}"
    part gridvfs-dedicated "gridvfs, one user of the files, write-back: large files" 30 5 "${room[@]}"
    part sshfs "sshfs: large files" 90 3 sshfs "${room[@]}"
    part sshfs-many "sshfs with 4 connections: large files" 90 3 sshfs "${room[@]}"
    part rclone "rclone mount --vfs-cache-mode full: large files" 60 5 rclone "${room[@]}"
    part scp "scp: large files" 25 5 scp "${room[@]}"
    part qemu-ssh "QEMU's ssh driver: large files" 60 3 qemu-img "${room[@]}"
    part qemu-nfs "QEMU's nfs driver (libnfs): large files" 40 3 root qemu-img ganesha.nfsd "${room[@]}"
    part nfs-cp "libnfs's nfs-cp: large files" 40 3 root nfs-cp ganesha.nfsd "${room[@]}"
    tree_parts -tree 200 1
    [[ -z $1 ]] || tree_parts -tree-full 1,000 5
    part gridvfs-clone "gridvfs: a clone of a suspended Debian" 20 5 "${CLONE_NEEDS[@]}"
    part sshfs-clone "sshfs: the same" 25 3 sshfs "${CLONE_NEEDS[@]}"
    part sshfs-many-clone "sshfs with 4 connections: the same" 25 3 sshfs "${CLONE_NEEDS[@]}"
    part rclone-clone "rclone: the same" 25 3 rclone "${CLONE_NEEDS[@]}"
    part scp-clone "scp: the same" 60 3 scp "${CLONE_NEEDS[@]}"
    part kernel-nfs "a kernel's own NFS client, in a guest: large and small files" 60 3 root qemu-system-x86_64 ganesha.nfsd "${room[@]}"
}

tree_parts() { # SUFFIX FILES FACTOR
    part "gridvfs$1" "gridvfs: $2 small files" $((8 * $3)) 5 "${room[@]}"
    part "gridvfs-dedicated$1" "gridvfs, one user of the files: $2 small files" $((8 * $3)) 5 "${room[@]}"
    part "sshfs$1" "sshfs: $2 small files" $((60 * $3)) 3 sshfs "${room[@]}"
    part "sshfs-many$1" "sshfs with 4 connections: $2 small files" $((60 * $3)) 3 sshfs "${room[@]}"
    part "rclone$1" "rclone: $2 small files" $((45 * $3)) 3 rclone "${room[@]}"
    part "scp$1" "scp -r: $2 small files" $((35 * $3)) 3 scp "${room[@]}"
}

# --- The peers ---------------------------------------------------------------------------

# chosen_peer PART: sets `series`, `peer` and `words`, its options.
chosen_peer() {
    words=()
    case $1 in
        gridvfs-dedicated*)
            series="gridvfs, dedicated" peer=gridvfs
            options=consistency=dedicated,write_policy=write-back
            ;;
        gridvfs*) series=gridvfs peer=gridvfs options="" ;;
        sshfs-many*)
            series="sshfs, 4 connections" peer=sshfs
            words=(-o "kernel_cache,dcache_timeout=3600,max_conns=4,Compression=no,Ciphers=aes128-gcm@openssh.com")
            ;;
        sshfs*)
            series=sshfs peer=sshfs
            words=(-o "kernel_cache,dcache_timeout=3600,Compression=no,Ciphers=aes128-gcm@openssh.com")
            ;;
        rclone*)
            series=rclone peer=rclone
            words=(--vfs-cache-mode full --vfs-write-back 0s --vfs-read-ahead 64M --buffer-size 32M --dir-cache-time 1h
                --sftp-concurrency 128 --sftp-chunk-size 255k --sftp-disable-hashcheck --transfers 8)
            ;;
        scp*) series=scp peer=scp words=(-q -o Ciphers=aes128-gcm@openssh.com) ;;
        qemu-ssh) series="QEMU ssh" peer=qemu ;;
        qemu-nfs) series="QEMU nfs" peer=qemu ;;
        nfs-cp) series=nfs-cp peer=nfs-cp ;;
        kernel-nfs) series="kernel NFS" peer=kernel words=("rsize=1048576,wsize=1048576,nocto,actimeo=3600") ;;
    esac
    note "$series" "options: ${words[*]:-${options:-the defaults}}"
    [[ -z $relayed ]] || note "$series" "by an ordinary user: over the relay, and the kernel's caches were not dropped"
}

mount_it() {
    local tries
    case $peer in
        gridvfs)
            mount_far "cache_dir=$disk/cache${options:+,$options}"
            return
            ;;
        # In the foreground, so that its process is known, and in a session, so that its ssh is, too.
        sshfs) ${near[@]+"${near[@]}"} setsid sshfs -f -F "$config" "${words[@]}" "gvhost:$work/far" "$mnt" 2>"$work/mount.words" & ;;
        rclone) rclone_mount & ;;
    esac
    pid=$!
    started "$pid"
    for ((tries = 0; tries < 600; tries++)); do
        ! mountpoint -q "$mnt" || return 0
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.05
    done
    die "$peer does not mount: $(tail -n 3 "$work/mount.words")"
}
rclone_mount() {
    exec ${near[@]+"${near[@]}"} rclone mount ":sftp:$work/far" "$mnt" --sftp-host "$far_address" --sftp-port "$far_port" \
        --sftp-user "$(id -un)" --sftp-key-file "$work/ssh/id_ed25519" --config "$work/rclone.conf" \
        --cache-dir "$disk/cache" "${words[@]}" 2>"$work/mount.words"
}
unmount_it() {
    if [[ $peer == gridvfs ]]; then
        unmount
        return
    fi
    # What rclone uploads only once files are closed, it uploads before it ends.
    fusermount3 -u "$mnt"
    wait "$pid" || true
}
drop_own() { rm -rf "$disk/cache"; }

# Most memory of the mount's processes, ssh's too.
peak_mib() {
    local each total=0
    for each in $(family "$pid"); do total=$((total + $(peak_kib "$each" 2>/dev/null || echo 0))); done
    calc "$total / 1024"
}

# --- Large files ---------------------------------------------------------------------------

mounted_large() {
    local before
    note "$series" "cold: own cache empty, the kernel's dropped, a new mount; warm: a new mount with the cache of the last; again: nothing in between; the server's files are in its memory"
    cold
    before=$(ticks "$pid")
    read_large
    sample "$series" "cold read" "sequential" MiB/s "$(rate_of)"
    sample "$series" "cold read" "processor time" s/GiB "$(cpu_per_gib $(($(ticks "$pid") - before)) "$LARGE_MIB")"
    read_large
    sample "$series" "read again" "sequential" MiB/s "$(rate_of)"
    compared "$mnt/large" "$work/far/large" "$series"
    sample "$series" "after reading" "memory" MiB "$(peak_mib)"
    again
    read_large
    sample "$series" "warm read" "sequential" MiB/s "$(rate_of)"
    unmount_it
    cold
    read_randomly
    sample "$series" "cold, 4 KiB" "random reads" reads/s "$(calc "$RANDOM_READS / ($took / 1e6)")"
    again
    read_randomly
    sample "$series" "warm, 4 KiB" "random reads" reads/s "$(calc "$RANDOM_READS / (($took + 1) / 1e6)")"
    unmount_it
    cold
    write_large
    sample "$series" "cold write" "sequential" MiB/s "$(rate_of)"
    sample "$series" "cold write" "processor time" s/GiB "$(cpu_per_gib "$work_ticks" "$LARGE_MIB")"
    write_randomly
    random_written
}
random_written() {
    sample "$series" "until fsync returns" "8 MiB of random writes" s "$(seconds "$answered")"
    sample "$series" "until the server has them" "8 MiB of random writes" s "$(seconds "$took")"
    sample "$series" "8 MiB of random writes" "bytes sent" MiB "$(calc "$sent / 1048576")"
}

# With the processor time of what it runs; sets `took` and `spent` (s).
timed_tool() { # COMMAND...
    local TIMEFORMAT="%U %S" user system begin
    begin=$(now)
    { time ${near[@]+"${near[@]}"} "$@" >"$work/tool.words" 2>&1; } 2>"$work/tool.time" ||
        die "$1: $(tail -n 2 "$work/tool.words")"
    took=$(($(now) - begin))
    read -r user system < <(tail -n 1 "$work/tool.time")
    spent=$(calc "$user + $system")
}
# tool_large GET PUT: functions that copy the large file here and there.
tool_large() {
    note "$series" "copies whole files, and keeps nothing: a second copy is as the first; the server's files are in its memory"
    forget
    timed_tool "${get[@]}"
    compared "$work/near/arrived" "$work/far/large" "$series"
    rm "$work/near/arrived"
    sample "$series" "cold read" "sequential" MiB/s "$(rate_of)"
    sample "$series" "cold read" "processor time" s/GiB "$(calc "$spent * 1024 / $LARGE_MIB")"
    timed_tool "${put[@]}"
    compared "$work/far/written" "$work/far/large" "$series"
    rm "$work/far/written"
    sample "$series" "cold write" "sequential" MiB/s "$(rate_of)"
    sample "$series" "cold write" "processor time" s/GiB "$(calc "$spent * 1024 / $LARGE_MIB")"
}
# All of a file is sent for some of it.
tool_random_writes() {
    local before begin
    cp "$work/near/large" "$work/near/target"
    before=$(carried a_to_b) begin=$(now)
    "$programs/gridvfs-pwrites" --count "$WRITES" --seed "$repetition" "$work/near/target" >/dev/null
    answered=$(($(now) - begin))
    timed_tool "$@"
    took=$(($(now) - begin)) sent=$(($(carried a_to_b) - before))
    compared "$work/far/target" "$work/near/target" "$series"
    random_written
}
scp_large() {
    local scp=(scp -F "$config" "${words[@]}")
    get=("${scp[@]}" "gvhost:$work/far/large" "$work/near/arrived")
    put=("${scp[@]}" "$work/near/large" "gvhost:$work/far/written")
    tool_large
    tool_random_writes "${scp[@]}" "$work/near/target" "gvhost:$work/far/target"
}

# An NFS server beside the SSH server, without encryption. Where it runs /run is a folder of its own,
# so that the rpcbind that it finds or starts there is at the far end of the link, and no other's.
nfs_up() {
    "${far[@]}" unshare -m sleep infinity &
    started $!
    inside=(nsenter -t "$!" -m -n)
    until [[ $(readlink "/proc/$!/ns/mnt") != "$(readlink /proc/self/ns/mnt)" ]]; do sleep 0.02; done
    "${inside[@]}" mount -t tmpfs tmpfs /run
    before_down() { "${inside[@]}" "$support/ganesha.sh" stop "$work/ganesha" 2>/dev/null || true; }
    "${inside[@]}" "$support/ganesha.sh" start "$work/ganesha" "$work/far" >"$work/ganesha.words" 2>&1 ||
        die "NFS-Ganesha does not serve: $(tail -n 1 "$work/ganesha.words")"
    nfs_options="nfsport=$(cat "$work/ganesha/port")&mountport=$(cat "$work/ganesha/mount_port")"
    note "$series" "NFS-Ganesha over plain TCP: nothing is encrypted"
}
nfs_url() { echo "nfs://$far_address$work/far/$1?version=3&$nfs_options"; } # NAME
nfs_cp_large() {
    nfs_up
    get=(nfs-cp "$(nfs_url large)" "$work/near/arrived")
    put=(nfs-cp "$work/near/large" "$(nfs_url written)")
    tool_large
}

# The kernel is a guest's, whose network is QEMU's: by its processors and network it is slower than one
# of this machine would be, but it waits for the link as that would.
kernel_needed() {
    client=$here/guest/nfs-client.sh
    [[ -x $client ]] || cannot "there is no guest with an NFS client here"
    in_group "$client" build "${CARGO_TARGET_DIR:-$root/target}/nfs-client" >&2 ||
        cannot "the guest with an NFS client cannot be made here"
}
kernel_nfs() {
    local what begin end
    FILES=$TREE
    small_files
    nfs_up
    cat >"$work/script" <<'SCRIPT'
mkdir -p /mnt/far
again() {
    cd /
    umount /mnt/far 2>/dev/null || true
    mount -i -t nfs -o "vers=3,proto=tcp,port=$PORT,mountport=$MOUNT_PORT,mountproto=tcp,nolock,addr=$ADDRESS,$OPTIONS" \
        "$ADDRESS:$EXPORT" /mnt/far
    cd /mnt/far
}
now() { cut -d ' ' -f 1 /proc/uptime; }
timed() { # NAME COMMAND...
    what=$1 begin=$(now)
    shift
    "$@" 2>/dev/null
    echo "TOOK $what $begin $(now)"
}
write() { dd if=/tmp/large of=written bs=1M conv=fsync; cd /; umount /mnt/far; }
again
timed cold dd if=large of=/tmp/large bs=1M
timed again dd if=large of=/dev/null bs=1M
again
timed warm dd if=large of=/dev/null bs=1M
timed tree tar -cf /tmp/tree.tar tree
timed write write
SCRIPT
    "${near[@]}" "$client" run "${CARGO_TARGET_DIR:-$root/target}/nfs-client" "$work/script" --memory 1536 --timeout 900 \
        "PORT=$(cat "$work/ganesha/port")" "MOUNT_PORT=$(cat "$work/ganesha/mount_port")" "ADDRESS=$far_address" \
        "EXPORT=$work/far" "OPTIONS=${words[0]}" </dev/null >"$work/guest.words" ||
        die "the guest: $(tail -n 3 "$work/guest.words")"
    compared "$work/far/written" "$work/far/large" "$series"
    while read -r _ what begin end; do
        took=$(calc "($end - $begin) * 1e6")
        case $what in
            tree) tree_seconds_of cold ;;
            again) sample "$series" "read again" sequential MiB/s "$(rate_of)" ;;
            write) sample "$series" "cold write" sequential MiB/s "$(rate_of)" ;;
            *) sample "$series" "$what read" sequential MiB/s "$(rate_of)" ;;
        esac
    done < <(grep '^TOOK' "$work/guest.words")
    note "$series" "in a guest under QEMU's CPU emulation, behind QEMU's user network: slower than a kernel on this machine would be; times by its clock; it has no disk cache"
}

# qemu_image NAME: what QEMU's driver calls the server's file.
qemu_image() {
    if [[ $series == "QEMU nfs" ]]; then
        echo "nfs://$far_address$work/far/$1"
        return
    fi
    jq -n -c --arg host "$far_address" --arg port "$far_port" --arg user "$(id -un)" --arg path "$work/far/$1" \
        '{driver: "raw", file: {driver: "ssh", path: $path, user: $user,
          server: {host: $host, port: $port}, "host-key-check": {mode: "none"}}}' | sed 's/^/json:/'
}
qemu_large() { # ssh|nfs
    local script=$work/qemu-io.words offset begin
    # Its ssh driver waits for each answer before it asks again.
    if [[ $1 == ssh ]]; then
        note "$series" "a file of 16 MiB in place of $LARGE_MIB"
        LARGE_MIB=16
    fi
    large_files
    find /usr/lib /usr/lib64 -name "block-$1.so" 2>/dev/null | grep -q . ||
        cannot "QEMU has no driver for $1 here (the package qemu-block-extra)"
    if [[ $1 == nfs ]]; then
        nfs_up
    else
        # Its libssh asks an agent for keys.
        eval "$(ssh-agent -a "$work/agent")" >/dev/null
        started "$SSH_AGENT_PID"
        ssh-add -q "$work/ssh/id_ed25519" 2>"$work/agent.words" || die "ssh-add: $(cat "$work/agent.words")"
    fi
    get=(qemu-img convert -m 16 -W -f raw -O raw "$(qemu_image large)" "$work/near/arrived")
    cp "$work/far/large" "$work/far/written"
    : >"$work/far/written"
    truncate -s "${LARGE_MIB}M" "$work/far/written"
    put=(qemu-img convert -n -m 16 -W -f raw -O raw "$work/near/large" "$(qemu_image written)")
    tool_large
    for ((offset = 0; offset < RANDOM_READS; offset++)); do
        echo "read $((offset * 7919 % (LARGE_MIB * 256) * 4096)) 4096"
    done >"$script"
    echo quit >>"$script"
    begin=$(now)
    ${near[@]+"${near[@]}"} qemu-io -r "$(qemu_image large)" <"$script" >"$work/tool.words" 2>&1 ||
        die "qemu-io: $(tail -n 2 "$work/tool.words")"
    took=$(($(now) - begin))
    sample "$series" "cold, 4 KiB" "random reads" reads/s "$(calc "$RANDOM_READS / ($took / 1e6)")"
    note "$series" "qemu-img convert -m 16 -W; random reads by one qemu-io, its connecting included"
}

# --- Small files and clones --------------------------------------------------------------------

tree_seconds_of() { # HOW
    local count
    count=$(find "$work/far/tree" -type f | wc -l)
    sample "$series" "$1" "$count small files in $DIRECTORIES directories" s "$(tree_seconds)"
}
mounted_tree() {
    small_files
    cold
    read_tree "$mnt"
    tree_seconds_of cold
    again
    read_tree "$mnt"
    tree_seconds_of warm
    unmount_it
}
scp_tree() {
    small_files
    timed ${near[@]+"${near[@]}"} scp -r -F "$config" "${words[@]}" "gvhost:$work/far/tree" "$work/near"
    diff -rq "$work/near/tree" "$work/far/tree" >&2 || die "the tree that arrived is another"
    tree_seconds_of cold
}

cloned_as() { # HOW
    sample "$series" "$1" "clone" s "$took"
    sample "$series" "$1 clone" "bytes received" MiB "$(mib "$bytes")"
}
mounted_clone() {
    if [[ $peer == gridvfs ]]; then
        options=consistency=read-only-shared
        note "$series" "clones: $options, and metadata (zero map, block hashes, compressed memory)"
        golden_up "${vms[0]}"
    else
        golden_up "$golden"
    fi
    # Programs and QEMU's firmware are in memory for all.
    forget
    local_clone
    drop_own
    mount_it
    clone_and_ask "$mnt/golden"
    cloned_as first
    clone_and_ask "$mnt/golden"
    cloned_as second
    unmount_it
}
scp_clone() {
    golden_up "$golden"
    forget
    local_clone
    rm -rf "$disk/copy"
    clone_and_ask "$disk/copy" scp_golden
    cloned_as first
}

run_part() {
    case $1 in
        kernel-nfs) kernel_needed ;;
        *-clone) golden_needed 1 ;;
    esac
    link_up 32ms 1gbit "$folder" or-relay
    chosen_peer "$1"
    case $1 in
        *-tree | *-tree-full)
            FILES=$TREE
            [[ $1 != *-full ]] || FILES=$TREE_FULL
            if [[ $peer == scp ]]; then scp_tree; else mounted_tree; fi
            ;;
        *-clone) if [[ $peer == scp ]]; then scp_clone; else mounted_clone; fi ;;
        qemu-*) qemu_large "${1#qemu-}" ;;
        *)
            large_files
            case $1 in
                scp) scp_large ;;
                nfs-cp) nfs_cp_large ;;
                kernel-nfs) kernel_nfs ;;
                *) mounted_large ;;
            esac
            ;;
    esac
}

main "$@"
