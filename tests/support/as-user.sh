#!/usr/bin/env bash
# Runs a command as an ordinary user, for tests that root started.
#
# The user exists only inside a private mount namespace: a passwd entry and a
# group laid over the machine's own, and a /dev/fuse that anyone may open, as
# udev sets it up (some containers keep it to root). The machine itself is left
# as it was. Mounts that the command makes are seen only from inside, too.
#
# Started by an ordinary user it just runs the command.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: as-user.sh HOME -- COMMAND...
  HOME   the user's home folder: made if missing, given to the user
USAGE
}
[[ $# -ge 3 && $2 == -- ]] || { usage >&2; exit 2; }
home=$1
shift 2
if ((EUID != 0)); then exec "$@"; fi

name=gridvfs-test
# Above what distributions hand out to people and services.
id=61184
mkdir -p "$home"
home=$(cd "$home" && pwd)
chown "$id:$id" "$home"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
{ cat /etc/passwd; echo "$name:x:$id:$id::$home:/bin/sh"; } >"$scratch/passwd"
{ cat /etc/group; echo "$name:x:$id:"; } >"$scratch/group"
chmod 644 "$scratch/passwd" "$scratch/group"
mknod -m 666 "$scratch/fuse" c 10 229 2>/dev/null || true

status=0
# shellcheck disable=SC2016 # for the inner shell to expand
unshare --mount --propagation private -- bash -euc '
    scratch=$1 id=$2 home=$3 name=$4
    shift 4
    mount --bind "$scratch/passwd" /etc/passwd
    mount --bind "$scratch/group" /etc/group
    if [[ -c $scratch/fuse && -e /dev/fuse ]]; then mount --bind "$scratch/fuse" /dev/fuse; fi
    exec env -u XDG_RUNTIME_DIR -u XDG_STATE_HOME -u XDG_CACHE_HOME -u CARGO_HOME \
        HOME="$home" USER="$name" LOGNAME="$name" SHELL=/bin/sh \
        setpriv --reuid "$id" --regid "$id" --clear-groups -- "$@"
' as-user "$scratch" "$id" "$home" "$name" "$@" || status=$?
exit "$status"
