# shellcheck shell=bash disable=SC2154,SC2034 # sourced by who has a link up, or will have
# Clones of suspended Debians: where these are, and how long a clone takes to its first answer.
# Sourced after lib.sh.

goldens=${GRIDVFS_BENCH_GOLDEN:-${CARGO_TARGET_DIR:-$root/target}/golden}
has() { "$gridvfs" "$@" --help >/dev/null 2>&1; } # VERB...: whether this build has it

# make_golden NAME [OPTION...]: prints where it is, having made it if it is not there: minutes.
make_golden() {
    local guest=${goldens%/*}/guest-debian name=$1
    shift
    if [[ ! -s $goldens/$name/state ]]; then
        "$root/bench/guest/debian.sh" "$guest" >&2
        suspend_golden "$guest" "$name" "$@"
    fi
    echo "$goldens/$name"
}
suspend_golden() { # GUEST NAME [OPTION...]
    rm -rf "${goldens:?}/$2"
    "$root/bench/guest/suspend.sh" "$1" "$goldens/$2" --memory 320 --settle 10 "${@:3}" >&2
}
meta_build() { # GOLDEN: a folder
    local words
    words=$("$gridvfs" meta build --zero --hash --block-size 4K --action zstd "$1/memory" 2>&1 &&
        "$gridvfs" meta build --zero --hash "$1"/{disk.raw,vmlinuz,initrd.img} 2>&1) ||
        die "meta build: $(tail -n 1 <<<"$words")"
}

# resume CLONE: starts it and waits for its answer; ends it. Sets `answered`, when that came.
resume() {
    local guest
    "$1/start" </dev/null >"$work/words.guest" 2>&1 &
    guest=$!
    started "$guest"
    "$programs/gridvfs-ask" --timeout 600 "$1/shell.sock" >/dev/null 2>"$work/words.ask" ||
        die "no answer from $1: $(tail -n 1 "$work/words.ask") $(tail -n 1 "$work/words.guest")"
    answered=$(now)
    kill "$guest"
    wait "$guest" 2>/dev/null || true
}
# clone_and_ask GOLDEN [COMMAND...]: COMMAND, which may bring GOLDEN here, comes first.
# Sets `took` (seconds, to the first answer), `made` (of it: the clone itself) and
# `bytes` (over the link, towards us).
clone_and_ask() {
    local from=$1 begin before cloned place=$disk/clones/one
    shift
    rm -rf "$place"
    before=$(carried) begin=$(now)
    if (($#)); then "$@" >"$work/words.copy" 2>&1 || die "$*: $(tail -n 1 "$work/words.copy")"; fi
    "$gridvfs" clone "$from" "$place" --json >"$work/clone.json" 2>"$work/words.clone" ||
        die "gridvfs clone: $(tail -n 1 "$work/words.clone")"
    cloned=$(now)
    resume "$place"
    took=$(calc "($answered - $begin) / 1e6") made=$(calc "($cloned - $begin) / 1e6")
    bytes=$(($(carried) - before))
    rm -rf "$place"
}
mib() { calc "$1 / 1048576"; }
local_golden() {
    [[ -d $disk/golden ]] || { cp --sparse=always --preserve=timestamps -rH "$golden" "$disk/golden"; sync -f "$disk"; }
}
local_clone() {
    local_golden
    clone_and_ask "$disk/golden"
}
scp_golden() { ${near[@]+"${near[@]}"} scp -q -r -F "$config" "gvhost:$work/far/golden" "$disk/copy"; }

# --- For experiments (after parts.sh) ------------------------------------------------------

CLONE_NEEDS=(qemu-system-x86_64 qemu-img zstd disk:6144 memory:3072)

# vm NUMBER: sets `golden`. The first two are those of `make bench-clone`; each further one is the first
# one's disk with a little changed, booted apart.
vm() {
    local change
    golden=$goldens/$(vm_name "$1")
    [[ ! -s $golden/state ]] || return 0
    case $1 in
        1) make_golden debian >&2 ;;
        2) make_golden debian-other --add "${goldens%/*}/guest-debian/other.tar" >&2 ;;
        *)
            change=$(mktemp -d)
            mkdir -p "$change/root/etc" "$change/root/srv"
            echo "gridvfs-debian-$1" >"$change/root/etc/hostname"
            head -c 8M /dev/urandom >"$change/root/srv/own"
            tar -c --owner=0 --group=0 -f "$change/own.tar" -C "$change/root" .
            suspend_golden "$goldens/debian" "${golden##*/}" --add "$change/own.tar"
            rm -rf "$change"
            ;;
    esac
}
# golden_needed COUNT: makes the first COUNT VMs, with their metadata, where they are not yet; sets
# `golden`, the first one without, and vms[], all with it.
golden_needed() {
    local number
    vms=()
    for ((number = 1; number <= $1; number++)); do
        in_group vm_made "$number"
        kept "golden-$(vm_name "$number")-$(stamp "$goldens/$(vm_name "$number")/qemu.args")" \
            with_metadata "$goldens/$(vm_name "$number")"
        vms+=("$place")
    done
    golden=$goldens/debian
}
vm_name() { case $1 in 1) echo debian ;; 2) echo debian-other ;; *) echo "debian-$1" ;; esac; }
vm_made() { # NUMBER: one at a time
    mkdir -p "$store"
    exec 9>"$store/.vms"
    flock 9
    vm "$1" 9>&-
}
with_metadata() { # GOLDEN FOLDER
    cp --sparse=always "$1"/* "$2/"
    meta_build "$2"
}
# Puts a VM on the server, as far/golden, and clears the place for clones.
golden_up() { # GOLDEN
    mkdir -p "$disk/clones"
    cp --sparse=always --preserve=timestamps -rH "$1" "$work/far/golden"
}
