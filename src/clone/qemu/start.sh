#!/bin/sh
# Resumes this clone. Its command line is qemu.args, which may be changed; what is given here is
# added to it.
#
#   ./start            resumes it, once: from then on its disk has gone on
#   ./start --boot     boots it from its disk
#   ./start --discard  drops what it has written, and resumes it anew
cd "$(dirname "$0")" || exit 1
incoming=INCOMING commands=COMMANDS
case ${1-} in
--boot)
    # Its disk goes on, too.
    [ -z "$incoming" ] || : >resumed || exit 1
    incoming="" commands=""
    shift ;;
--discard)
    rm -f resumed
REDO
    shift ;;
esac
if [ -n "$incoming" ]; then
    if [ -e resumed ]; then
        echo "resumed before: its memory is older than its disk (--boot, --discard)" >&2
        exit 1
    fi
    : >resumed || exit 1
fi
more=""
for argument; do
    more="$more '$(printf %s "$argument" | sed "s/'/'\\\\''/g")'"
done
eval "set -- $(grep -v '^ *#' qemu.args | tr '\n' ' ') $more"
if [ -n "$commands" ]; then
    # Some things can only be said to QEMU's monitor, before it reads the state.
    rm -f resume.in resume.out
    mkfifo -m 600 resume.in resume.out || exit 1
    exec 3<>resume.in
    printf '%s\n' "$commands" >&3
    set -- "$@" -incoming defer -chardev pipe,id=resume,path=resume -mon chardev=resume,mode=readline
elif [ -n "$incoming" ]; then
    set -- "$@" -incoming "$incoming"
fi
exec "$@"
