# shellcheck shell=bash
# What the guests have in common: packages that are downloaded and unpacked, never
# installed; a kernel; an initramfs that finds the root disk. Sourced by a builder that
# has set `outdir`, `work` (a scratch folder in it), `here` and `kernel_package` (empty:
# the usual one). Nothing here needs root.
# shellcheck disable=SC2154 # set by who sources it

say() { printf 'guest: %s\n' "$*" >&2; }
die() { printf 'guest: error: %s\n' "$*" >&2; exit 1; }

guest_needs() { # TOOL...
    local tool
    [[ $(uname -m) == x86_64 ]] || die "the guest is x86-64; build it on an x86-64 machine"
    for tool; do
        command -v "$tool" >/dev/null || die "$tool is missing (make deps and make deps-bench install it)"
    done
}

# --- Packages ---------------------------------------------------------------

apt_options=(-q -o "APT::Sandbox::User=$(id -un)")

# Package lists may be missing (a fresh container); an ordinary user cannot
# refresh the system's, but can keep a set of their own.
refresh_lists() {
    local state=$outdir/.apt
    say "no package lists on this machine: fetching a set into $state"
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    apt_options+=(-o "Dir::State::lists=$state/lists" -o "Dir::Cache=$state/cache")
    apt-get "${apt_options[@]}" update >"$work/apt.log" 2>&1 ||
        die "apt-get update failed: $(tail -n 2 "$work/apt.log" | tr '\n' ' ')"
}

known() { [[ -n $(apt-cache "${apt_options[@]}" show "$1" 2>/dev/null | head -n 1) ]]; }

depends_on() { # PACKAGE PATTERN: the first dependency whose name matches
    apt-cache "${apt_options[@]}" depends --important "$1" 2>/dev/null |
        sed -n 's/^ *|\{0,1\}\(Pre\)\{0,1\}Depends: //p' | grep -E -m1 "$2" || true
}

fetch() { # PACKAGE DIR: downloads and unpacks one package
    mkdir -p "$2" "$work/deb"
    (cd "$work/deb" && rm -f ./*.deb && apt-get "${apt_options[@]}" download "$1" >../apt.log 2>&1) ||
        die "cannot download $1: $(grep -E '^[EW]:' "$work/apt.log" | head -n 2 | tr '\n' ' ')(is apt-get update due?)"
    dpkg-deb -x "$work"/deb/*.deb "$2"
}

pick_kernel() {
    local name
    for name in ${kernel_package:-linux-image-cloud-amd64 linux-image-virtual linux-image-amd64 linux-image-generic}; do
        known "$name" && { echo "$name"; return; }
    done
}

# --- The kernel and busybox -----------------------------------------------------

# Sets `image` (the package), `vmlinuz`, `version` and `module_root`.
take_kernel() {
    local meta modules
    meta=$(pick_kernel)
    if [[ -z $meta ]]; then
        refresh_lists
        meta=$(pick_kernel)
        [[ -n $meta ]] || die "the distribution has no kernel package that I know${kernel_package:+ (asked for $kernel_package)}"
    fi
    image=$(depends_on "$meta" '^linux-image-[0-9]')
    image=${image:-$meta}
    say "downloading the kernel $image"
    fetch "$image" "$work/kernel"
    # Ubuntu keeps the modules in a package of their own.
    modules=$(depends_on "$image" '^linux-modules-[0-9]')
    [[ -z $modules ]] || fetch "$modules" "$work/kernel"

    vmlinuz=$(find "$work/kernel/boot" -name 'vmlinuz-*' | head -n 1)
    [[ -n $vmlinuz ]] || die "$image holds no /boot/vmlinuz-*"
    version=${vmlinuz##*/vmlinuz-}
    module_root=$work/kernel/lib/modules/$version
    if [[ ! -d $module_root ]]; then # merged /usr
        mkdir -p "$work/kernel/lib/modules"
        mv "$work/kernel/usr/lib/modules/$version" "$module_root" 2>/dev/null ||
            die "$image holds no modules for $version"
    fi
}

# Sets `busybox`, a static one.
take_busybox() {
    busybox=$(command -v busybox || true)
    # The dynamic busybox has no place in an initramfs: only a static one will do.
    if [[ -z $busybox ]] || ldd "$busybox" >/dev/null 2>&1; then
        say "downloading busybox-static"
        fetch busybox-static "$work/busybox"
        busybox=$(find "$work/busybox" -path '*/bin/busybox' -type f | head -n 1)
        [[ -x $busybox ]] || die "busybox-static holds no busybox"
    fi
}

# --- Initramfs --------------------------------------------------------------

module_path() { # NAME: path below the module root, empty when built in
    awk -v want="$1" -F: '{
        name = $1; sub(/.*\//, "", name); sub(/\.ko(\.[a-z]+)?$/, "", name)
        gsub(/-/, "_", name)
        if (name == want) { print $1; exit }
    }' "$module_root/modules.dep"
}

add_module() { # PATH: what it needs first, then itself, once
    local needed
    for needed in $(awk -v path="$1" -F: '$1 == path { n = split($2, d, " "); for (i = n; i; i--) print d[i] }' \
        "$module_root/modules.dep") "$1"; do
        [[ " ${load_order[*]-} " == *" $needed "* ]] || load_order+=("$needed")
    done
}

unpacked_copy() { # FROM TO: a module without its compression
    case $1 in
        *.xz) xz -dc "$1" >"$2" ;;
        *.zst) zstd -qdc "$1" >"$2" ;;
        *.gz) gzip -dc "$1" >"$2" ;;
        *) cp "$1" "$2" ;;
    esac
}

# make_initrd MODULE...: $work/initrd.img with what MODULEs need, in the order of insertion.
make_initrd() {
    local name path plain number=0 ramfs=$work/ramfs depmod_tool=(depmod)
    command -v depmod >/dev/null || depmod_tool=("$busybox" depmod)
    "${depmod_tool[@]}" -b "$work/kernel" "$version" 2>"$work/depmod.log" ||
        die "depmod failed for $version: $(tail -n 1 "$work/depmod.log")"
    load_order=()
    for name; do
        path=$(module_path "$name")
        [[ -z $path ]] || add_module "$path"
    done
    mkdir -p "$ramfs"/{bin,dev,proc,sys,root,modules}
    install -m 755 "$busybox" "$ramfs/bin/busybox"
    ln -s busybox "$ramfs/bin/sh"
    install -m 755 "$here/initramfs-init" "$ramfs/init"
    for path in ${load_order[@]+"${load_order[@]}"}; do
        # The number is the order in which /init inserts them.
        plain=$(printf '%02d-%s' "$number" "$(basename "$path" | sed 's/\.ko.*/.ko/')")
        unpacked_copy "$module_root/$path" "$ramfs/modules/$plain"
        number=$((number + 1))
    done
    (cd "$ramfs" && find . | LC_ALL=C sort | "$busybox" cpio -o -H newc -R 0:0 2>"$work/cpio.log" | gzip -1 -n) \
        >"$work/initrd.img" || die "busybox cpio: $(tail -n 1 "$work/cpio.log")"
}
