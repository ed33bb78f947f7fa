#!/usr/bin/env bash
# Boots a small Debian with a real systemd in a container (systemd-nspawn), for tests of units.
#
# The container has process ids, a network (loopback alone), mounts and control groups of its own; its root
# directory is a layer over an image that is made once. Nothing of it is seen by the machine's own systemd,
# if there is one: it need not be running.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: systemd.sh image IMAGE            make the image, if it is not there as this script wants it
       systemd.sh have IMAGE             is it there? says why not
       systemd.sh prepare IMAGE RUN [LAYER]   the root directory, at RUN/root; LAYER lies over the image
       systemd.sh boot RUN               boots it, and waits until all units have been started
       systemd.sh exec RUN SCRIPT        runs a bash script in it, as root
       systemd.sh poweroff RUN           shuts it down in an orderly way, and waits
       systemd.sh remove RUN             ends what is left of it; RUN stays, without RUN/root
USAGE
}
say() { printf 'systemd.sh: %s\n' "$*" >&2; }
die() { printf 'systemd.sh: error: %s\n' "$*" >&2; exit 1; }

PACKAGES=systemd-sysv,dbus,dbus-user-session,libpam-systemd,fuse3,openssh-server,openssh-client,procps,iproute2,autofs
# For systemd's own log, and for whoever reads the console's.
BOOT_SECONDS_MAX=60
POWEROFF_SECONDS_MAX=150

[[ $# -ge 2 ]] || { usage >&2; exit 2; }
verb=$1 folder=$2
shift 2
PATH=$PATH:/usr/sbin:/sbin

stamp() { printf '%s %s\n' "$(suite)" "$PACKAGES"; }
suite() { (. /etc/os-release && echo "${VERSION_CODENAME-}"); }

have() {
    ((EUID == 0)) || { echo "needs root"; return 1; }
    command -v systemd-nspawn >/dev/null || { echo "needs systemd-nspawn (systemd-container)"; return 1; }
    [[ -c /dev/fuse ]] || { echo "needs /dev/fuse"; return 1; }
    [[ $(cat "$folder/stamp" 2>/dev/null) == "$(stamp)" ]] ||
        { echo "needs its image: make test-systemd builds it, in a minute or two"; return 1; }
}

image() {
    ((EUID == 0)) || die "needs root"
    command -v mmdebstrap >/dev/null || die "needs mmdebstrap"
    [[ -n $(suite) ]] || die "/etc/os-release names no release to make an image of"
    mkdir -p "$folder"
    exec 9>"$folder/.lock"
    flock 9
    [[ $(cat "$folder/stamp" 2>/dev/null) != "$(stamp)" ]] || { say "up to date in $folder"; return 0; }
    say "installing $(suite) with systemd (a minute or two)"
    rm -rf "$folder/root" "$folder/stamp"
    mmdebstrap --variant=minbase --dpkgopt=force-unsafe-io \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --include="$PACKAGES" \
        "$(suite)" "$folder/root" >"$folder/mmdebstrap.log" 2>&1 ||
        die "mmdebstrap: $(grep -m1 '^E:' "$folder/mmdebstrap.log" || tail -n 1 "$folder/mmdebstrap.log")"
    stamp >"$folder/stamp"
}

prepare() { # IMAGE RUN [LAYER]
    local run=$1 layer=${2-}
    mkdir -p "$run"/{root,upper,work}
    mount -t overlay gridvfs-test "$run/root" \
        -o "lowerdir=${layer:+$layer:}$folder/root,upperdir=$run/upper,workdir=$run/work"
    echo gridvfs-test >"$run/root/etc/hostname"
    printf '127.0.0.1 localhost gridvfs-test stateserver\n' >"$run/root/etc/hosts"
    # A machine without a console has nobody to log in there.
    ln -sf /dev/null "$run/root/etc/systemd/system/console-getty.service"
    ln -sf /dev/null "$run/root/etc/systemd/system/systemd-networkd-wait-online.service"
}

# The container's first process.
leader() {
    local nspawn
    nspawn=$(cat "$folder/nspawn.pid" 2>/dev/null) || return 1
    [[ -d /proc/$nspawn ]] || return 1
    # The first child: nspawn's own helper has gone by the time that this matters.
    awk '{ print $1 }' "/proc/$nspawn/task/$nspawn/children" | grep .
}

inside() {
    local pid
    pid=$(leader) || die "the container does not run (its console: $folder/console.log)"
    nsenter --target "$pid" --all -- env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin \
        HOME=/root LANG=C.UTF-8 SYSTEMD_PAGER=cat SYSTEMD_COLORS=0 "$@"
}

boot() {
    local tries=0 state
    # As udev has it: open to all, whatever the machine's own is like.
    rm -f "$folder/fuse" && mknod -m 666 "$folder/fuse" c 10 229
    # Not registered: that needs a systemd on the machine itself.
    setsid systemd-nspawn --quiet --directory="$folder/root" --machine="gridvfs-$$" --register=no --keep-unit \
        --console=pipe --private-network --bind="$folder/fuse:/dev/fuse" --bind=/dev/autofs --capability=CAP_NET_ADMIN \
        --boot >"$folder/console.log" 2>&1 </dev/null &
    echo $! >"$folder/nspawn.pid"
    until leader >/dev/null && inside test -S /run/systemd/private 2>/dev/null; do
        ((tries++ < BOOT_SECONDS_MAX * 10)) || die "no systemd after $BOOT_SECONDS_MAX s (see $folder/console.log)"
        [[ -d /proc/$(cat "$folder/nspawn.pid") ]] || die "systemd-nspawn: $(tail -n 3 "$folder/console.log")"
        sleep 0.1
    done
    state=$(inside timeout "$BOOT_SECONDS_MAX" systemctl is-system-running --wait || true)
    case $state in
        running | degraded) echo "$state" ;;
        *) die "the container is $state (see $folder/console.log)" ;;
    esac
}

# Its processes are gone when nspawn is.
gone() { # SECONDS
    local tries=0 nspawn
    nspawn=$(cat "$folder/nspawn.pid" 2>/dev/null) || return 0
    while [[ -d /proc/$nspawn ]]; do
        ((tries++ < $1 * 10)) || return 1
        sleep 0.1
    done
    rm -f "$folder/nspawn.pid"
}

case $verb in
    have) have ;;
    image) image ;;
    prepare) prepare "$@" ;;
    boot) boot ;;
    exec) inside bash -euo pipefail -c "$1" ;;
    poweroff)
        inside systemctl poweroff --no-block || true
        gone "$POWEROFF_SECONDS_MAX" || die "it did not end in $POWEROFF_SECONDS_MAX s"
        ;;
    remove)
        if pid=$(leader); then kill -9 "$pid" 2>/dev/null || true; fi
        gone 20 || kill -9 "$(cat "$folder/nspawn.pid")" 2>/dev/null || true
        ! mountpoint -q "$folder/root" || umount -l "$folder/root"
        ;;
    *) usage >&2; exit 2 ;;
esac
