#!/usr/bin/env bash
# Boots a guest that build.sh or debian.sh made, lets it settle, and suspends it: what is
# left is a golden VM that `gridvfs clone` takes (docs/cloning.md).
#
#   qemu.args   the command line that resumes it, with its own directory as the working one
#   memory      the guest's memory, as it was mapped
#   state       the state of the devices, without memory
#   disk.raw, vmlinuz, initrd.img
#
# The second serial port (shell.sock) is a root shell for programs: gridvfs-ask asks it.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: suspend.sh GUEST_DIR STATE_DIR [options]
  --name NAME      the VM's name (default: STATE_DIR's)
  --memory MIB     default 256
  --settle S       seconds between readiness and suspension (default 2)
  --add FILE.tar   the guest unpacks it over its root directory first (debian.sh's only)
  --timeout S      for a boot (default 600)
  --accel NAME     tcg (default), kvm
USAGE
}

say() { printf 'suspend: %s\n' "$*" >&2; }
die() { printf 'suspend: error: %s\n' "$*" >&2; exit 1; }

from="" to="" name="" memory=256 settle=2 add="" timeout=600 accel=tcg
while (($#)); do
    case $1 in
        --name) name=${2:?}; shift 2 ;;
        --memory) memory=${2:?}; shift 2 ;;
        --settle) settle=${2:?}; shift 2 ;;
        --add) add=$(realpath "${2:?}"); shift 2 ;;
        --timeout) timeout=${2:?}; shift 2 ;;
        --accel) accel=${2:?}; shift 2 ;;
        -h | --help) usage; exit 0 ;;
        -*) usage >&2; exit 2 ;;
        *) if [[ -z $from ]]; then from=$1; elif [[ -z $to ]]; then to=$1; else usage >&2; exit 2; fi; shift ;;
    esac
done
[[ -n $to && $memory =~ ^[0-9]+$ ]] || { usage >&2; exit 2; }
[[ ! -e $to ]] || die "$to exists"
command -v qemu-system-x86_64 >/dev/null || die "qemu-system-x86_64 is missing (make deps installs it)"
for file in vmlinuz initrd.img disk.raw; do
    [[ -r $from/$file ]] || die "cannot read $from/$file (build.sh or debian.sh makes it)"
done
name=${name:-$(basename "$to")}
[[ $name =~ ^[A-Za-z0-9._-]+$ ]] || die "a name has letters, digits and . _ -"

mkdir -p "$(dirname "$to")"
from=$(realpath "$from")
to=$(realpath -m "$to")
new=$(mktemp -d "$to.partial.XXXXXX")
chmod 755 "$new"
# Sockets have short names: a path below this one may be too long for them.
scratch=$(mktemp -d)
qemu_pid=""
finish() {
    local status=$?
    [[ -z $qemu_pid ]] || { kill "$qemu_pid" && wait "$qemu_pid"; } 2>/dev/null || true
    if ((status)); then tail -n 15 "$new/console.log" "$scratch/qemu.log" >&2 2>/dev/null || true; fi
    rm -rf "$scratch" "$new"
}
trap finish EXIT
trap 'exit 130' INT TERM

cd "$new"
cp --reflink=auto "$from"/{vmlinuz,initrd.img} .
cp --reflink=auto --sparse=always "$from/disk.raw" .
chmod u+w disk.raw

# The device state is for this version of the machine, and for no other.
machine=$(qemu-system-x86_64 -machine help | sed -n 's/^q35 .*(alias of \(.*\)).*/\1/p')
octets=$(od -An -N3 -tx1 /dev/urandom | sed 's/ \(..\)/:\1/g')
cat >qemu.args <<ARGS
# $name, a golden VM: the QEMU command line that resumes it.
qemu-system-x86_64
-name $name
-uuid $(cat /proc/sys/kernel/random/uuid)
-machine ${machine:-q35},accel=$accel,memory-backend=memory
-m ${memory}M
-smp 1
-object memory-backend-file,id=memory,size=${memory}M,mem-path=memory,share=on
-nodefaults -no-user-config -display none
-kernel vmlinuz
-initrd initrd.img
-append "console=ttyS0 quiet panic=-1 mitigations=off gridvfs.action=shell"
-drive file=disk.raw,format=raw,if=none,id=root,cache=writeback
-device virtio-blk-pci,drive=root
-netdev user,id=net
-device virtio-net-pci,netdev=net,mac=52:54:00$octets,romfile=
-chardev file,id=console,path=console.log -serial chardev:console
-chardev socket,id=shell,path=shell.sock,server=on,wait=off -serial chardev:shell
-chardev socket,id=monitor,path=qmp.sock,server=on,wait=off -mon chardev=monitor,mode=control
-incoming "exec:cat state"
ARGS

# run_qemu ARGUMENT...: what qemu.args says but for -incoming, with a monitor on pipes.
run_qemu() {
    local words=()
    eval "words=($(grep -v -e '^#' -e '^-incoming' qemu.args))"
    # A machine that was off has nothing in its memory.
    rm -f memory console.log "$scratch"/qmp.*
    mkfifo "$scratch/qmp.in" "$scratch/qmp.out"
    "${words[@]}" -chardev "pipe,id=own,path=$scratch/qmp" -mon chardev=own,mode=control "$@" \
        </dev/null >"$scratch/qemu.log" 2>&1 &
    qemu_pid=$!
    exec 5<>"$scratch/qmp.in" 6<>"$scratch/qmp.out"
    ask '{"execute":"qmp_capabilities","id":"own"}'
}
# ask COMMAND: with the id "own"; sets `answer`.
ask() {
    printf '%s\n' "$1" >&5
    while read -r -t 60 answer <&6; do
        [[ $answer != *'"id": "own"'* ]] || break
    done
    [[ ${answer-} == *'"return"'* ]] || die "QEMU says: ${answer:-nothing}"
}
# until_console WORDS: waits for them; a prompt may be on their line.
until_console() {
    local tenths=0
    until grep -qs "$1" console.log; do
        kill -0 "$qemu_pid" 2>/dev/null || { grep -qs "$1" console.log && return; die "QEMU ended: $(tail -n 1 "$scratch/qemu.log")"; }
        ((tenths++ < timeout * 10)) || die "the guest did not say $1 within $timeout s"
        sleep 0.1
    done
}

if [[ -n $add ]]; then
    say "$name: adding $(basename "$add")"
    run_qemu -no-reboot -drive "file=${add//,/,,},format=raw,if=none,id=add,readonly=on" -device virtio-blk-pci,drive=add
    until_console "GUEST ADDED"
    wait "$qemu_pid" || die "QEMU failed: $(tail -n 1 "$scratch/qemu.log")"
    qemu_pid=""
fi
say "$name: booting"
run_qemu
until_console "GUEST READY"
sleep "$settle"
ask '{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"x-ignore-shared","state":true}]},"id":"own"}'
# Not stopped before: what is saved is a guest that runs when it is resumed.
ask '{"execute":"migrate","arguments":{"uri":"exec:cat > state"},"id":"own"}'
answer=""
until [[ $answer == *'"status": "completed"'* ]]; do
    [[ $answer != *'"status": "failed"'* ]] || die "QEMU could not suspend the guest: $answer"
    sleep 0.1
    ask '{"execute":"query-migrate","id":"own"}'
done
printf '{"execute":"quit"}\n' >&5
wait "$qemu_pid" || true
qemu_pid=""
exec 5>&- 6<&-
# Pages that the guest never touched, or that hold only zeros, take no room.
fallocate --dig-holes memory 2>/dev/null || true
rm -f console.log ./*.sock
mv -T "$new" "$to"
new=$scratch
say "$name: suspended in $to: memory $memory MiB ($(du -m "$to/memory" | cut -f1) MiB of it not zero), devices $(du -k "$to/state" | cut -f1) KiB"
