# shellcheck shell=bash disable=SC2154,SC2034 # sourced by who has a link up
# A LAN on this side of the link: compute servers, each a network namespace of its own, joined by a
# pair of virtual interfaces to the near end, where a standing proxy with a disk cache serves them
# what lies beyond the link. Each compute server has a session with an empty cache of its own.
#
# Sourced after lib.sh. A clone here is `gridvfs clone` and the reading of what a resume may need (the
# whole memory file, the device state, kernel and initrd), or, if `resume` is not empty, the resume.

proxy_pid="" lan_sessions=0

compute() { printf 'gvfleet-%s-%s' "$$" "$1"; } # NUMBER: its namespace
before_down() {
    local number
    if [[ -n $proxy_pid ]]; then kill -9 "$proxy_pid" 2>/dev/null || true; fi
    for ((number = 1; number <= lan_sessions; number++)); do
        ip netns del "$(compute "$number")" 2>/dev/null || true
    done
}
# lan_up SESSIONS FOLDER: FOLDER of the server is what the proxy serves.
lan_up() {
    local number
    lan_sessions=$1
    for ((number = 1; number <= $1; number++)); do
        ip netns add "$(compute "$number")"
        "${near[@]}" ip link add "gvf$number" type veth peer name lan netns "$(compute "$number")"
        "${near[@]}" ip addr add "10.99.$number.1/30" dev "gvf$number"
        "${near[@]}" ip link set "gvf$number" up
        ip -n "$(compute "$number")" addr add "10.99.$number.2/30" dev lan
        ip -n "$(compute "$number")" link set lan up
        ip -n "$(compute "$number")" link set lo up
        mkdir -p "$work/session$number"
        "$gridvfs" proxy key new "session$number" --file "$work/keys" --out "$work/session$number/key" >&2
    done
    cat >"$work/lan.toml" <<TOML
listen = ["0.0.0.0:7049"]
key_file = "$work/keys"
[export.golden]
source = "gvhost:$2"
ssh_config = "$config"
gridvfs_command = "env XDG_STATE_HOME=$work/state $gridvfs"
consistency = "read-only-shared"
cache_dir = "$disk/lan"
TOML
}
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
clone() { # NUMBER
    local mnt=$work/session$1/mnt place=$disk/clone$1 guest file
    rm -rf "$place"
    if [[ -n $golden ]]; then
        "$gridvfs" clone "$mnt" "$place" --name "fleet$1" --json >/dev/null
    fi
    if [[ -n ${resume-} && -n $golden ]]; then
        "$place/start" </dev/null >"$work/session$1/guest" 2>&1 &
        guest=$!
        started "$guest"
        "$programs/gridvfs-ask" --timeout 600 "$place/shell.sock" >/dev/null
        kill "$guest"
        wait "$guest" 2>/dev/null || true
        return
    fi
    for file in memory state vmlinuz initrd.img; do
        if [[ $file == memory || -e $mnt/$file ]]; then dd if="$mnt/$file" of=/dev/null bs=1M status=none; fi
    done
}
# Seconds that the processors of this machine have worked, and that the proxy had of them.
busy() { awk -v hz="$(getconf CLK_TCK)" '/^cpu / { print ($2 + $3 + $4 + $7 + $8) / hz }' /proc/stat; }
of_proxy() { awk -v hz="$(getconf CLK_TCK)" '{ print ($14 + $15) / hz }' "/proc/$proxy_pid/stat"; }
# fleet_clone N: sessions 1 to N clone at once. Sets `took`, `spent` and `proxy_spent` (s; of all
# processors, of the proxy), and `bytes` (over the link, towards us).
fleet_clone() {
    local number before begin worked own pids=()
    before=$(carried) worked=$(busy) own=$(of_proxy) begin=$(now)
    for ((number = 1; number <= $1; number++)); do
        clone "$number" 2>"$work/session$number/words" &
        pids+=($!)
    done
    for number in "${pids[@]}"; do wait "$number" || die "a clone failed: $(cat "$work"/session*/words | tail -n 3)"; done
    took=$(calc "($(now) - $begin) / 1e6") spent=$(calc "$(busy) - $worked")
    proxy_spent=$(calc "$(of_proxy) - $own")
    sleep 0.5
    bytes=$(($(carried) - before))
}
# Sessions with empty caches behind an empty proxy.
fleet_up() { # N
    local number
    proxy_start
    for ((number = 1; number <= $1; number++)); do session_start "$number"; done
    forget
}
fleet_down() { # N
    local number
    for ((number = 1; number <= $1; number++)); do
        if ((number == 1)) && [[ -z ${resume-} ]]; then
            compared "$work/session1/mnt/memory" "$work/far/golden/memory" "session 1"
        fi
        session_end "$number"
    done
    proxy_stop
}
