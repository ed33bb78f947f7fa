#!/usr/bin/env bash
# Builds a Debian (or Ubuntu) guest of the size that the paper's clones had: a root disk
# of 1.6 GB with some 650 MB of packages on it, systemd, and the same serial ports as the
# small guest of build.sh. suspend.sh makes golden VMs of it.
#
# mmdebstrap installs the packages, in whatever way this user may (root, user namespaces
# or fakechroot); mke2fs makes the disk without mounting anything. What is left in OUTDIR:
#
#   vmlinuz, initrd.img, disk.raw, guest.info   as from build.sh
#   other.tar    what makes another VM of the same base: packages, unpacked
#   root.tar     what mmdebstrap made, kept for the next time
#
# A second call with the same OUTDIR and the same sources does nothing.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: debian.sh [OUTDIR] [--disk-mib N] [--include PACKAGE,...] [--setup SCRIPT] [--rebuild]
  OUTDIR         default: target/guest-debian in the source tree
  --disk-mib N   size of disk.raw (default 1600)
  --include ...  further packages
  --setup SCRIPT runs in the root directory of the guest once they are installed
  --rebuild      build all of it again
USAGE
}

PACKAGES=systemd-sysv,udev,dbus,kmod,iproute2,procps,cron,openssh-server,python3,build-essential,git,vim-nox,perl
# Unpacked over the root by the other VM. The archive's versions fit one another.
OTHER_PACKAGES=(nginx-common nginx sqlite3 libsqlite3-0 tmux rsync valgrind gdb golang-1.19-src postgresql-client-common)

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"
outdir="" disk_mib=1600 include="" setup="" kernel_package="" rebuild=""
while (($#)); do
    case $1 in
        --disk-mib) disk_mib=${2:?}; shift 2 ;;
        --include) include=${2:?}; shift 2 ;;
        --setup) setup=$(realpath "${2:?}"); shift 2 ;;
        --rebuild) rebuild=1; shift ;;
        -h | --help) usage; exit 0 ;;
        -*) usage >&2; exit 2 ;;
        *) [[ -z $outdir ]] || { usage >&2; exit 2; }; outdir=$1; shift ;;
    esac
done
outdir=${outdir:-$here/../../target/guest-debian}
[[ $disk_mib =~ ^[0-9]+$ ]] || die "sizes are whole MiB"
PATH=$PATH:/usr/sbin:/sbin
guest_needs mmdebstrap mke2fs dpkg-deb apt-get apt-cache gzip sha256sum flock
as_if_root=()
if ((EUID)); then
    # Owners of files are kept in its memory between tar and mke2fs.
    guest_needs fakeroot
    as_if_root=(fakeroot)
fi

mkdir -p "$outdir"
outdir=$(cd "$outdir" && pwd)
exec 9>"$outdir/.lock"
flock 9
root_stamp="$PACKAGES${include:+,$include}${setup:+ $(sha256sum <"$setup" | cut -c1-16)}"
stamp=$(cat "$here"/{debian.sh,debian-ready,lib.sh,initramfs-init} <(echo "$disk_mib $root_stamp") | sha256sum | cut -c1-16)
if [[ -z $rebuild && -s $outdir/vmlinuz && -s $outdir/disk.raw && -s $outdir/other.tar ]] &&
    grep -qsx "stamp=$stamp" "$outdir/guest.info"; then
    say "up to date in $outdir"
    exit 0
fi
work=$(mktemp -d "$outdir/.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
umask 022

# --- The root directory ---------------------------------------------------------

# shellcheck disable=SC1091 # the system's
suite=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
[[ -n $suite ]] || die "/etc/os-release names no release to make a guest of"
root_stamp="$suite $root_stamp"
if [[ -n $rebuild || ! -s $outdir/root.tar || $(cat "$outdir/root.stamp" 2>/dev/null) != "$root_stamp" ]]; then
    say "installing $suite with $PACKAGES${include:+,$include} (some minutes)"
    # Thousands of small files with an fsync each: in memory if there is room.
    fast=$work
    (($(awk '/^MemAvailable/ { print $2 }' /proc/meminfo) < 4194304)) || [[ ! -w /dev/shm ]] || fast=/dev/shm
    hook=()
    # shellcheck disable=SC2016 # for mmdebstrap's shell
    [[ -z $setup ]] || hook=(--customize-hook="upload $setup /root/setup"
        --customize-hook='chroot "$1" sh /root/setup' --customize-hook='rm "$1/root/setup"')
    TMPDIR=$fast mmdebstrap --variant=apt --dpkgopt=force-unsafe-io --include="$PACKAGES${include:+,$include}" \
        ${hook[@]+"${hook[@]}"} "$suite" "$work/root.tar" >"$work/mmdebstrap.log" 2>&1 ||
        die "mmdebstrap: $(grep -m1 '^E:' "$work/mmdebstrap.log" || tail -n 1 "$work/mmdebstrap.log") $(tail -n 3 "$work/mmdebstrap.log" | tr '\n' ' ')"
    mv "$work/root.tar" "$outdir/root.tar"
    echo "$root_stamp" >"$outdir/root.stamp"
fi

take_kernel
take_busybox
make_initrd virtio_pci virtio_blk crc32c_generic ext4

# What is put over the packages.
over=$work/over
mkdir -p "$over"/{etc/systemd/system/multi-user.target.wants,usr/local/sbin,usr/lib}
cp -a "$work/kernel/lib/modules" "$over/usr/lib/"
install -m 755 "$here/debian-ready" "$over/usr/local/sbin/guest-ready"
cat >"$over/etc/systemd/system/guest-ready.service" <<'UNIT'
[Unit]
Description=Say that the guest is ready, and answer on the second serial port
After=basic.target ssh.service cron.service
[Service]
ExecStart=/usr/local/sbin/guest-ready
StandardInput=null
[Install]
WantedBy=multi-user.target
UNIT
ln -s ../guest-ready.service "$over/etc/systemd/system/multi-user.target.wants/"
# Nothing that waits for a network or runs by the clock: a guest that has settled is quiet.
for unit in systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer \
    fstrim.timer dpkg-db-backup.timer logrotate.timer getty@tty1.service; do
    ln -sf /dev/null "$over/etc/systemd/system/$unit"
done
echo gridvfs-debian >"$over/etc/hostname"
echo '/dev/vda / ext4 rw,relatime 0 1' >"$over/etc/fstab"
# depmod's files were made for the initramfs, and name the modules by the same paths.

say "making disk.raw, $disk_mib MiB"
# shellcheck disable=SC2016 # for the inner shell
${as_if_root[@]+"${as_if_root[@]}"} bash -euo pipefail -c '
    mkdir "$1/root"
    tar -x --numeric-owner --exclude="./dev/*" -f "$2" -C "$1/root"
    cp -a --no-preserve=ownership "$1/over/." "$1/root/"
    mke2fs -q -t ext4 -F -b 4096 -L gridvfs-debian -m 0 -O ^metadata_csum_seed \
        -E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 -J size=16 -d "$1/root" "$1/disk.raw" "$3M"
' bash "$work" "$outdir/root.tar" "$disk_mib" >"$work/disk.log" 2>&1 ||
    die "cannot make the disk: $(tail -n 2 "$work/disk.log" | tr '\n' ' ')"

# --- What another VM has -----------------------------------------------------------

for package in "${OTHER_PACKAGES[@]}"; do
    if known "$package"; then fetch "$package" "$work/other"; fi
done
[[ -d $work/other ]] || die "none of ${OTHER_PACKAGES[*]} is to be had"
tar -c --owner=0 --group=0 -f "$work/other.tar" -C "$work/other" .

install -m 644 "$vmlinuz" "$work/vmlinuz"
{
    echo "stamp=$stamp"
    echo "suite=$suite"
    echo "kernel_version=$version"
    echo "disk_bytes=$(stat -c %s "$work/disk.raw")"
    echo "disk_allocated_bytes=$(($(stat -c %b "$work/disk.raw") * 512))"
    echo "other_bytes=$(stat -c %s "$work/other.tar")"
} >"$work/guest.info"
# As in build.sh: guest.info goes first and comes back last.
rm -f "$outdir/guest.info"
mv -f "$work/vmlinuz" "$work/initrd.img" "$work/disk.raw" "$work/other.tar" "$outdir/"
mv -f "$work/guest.info" "$outdir/"
say "$suite, kernel $version, disk $disk_mib MiB ($(du -m "$outdir/disk.raw" | cut -f1) MiB used) in $outdir"
