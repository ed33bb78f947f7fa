# shellcheck shell=bash disable=SC2154 # sourced by cache.sh, and for its tree by experiments/cost.sh
# Many names, many tags: a tree of small files (row tree), the opening of a large
# cache (row open), what git asks of the server (row git).

DIRECTORIES=20 FILES=50

make_tree() { # FOLDER
    local directory file
    for ((directory = 0; directory < DIRECTORIES; directory++)); do
        mkdir -p "$1/d$directory"
        for ((file = 0; file < FILES; file++)); do
            head -c $((5120 + (directory * FILES + file) * 7919 % 10240)) /dev/urandom >"$1/d$directory/f$file"
        done
    done
}
# Reads a tree as tar does (not to /dev/null, for which tar reads nothing), in the
# order that its directories are listed in; sets `took`, and compares.
read_tree() { # FROM [SERVERS]
    # shellcheck disable=SC2016 # expanded by the inner shell
    timed bash -o pipefail -c 'tar -cf - -C "$1" tree | cat >"$2"' tar "$1" "$work/arrived.tar"
    tar -df "$work/arrived.tar" -C "${2:-$work/far}" >"$work/words.tar" 2>&1 ||
        die "the tree that arrived is another: $(tail -n 1 "$work/words.tar")"
}
tree_seconds() { calc "$took / 1e6"; }

row_tree() {
    local round way rpcs
    for way in shared dedicated; do
        row "tree-cold-$way" "1,000 small files, 10 MB, cold ($way)" s "" "<=5"
    done
    row tree-warm-dedicated "again after umount and mount (dedicated)" s "" "<=0.3"
    row tree-warm-shared "again after umount and mount (shared)" s "" ""
    make_tree "$work/far/tree"
    for ((round = 1; round <= rounds; round++)); do
        for way in shared dedicated; do
            rm -rf "$disk/cache"
            forget
            mount_far "cache_dir=$disk/cache,consistency=$way"
            rpcs=$(status_of .link.calls)
            read_tree "$mnt"
            sample "tree-cold-$way" "$(tree_seconds)"
            detail "tree-cold-$way" "calls" $(($(status_of .link.calls) - rpcs))
            unmount
            mount_far "cache_dir=$disk/cache,consistency=$way"
            rpcs=$(status_of .link.calls)
            read_tree "$mnt"
            sample "tree-warm-$way" "$(tree_seconds)"
            detail "tree-warm-$way" "calls" $(($(status_of .link.calls) - rpcs))
            unmount
        done
        read_tree "$work/far"
        detail tree-warm-dedicated "from the server's memory without a mount s" "$(tree_seconds)"
    done
    [[ -z $peers ]] || tree_peers
}
tree_peers() {
    local peer
    for peer in sshfs rclone; do
        row "tree-cold-$peer" "the same, cold, by $peer" s "" ""
        if ! command -v "$peer" >/dev/null; then
            skip "tree-cold-$peer" "$peer is not installed"
            continue
        fi
        forget
        if [[ $peer == sshfs ]]; then
            mount_sshfs
        else
            mount_rclone --vfs-cache-mode full --cache-dir "$disk/rclone"
        fi
        read_tree "$mnt"
        sample "tree-cold-$peer" "$(tree_seconds)"
        fusermount3 -u "$mnt"
    done
}

# A cache of 100 GiB whose tags are all in use: found again at mount, and used.
row_open() {
    local round large options="cache=on,cache_dir=$disk/cache,cache_size=100G"
    row open "mount with a full cache of 100 GiB" s "" "<=1"
    row open-memory "memory for it: the mount process's after 10,000 small files and \`cache status\`, more than with an empty cache of 8 GiB" MiB "" "<=64" most
    mkdir "$disk/source"
    head -c 4096 /dev/zero >"$disk/source/first"
    mount_near() { # OPTIONS
        timed "$gridvfs" mount "$disk/source" "$mnt" -o "$1" >/dev/null
        pid=$(status_of .pid)
        started "$pid"
    }
    # Reads many new files and counts all frames; sets `peak`.
    opened_memory() {
        find "$mnt/many" -type f -exec cat {} + >"$work/arrived"
        (($(stat -c %s "$work/arrived") == 40960000)) || die "not all files were read"
        "$gridvfs" cache status "$mnt" --json >"$work/words.status"
        peak=$(peak_kib "$pid")
    }
    mount_near "$options"
    unmount
    "$programs/gridvfs-fill-tags" "$(find "$disk/cache" -name tags)" >"$work/words.tags" || die "gridvfs-fill-tags failed"
    note open "$(cat "$work/words.tags")"
    mkdir "$disk/source/many"
    (cd "$disk/source/many" && head -c 40960000 /dev/urandom | split -a 4 -d -b 4096 - f)
    for ((round = 1; round <= rounds; round++)); do
        # As after a start of the machine.
        forget
        mount_near "$options"
        sample open "$(calc "$took / 1e6")"
        opened_memory
        large=$peak
        detail open "frames in use" "$(jq .frames "$work/words.status")"
        unmount
        rm -rf "$disk/small"
        forget
        mount_near "cache=on,cache_dir=$disk/small"
        detail open "with an empty 8 GiB cache s" "$(calc "$took / 1e6")"
        opened_memory
        sample open-memory "$(calc "($large - $peak) / 1024")"
        detail open-memory "in all: 100 GiB" "$(calc "$large / 1024")"
        detail open-memory "8 GiB" "$(calc "$peak / 1024")"
        unmount
    done
    rm -rf "$disk/source"
}

row_git() {
    local round calls
    row git-status "round trips of the second git status after a walk (dedicated), --no-optional-locks" calls "" "<=0"
    row git-status-locks "the same without that option" calls "" ""
    if ! command -v git >/dev/null; then
        skip git-status "git is not installed"
        skip git-status-locks "git is not installed"
        return
    fi
    make_tree "$work/far/tree"
    far_git() { git -c safe.directory='*' -c user.name=bench -c user.email=bench@example.org -C "$work/far/tree" "$@" >/dev/null; }
    near_git() { timed git -c safe.directory='*' -C "$mnt/tree" "$@" >"$work/words.git"; }
    far_git init -q
    far_git add .
    far_git commit -q -m tree
    for ((round = 1; round <= rounds; round++)); do
        rm -rf "$disk/cache"
        mount_far "cache_dir=$disk/cache,consistency=dedicated,write_policy=write-back"
        find "$mnt/tree" -printf '%s %p\n' >"$work/words.walk"
        near_git status --porcelain
        detail git-status "first status s" "$(calc "$took / 1e6")"
        near_git --no-optional-locks status --porcelain
        calls=$(status_of .link.calls)
        near_git --no-optional-locks status --porcelain
        sample git-status $(($(status_of .link.calls) - calls))
        detail git-status "s" "$(calc "$took / 1e6")"
        [[ ! -s $work/words.git ]] || die "git sees changes where there are none: $(head -n 1 "$work/words.git")"
        near_git status --porcelain
        calls=$(status_of .link.calls)
        near_git status --porcelain
        sample git-status-locks $(($(status_of .link.calls) - calls))
        detail git-status-locks "s" "$(calc "$took / 1e6")"
        unmount
    done
}
