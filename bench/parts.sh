# shellcheck shell=bash
# What the experiments have in common (bench/experiments; their interface is in bench/README.md).
# Sourced by one that has set `experiment`, its name; it then defines
#
#   parts FULL      calls `part` for each of its parts (FULL: yes, or empty)
#   run_part PART   runs one repetition, with `repetition` its number; `link_up` (lib.sh) or
#                   `configured` come first in it, after what cannot be had has been looked for
#
# and calls `main "$@"`. What is costly to make is kept in `store`, for all runs.
# shellcheck disable=SC2034,SC2154 # set here and used by who sources it, or the other way round

bench=$experiment
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
store=${CARGO_TARGET_DIR:-$root/target}/bench
# Where caches are, and what they are compared with.
folder=${GRIDVFS_BENCH_DISK:-/var/tmp}

# --- What it tells --------------------------------------------------------------------

# part NAME TITLE SECONDS REPEATS NEED...: SECONDS of one repetition, roughly.
part() {
    local name=$1 title=$2 seconds=$3 repeats=$4
    shift 4
    jq -n -c --arg part "$name" --arg title "$title" --argjson seconds "$seconds" --argjson repeats "$repeats" \
        '$ARGS.named + {needs: $ARGS.positional}' --args "$@"
}
sample() { # SERIES X METRIC UNIT VALUE: X is a category, or a number
    local category=(--arg x "$2")
    [[ ! $2 =~ ^[0-9]+(\.[0-9]+)?$ ]] || category=(--argjson x "$2")
    jq -n -c --arg experiment "$experiment" --arg series "$1" "${category[@]}" --arg metric "$3" --arg unit "$4" \
        --argjson value "$5" '$ARGS.named'
    say "$1, $2: $3 $5 $4"
}
note() { # SERIES TEXT
    jq -n -c --arg experiment "$experiment" --arg series "$1" --arg note "$2" '$ARGS.named'
}
# What cannot be had here is no failure.
cannot() { say "$*"; exit 77; }
# What a part needs, as the harness reads it: root, disk:MIB and memory:MIB (free), or a program.
look_for() { # NEED
    local place=$folder
    case $1 in
        root) ((EUID == 0)) || cannot "the emulated link needs root (network namespaces)" ;;
        disk:* | memory:*)
            [[ $1 == disk:* ]] || place=/dev/shm
            (($(df -m --output=avail "$place" | tail -n 1) >= ${1#*:})) || cannot "$place has no room for ${1#*:} MiB"
            ;;
        *) command -v "$1" >/dev/null || cannot "$1 is not installed (make deps-bench installs it)" ;;
    esac
}
seconds() { calc "$1 / 1e6"; } # MICROSECONDS

# --- Running, and what is kept ------------------------------------------------------------

# In a process group of its own: whatever runs in it is ended when this script is.
in_group() { # COMMAND...
    local status=0
    set -m
    ("$@") </dev/null &
    row_pid=$!
    set +m
    wait "$row_pid" || status=$?
    row_pid=""
    return "$status"
}
# kept NAME COMMAND...: sets `place` to what COMMAND made, once, in the folder that is its last
# argument.
kept() {
    place=$store/$1
    [[ -e $place ]] || in_group make_kept "$place" "${@:2}"
}
make_kept() { # PLACE COMMAND...
    mkdir -p "$store"
    exec 9>"$store/.lock"
    flock 9
    [[ ! -e $1 ]] || return 0
    # shellcheck disable=SC2064 # as it is now
    trap "rm -rf '$1.partial'" EXIT
    rm -rf "$1.partial"
    mkdir "$1.partial"
    "${@:2}" "$1.partial" 9>&-
    mv -T "$1.partial" "$1"
}
# A name's end that changes with what makes it.
stamp() { cat "$@" | sha256sum | cut -c1-10; } # FILE...

# --- The paper's configurations ------------------------------------------------------------

# configured NAME: sets `series`, as the paper calls it, and `options` of the mount, and has the link
# up; `options` are empty where there is no mount.
configured() {
    local rtt=32ms
    # Below the paper's proxies was a kernel's NFS client. It asks for a file's attributes at open, and
    # after a minute (acregmax); that the names of a directory still hold, absent ones too, it learns
    # by one call. What it would not ask for, the kernel is allowed to remember here.
    options=cache=off,attr_timeout=60,entry_timeout=3600,negative_timeout=3600
    case $1 in
        local) series=Local options="" ;;
        lan-g) series=LAN/G rtt=170us ;;
        wan-g) series=WAN/G ;;
        wan-gc) series=WAN/GC ;;
    esac
    link_up "$rtt" 1gbit "$folder"
    # Sent when it is told to, as the paper's middleware does at the end.
    [[ $1 != wan-gc ]] ||
        options="cache_dir=$disk/cache,write_policy=write-back,consistency=dedicated,writeback_delay=3600,writeback_age=3600"
}
# Mounts as `configured` says, with nothing in the kernel's page cache; sets `top`, the folder to work in.
mount_configured() {
    if [[ -n $options ]]; then
        mount_far "$options"
        top=$mnt
        note "$series" "options: ${options/"$disk"/DISK}"
    else
        mv "$work/far" "$disk/local"
        top=$disk/local
    fi
    forget
}
# Sends what is unsent, and unmounts; then the server's files are in `final`. Sets `submitted`
# (seconds), `calls` and `sent` (bytes), of the mount's whole life.
submit() {
    submitted=0 calls=0 sent=0 final=$top
    [[ -n $options ]] || return 0
    final=$work/far
    if [[ $series == WAN/GC* ]]; then
        timed "$gridvfs" writeback "$mnt" >"$work/words.writeback"
        submitted=$(seconds "$took")
    fi
    read -r calls sent < <(status_of '"\(.link.calls) \(.link.sent_bytes)"')
    unmount
}

# --- The command line ------------------------------------------------------------------------

usage() {
    echo "usage: $experiment.sh list [--full]"
    echo "       $experiment.sh run PART --repetition K"
}
main() {
    local needs need
    case ${1-}:$# in
        list:1) parts "" ;;
        list:2) [[ $2 == --full ]] || { usage >&2; exit 2; }; parts yes ;;
        run:4)
            [[ $3 == --repetition && $4 =~ ^[1-9][0-9]*$ ]] || { usage >&2; exit 2; }
            look_for jq
            needs=$(parts yes | jq -r --arg part "$2" 'select(.part == $part) | "found", .needs[]')
            [[ -n $needs ]] || { say "there is no part $2"; exit 2; }
            for need in ${needs#found}; do look_for "$need"; done
            repetition=$4
            # Until there is a link to be cleared away.
            trap '[[ -z ${row_pid-} ]] || end_row' EXIT
            trap 'exit 130' INT TERM HUP
            run_part "$2"
            ;;
        --help:1 | -h:1) usage ;;
        *) usage >&2; exit 2 ;;
    esac
}
