#!/usr/bin/env bash
# Runs the workspace's tests and says at the end which were skipped, and why.
#
# A test that cannot run where it is prints a line "SKIPPED: name: reason" and
# passes; cargo hides what a passing test prints, so this asks for it and
# collects the lines. All arguments go to `cargo test`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
log=${CARGO_TARGET_DIR:-target}/tests.log
mkdir -p "$(dirname "$log")"

status=0
cargo test --workspace --no-fail-fast "$@" -- --show-output 2>&1 | tee "$log" || status=$?

skipped=$(grep -aoE 'SKIPPED: .*' "$log" | LC_ALL=C sort -u || true)
echo
if [[ -n $skipped ]]; then
    echo "$(wc -l <<<"$skipped") tests were skipped here:"
    # shellcheck disable=SC2001 # a prefix on each of several lines
    sed 's/^SKIPPED: /  SKIPPED  /' <<<"$skipped"
elif ((!status)); then
    echo "No test was skipped."
fi
passed=$(awk '/^test result: / { n += $4 } END { print n + 0 }' "$log")
failed=$(awk '/^test result: / { n += $6 } END { print n + 0 }' "$log")
if ((status)); then
    echo "Failed:"
    grep -aE '^test .* FAILED$|^error: ' "$log" | LC_ALL=C sort -u | sed 's/^/  /' || true
fi
echo "$passed passed, $failed failed (whole log: $log)"
exit "$status"
