#!/bin/sh
# N statuses (10,000,000) in signer: its memory with all of them replaced, the time from start to the first answer, and a lookup.
set -eu
here=$(dirname "$0")
"$here/../test/trial/run.sh" statuses "${1:-10000000}"
command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
cd "$here/.."
ns=$(OCSPD_BENCH_RECORDS="${1:-10000000}" go test ./generation -run "^$" -bench "^BenchmarkLookup$" | awk '$1 ~ /^BenchmarkLookup.generation/ { for (i = 2; i < NF; i++) if ($(i + 1) == "ns/op") print $i }')
echo "${ns:?no figure}" | awk '{ ok = $1 < 2000; printf "%s lookup: %s ns among as many (limit 2000)\n", ok ? "PASS" : "FAIL", $1; exit !ok }'
