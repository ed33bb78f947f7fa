# shellcheck shell=bash
# Rows of a benchmark: what they tell, how they are run, and the report. Sourced after
# lib.sh by one that has set `rounds`, `rtt`, `rate` and `chosen`, the rows to run, each
# of which is a function `row_NAME`; `between_rows` clears away after each.
# shellcheck disable=SC2154 # set by who sources it

# --- What rows tell: a line of JSON each --------------------------------------------

line() { # KIND ROW [--arg NAME TEXT|--argjson NAME VALUE]...
    local kind=$1 row=$2
    shift 2
    jq -n -c --arg kind "$kind" --arg row "$row" "$@" '$ARGS.named' >>"$work/lines"
}
# A row of the table. AGAINST: what the reference is; empty if the figure itself has
# the goal. GOAL: >=N or <=N, of the ratio or the figure; empty if there is none. It
# is for the median of the rounds, or with `most` for all of them.
row() { # ROW TITLE UNIT AGAINST GOAL [most]
    line row "$1" --arg title "$2" --arg unit "$3" --arg against "$4" --arg goal "$5" --arg by "${6:-median}"
}
sample() { # ROW OURS [REFERENCE]
    line sample "$1" --argjson ours "$2" --argjson reference "${3:-null}"
    say "$1: $2${3:+ against $3}"
}
# Something else that was measured with it: its median is shown below the table.
detail() { # ROW NAME VALUE
    line detail "$1" --arg name "$2" --argjson value "$3"
}
note() { # ROW TEXT
    line note "$1" --arg text "$2"
    say "$1: $2"
}
skip() { # ROW WHY: it has no figures
    line skip "$1" --arg why "$2"
    say "$1: skipped: $2"
}

# Calls FUNCTION ARGUMENTS... once with `ours` and once with `reference` in front; who
# is first changes from round to round.
in_turns() { # ROUND FUNCTION ARGUMENTS...
    local round=$1 function=$2
    shift 2
    if ((round % 2)); then
        "$function" ours "$@"
        "$function" reference "$@"
    else
        "$function" reference "$@"
        "$function" ours "$@"
    fi
}

# --- Running them, and the report -------------------------------------------------------

# Each in a shell of its own, so that one that fails leaves the others their turn.
run_rows() {
    : >"$work/lines"
    load_before=$(cut -d ' ' -f 1-3 /proc/loadavg)
    for chosen_row in "${chosen[@]}"; do
        say "--- $chosen_row"
        (
            trap clear_mounts EXIT
            "row_$chosen_row"
        ) 2> >(tee "$work/words" >&2) &
        row_pid=$!
        if ! wait "$row_pid"; then
            line failed "$chosen_row" --arg why "$(grep -v "^$bench: $chosen_row" "$work/words" | tail -n 1)"
        fi
        row_pid=""
        between_rows
    done
}

# meta NAME TOOL...: when, where and with what, with the versions of tools, as JSON.
meta() {
    local name=$1
    shift
    jq -n -c --arg bench "$name" --arg rtt "$rtt" --arg rate "$rate" --argjson rounds "$rounds" \
        --arg date "$(date -u +%FT%TZ)" --arg kernel "$(uname -sr)" --arg load_before "$load_before" \
        --arg load "$(cut -d ' ' -f 1-3 /proc/loadavg)" --argjson processors "$(nproc)" \
        --arg disk "$(findmnt -n -o FSTYPE --target "$disk")" --arg gridvfs "$("$gridvfs" --version)" \
        --arg commit "$(git -C "$root" -c safe.directory='*' rev-parse --short HEAD 2>/dev/null || true)" \
        '$ARGS.named + {tools: $ARGS.positional}' --args "$@"
}
# report NAME TOOL...: NAME.json and NAME.md in the results. A row that missed its goal or failed makes
# it fail.
report() {
    jq -s -f "$root/bench/cache/report.jq" --argjson meta "$(meta "$@")" "$work/lines" >"$results/$1.json"
    jq -r -f "$root/bench/cache/table.jq" "$results/$1.json" | tee "$results/$1.md"
    jq -e '[.rows[] | select(.verdict == "missed" or .verdict == "failed")] == []' "$results/$1.json" >/dev/null
}
