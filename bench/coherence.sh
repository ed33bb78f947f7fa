#!/usr/bin/env bash
# What it takes to share files over the emulated link: how long after a write by one session
# another one sees it, and what a program costs that looks at files which it has seen before,
# with and without being told of changes (docs/decisions/0029).
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: coherence.sh [--rtt DELAY] [--rate RATE] [--files N] [--rounds N] [--disk DIR]
  --rtt 32ms     round trip          --rate 1gbit  capacity of the link
  --files 400    files of the tree   --rounds 21   changes; the table has medians
  --disk DIR     where the disk caches are (default: /var/tmp)
USAGE
}

rtt=32ms rate=1gbit files=400 rounds=21 folder=/var/tmp
while (($#)); do
    case $1 in
        --rtt) rtt=${2:?}; shift 2 ;;
        --rate) rate=${2:?}; shift 2 ;;
        --files) files=${2:?}; shift 2 ;;
        --rounds) rounds=${2:?}; shift 2 ;;
        --disk) folder=${2:?}; shift 2 ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done

bench='coherence'
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
needs git python3
link_up "$rtt" "$rate" "$folder"

# A tree as programmers have them: 20 files a directory.
for ((n = 0; n < files; n++)); do
    mkdir -p "$work/far/tree/d$((n / 20))"
    head -c "$((n % 7 * 900 + 200))" /dev/urandom >"$work/far/tree/d$((n / 20))/f$n"
done
git -C "$work/far/tree" init -q
git -C "$work/far/tree" add -A
git -C "$work/far/tree" -c user.name=b -c user.email=b@b commit -qm tree
echo 0 >"$work/far/shared"

mounted() { # MOUNTPOINT OPTIONS
    mnt=$1
    mkdir -p "$mnt"
    mount_far "$2"
}
calls() { status_of .link.calls; }

# --- A program that looks at what it knows ----------------------------------------------

: >"$work/rows"
again() { # WHAT COMMAND...
    local what=$1 before
    shift
    # Once for the cache, and once more after the time-outs of the kernel and the commits of what
    # git notes.
    "$@" >/dev/null
    sleep 4
    before=$(calls)
    GIT_OPTIONAL_LOCKS=0 timed "$@" >/dev/null
    printf '%s\t%s\t%s\t%s\n' "$told" "$what" "$(($(calls) - before))" "$((took / 1000))" >>"$work/rows"
}
for told in no yes; do
    mounted "$work/$told" "coherence=$told"
    if [[ $told == yes ]]; then
        until [[ $(status_of .coherence.on) == true ]]; do sleep 0.1; done
    fi
    again 'git status' git -c safe.directory='*' -C "$mnt/tree" status --short
    again 'find -ls' find "$mnt/tree" -ls
    again 'read all' bash -c "cat '$mnt'/tree/d*/f*"
done

# --- A change by one that another is to see ---------------------------------------------

reader=$work/yes
mounted "$work/writer" coherence=yes
seen=$(python3 - "$reader/shared" "$mnt/shared" "$rounds" <<'PY'
import os, sys, time, statistics
reader, writer, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
fd = os.open(reader, os.O_RDONLY)
took = []
for number in range(1, rounds + 1):
    text = b"%d\n" % number
    out = os.open(writer, os.O_WRONLY)
    os.pwrite(out, text, 0)
    os.close(out)
    begun = time.monotonic()
    while os.pread(fd, 100, 0) != text:
        if time.monotonic() - begun > 30:
            sys.exit("it is not seen")
        time.sleep(0.0005)
    took.append((time.monotonic() - begun) * 1000)
    # Beyond the two seconds until it is committed every third time.
    time.sleep(2.5 if number % 3 == 0 else 0.2)
print("%.1f %.1f" % (statistics.median(took), max(took)))
PY
)
trip=$(status_of .link.rtt_ms)
read -r median worst <<<"$seen"
out=$results/coherence.md
{
    printf '# Sharing files over %s, %s\n\n' "$rtt" "$rate"
    printf 'A write by one session is seen by another, after its close has returned: %s ms (median of %s; at most %s ms);\n' \
        "$median" "$rounds" "$worst"
    printf 'a round trip takes %s ms.\n\n' "$trip"
    printf '%s files, seen before (the second time, after 4 s):\n\n' "$files"
    printf '| coherence | command | calls | ms |\n| --- | --- | --- | --- |\n'
    awk -F'\t' '{ printf "| %s | %s | %s | %s |\n", $1, $2, $3, $4 }' "$work/rows"
} | tee "$out"
for point in writer yes no; do
    mnt=$work/$point
    unmount
done
