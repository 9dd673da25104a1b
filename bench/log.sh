#!/bin/sh
# What signer's log costs: live signatures per second by SoftHSM (P-256) with and without it, in turns of a second each, N times (10).
set -eu
command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
cd "$(dirname "$0")/.."
out=$(go test ./cmd/ocspd -run "^$" -bench "^BenchmarkSignerLog$" -benchtime "${1:-10}x") || { echo "$out"; exit 1; }
echo "$out" | awk '$1 ~ /^BenchmarkSignerLog/ { for (i = 3; i < NF; i += 2) v[$(i + 1)] = $i }
	END { if (!("ratio" in v)) exit 2
		ok = v["ratio"] > 0.9
		printf "%s signatures with the log: %.0f a second, without %.0f: %.2f (limit 0.9); processor time each %.2f times that without\n",
			ok ? "PASS" : "FAIL", v["logged/s"], v["bare/s"], v["ratio"], v["cpu-ratio"]; exit !ok }'
