#!/bin/sh
# N (200) bits and pages of the database and the generation files are damaged at random, and every serial is asked for after each: an answer is right, or
# refused, and never wrong. OCSPD_FLIPS_SEED repeats a run.
set -eu
cd "$(dirname "$0")/.."
command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
if [ -d /dev/shm ] && [ -w /dev/shm ]; then TMPDIR=$(mktemp -d -p /dev/shm); export TMPDIR; trap 'rm -rf "$TMPDIR"' EXIT; fi # no disk to wait for
out=$(OCSPD_FLIPS="${1:-200}" go test ./cmd/ocspd -run '^TestFlips$' -count 1 -v -timeout 120m 2>&1) || { printf '%s\n' "$out" | tail -n 40; echo 'FAIL flip'; exit 1; }
printf '%s\n' "$out" | sed -n 's/^\([0-9]* flips, .*\)/PASS flip: \1/p' | grep .
