#!/usr/bin/env bash
# Eight compute servers clone the same golden VM at once, through one LAN cache: a standing
# proxy with a disk cache on this side of the emulated link. Each compute server is a network
# namespace of its own, joined to the proxy's by a pair of virtual interfaces; each has a
# session with an empty cache. A clone here is `gridvfs clone` and the reading of what a resume
# may need: the whole memory file, the device state, kernel and initrd; no guest is started. With
# --resume a second pair of rows has QEMU resume each, until its guest answers: on a machine of few
# processors guests wait for each other.
#
# The paper's goals: all eight in at most 1.14 times the time of one, at most 1.05 times its bytes
# over the link. Prints a table and leaves it in bench/results. A missed goal is an exit status of 1.
# The compute servers, the proxy and the state server are all on this machine: the table says how
# many seconds of its processors were used meanwhile, and how many of them by the proxy. Where that
# is near the time times the number of processors, the time tells how fast this machine computes.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: fleet.sh [--sessions N] [--rounds N] [--golden DIR] [--size MIB] [--disk DIR]
                [--rtt DELAY] [--rate RATE] [--resume]
  --sessions 8   at once
  --rounds 3     the table has medians
  --golden DIR   a suspended VM (default: target/golden/debian of bench-clone; if there is none, a
                 file like a guest's memory)
  --size 300     MiB of that file       --disk /var/tmp  where caches and clones are
  --rtt 32ms     round trip             --rate 1gbit     capacity of the link
USAGE
}

sessions=8 rounds=3 golden="" size=300 folder=/var/tmp rtt=32ms rate=1gbit resume=""
while (($#)); do
    case $1 in
        --sessions) sessions=${2:?}; shift 2 ;;
        --rounds) rounds=${2:?}; shift 2 ;;
        --golden) golden=$(realpath "${2:?}"); shift 2 ;;
        --size) size=${2:?}; shift 2 ;;
        --disk) folder=$(realpath "${2:?}"); shift 2 ;;
        --rtt) rtt=${2:?}; shift 2 ;;
        --rate) rate=${2:?}; shift 2 ;;
        --resume) resume=yes; shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
[[ $sessions =~ ^[1-9][0-9]?$ && $rounds =~ ^[1-9][0-9]*$ ]] || { usage >&2; exit 2; }

bench='fleet'
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
needs ip nsenter jq python3
link_up "$rtt" "$rate" "$folder"
proxy_pid=""

# --- The neighbourhood -------------------------------------------------------------------

compute() { printf 'gvfleet-%s-%s' "$$" "$1"; } # NUMBER: its namespace
fleet_down() {
    local status=$? number
    if [[ -n $proxy_pid ]]; then kill -9 "$proxy_pid" 2>/dev/null || true; fi
    for ((number = 1; number <= sessions; number++)); do
        ip netns del "$(compute "$number")" 2>/dev/null || true
    done
    # It ends with the status that it finds.
    set +e
    (exit "$status")
    link_down
}
trap fleet_down EXIT
for ((number = 1; number <= sessions; number++)); do
    ip netns add "$(compute "$number")"
    "${near[@]}" ip link add "gvf$number" type veth peer name lan netns "$(compute "$number")"
    "${near[@]}" ip addr add "10.99.$number.1/30" dev "gvf$number"
    "${near[@]}" ip link set "gvf$number" up
    ip -n "$(compute "$number")" addr add "10.99.$number.2/30" dev lan
    ip -n "$(compute "$number")" link set lan up
    ip -n "$(compute "$number")" link set lo up
    mkdir -p "$work/session$number"
done

# --- What is cloned ----------------------------------------------------------------------

default=${CARGO_TARGET_DIR:-$root/target}/golden/debian
if [[ -z $golden && -s $default/state ]]; then golden=$default; fi
mkdir -p "$work/far/golden"
if [[ -n $golden ]]; then
    cp --sparse=always "$golden"/* "$work/far/golden/"
    what="Debian, $(($(stat -c %s "$golden/memory") >> 20)) MiB of memory"
else
    python3 - "$work/far/golden/memory" "$size" <<'PYTHON'
import os, random, sys
path, pages = sys.argv[1], int(sys.argv[2]) * 256
random.seed(1)
with open("/proc/self/exe", "rb") as program:
    text = program.read()
with open(path, "wb") as out:
    done = 0
    while done < pages:
        run = min(1 + int(random.expovariate(1 / 32)), pages - done)
        kind = random.random()
        if kind < 0.58:
            out.write(bytes(4096) * run)
        elif kind < 0.8:
            out.write(os.urandom(4096 * run))
        else:
            at = random.randrange(0, max(1, len(text) - 4096 * run))
            out.write(text[at:at + 4096 * run].ljust(4096 * run, b"\1"))
        done += run
PYTHON
    what="a file of $size MiB, 58 % zeros, half of the rest random"
fi
if "$gridvfs" meta build --help >/dev/null 2>&1; then
    for file in "$work"/far/golden/*; do
        case ${file##*/} in
            memory) "$gridvfs" meta build --zero --hash --block-size 4K --action zstd "$file" ;;
            disk.raw | vmlinuz | initrd.img) "$gridvfs" meta build --zero --hash "$file" ;;
        esac >"$work/words.meta" 2>&1 || die "meta build: $(tail -n 1 "$work/words.meta")"
    done
fi

# --- The proxy and its sessions -------------------------------------------------------------

for ((number = 1; number <= sessions; number++)); do
    "$gridvfs" proxy key new "session$number" --file "$work/keys" --out "$work/session$number/key"
done
cat >"$work/lan.toml" <<TOML
listen = ["0.0.0.0:7049"]
key_file = "$work/keys"
[export.golden]
source = "gvhost:$work/far/golden"
ssh_config = "$config"
gridvfs_command = "env XDG_STATE_HOME=$work/state $gridvfs"
consistency = "read-only-shared"
cache_dir = "$disk/lan"
TOML
proxy_start() {
    rm -rf "$disk/lan"
    : >"$work/proxy.words"
    "${near[@]}" "$gridvfs" proxy serve --config "$work/lan.toml" >>"$work/proxy.words" 2>>"$work/proxy.log" &
    proxy_pid=$!
    local tries
    for ((tries = 0; tries < 300; tries++)); do
        if grep -q '^listening on' "$work/proxy.words"; then return; fi
        kill -0 "$proxy_pid" 2>/dev/null || break
        sleep 0.1
    done
    die "the proxy does not listen: $(tail -n 3 "$work/proxy.log")"
}
proxy_stop() {
    kill "$proxy_pid"
    wait "$proxy_pid" || die "the proxy: $(tail -n 3 "$work/proxy.log")"
    proxy_pid=""
}
# `ip netns exec` would have mounts in a namespace of their own, too.
in_compute() { nsenter --net="/run/netns/$(compute "$1")" "${@:2}"; } # NUMBER COMMAND...
session_start() { # NUMBER
    local own=$work/session$1
    mkdir -p "$own/mnt"
    rm -rf "$disk/cache$1" "$disk/clone$1"
    in_compute "$1" "$gridvfs" mount "gridvfs://10.99.$1.1:7049/golden" "$own/mnt" --session "fleet$1" \
        --key-file "$own/key" -o "consistency=read-only-shared,cache_dir=$disk/cache$1" \
        >"$own/words" 2>&1 || die "session $1: $(tail -n 3 "$own/words")"
    started "$("$gridvfs" status "fleet$1" --json | jq -r .pid)"
}
session_end() { "$gridvfs" umount "fleet$1" >/dev/null 2>&1 || die "umount of session $1"; }
clone() { # NUMBER read|resume
    local mnt=$work/session$1/mnt place=$disk/clone$1 guest file
    if [[ -n $golden ]]; then
        "$gridvfs" clone "$mnt" "$place" --name "fleet$1" --json >/dev/null
    fi
    if [[ $2 == resume ]]; then
        "$place/start" </dev/null >"$work/session$1/guest" 2>&1 &
        guest=$!
        "$programs/gridvfs-ask" --timeout 600 "$place/shell.sock" >/dev/null
        kill "$guest"
        wait "$guest" 2>/dev/null || true
        return
    fi
    for file in memory state vmlinuz initrd.img; do
        if [[ $file == memory || -e $mnt/$file ]]; then dd if="$mnt/$file" of=/dev/null bs=1M status=none; fi
    done
}
carried() { "$wan" status "$link" --json | jq .b_to_a.bytes; }

ticks() { getconf CLK_TCK; }
busy() { awk '/^cpu / { print $2 + $3 + $4 + $7 + $8 }' /proc/stat; } # in ticks
of_proxy() { awk '{ print $14 + $15 }' "/proc/$proxy_pid/stat"; }     # in ticks

# fleet N read|resume: N sessions with empty caches behind an empty proxy clone at once. Sets `took`
# (s), `bytes` (over the link, towards us), `cpu` and `proxy_cpu` (s of processors).
fleet() {
    local number before begin busy_before own_before pids=()
    proxy_start
    for ((number = 1; number <= $1; number++)); do session_start "$number"; done
    forget
    before=$(carried) busy_before=$(busy) own_before=$(of_proxy) begin=$(now)
    for ((number = 1; number <= $1; number++)); do
        clone "$number" "$2" 2>"$work/session$number/words" &
        pids+=($!)
    done
    for number in "${pids[@]}"; do wait "$number" || die "a clone failed: $(cat "$work"/session*/words | tail -n 3)"; done
    took=$(calc "($(now) - $begin) / 1e6")
    cpu=$(calc "($(busy) - $busy_before) / $(ticks)")
    proxy_cpu=$(calc "($(of_proxy) - $own_before) / $(ticks)")
    sleep 0.5
    bytes=$(($(carried) - before))
    for ((number = 1; number <= $1; number++)); do
        if ((number == 1)) && [[ $2 == read ]]; then
            compared "$work/session1/mnt/memory" "$work/far/golden/memory" "session 1"
        fi
        session_end "$number"
    done
    proxy_stop
}

# --- Measuring --------------------------------------------------------------------------------

median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
modes=(read)
if [[ -n $resume ]]; then
    [[ -n $golden ]] || die "--resume needs a suspended VM (--golden DIR; make bench-clone makes one)"
    modes+=(resume)
fi
for ((round = 1; round <= rounds; round++)); do
    for mode in "${modes[@]}"; do
        for count in 1 "$sessions"; do
            fleet "$count" "$mode"
            echo "$took $bytes $cpu $proxy_cpu" >>"$work/$mode.$count"
            say "$mode, $count at once: $took s, $((bytes >> 20)) MiB, $cpu s of processors ($proxy_cpu of the proxy)"
        done
    done
done
column() { cut -d' ' -f"$3" "$work/$1.$2" | median; } # MODE COUNT NUMBER
table=$results/fleet.md
missed=
{
    echo "Link: $rtt, $rate. $what. Medians of $rounds. $(nproc) processors for everything."
    echo
    echo "| | seconds | MiB over the link | seconds of processors | of these the LAN proxy's |"
    echo "|---|---|---|---|---|"
    for mode in "${modes[@]}"; do
        case $mode in
            read) words="memory and device state read whole, no guest" ;;
            resume) words="resumed, until the guest answers" ;;
        esac
        for count in 1 "$sessions"; do
            printf '| %s at once through an empty LAN cache: %s | %.2f | %.1f | %.2f | %.2f |\n' "$count" "$words" \
                "$(column "$mode" "$count" 1)" "$(calc "$(column "$mode" "$count" 2) / 1048576")" \
                "$(column "$mode" "$count" 3)" "$(column "$mode" "$count" 4)"
        done
        time_ratio=$(calc "$(column "$mode" "$sessions" 1) / $(column "$mode" 1 1)")
        byte_ratio=$(calc "$(column "$mode" "$sessions" 2) / $(column "$mode" 1 2)")
        printf '| ratio (goal) | %.2f (1.14) | %.3f (1.05) | | |\n' "$time_ratio" "$byte_ratio"
        [[ $(calc "($time_ratio <= 1.14 && $byte_ratio <= 1.05)") == 1 ]] || missed=yes
    done
} >"$table"
cat "$table"
[[ -z $missed ]] || { say "a goal is missed"; exit 1; }
