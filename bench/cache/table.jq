# The report as Markdown.
def shown:
    if . == null then ""
    elif . >= 100 then round | tostring
    elif . >= 10 then . * 10 | round / 10 | tostring
    else . * 1000 | round / 1000 | tostring end;
def judged:
    if .value == null then ""
    elif .against == "" then ""
    else "\(.value | shown) (\(.least | shown) to \(.most | shown))" end;
def below:
    (.details // {} | to_entries | map("\(.key) \(.value | shown)")) + (.notes // [])
    + (if .why then ["\(.verdict): \(.why)"] else [] end)
    | join("; ");

.meta as $meta
| "# make bench-\($meta.bench)",
  "",
  "\($meta.date), \($meta.kernel), \($meta.processors) processors, load \($meta.load_before) before and \($meta.load) after; "
  + "\([$meta.gridvfs + " (\($meta.commit))", $meta.tools[]] | join(", ")); link \($meta.rtt), \($meta.rate); "
  + "cache on \($meta.disk). Medians of \($meta.rounds) rounds; a ratio is the median of the rounds' ratios.",
  "",
  "| row | what | unit | ours | reference | ratio | goal | verdict |",
  "|---|---|---|---|---|---|---|---|",
  (.rows[] | "| \(.row) | \(.title)\(if (.against // "") != "" then ", against \(.against)" else "" end) "
    + "| \(.unit // "") | \(.ours | shown) | \(.reference | shown) | \(judged) | \(.goal // "") | \(.verdict | if . == "missed" or . == "failed" then "**\(ascii_upcase)**" else . end) |"),
  "",
  (.rows[] | select(below != "") | "- \(.row): \(below)")
