#!/usr/bin/env bash
# A file like a suspended guest's memory, read as a whole over the emulated link in
# every way that there is: READs, FETCHes of several sizes, levels and numbers in
# flight, a program of the host's over ssh, and `tar -S | zstd` over ssh by hand.
#
# No mount and no cache: the figures are for choosing between the ways. Prints a
# table and leaves it in bench/results.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: fetch.sh [--rtt DELAY] [--rate RATE] [--size MIB] [--zeros PERCENT] [--rounds N]
  --rtt 32ms     round trip          --rate 1gbit  capacity of the link
  --size 300     MiB of the file     --zeros 58    how much of it is zero
  --rounds 2     the best one counts
USAGE
}

rtt=32ms rate=1gbit size=300 zeros=58 rounds=2
while (($#)); do
    case $1 in
        --rtt) rtt=${2:?}; shift 2 ;;
        --rate) rate=${2:?}; shift 2 ;;
        --size) size=${2:?}; shift 2 ;;
        --zeros) zeros=${2:?}; shift 2 ;;
        --rounds) rounds=${2:?}; shift 2 ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done

bench='fetch'
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
needs python3 zstd
[[ -x $programs/gridvfs-fetch ]] || die "not built: run \`make build\`"
link_up "$rtt" "$rate" /var/tmp

# Programs, libraries and texts of this machine in runs of pages, with zeros between.
python3 - "$work/far/memory" "$size" "$zeros" <<'PYTHON'
import os, random, sys
path, pages, zeros = sys.argv[1], int(sys.argv[2]) * 256, int(sys.argv[3]) / 100
random.seed(1)
names = [os.path.join(d, f) for top in ("/usr/bin", "/usr/lib", "/usr/share") for d, _, fs in os.walk(top) for f in fs]
names = [n for n in sorted(names) if os.path.isfile(n) and not os.path.islink(n)]
random.shuffle(names)
def content():
    for name in names:
        try:
            with open(name, "rb") as file:
                data = file.read(4 << 20)
        except OSError:
            continue
        for at in range(0, len(data), 4096):
            yield data[at:at + 4096].ljust(4096, b"\0")
source = content()
with open(path, "wb") as out:
    done = 0
    while done < pages:
        run = min(1 + int(random.expovariate(1 / 32)), pages - done)
        if random.random() < zeros:
            out.write(bytes(4096) * run)
        else:
            for _ in range(run):
                out.write(next(source))
        done += run
PYTHON

table=$results/fetch.md
{
    echo "Link: $rtt, $rate. A file of $size MiB, $zeros % zeros. Best of $rounds."
    echo
    echo "| | seconds | MiB/s | MiB received |"
    echo "|---|---|---|---|"
} >"$table"

row() { # NAME SECONDS RECEIVED
    printf '| %s | %s | %.0f | %s |\n' "$1" "$2" "$(calc "$size / $2")" "$3" | tee -a "$table"
}
ours() { # NAME ARGUMENT...
    local name=$1 best="" seconds line
    shift
    for ((round = 1; round <= rounds; round++)); do
        line=$("${near[@]}" "$programs/gridvfs-fetch" gvhost "$work/far" memory -F "$config" --private-dir "$work/run" \
            --gridvfs-command "env XDG_STATE_HOME=$work/state $gridvfs" "$@" 2>"$work/fetch.words") ||
            die "$name: $(tail -n 3 "$work/fetch.words")"
        seconds=$(jq -r .seconds <<<"$line")
        if [[ -z $best ]] || [[ $(calc "($seconds < $best)") == 1 ]]; then best=$seconds received=$(jq -r '.received_mib // ""' <<<"$line"); fi
    done
    row "$name" "$best" "$received"
}
by_hand() { # LEVEL
    local best=""
    for ((round = 1; round <= rounds; round++)); do
        timed "${near[@]}" bash -c "ssh -F '$config' gvhost 'tar -C $work/far -S -cf - memory | zstd -q -c -$1' | zstd -q -d -c | tar -C '$work/near' -xSf -"
        if [[ -z $best ]] || ((took < best)); then best=$took; fi
    done
    row "tar -S, zstd -$1, ssh" "$(calc "$best / 1000000")" ""
}

# All that is read is what was sent.
ours "FETCH to a file" --output "$work/near/memory" >/dev/null
compared "$work/far/memory" "$work/near/memory" "FETCH"
sed -i '$d' "$table"

ours "READ 1 MiB, 16 in flight" --by read
ours "READ 1 MiB, 32 in flight" --by read --flight 32
for flight in 4 8 16 32; do
    for level in 0 1 3 6; do
        ours "FETCH 1 MiB, level $level, $flight in flight" --level "$level" --flight "$flight"
    done
done
ours "FETCH 256 KiB, level 1, 64 in flight" --kib 256 --flight 64
ours "FETCH 16 × 64 KiB, level 1, 16 in flight" --kib 64 --ranges 16
ours "FETCH 64 KiB, level 1, 64 in flight" --kib 64 --flight 64
ours "FETCH 4 MiB, level 1, 8 in flight" --kib 4096 --flight 8
for level in 0 1 3; do
    ours "stream, zstd -$level (0: cat)" --by stream --level "$level"
done
by_hand 1
by_hand 3
cat "$table"
