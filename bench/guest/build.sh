#!/usr/bin/env bash
# Builds a small golden VM: a kernel, an initramfs and a root disk.
#
# The kernel comes from the distribution as a package that is downloaded and
# unpacked, never installed; the userland is the distribution's static busybox.
# Nothing here needs root. What is left in OUTDIR:
#
#   vmlinuz      the kernel, as QEMU's -kernel wants it
#   initrd.img   busybox and the modules that reach a virtio disk
#   disk.raw     ext4 without a partition table, sparse, holding real files and
#                the list of their SHA-256 sums that the guest checks at boot
#   guest.info   KEY=VALUE lines: kernel version, sizes, what it was built from
#
# A second call with the same OUTDIR and the same sources does nothing.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: build.sh [OUTDIR] [--disk-mib N] [--files-mib N] [--kernel-package NAME] [--rebuild]
  OUTDIR                default: target/guest in the source tree
  --disk-mib N          size of disk.raw (default 256)
  --files-mib N         how much of it to fill with files (default 72)
  --kernel-package NAME a kernel (meta) package instead of the usual one
  --rebuild             build even when OUTDIR is up to date
USAGE
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"
outdir=
disk_mib=256
files_mib=72
kernel_package=
rebuild=
while (($#)); do
    case $1 in
        --disk-mib) disk_mib=${2:?}; shift 2 ;;
        --files-mib) files_mib=${2:?}; shift 2 ;;
        --kernel-package) kernel_package=${2:?}; shift 2 ;;
        --rebuild) rebuild=1; shift ;;
        -h | --help) usage; exit 0 ;;
        -*) usage >&2; exit 2 ;;
        *) [[ -z $outdir ]] || { usage >&2; exit 2; }; outdir=$1; shift ;;
    esac
done
outdir=${outdir:-$here/../../target/guest}
[[ $disk_mib =~ ^[0-9]+$ && $files_mib =~ ^[0-9]+$ ]] || die "sizes are whole MiB"
# ext4's own structures and the guest's writes need room beside the files.
((disk_mib >= files_mib + 48)) || die "--disk-mib must be at least --files-mib + 48"
PATH=$PATH:/usr/sbin:/sbin
guest_needs mke2fs dpkg-deb apt-get apt-cache gzip sha256sum flock

mkdir -p "$outdir"
outdir=$(cd "$outdir" && pwd)
exec 9>"$outdir/.lock"
flock 9

# The stamp names what decides the result; a newer kernel in the archive does
# not make a finished guest stale (--rebuild takes it).
stamp=$(cat "$here"/{build.sh,lib.sh,initramfs-init,disk-init} \
    <(printf '%s %s %s' "$disk_mib" "$files_mib" "$kernel_package") | sha256sum | cut -c1-16)
if [[ -z $rebuild && -s $outdir/vmlinuz && -s $outdir/initrd.img && -s $outdir/disk.raw ]] &&
    grep -qsx "stamp=$stamp" "$outdir/guest.info"; then
    say "up to date in $outdir"
    exit 0
fi

work=$(mktemp -d "$outdir/.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
# mktemp's 0700 is right for the work folder, not for what lands on the disk.
umask 022

take_kernel
take_busybox
make_initrd virtio_pci virtio_blk crc32c_generic ext4

# --- Root disk --------------------------------------------------------------

root=$work/root
mkdir -p "$root"/{bin,sbin,etc/guest,dev,proc,sys,tmp,run,root,boot,var/log,var/lib/guest}
install -m 755 "$busybox" "$root/bin/busybox"
"$busybox" --list | while read -r applet; do
    [[ $applet == busybox || -e $root/bin/$applet ]] || ln -s busybox "$root/bin/$applet"
done
install -m 755 "$here/disk-init" "$root/sbin/init"
cat >"$root/sbin/guest-poweroff" <<'SCRIPT'
#!/bin/sh
sync
cd /
mount -o remount,ro / || echo "GUEST WARNING root disk stays busy"
exec busybox poweroff -f
SCRIPT
chmod 755 "$root/sbin/guest-poweroff"
echo gridvfs-guest >"$root/etc/hostname"
echo 'root::0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
cp "$vmlinuz" "$work/kernel/boot/"*"$version" "$root/boot/" 2>/dev/null || true
chmod -R u+rw "$root/boot"

# Real files to fill it: the kernel's modules, in a fixed order, up to the size
# asked for. A copy of this tree (dpkg's own) has the same bytes every time.
mkdir -p "$root/lib/modules"
(cd "$work/kernel" && find "lib/modules/$version" -type f -size -4096k | LC_ALL=C sort |
    xargs stat -c '%s %n' | awk -v limit=$((files_mib << 20)) \
    -v used="$(du -sb "$root" | cut -f1)" '{ used += $1; if (used <= limit) print $2 }' |
    tar -cf - -T -) | tar -xf - -C "$root"

# The guest reads these at every boot and compares: about 8 MiB, spread over
# the whole disk, so a wrong byte from the file system shows inside the guest.
(cd "$root" && { echo bin/busybox; find lib/modules -type f -size +16k | LC_ALL=C sort | awk 'NR % 9 == 1'; } |
    xargs stat -c '%s %n' | awk '{ used += $1; if (used <= 8 * 1048576) print $2 }' |
    xargs sha256sum) >"$work/sums"
cp "$work/sums" "$root/etc/guest/sums"

# Lazy initialisation would have the guest's kernel write zeros for minutes.
mke2fs -q -t ext4 -F -b 4096 -i 16384 -L gridvfs-guest -m 0 -O ^metadata_csum_seed \
    -E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 \
    -J size=16 -d "$root" "$work/disk.raw" "${disk_mib}M" >"$work/mke2fs.log" 2>&1 ||
    die "mke2fs: $(tail -n 2 "$work/mke2fs.log" | tr '\n' ' ')"

install -m 644 "$vmlinuz" "$work/vmlinuz"
{
    echo "stamp=$stamp"
    echo "kernel_package=$image"
    echo "kernel_version=$version"
    echo "disk_bytes=$(stat -c %s "$work/disk.raw")"
    echo "disk_allocated_bytes=$(($(stat -c %b "$work/disk.raw") * 512))"
    echo "checked_files=$(wc -l <"$work/sums")"
} >"$work/guest.info"

# guest.info goes first and comes back last: a half-replaced guest is not
# taken for a finished one.
rm -f "$outdir/guest.info"
mv -f "$work/vmlinuz" "$work/initrd.img" "$work/disk.raw" "$outdir/"
mv -f "$work/guest.info" "$outdir/"
say "kernel $version, disk $disk_mib MiB ($(du -m "$outdir/disk.raw" | cut -f1) MiB used) in $outdir"
