#!/usr/bin/env bash
# Runs a Slurm of its own for a test: munge, a slurmctld and several slurmd on this machine, all on loopback, with
# keys, state, logs and ports in one folder. Nothing of the machine's own Slurm is touched.
#
# Its processes have a process id namespace of their own, so that they all end with its first, and a mount
# namespace: what jobs mount is seen from inside only.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: slurm.sh start DIR NODES [LINE...]   LINE: one more line of slurm.conf
       slurm.sh exec DIR COMMAND...        srun, sbatch, scontrol and so on, from inside
       slurm.sh stop DIR
USAGE
}
say() { printf 'slurm.sh: %s\n' "$*" >&2; }
die() { printf 'slurm.sh: error: %s\n' "$*" >&2; exit 1; }

[[ $# -ge 2 ]] || { usage >&2; exit 2; }
verb=$1 dir=$2
shift 2
PATH=$PATH:/usr/sbin:/sbin

leader() {
    local holder
    holder=$(cat "$dir/holder.pid" 2>/dev/null) || return 1
    [[ -d /proc/$holder ]] || return 1
    awk '{ print $1 }' "/proc/$holder/task/$holder/children" | grep .
}

inside() {
    local pid
    pid=$(leader) || die "it does not run"
    nsenter --target "$pid" --mount --pid -- env SLURM_CONF="$dir/slurm.conf" "$@"
}

stop() {
    local pid tries=0
    if pid=$(leader); then kill -9 "$pid" 2>/dev/null || true; fi
    pid=$(cat "$dir/holder.pid" 2>/dev/null) || return 0
    while [[ -d /proc/$pid ]] && ((tries++ < 100)); do sleep 0.1; done
    rm -f "$dir/holder.pid"
}

free_ports() { # COUNT
    python3 - "$1" <<'PYTHON'
import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(one.getsockname()[1] for one in held))
PYTHON
}

start() { # NODES [LINE...]
    local count=$1 number ports host
    shift
    host=$(uname -n)
    mkdir -p "$dir"/{ctld,munge}
    dir=$(cd "$dir" && pwd)
    chmod 755 "$dir"
    # The socket's own folder must let everybody in, and be written by nobody else.
    chmod 755 "$dir/munge"
    head -c 128 /dev/urandom >"$dir/munge/key"
    chmod 400 "$dir/munge/key"
    read -r -a ports < <(free_ports $((count + 1)))
    {
        cat <<CONF
ClusterName=gridvfs
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=15
CredType=cred/munge
StateSaveLocation=$dir/ctld
SlurmctldPidFile=$dir/ctld.pid
SlurmctldLogFile=$dir/ctld.log
SlurmdPidFile=$dir/%n.pid
SlurmdLogFile=$dir/%n.log
SlurmdSpoolDir=$dir/%n.spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,defer
ReturnToService=2
KillWait=2
MinJobAge=3600
PluginDir=$(dirname "$(find /usr/lib -name auth_munge.so -print -quit)")
CONF
        printf '%s\n' "$@"
        for ((number = 1; number <= count; number++)); do
            echo "NodeName=gv$number NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[number]} CPUs=2 State=UNKNOWN"
        done
        echo "PartitionName=main Nodes=gv[1-$count] Default=YES State=UP OverSubscribe=NO"
    } >"$dir/slurm.conf"
    # shellcheck disable=SC2016 # for the inner shell to expand
    setsid unshare --mount --propagation private --pid --fork --mount-proc --kill-child \
        bash -uc '
            dir=$1 count=$2
            munged --foreground --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
                --pid-file="$dir/munge/pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" &
            for ((tries = 0; tries < 50; tries++)); do [[ -S $dir/munge/socket ]] && break || sleep 0.1; done
            slurmctld -D -c -f "$dir/slurm.conf" &
            for ((number = 1; number <= count; number++)); do
                mkdir -p "$dir/gv$number.spool"
                slurmd -D -c -N "gv$number" -f "$dir/slurm.conf" &
            done
            wait' slurm "$dir" "$count" >"$dir/out" 2>&1 </dev/null &
    echo $! >"$dir/holder.pid"
    for ((number = 0; number < 300; number++)); do
        [[ $(inside sinfo -h -t idle -o %D 2>/dev/null) != "$count" ]] || return 0
        sleep 0.1
    done
    tail -n 5 "$dir"/*.log "$dir/out" >&2
    die "not all of the $count nodes are idle: $(inside sinfo -h 2>&1 | head -n 3)"
}

case $verb in
    start) start "$@" ;;
    exec) inside "$@" ;;
    stop) stop ;;
    *) usage >&2; exit 2 ;;
esac
