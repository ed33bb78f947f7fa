#!/usr/bin/env bash
# Runs an NFS-Ganesha server (FSAL VFS, NFSv3 only) of its own for a test.
#
# Own ports, configuration, log and process id, all in one folder. Owners are
# passed through (no squashing), locks are left out (no NLM), and attributes are
# never cached, so that a change made beside the server is seen at once.
#
# DIR afterwards holds:
#   port, mount_port   NFS and MOUNT (both TCP on every address of the namespace)
#   ganesha.conf       ganesha.log       ganesha.pid
#
# `stop` ends it in an orderly way, `kill` with SIGKILL; `start` in the same DIR
# uses the same ports again, so clients find it where it was. Needs root: the
# server opens files by handle.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: ganesha.sh start DIR EXPORT_PATH [--port P] [--mount-port P] [--netns PATH]
       ganesha.sh stop DIR
       ganesha.sh kill DIR
USAGE
}
say() { printf 'ganesha: %s\n' "$*" >&2; }
die() { printf 'ganesha: error: %s\n' "$*" >&2; exit 1; }

[[ $# -ge 2 ]] || { usage >&2; exit 2; }
verb=$1 dir=$2
shift 2
export_path="" port="" mount_port="" netns=""
while (($#)); do
    case $1 in
        --port) port=${2:?}; shift 2 ;;
        --mount-port) mount_port=${2:?}; shift 2 ;;
        --netns) netns=${2:?}; shift 2 ;;
        -*) usage >&2; exit 2 ;;
        *) [[ -z $export_path ]] || { usage >&2; exit 2; }; export_path=$1; shift ;;
    esac
done
PATH=$PATH:/usr/sbin:/sbin

# rpcbind is one for the whole machine (its socket is a path, so network
# namespaces share it). Whoever finds none starts it; the last user stops it.
rpcbind_users=/run/gridvfs-test-rpcbind

in_netns() { if [[ -n $netns ]]; then nsenter --net="$netns" "$@"; else "$@"; fi; }

running() {
    local pid
    pid=$(cat "$dir/ganesha.pid" 2>/dev/null) || return 1
    [[ -n $pid ]] && { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF "$dir/ganesha.conf" && echo "$pid"
}

rpcbind_answers() { [[ -S /run/rpcbind.sock ]] && rpcinfo -s >/dev/null 2>&1; }

rpcbind_lock() {
    mkdir -p "$rpcbind_users"
    exec 8>"$rpcbind_users/lock"
    flock 8
}

rpcbind_get() {
    local tries
    rpcbind_lock
    if ! rpcbind_answers; then
        command -v rpcbind >/dev/null || die "rpcbind is missing (make deps installs it)"
        mkdir -p /run/rpcbind
        # The lock is not for the daemon to inherit. Its number is known without a look at all
        # processes (pidof), which waits for those whose exec waits for a file on a mount whose
        # server is about to be started here.
        setsid rpcbind -w -f </dev/null >/dev/null 2>&1 8>&- &
        echo "$!" >"$rpcbind_users/starting"
        disown
        for tries in {1..50}; do
            rpcbind_answers && break
            sleep 0.1
        done
        rpcbind_answers || die "rpcbind does not answer: NFS-Ganesha cannot register without it"
        mv "$rpcbind_users/starting" "$rpcbind_users/pid"
    fi
    # Counted only where it is ours to stop.
    if [[ -s $rpcbind_users/pid ]]; then
        echo "$dir" >"$rpcbind_users/user.$(printf '%s' "$dir" | cksum | cut -d' ' -f1)"
    fi
    exec 8>&-
}

rpcbind_put() {
    local pid
    rpcbind_lock
    rm -f "$rpcbind_users/user.$(printf '%s' "$dir" | cksum | cut -d' ' -f1)"
    if [[ -s $rpcbind_users/pid ]] && ! compgen -G "$rpcbind_users/user.*" >/dev/null; then
        pid=$(cat "$rpcbind_users/pid")
        if [[ $(cat "/proc/$pid/comm" 2>/dev/null) == rpcbind ]]; then kill "$pid" 2>/dev/null || true; fi
        rm -f "$rpcbind_users/pid"
    fi
    exec 8>&-
}

# A zombie that nobody has reaped yet is gone for our purposes.
alive() { [[ -e /proc/$1 ]] && ! grep -qs '^State:[[:space:]]*Z' "/proc/$1/status"; }

port_is_free() { ! in_netns bash -c "exec 3<>/dev/tcp/127.0.0.1/$1" 2>/dev/null; }

free_port() { # below the range that the kernel hands out to clients
    local candidate
    for _ in {1..50}; do
        candidate=$((20000 + RANDOM % 12000))
        [[ $candidate != "${1-}" ]] && port_is_free "$candidate" && { echo "$candidate"; return; }
    done
    die "no free port found"
}

write_configuration() {
    local tolerances=
    # From release 5 it insists on a capability that containers do not give;
    # release 4 does not know the setting and would refuse it.
    if (($(ganesha.nfsd -v 2>/dev/null | sed -n 's/.*Release = V\([0-9]*\).*/\1/p') >= 5)); then
        tolerances="    Allow_Set_Io_Flusher_Fail = true;"$'\n'
    fi
    cat >"$dir/ganesha.conf" <<CONF
NFS_CORE_PARAM {
    NFS_Port = $port;
    MNT_Port = $mount_port;
    Rquota_Port = 0;
    NFS_Protocols = 3;
    Enable_NLM = false;
    Enable_RQUOTA = false;
    # Answers are resent from the duplicate request cache, as servers do.
    DRC_Disabled = false;
    Plugins_Dir = "$plugins";
$tolerances}
EXPORT {
    Export_Id = 1;
    Path = "$export_path";
    Pseudo = "$export_path";
    Access_Type = RW;
    Squash = None;
    SecType = sys;
    Protocols = 3;
    Transports = TCP;
    PrivilegedPort = false;
    Attr_Expiration_Time = 0;
    FSAL { Name = VFS; }
}
LOG { Default_Log_Level = EVENT; }
CONF
}

start() {
    local pid tries own_port own_mount_port
    ((EUID == 0)) || die "needs root (the server opens files by handle)"
    command -v ganesha.nfsd >/dev/null || die "ganesha.nfsd is missing (make deps installs nfs-ganesha)"
    command -v nfs-ls >/dev/null || die "nfs-ls is missing (make deps installs libnfs-utils)"
    [[ -d $export_path ]] || die "$export_path is not a folder"
    export_path=$(cd "$export_path" && pwd)
    plugins=$(dirname "$(find /usr/lib -name libfsalvfs.so -print -quit)")
    [[ $plugins != . ]] || die "FSAL VFS is missing (make deps installs nfs-ganesha-vfs)"
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    if pid=$(running); then die "already running in $dir (process $pid)"; fi
    # A restart comes back on the ports that clients know.
    own_port=${port:-$(cat "$dir/port" 2>/dev/null || true)}
    own_mount_port=${mount_port:-$(cat "$dir/mount_port" 2>/dev/null || true)}
    mkdir -p /run/ganesha
    rpcbind_get
    for _ in 1 2 3; do
        port=${own_port:-$(free_port)}
        mount_port=${own_mount_port:-$(free_port "$port")}
        write_configuration
        rm -f "$dir/ganesha.pid"
        in_netns ganesha.nfsd -f "$dir/ganesha.conf" -L "$dir/ganesha.log" -p "$dir/ganesha.pid" >"$dir/start.log" 2>&1 ||
            { rpcbind_put; die "did not start: $(tail -n 2 "$dir/start.log" "$dir/ganesha.log" 2>/dev/null | tr '\n' ' ')"; }
        for tries in {1..200}; do
            if in_netns nfs-ls "nfs://127.0.0.1$export_path?nfsport=$port&mountport=$mount_port" >/dev/null 2>"$dir/nfs-ls.log"; then
                echo "$port" >"$dir/port"
                echo "$mount_port" >"$dir/mount_port"
                say "serving $export_path: nfs://127.0.0.1$export_path?nfsport=$port&mountport=$mount_port"
                return
            fi
            ((tries < 20)) || running >/dev/null || break # it gave up by itself
            sleep 0.1
        done
        if pid=$(running); then kill -9 "$pid"; fi
        # Fresh ports only help where they were ours to choose.
        [[ -z $own_port ]] || break
    done
    rpcbind_put
    die "no answer on port $port: $(cat "$dir/nfs-ls.log"; grep -E 'FATAL|CRIT|MAJ' "$dir/ganesha.log" | tail -n 3)"
}

# Ends the server by SIGNAL and waits until its process is gone.
end() { # SIGNAL
    local pid tries
    if pid=$(running); then
        kill "-$1" "$pid"
        for tries in {1..300}; do
            alive "$pid" || break
            # An orderly stop may hang on a client that is gone.
            ((tries != 200)) || kill -9 "$pid" 2>/dev/null || true
            sleep 0.05
        done
    fi
    rm -f "$dir/ganesha.pid"
}

case $verb in
    start)
        [[ -n $export_path ]] || { usage >&2; exit 2; }
        start
        ;;
    stop | kill)
        [[ -d $dir ]] || exit 0
        dir=$(cd "$dir" && pwd)
        if [[ $verb == stop ]]; then end TERM; else end KILL; fi
        rpcbind_put
        ;;
    *) usage >&2; exit 2 ;;
esac
