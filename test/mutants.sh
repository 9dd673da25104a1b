#!/bin/sh
# Breaks rules in the code, one at a time, and shows that their tests go red: test/mutants.sh [PATTERN]. Each line of test/mutants.txt is, between tabs: the rule, the file, the
# package to test, what stands there once, and what is put in its place. The checkout is not touched: the compiler sees the broken copy.
set -eu
cd "$(dirname "$0")/.."
top=$(pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
caught=0 missed=0
tab=$(printf '\t')
while IFS="$tab" read -r rule file package old new; do # no field but the last may be empty
	case $rule in '' | '#'*) continue ;; esac
	case "$rule $file" in ${1-*}) ;; *) continue ;; esac
	OLD=$old NEW=$new perl -0777 -pe '
		BEGIN { $old = $ENV{OLD}; $new = $ENV{NEW}; s/\\n/\n/g, s/\\t/\t/g for $old, $new }
		$count = () = /\Q$old\E/g;
		if ($count != 1) { print STDERR "stands there $count times: $old\n"; exit 1 }
		s/\Q$old\E/$new/' "$file" >"$work/mutant.go" || { echo "mutants.sh: $rule: $file has changed; put test/mutants.txt right" >&2; exit 1; }
	printf '{"Replace":{"%s/%s":"%s/mutant.go"}}\n' "$top" "$file" "$work" >"$work/overlay.json"
	if go test -vet off -overlay "$work/overlay.json" -failfast -timeout 120s -run '^(Test|Fuzz)' "$package" >"$work/out" 2>&1; then
		missed=$((missed + 1))
		echo "MISSED  $rule  $file: $old -> $new"
	elif grep -q '\[build failed\]' "$work/out"; then
		cat "$work/out" >&2
		echo "mutants.sh: $rule: the broken code does not compile; put test/mutants.txt right" >&2
		exit 1
	else
		caught=$((caught + 1))
		echo "caught  $rule  $file: $(grep -m 1 -oE -- '--- FAIL: [^ ]*' "$work/out" || echo 'it hangs or dies')"
	fi
done <test/mutants.txt
echo "mutants: $caught caught, $missed missed"
[ $missed = 0 ]
