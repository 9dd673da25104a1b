#!/bin/sh
# Builds ocspd and the trials and runs one: run.sh NAME N. Its last line says PASS, FAIL or skip, with what was measured.
# Exit 0 passed, 1 failed, 3 skipped since this machine cannot.
set -eu
cd "$(dirname "$0")/../.."
command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
go build -buildvcs=false -o "$work/ocspd" ./cmd/ocspd
go build -buildvcs=false -o "$work/trial" ./test/trial
mkdir "$work/site"
code=0
"$work/trial" -bin "$work/ocspd" -dir "$work/site" -n "$2" "$1" || code=$?
if [ $code = 1 ] && [ -f "$work/site/log" ]; then tail -n 20 "$work/site/log" >&2; fi
exit $code
