#!/usr/bin/env bash
# The demonstration behind `make demo`: a VM boots here from a disk that lies
# behind an emulated wide-area link, and a suspended one is cloned twice over it.
#
# Everything it starts is its own and ends with it, however it ends: the link,
# an SSH server at its far end, the mount, the guest. As root the link is real
# TCP between two network namespaces; without root, a relay on the loopback
# delays the bytes.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: demo.sh [--rtt DELAY] [--rate RATE] [--relay] [--cache MODE] [--keep]
  --rtt 32ms     the link's round trip
  --rate 1gbit   its capacity
  --relay        the link that needs no root, even as root
  --cache MODE   QEMU's cache mode for the disk (default writeback; none: O_DIRECT)
  --keep         leave the run's folder (logs, the disk) behind
USAGE
}

rtt=32ms rate=1gbit relay="" cache=writeback keep=""
while (($#)); do
    case $1 in
        --rtt) rtt=${2:?}; shift 2 ;;
        --rate) rate=${2:?}; shift 2 ;;
        --relay) relay=1; shift ;;
        --cache) cache=${2:?}; shift 2 ;;
        --keep) keep=1; shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH=$PATH:/usr/sbin:/sbin
programs=${CARGO_TARGET_DIR:-$root/target}/release
gridvfs=$programs/gridvfs
wan=$programs/gridvfs-wan
ask=$programs/gridvfs-ask
support=$root/tests/support
((EUID == 0)) || relay=1

step_number=0
step() { step_number=$((step_number + 1)); printf '\n[%d/8] %s\n' "$step_number" "$*"; }
note() { printf '      %s\n' "$*"; }
die() { printf '\ndemo: error: %s\n' "$*" >&2; exit 1; }

for program in "$gridvfs" "$wan" "$ask"; do
    [[ -x $program ]] || die "$program is not built: run \`make demo\` (or \`make build\`)"
done
for program in qemu-system-x86_64 qemu-img sshd jq debugfs; do
    command -v "$program" >/dev/null || die "$program is missing: \`make deps\` installs it where it can"
done
[[ -e /dev/fuse ]] || die "/dev/fuse is missing: this kernel or container offers no FUSE (try: sudo modprobe fuse)"

# --- What is undone at the end ------------------------------------------------

mkdir -p "${CARGO_TARGET_DIR:-$root/target}/demo"
run=$(mktemp -d "${CARGO_TARGET_DIR:-$root/target}/demo/XXXXXX")
# The demonstration's own disk cache goes with it.
export XDG_CACHE_HOME=$run/cache
# The far side's login may be another process than ours; the near one is not.
chmod 755 "$run"
link=demo-$$
link_is_up="" relay_pid="" mounted="" near_address="" near_port="" guest_pids=()
mnt=$run/mnt

undo() {
    local status=$?
    trap '' INT TERM
    for pid in ${guest_pids[@]+"${guest_pids[@]}"}; do
        { kill "$pid" && wait "$pid"; } 2>/dev/null || true
    done
    if [[ -n $mounted ]]; then
        # Never waits for a link that may be what failed.
        timeout 20 "$gridvfs" umount "$mnt" >/dev/null 2>&1 || fusermount3 -u -z "$mnt" 2>/dev/null || true
    fi
    "$support/sshd.sh" stop "$run/ssh" 2>/dev/null || true
    [[ -z $relay_pid ]] || { kill "$relay_pid" && wait "$relay_pid"; } 2>/dev/null || true
    [[ -z $link_is_up ]] || "$wan" down "$link" >/dev/null 2>&1 || true
    if [[ -n $keep ]] || ((status != 0 && status != 130)); then
        note "logs are left in $run"
    else
        # One file system only: were the mount still there, its files stay.
        rm -rf --one-file-system "$run"
    fi
    exit "$status"
}
trap undo EXIT
trap 'exit 130' INT TERM HUP

# --- 1: the golden VM -----------------------------------------------------------

step "Golden VM: a Debian or Ubuntu kernel and a small root disk"
"$root/bench/guest/build.sh" "${CARGO_TARGET_DIR:-$root/target}/guest"
mkdir -p "$run/state/golden" "$mnt"
cp --sparse=always "${CARGO_TARGET_DIR:-$root/target}/guest"/{vmlinuz,initrd.img,disk.raw} "$run/state/golden/"
disk_bytes=$(stat -c %s "$run/state/golden/disk.raw")
used_bytes=$(($(stat -c %b "$run/state/golden/disk.raw") * 512))
note "the state server's copy: $run/state/golden"

# --- 2: the link and the state server -------------------------------------------

step "A link of $rtt and $rate, and a state server (SSH only) at its far end"
if [[ -z $relay ]]; then
    "$wan" up --name "$link" --rtt "$rtt" --rate "$rate" --json >"$run/link.json" || die "cannot make the link"
    link_is_up=1
    far_netns=$(jq -r .b.netns "$run/link.json")
    far_address=$(jq -r .b.address "$run/link.json")
    "$support/sshd.sh" start "$run/ssh" --netns "$far_netns" --listen "$far_address" --path "$programs" 2>/dev/null ||
        die "the state server's SSH did not start (see $run/ssh)"
    near=("$wan" exec "$link" a --)
    near_address=$far_address near_port=$(cat "$run/ssh/port")
    ssh_command="ssh -F $run/ssh/ssh_config"
    note "two network namespaces; compute server here, state server at $far_address"
else
    "$support/sshd.sh" start "$run/ssh" --path "$programs" 2>/dev/null ||
        die "the state server's SSH did not start (see $run/ssh)"
    far_port=$(cat "$run/ssh/port")
    near_address=127.0.0.1
    for near_port in $(seq $((far_port + 1)) $((far_port + 20))); do
        # Nobody answers there, so it is free for the relay.
        (exec 3<>"/dev/tcp/127.0.0.1/$near_port") 2>/dev/null || break
    done
    "$wan" relay --listen "127.0.0.1:$near_port" --to "127.0.0.1:$far_port" --rtt "$rtt" --rate "$rate" \
        >"$run/relay.log" 2>&1 &
    relay_pid=$!
    near=()
    ssh_command="ssh -F $run/ssh/ssh_config -p $near_port"
    note "no root, so a relay delays what passes between 127.0.0.1:$near_port and the state server"
fi

# Once both have said their version, an SSH server speaks first again as soon as
# it has heard ours: one round trip, on either kind of link.
round_trip_ms() {
    # shellcheck disable=SC2016 # for the inner shell to expand
    ${near[@]+"${near[@]}"} bash -c '
        exec 3<>"/dev/tcp/$0/$1" && IFS= read -r -t 10 line <&3 || exit 1
        begin=${EPOCHREALTIME/[.,]/}
        printf "SSH-2.0-probe\r\n" >&3
        IFS= LC_ALL=C read -r -t 10 -n 1 -d "" byte <&3 || exit 1
        end=${EPOCHREALTIME/[.,]/}
        printf "%d.%d\n" $(((end - begin) / 1000)) $(((end - begin) / 100 % 10))
    ' "$near_address" "$near_port" 2>/dev/null
}
measured=""
for _ in {1..50}; do
    if [[ -n $relay_pid ]] && ! kill -0 "$relay_pid" 2>/dev/null; then
        die "the relay ended: $(tail -n 1 "$run/relay.log")"
    fi
    measured=$(round_trip_ms) && break
    sleep 0.1
done
[[ -n $measured ]] || die "the state server does not answer over the link"
note "measured round trip: $measured ms"

# --- 3: the mount -----------------------------------------------------------------

step "gridvfs mount gvhost:/…/golden: one SSH command, no root at either end, no NFS server"
${near[@]+"${near[@]}"} "$gridvfs" mount "gvhost:$run/state/golden" "$mnt" -o "ssh_command=$ssh_command" ||
    die "gridvfs mount failed"
mounted=1
note "$(findmnt -n -o FSTYPE,SOURCE "$mnt" 2>/dev/null || grep -F " $mnt " /proc/mounts)"

received_bytes() { "$gridvfs" status "$mnt" --json | jq -r "$received_field"; }
sent_bytes() { "$gridvfs" status "$mnt" --json | jq -r "$sent_field"; }
received_field=.link.received_bytes
sent_field=.link.sent_bytes
received_before=$(received_bytes)
sent_before=$(sent_bytes)

# --- 4: the guest -------------------------------------------------------------------

step "QEMU boots the VM; kernel, initrd and disk (cache=$cache) are read through the mount"
"$root/bench/guest/run.sh" "$mnt" --cache "$cache" --log "$run/console.log" >"$run/guest.out" ||
    die "the guest did not come up (console: $run/console.log)"
outcome() { sed -n "s/^$1=//p" "$run/guest.out"; }
note "ready after $(outcome ready_seconds) s, powered off after $(outcome total_seconds) s"
check=$(outcome check)
note "the guest compared ${check#ok } of its files with their SHA-256 sums: all right"

# --- 5: unmount -----------------------------------------------------------------------

step "gridvfs umount: everything the guest wrote is on the state server before it returns"
received=$(($(received_bytes) - received_before))
"$gridvfs" writeback "$mnt" >/dev/null || die "gridvfs writeback failed"
sent=$(($(sent_bytes) - sent_before))
"$gridvfs" umount "$mnt" || die "gridvfs umount failed"
mounted=""
if findmnt -n "$mnt" >/dev/null 2>&1; then die "$mnt is still mounted"; fi

# --- 6: what happened -------------------------------------------------------------------

step "What the guest wrote, read from the state server's own copy of the disk"
boot=$(outcome wrote)
disk=$run/state/golden/disk.raw
from_disk() { debugfs -R "cat $1" "$disk" 2>/dev/null; }
wanted=$(outcome data_sha256)
arrived=$(from_disk "/var/lib/guest/data-${boot#boot-}" | sha256sum | cut -d' ' -f1)
from_disk "/var/log/$boot" | sed 's/^/      /'
[[ -n $boot && $arrived == "$wanted" ]] ||
    die "the state server's copy differs: the guest wrote $wanted, there is $arrived"
note "data-${boot#boot-} has that sum there: the write arrived"

mib() { awk -v bytes="$1" 'BEGIN { printf "%.1f MiB", bytes / 1048576 }'; }
row() { printf '  %-34s %s\n' "$1" "$2"; }
echo
row "round trip to the state server" "$measured ms"
row "time to the guest's prompt" "$(outcome ready_seconds) s"
row "disk of the VM" "$(mib "$disk_bytes") ($(mib "$used_bytes") in use)"
row "moved from the state server" "$(mib "$received")"
row "moved to the state server" "$(mib "$sent")"
row "moved, against the whole disk" "$(awk -v part="$((received + sent))" -v all="$disk_bytes" 'BEGIN { printf "%.1f %%", 100 * part / all }')"
echo

# --- 7: a golden VM that is suspended ---------------------------------------------------

step "Golden VM: the same guest, booted and suspended with its memory"
suspended=${CARGO_TARGET_DIR:-$root/target}/guest-suspended
if [[ ! -s $suspended/state || $suspended/state -ot ${CARGO_TARGET_DIR:-$root/target}/guest/guest.info ]]; then
    rm -rf "$suspended"
    "$root/bench/guest/suspend.sh" "${CARGO_TARGET_DIR:-$root/target}/guest" "$suspended"
fi
cp --sparse=always -r "$suspended" "$run/state/suspended"
note "memory $(mib "$(stat -c %s "$suspended/memory")"), disk $(mib "$(stat -c %s "$suspended/disk.raw")"); the state server's copy: $run/state/suspended"

# --- 8: two clones ------------------------------------------------------------------------

step "gridvfs clone, twice: linked memory and disk, a redo log each, from start to first answer"
${near[@]+"${near[@]}"} "$gridvfs" mount "gvhost:$run/state/suspended" "$mnt" \
    -o "ssh_command=$ssh_command,consistency=read-only-shared" || die "gridvfs mount failed"
mounted=1
clone_times=() clone_bytes=()
for name in first second; do
    before=$(received_bytes) begin=${EPOCHREALTIME/[.,]/}
    "$gridvfs" clone "$mnt" "$run/$name" >"$run/$name.words" || die "gridvfs clone failed"
    "$run/$name/start" </dev/null >"$run/$name.log" 2>&1 &
    guest_pids+=($!)
    uptime=$("$ask" --timeout 300 "$run/$name/shell.sock" 'cut -d" " -f1 /proc/uptime') ||
        die "the clone does not answer (see $run/$name.log)"
    clone_times+=($((${EPOCHREALTIME/[.,]/} - begin)))
    clone_bytes+=($(($(received_bytes) - before)))
    sed 's/^/      /' "$run/$name.words"
    note "it answers, and has been up for $uptime s by its own clock"
done
for pid in "${guest_pids[@]}"; do
    kill "$pid"
    wait "$pid" 2>/dev/null || true
done
guest_pids=()
"$gridvfs" umount "$mnt" || die "gridvfs umount failed"
mounted=""

echo
seconds() { awk -v us="$1" 'BEGIN { printf "%.2f s", us / 1e6 }'; }
for number in 0 1; do
    names=("first clone" "second clone")
    row "${names[number]}, to its first answer" "$(seconds "${clone_times[number]}"), $(mib "${clone_bytes[number]}") moved"
done
echo
