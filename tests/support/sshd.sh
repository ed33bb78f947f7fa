#!/usr/bin/env bash
# Runs an SSH server of its own for a test: own port, host key, user key and
# known_hosts, all in one folder, nothing of the machine's or user's own touched.
#
# DIR afterwards holds, among others:
#   ssh_config    for `ssh -F DIR/ssh_config gvhost`; host keys strictly checked
#   id_ed25519    the user's key          known_hosts   the server's, as "gvhost"
#   port          the port it listens on  sshd.log      its log
#   sshd.pid      its process id          key.other     a key that is *not* known
#
# As root it logs in root, or any user given by --user. An ordinary user's sshd
# can log in that user only. Keys survive stop and start in the same DIR.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: sshd.sh start DIR [--port P] [--listen ADDR] [--netns PATH] [--user NAME] [--path FOLDER]
       sshd.sh stop DIR
  --port P        default: a free one
  --listen ADDR   default: 127.0.0.1
  --netns PATH    listen in that network namespace (/run/netns/NAME); needs root
  --user NAME     who logs in (default: the caller)
  --path FOLDER   put before PATH in every login: where `gridvfs` is found
  --option LINE   one more sshd_config line (may be repeated)
USAGE
}
say() { printf 'sshd: %s\n' "$*" >&2; }
die() { printf 'sshd: error: %s\n' "$*" >&2; exit 1; }

[[ $# -ge 2 ]] || { usage >&2; exit 2; }
verb=$1 dir=$2
shift 2
port="" listen=127.0.0.1 netns="" user=$(id -un) path="" options=()
while (($#)); do
    case $1 in
        --port) port=${2:?}; shift 2 ;;
        --listen) listen=${2:?}; shift 2 ;;
        --netns) netns=${2:?}; shift 2 ;;
        --user) user=${2:?}; shift 2 ;;
        --path) path=${2:?}; shift 2 ;;
        --option) options+=("${2:?}"); shift 2 ;;
        *) usage >&2; exit 2 ;;
    esac
done
PATH=$PATH:/usr/sbin:/sbin

# The process in DIR/sshd.pid, if it is still the one that we started.
running() {
    local pid
    pid=$(cat "$dir/sshd.pid" 2>/dev/null) || return 1
    [[ -n $pid ]] && { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF "$dir/sshd_config" && echo "$pid"
}

descendants() {
    local child
    # shellcheck disable=SC2013 # a list of process ids on one line
    for child in $(cat "/proc/$1/task/"*/children 2>/dev/null); do
        descendants "$child"
        echo "$child"
    done
}

stop() {
    local pid family tries=0
    if ! pid=$(running); then
        rm -f "$dir/sshd.pid"
        return 0
    fi
    # Logins outlive the listener: they are ours as well, so they go with it.
    family=$(descendants "$pid")
    # shellcheck disable=SC2086 # a list of process ids
    kill "$pid" $family 2>/dev/null || true
    for pid in $pid $family; do
        while alive "$pid" && ((tries++ < 100)); do sleep 0.05; done
        kill -9 "$pid" 2>/dev/null || true
    done
    rm -f "$dir/sshd.pid"
}

in_netns() { if [[ -n $netns ]]; then nsenter --net="$netns" "$@"; else "$@"; fi; }

# A zombie that nobody has reaped yet is gone for our purposes.
alive() { [[ -e /proc/$1 ]] && ! grep -qs '^State:[[:space:]]*Z' "/proc/$1/status"; }

port_is_free() { ! in_netns bash -c "exec 3<>/dev/tcp/$listen/$1" 2>/dev/null; }

free_port() { # below the range that the kernel hands out to clients
    local candidate
    for _ in {1..50}; do
        candidate=$((20000 + RANDOM % 12000))
        port_is_free "$candidate" && { echo "$candidate"; return; }
    done
    die "no free port found"
}

write_configuration() {
    local key
    for key in host_key id_ed25519 key.other; do
        [[ -s $dir/$key ]] || ssh-keygen -q -t ed25519 -N '' -C "gridvfs test" -f "$dir/$key"
    done
    cp "$dir/id_ed25519.pub" "$dir/authorized_keys"
    # Filed under the alias: the same key is right at any port or address.
    echo "gvhost $(cut -d' ' -f1,2 "$dir/host_key.pub")" >"$dir/known_hosts"
    chmod 644 "$dir/authorized_keys" "$dir/known_hosts"

    local pam=no
    # Without PAM, sshd refuses an account whose password is locked ("!").
    if ((EUID == 0)) && getent shadow "$user" | cut -d: -f2 | grep -q '^!'; then pam=yes; fi
    {
        echo "Port $port"
        echo "ListenAddress $listen"
        echo "HostKey $dir/host_key"
        echo "PidFile $dir/sshd.pid"
        echo "AuthorizedKeysFile $dir/authorized_keys"
        # Test folders lie below /tmp or a build folder, open to their group.
        echo "StrictModes no"
        echo "PubkeyAuthentication yes"
        echo "PasswordAuthentication no"
        echo "KbdInteractiveAuthentication no"
        echo "PermitRootLogin prohibit-password"
        echo "UsePAM $pam"
        echo "UseDNS no"
        echo "PrintMotd no"
        echo "PrintLastLog no"
        echo "AllowTcpForwarding yes"
        # Stripes of several tests at once; the default drops some at random.
        echo "MaxStartups 200"
        echo "MaxSessions 100"
        echo "LogLevel VERBOSE"
        echo "Subsystem sftp internal-sftp"
        [[ -z $path ]] || echo "SetEnv PATH=$path:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
        ((${#options[@]} == 0)) || printf '%s\n' "${options[@]}"
    } >"$dir/sshd_config"
    {
        echo "Host gvhost"
        echo "    HostName $listen"
        echo "    HostKeyAlias gvhost"
        echo "    Port $port"
        echo "    User $user"
        echo "    IdentityFile $dir/id_ed25519"
        echo "    IdentitiesOnly yes"
        echo "    IdentityAgent none"
        echo "    UserKnownHostsFile $dir/known_hosts"
        echo "    GlobalKnownHostsFile /dev/null"
        echo "    StrictHostKeyChecking yes"
        echo "    CheckHostIP no"
        echo "    UpdateHostKeys no"
        echo "    BatchMode yes"
    } >"$dir/ssh_config"
    if ((EUID == 0)); then
        chown "$user" "$dir/id_ed25519" "$dir/key.other"
    fi
}

start() {
    local daemon tries own_port=$port pid round
    daemon=$(command -v sshd) || die "sshd is missing (make deps installs openssh-server)"
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    if pid=$(running); then die "already running in $dir (process $pid)"; fi
    # The user who logs in reads authorized_keys and ssh_config in here.
    chmod 755 "$dir"
    if ((EUID == 0)); then
        mkdir -p /run/sshd # where sshd confines its unprivileged half
    elif [[ $user != "$(id -un)" ]]; then
        die "only root can log in another user"
    elif [[ -n $netns ]]; then
        die "--netns needs root"
    fi
    for round in {1..5}; do
        port=${own_port:-$(free_port)}
        write_configuration
        in_netns "$daemon" -t -f "$dir/sshd_config" || die "sshd refuses $dir/sshd_config"
        in_netns "$daemon" -f "$dir/sshd_config" -E "$dir/sshd.log" || die "sshd did not start: $(tail -n 3 "$dir/sshd.log")"
        # sshd writes its process id after it has bound the port; somebody else
        # may have been quicker.
        for tries in {1..100}; do
            if pid=$(running); then break 2; fi
            sleep 0.05
        done
        [[ -z $own_port && $round -lt 5 ]] || die "port $port: $(grep -h -m1 -i 'bind' "$dir/sshd.log" || tail -n 1 "$dir/sshd.log")"
    done
    echo "$port" >"$dir/port"
    for tries in {1..100}; do
        if in_netns ssh -F "$dir/ssh_config" -o ConnectTimeout=5 gvhost true </dev/null 2>"$dir/login.log"; then
            say "listening on $listen port $port, log in with: ssh -F $dir/ssh_config gvhost"
            return
        fi
        running >/dev/null || break
        sleep 0.1
    done
    stop
    die "nobody can log in: $(tail -n 2 "$dir/login.log" | tr '\n' ' ')(see $dir/sshd.log)"
}

case $verb in
    start) start ;;
    stop)
        [[ -d $dir ]] || exit 0
        dir=$(cd "$dir" && pwd)
        stop
        ;;
    *) usage >&2; exit 2 ;;
esac
