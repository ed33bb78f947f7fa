# Lines of rows, samples and details to one object: every row with its rounds, the
# median (or the most) of what its goal is about, and a verdict.
def median:
    sort | length as $n
    | if $n == 0 then null
      elif $n % 2 == 1 then .[($n - 1) / 2]
      else (.[$n / 2 - 1] + .[$n / 2]) / 2 end;
def met($value):
    (.[2:] | tonumber) as $goal
    | if .[:2] == ">=" then $value >= $goal else $value <= $goal end;

. as $lines
| {
    meta: $meta,
    rows: ([
        $lines[] | select(.kind == "row") | . as $row
        | [$lines[] | select(.row == $row.row)] as $told
        | [$told[] | select(.kind == "sample")] as $samples
        | [$samples[] | if .reference == null then .ours else .ours / .reference end] as $judged
        | ($judged | if $row.by == "most" then max else median end) as $value
        | .goal as $goal
        | ([$told[] | select(.kind == "skip") | .why] | first) as $skipped
        | {
            row: .row, title, unit, against, goal, by,
            rounds: [$samples[] | {ours, reference}],
            ours: ([$samples[].ours] | if $row.by == "most" then max else median end),
            reference: ([$samples[].reference | select(. != null)] | median),
            value: $value, least: ($judged | min), most: ($judged | max),
            details: (
                [$told[] | select(.kind == "detail")] | group_by(.name)
                | map({key: .[0].name, value: (map(.value) | median)}) | from_entries
            ),
            notes: [$told[] | select(.kind == "note") | .text],
            verdict: (
                if $skipped then "skipped"
                elif $judged == [] then "failed"
                elif .goal == "" then "told"
                elif $goal | met($value) then "met"
                else "missed" end
            ),
            why: $skipped
        }
    ] + [$lines[] | select(.kind == "failed") | {row, title: "(the row's run)", verdict: "failed", why, details: {}, notes: []}])
}
