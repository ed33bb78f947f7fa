# What Slurm's prolog, epilog and task prolog for GridVFS share. Sourced by them.
#
# A job asks for sessions of its user by its comment:
#
#   sbatch --comment gridvfs:golden,work job.sh
#
# Each NAME is a session file of the user, ~/.config/gridvfs/sessions/NAME.toml. On each node of the job it is
# mounted at $GRIDVFS_DIR/NAME, as session NAME.JOBID, by the user's own ssh keys (which must need no password).

# Settings of the site: shell assignments in site.conf beside this file.
#   GRIDVFS_JOBS            where jobs' mount points are made
#   GRIDVFS_MOUNT_SECONDS   how long a mount may take; a job that waits longer is held
#   GRIDVFS_END_SECONDS     how long an epilog writes back before it leaves the rest in the node's cache
#   GRIDVFS                 the command
#   GRIDVFS_LOG             a file that is told what happens, beside syslog
GRIDVFS_JOBS=/run/gridvfs-jobs
GRIDVFS_MOUNT_SECONDS=60
GRIDVFS_END_SECONDS=900
GRIDVFS=gridvfs
GRIDVFS_LOG=
site=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/site.conf
# shellcheck disable=SC1090 # the site's
if [[ -r $site ]]; then . "$site"; fi
PATH=$PATH:/usr/local/bin:/usr/sbin:/sbin

# Several slurmd on one machine, as for trying things out, have their own.
job_dir=$GRIDVFS_JOBS/$SLURM_JOB_ID${SLURMD_NODENAME:+.$SLURMD_NODENAME}
node=${SLURMD_NODENAME:-$(uname -n)}

say() {
    printf '%s job %s on %s: %s\n' "$(date +%FT%T)" "$SLURM_JOB_ID" "$node" "$*" >>"${GRIDVFS_LOG:-/dev/null}"
    logger -t gridvfs-slurm -- "job $SLURM_JOB_ID on $node: $*" 2>/dev/null || true
}

# Tells the user, where `scontrol show job` (and sacct) has it.
tell() {
    say "$*"
    scontrol update JobId="$SLURM_JOB_ID" AdminComment="gridvfs: $node: $*" >&2 || true
}

# Runs a command as the job's user, in the job's own runtime directory: a user who is not logged in has none.
as_user() {
    runuser -u "$SLURM_JOB_USER" -- env -C / -u XDG_STATE_HOME -u XDG_CACHE_HOME -u XDG_CONFIG_HOME \
        HOME="$(getent passwd "$SLURM_JOB_USER" | cut -d: -f6)" XDG_RUNTIME_DIR="$job_dir/.run" "$@"
}

session_of() { printf '%.40s' "$1.$SLURM_JOB_ID"; }

# Not mountpoint(1): root may not even look at a FUSE mount of somebody else's.
is_mounted() { cut -d' ' -f5 /proc/self/mountinfo | grep -qxF "$1"; }
