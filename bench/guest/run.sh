#!/usr/bin/env bash
# Boots a guest that build.sh made, under QEMU, and waits until it is ready.
#
# Prints KEY=VALUE lines on standard output: check= (ok, or what failed),
# wrote=, data_sha256=, ready_seconds= (QEMU's start to the line GUEST READY)
# and, after a power-off, total_seconds=. Messages go to standard error. Exits
# non-zero when the guest fails, finds wrong bytes on its disk, or is not there
# in time.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: run.sh DIR [options] [-- QEMU-ARGUMENT...]
  DIR                where vmlinuz, initrd.img and disk.raw are (may be a mount)
  --action poweroff  (default) run the guest to its end and return then
  --action shell     return as soon as it is ready; QEMU stays in the background,
                     its process id in --pid-file, its console on --serial
  --interactive      console on this terminal: a root shell; `exit` powers off
  --cache MODE       none, directsync, writeback (default), writethrough, unsafe
  --aio MODE         threads (default), native, io_uring
  --disk FILE        another raw disk instead of DIR/disk.raw
  --overlay FILE     a qcow2 overlay over the disk, made if missing: the disk
                     itself is then never written
  --accel NAME       tcg (default: works anywhere, same result), kvm
  --memory MIB       256
  --timeout SECONDS  300
  --log FILE         the guest's console (default: a temporary file)
  --serial SOCKET    unix socket of the console (shell; default: LOG.sock)
  --pid-file FILE    where QEMU's process id goes (shell; default: LOG.pid)
USAGE
}
say() { printf 'guest: %s\n' "$*" >&2; }
die() { printf 'guest: error: %s\n' "$*" >&2; exit 1; }

dir="" action=poweroff interactive="" cache=writeback aio=threads disk="" overlay=""
accel=tcg memory=256 timeout=300 log="" serial="" pid_file=""
while (($#)); do
    case $1 in
        --action) action=${2:?}; shift 2 ;;
        --interactive) interactive=1; action=shell; shift ;;
        --cache) cache=${2:?}; shift 2 ;;
        --aio) aio=${2:?}; shift 2 ;;
        --disk) disk=${2:?}; shift 2 ;;
        --overlay) overlay=${2:?}; shift 2 ;;
        --accel) accel=${2:?}; shift 2 ;;
        --memory) memory=${2:?}; shift 2 ;;
        --timeout) timeout=${2:?}; shift 2 ;;
        --log) log=${2:?}; shift 2 ;;
        --serial) serial=${2:?}; shift 2 ;;
        --pid-file) pid_file=${2:?}; shift 2 ;;
        --) shift; break ;;
        -h | --help) usage; exit 0 ;;
        -*) usage >&2; exit 2 ;;
        *) [[ -z $dir ]] || { usage >&2; exit 2; }; dir=$1; shift ;;
    esac
done
[[ -n $dir ]] || { usage >&2; exit 2; }
[[ $action == poweroff || $action == shell ]] || die "--action is poweroff or shell"
command -v qemu-system-x86_64 >/dev/null || die "qemu-system-x86_64 is missing (make deps installs it)"
disk=${disk:-$dir/disk.raw}
for file in "$dir/vmlinuz" "$dir/initrd.img" "$disk"; do
    [[ -r $file ]] || die "cannot read $file (build.sh makes it)"
done

scratch=
if [[ -z $log ]]; then
    scratch=$(mktemp -d)
    log=$scratch/console.log
fi
: >"$log"
serial=${serial:-$log.sock}
pid_file=${pid_file:-$log.pid}

format=raw
if [[ -n $overlay ]]; then
    # The overlay names its base by an absolute path: it may lie anywhere.
    [[ -e $overlay ]] || qemu-img create -q -f qcow2 -F raw -b "$(realpath "$disk")" "$overlay"
    disk=$overlay format=qcow2
fi

# shellcheck disable=SC2054 # the commas are QEMU's
qemu=(qemu-system-x86_64 -machine "q35,accel=$accel" -m "$memory" -smp 1
    -nodefaults -no-user-config -no-reboot -display none
    -kernel "$dir/vmlinuz" -initrd "$dir/initrd.img"
    -append "console=ttyS0 quiet panic=-1 mitigations=off gridvfs.action=$action"
    # A comma in a file name is doubled in QEMU's option syntax.
    -drive "file=${disk//,/,,},format=$format,if=none,id=root,cache=$cache,aio=$aio"
    -device virtio-blk-pci,drive=root "$@")

if [[ -n $interactive ]]; then
    [[ -z $scratch ]] || rm -rf "$scratch"
    exec "${qemu[@]}" -serial mon:stdio
fi

if [[ $action == shell ]]; then
    console=(-chardev "socket,id=console,path=${serial//,/,,},server=on,wait=off,logfile=${log//,/,,}" -serial chardev:console)
else
    console=(-chardev "file,id=console,path=${log//,/,,}" -serial chardev:console)
fi

now() { local t=${EPOCHREALTIME/[.,]/}; echo "$t"; }
since() { local us=$(($(now) - $1)); printf '%d.%02d' $((us / 1000000)) $((us / 10000 % 100)); }

start=$(now)
setsid "${qemu[@]}" "${console[@]}" </dev/null >"$log.qemu" 2>&1 &
pid=$!
keep=
finish() {
    local status=$?
    if [[ -z $keep ]]; then
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    fi
    # A failed boot's console is what one wants to read.
    if ((status)); then
        { echo "guest: last lines of its console:"; tail -n 15 "$log"; cat "$log.qemu"; } >&2
    fi
    # While QEMU lives, its log and socket may still be in there.
    [[ -z $scratch || -n $keep ]] || rm -rf "$scratch"
}
trap finish EXIT
trap 'exit 130' INT TERM

field() { tr -d '\r' <"$log" | sed -n "s/^$1 //p" | tail -n 1; }
ready=
while :; do
    # Looked at before the log: a guest that powers off between two looks was
    # ready all the same.
    alive=1
    kill -0 "$pid" 2>/dev/null || alive=
    if [[ -z $ready ]] && grep -q '^GUEST READY' "$log"; then
        ready=$(since "$start")
        [[ $action == poweroff ]] || break
    fi
    [[ -n $alive ]] || break
    (($(now) - start < timeout * 1000000)) || die "the guest was not done within $timeout s"
    sleep 0.05
done

check=$(field 'GUEST CHECK')
wrote=$(field 'GUEST WROTE')
echo "check=${check}"
echo "wrote=${wrote%% *}"
echo "data_sha256=${wrote##* }"
[[ -z $ready ]] || echo "ready_seconds=$ready"
if [[ $action == poweroff ]]; then
    wait "$pid" && status=0 || status=$?
    echo "total_seconds=$(since "$start")"
    ((status == 0)) || die "QEMU ended with status $status"
fi
failed=$(field 'GUEST FAILED')
[[ -z $failed ]] || die "the guest says: $failed"
[[ -n $ready ]] || die "QEMU ended before the guest was ready"
[[ $check == ok* ]] || die "the guest read wrong bytes from its disk: $check"
if [[ $action == shell ]]; then
    keep=1
    echo "$pid" >"$pid_file"
    echo "pid=$pid"
    echo "serial=$serial"
    echo "log=$log"
fi
