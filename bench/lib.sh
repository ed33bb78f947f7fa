# shellcheck shell=bash
# What the benchmarks on the emulated link have in common. Sourced by one that has
# set `bench`, its name; it may then call `link_up`, and whatever else is here.
#
# `work` is a folder in memory: the server's files, ssh's keys, the mount points and
# the sessions' own state. `disk` is one on a local disk: caches, and what they are
# compared with. Both are removed at the end, with every mount in them and every
# process in `$work/pids`; nothing else is touched.
# shellcheck disable=SC2034,SC2154 # set here and used by who sources it, or the other way round

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH=$PATH:/usr/sbin:/sbin
programs=${CARGO_TARGET_DIR:-$root/target}/release
gridvfs=$programs/gridvfs
wan=$programs/gridvfs-wan
support=$root/tests/support
results=${GRIDVFS_BENCH_RESULTS:-$root/bench/results}
die() { printf '%s: error: %s\n' "$bench" "$*" >&2; exit 1; }
say() { printf '%s: %s\n' "$bench" "$*" >&2; }

needs() { # PROGRAM...
    local program
    for program; do
        command -v "$program" >/dev/null || die "$program is missing: \`make deps-bench\` installs it"
    done
}

# --- Setting up and clearing away -------------------------------------------------

# link_up RTT RATE DISK_FOLDER [or-relay]: without root, or-relay takes a relay in place of the link.
# It carries what goes through ssh, and nothing else; `relayed` is then not empty.
link_up() {
    relayed=""
    ((EUID == 0)) || relayed=${4-}
    ((EUID == 0)) || [[ -n $relayed ]] || die "the emulated link needs root (network namespaces)"
    needs iperf3 jq sshd fusermount3
    [[ -x $gridvfs && -x $wan ]] || die "not built: run \`make build\`"
    work=$(mktemp -d "/dev/shm/gridvfs-$bench.XXXXXX")
    disk=$(mktemp -d "$3/gridvfs-$bench.XXXXXX")
    chmod 755 "$work"
    link=$bench-$$ mnt=$work/mnt
    trap link_down EXIT
    trap 'exit 130' INT TERM HUP
    mkdir -p "$mnt" "$work/far" "$work/near" "$work/state" "$disk/xdg" "$results"
    mkdir -m 700 "$work/run"
    : >"$work/rclone.conf"
    : >"$work/pids"
    # Nothing of the user's own sessions, neither seen nor changed.
    export XDG_STATE_HOME=$work/state XDG_RUNTIME_DIR=$work/run XDG_CACHE_HOME=$disk/xdg

    config=$work/ssh/ssh_config
    if [[ -n $relayed ]]; then
        relay_up "$1" "$2"
        return
    fi
    "$wan" up --name "$link" --rtt "$1" --rate "$2" --json >"$work/link.json"
    far_netns=$(jq -r .b.netns "$work/link.json") far_address=$(jq -r .b.address "$work/link.json")
    sshd_up --netns "$far_netns" --listen "$far_address"
    far_port=$(cat "$work/ssh/port")
    near=("$wan" exec "$link" a --)
    far=("$wan" exec "$link" b --)
}
sshd_up() { # OPTION...
    "$support/sshd.sh" start "$work/ssh" --path "$programs" "$@" 2>"$work/sshd.words" ||
        die "sshd did not start: $(tail -n 1 "$work/sshd.words")"
}
relay_up() { # RTT RATE
    local tries
    sshd_up
    "$wan" relay --listen 127.0.0.1:0 --to "127.0.0.1:$(cat "$work/ssh/port")" --rtt "$1" --rate "$2" \
        --name "$link" >"$work/relay" 2>"$work/relay.words" &
    started $!
    for ((tries = 0; tries < 100; tries++)); do
        [[ ! -s $work/relay ]] || break
        sleep 0.05
    done
    [[ -s $work/relay ]] || die "the relay did not start: $(tail -n 1 "$work/relay.words")"
    far_address=127.0.0.1 far_port=$(sed 's/.*://' "$work/relay")
    sed -i "s/^\( *Port\) .*/\1 $far_port/" "$config"
    near=() far=()
}

link_down() {
    local status=$?
    trap '' INT TERM HUP
    # What is ended here is nothing to be told of: the last words are the script's own.
    disown -a
    [[ -z ${row_pid-} ]] || end_row
    if declare -F before_down >/dev/null; then before_down; fi
    clear_mounts
    "$support/sshd.sh" stop "$work/ssh" 2>/dev/null || true
    "$wan" down "$link" >/dev/null 2>&1 || true
    rm -rf --one-file-system "$work" "$disk"
    exit "$status"
}

# Ends what runs in `row_pid`'s process group, or that process if it leads none.
end_row() {
    local tries
    kill -- "-$row_pid" 2>/dev/null || kill "$row_pid" 2>/dev/null || true
    for ((tries = 0; tries < 40; tries++)); do
        kill -0 -- "-$row_pid" 2>/dev/null || return 0
        sleep 0.05
    done
    kill -9 -- "-$row_pid" 2>/dev/null || true
}

# Unmounts what is mounted below `work`, and ends what was noted by `started`.
clear_mounts() {
    local place pid begun
    while read -r place; do
        fusermount3 -u -z "$place" 2>/dev/null || umount -l "$place" 2>/dev/null || true
    done < <(findmnt -n -r -o TARGET | grep -F "$work/" || true)
    while read -r pid begun; do
        [[ $(birth "$pid") != "$begun" ]] || kill -9 "$pid" 2>/dev/null || true
    done <"$work/pids"
    : >"$work/pids"
}

# When a process was started: with its id, what tells it from any other.
birth() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '{ print $20 }'; }
started() { printf '%s %s\n' "$1" "$(birth "$1")" >>"$work/pids"; }

# --- Mounts -------------------------------------------------------------------------

# mount_far OPTIONS [FOLDER]: mounts the server's folder at $mnt; sets `pid`.
mount_far() {
    local options="gridvfs_command=env XDG_STATE_HOME=$work/state $gridvfs"
    "${near[@]}" "$gridvfs" mount "gvhost:$work/far${2:+/$2}" "$mnt" -F "$config" \
        -o "$options${1:+,$1}" >"$work/mount.words" 2>&1 || die "cannot mount: $(tail -n 3 "$work/mount.words")"
    pid=$(status_of .pid)
    started "$pid"
}
unmount() { "$gridvfs" umount "$mnt" >"$work/mount.words" 2>&1 || die "umount: $(tail -n 3 "$work/mount.words")"; }
status_of() { "$gridvfs" status "$mnt" --json | jq -r "$1"; } # FILTER
mount_sshfs() { "${near[@]}" sshfs -F "$config" "gvhost:$work/far" "$mnt"; }
mount_rclone() { # OPTION...
    "${near[@]}" rclone mount ":sftp:$work/far" "$mnt" --sftp-host "$far_address" \
        --sftp-port "$far_port" --sftp-user "$(id -un)" --sftp-key-file "$work/ssh/id_ed25519" \
        --config "$work/rclone.conf" --daemon "$@" 2>/dev/null || die "rclone mount failed"
}

# --- Measuring ------------------------------------------------------------------------

now() { printf '%s' "${EPOCHREALTIME/[.,]/}"; }
timed() { # COMMAND...: sets `took`, in microseconds
    local begin
    begin=$(now)
    "$@" 2>"$work/timed.words" || die "failed: $*: $(tail -n 3 "$work/timed.words")"
    took=$(($(now) - begin))
}
calc() { awk -v CONVFMT=%.9g -v OFMT=%.9g "BEGIN { print $1 }"; } # EXPRESSION
mbit() { awk -v mib="$1" -v us="$2" 'BEGIN { printf "%.1f", mib * 8.388608 / (us / 1e6) }'; }
# What the kernel has in its caches goes; only root may do that.
forget() {
    sync
    ((EUID)) || echo 3 >/proc/sys/vm/drop_caches
}
# What the link has carried, in bytes: towards us, or a_to_b for the other direction.
carried() { "$wan" status "$link" --json | jq ".${1:-b_to_a}.bytes"; }
compared() { cmp -s "$1" "$2" || die "$3: the data that arrived is not the data that was sent"; }
peak_kib() { awk '/^VmHWM/ { print $2 }' "/proc/$1/status"; } # PID

# Processes, all their children that still live, and who is of their sessions (sshfs's ssh is no child).
family() { # PID...
    local waiting=("$@") children
    {
        while ((${#waiting[@]})); do
            echo "${waiting[0]}"
            read -r -a children < <(cat "/proc/${waiting[0]}/task/"*/children 2>/dev/null | tr '\n' ' ') || true
            waiting=("${waiting[@]:1}" ${children[@]+"${children[@]}"})
        done
        # Behind the name, which may hold anything.
        { cat /proc/[0-9]*/stat 2>/dev/null || true; } | sed 's/^\([0-9]*\) (.*) /\1 /' |
            awk -v leaders=" $* " 'index(leaders, " " $5 " ") { print $1 }'
    } | sort -u
}
# Their CPU seconds, in clock ticks.
ticks() { # PID...
    local pid total=0
    for pid in $(family "$@"); do
        total=$((total + $(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null | awk '{ print $12 + $13 }' || echo 0)))
    done
    echo "$total"
}
cpu_per_gib() { awk -v t="$1" -v hz="$(getconf CLK_TCK)" -v mib="$2" 'BEGIN { printf "%.2f", t / hz / (mib / 1024) }'; }
# CPU time of a process's threads in nanoseconds, finer than ticks.
cpu_ns() { cat "/proc/$1/task/"*/schedstat | awk '{ sum += $1 } END { printf "%.0f", sum }'; }

# What four TCP connections carry; prints Mbit/s. With -R: towards us.
limit() { # MIB [-R]
    local json server
    "${far[@]}" iperf3 -s -1 >/dev/null 2>&1 &
    server=$!
    sleep 0.5
    json=$("${near[@]}" iperf3 -c "$far_address" -P 4 -n "${1}M" --json ${2:+"$2"})
    wait "$server" || true
    jq -r '.end.sum_received.bits_per_second / 1e5 | round / 10' <<<"$json"
}

# A file of MIB is read (written) through a fresh mount with an empty cache, and the
# mount is ended. Sets took, cpu (seconds of the mount and its ssh processes for a
# GiB) and peak (of the mount process, KiB).
read_cold() { # MIB FILE
    local before
    rm -rf "$disk/cold"
    forget
    mount_far "cache_dir=$disk/cold"
    before=$(ticks "$pid")
    timed dd if="$mnt/$2" of=/dev/null bs=1M
    cpu=$(cpu_per_gib $(($(ticks "$pid") - before)) "$1") peak=$(peak_kib "$pid")
    unmount
}
write_cold() { # MIB FILE: which is in $work/near
    local before
    rm -rf "$disk/cold"
    mount_far "cache_dir=$disk/cold"
    before=$(ticks "$pid")
    timed dd if="$work/near/$2" of="$mnt/written" bs=1M conv=fsync
    cpu=$(cpu_per_gib $(($(ticks "$pid") - before)) "$1") peak=$(peak_kib "$pid")
    unmount
    compared "$work/far/written" "$work/far/$2" "gridvfs"
    rm "$work/far/written"
}
