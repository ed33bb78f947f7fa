#!/usr/bin/env bash
# A Linux kernel's own NFS client where this machine has none: a small guest without a disk under QEMU,
# whose 10.0.2.2 is the loopback of wherever it is started (so also of a network namespace). Needs no root.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: nfs-client.sh build DIR               make the guest, if it is not there as this script wants it
       nfs-client.sh have DIR                is it there? says why not
       nfs-client.sh run DIR SCRIPT [--memory MIB] [--cpus N] [--accel NAME] [--timeout SECONDS] [NAME=VALUE]...
  run executes SCRIPT (for busybox sh, as root) in the guest, with each NAME set. Its output and status are
  the script's; lines on standard input reach it. It can call
      nfs_mount PORT EXPORT DIRECTORY [OPTIONS]    of the server at that port of our loopback, NFSv3
USAGE
}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"
[[ $# -ge 2 ]] || { usage >&2; exit 2; }
verb=$1 outdir=$2
shift 2
PATH=$PATH:/usr/sbin:/sbin
kernel_package=
stamp=$(cat "$here"/{nfs-client.sh,nfs-client-init,lib.sh} | sha256sum | cut -c1-16)

archive() { # FOLDER: what is in it, for the kernel to unpack over what it has
    (cd "$1" && find . | LC_ALL=C sort | "$busybox" cpio -o -H newc -R 0:0 2>/dev/null | gzip -1 -n)
}

build() {
    guest_needs dpkg-deb apt-get apt-cache gzip sha256sum flock
    mkdir -p "$outdir"
    outdir=$(cd "$outdir" && pwd)
    exec 9>"$outdir/.lock"
    flock 9
    [[ $(cat "$outdir/stamp" 2>/dev/null) != "$stamp" ]] || { say "up to date in $outdir"; return 0; }
    work=$(mktemp -d "$outdir/.build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    take_kernel
    take_busybox
    make_initrd virtio_pci virtio_net nfsv3
    # An /init of our own over the one that wants a disk.
    mkdir -p "$work/own/usr/share" "$work/own/etc"
    install -m 755 "$here/nfs-client-init" "$work/own/init"
    archive "$work/own" >"$work/own.img"
    cat "$work/initrd.img" "$work/own.img" >"$outdir/initrd.img"
    install -m 644 "$vmlinuz" "$outdir/vmlinuz"
    install -m 755 "$busybox" "$outdir/busybox"
    echo "$stamp" >"$outdir/stamp"
}

have() {
    command -v qemu-system-x86_64 >/dev/null || { echo "needs qemu-system-x86_64"; return 1; }
    [[ $(cat "$outdir/stamp" 2>/dev/null) == "$stamp" ]] ||
        { echo "needs its guest: make test-nfs-client builds it"; return 1; }
}

# Passes on what the script says, line by line; its status is the script's.
told() {
    local line begun="" code=99
    while IFS= read -r line; do
        line=${line%$'\r'}
        case $line in
            "GUEST END "*) code=${line##* } begun="" ;;
            "GUEST BEGIN") begun=1 ;;
            *) [[ -z $begun ]] || printf '%s\n' "$line" ;;
        esac
    done
    return "$code"
}

run_script() {
    local script=${1:?} memory=256 cpus=1 accel=tcg timeout=300 status
    shift
    local settings=()
    while (($#)); do
        case $1 in
            --memory) memory=${2:?}; shift 2 ;;
            --cpus) cpus=${2:?}; shift 2 ;;
            --accel) accel=${2:?}; shift 2 ;;
            --timeout) timeout=${2:?}; shift 2 ;;
            *=*) settings+=("$1"); shift ;;
            *) usage >&2; exit 2 ;;
        esac
    done
    have >&2 || exit 3
    busybox=$outdir/busybox
    work=$(mktemp -d "${TMPDIR:-/tmp}/nfs-client.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/script"
    cp "$script" "$work/script/script"
    for status in ${settings[@]+"${settings[@]}"}; do
        printf '%s=%q\n' "${status%%=*}" "${status#*=}"
    done >"$work/script/settings"
    archive "$work/script" >"$work/script.img"
    cat "$outdir/initrd.img" "$work/script.img" >"$work/initrd.img"
    status=0
    timeout --foreground "$timeout" qemu-system-x86_64 -nodefaults -display none -monitor none -serial stdio \
        -no-reboot -accel "$accel" -smp "$cpus" -m "$memory" -kernel "$outdir/vmlinuz" -initrd "$work/initrd.img" \
        -append "console=ttyS0 quiet loglevel=1 panic=-1 random.trust_cpu=on" -netdev user,id=net,restrict=off \
        -device virtio-net-pci,netdev=net,romfile= | told || status=$?
    ((status != 99)) || say "the guest has not come to an end (in $timeout s)"
    return "$status"
}

case $verb in
    build) build ;;
    have) have ;;
    run) run_script "$@" ;;
    *) usage >&2; exit 2 ;;
esac
