#!/bin/sh
# What the roles call while the scripts of cmd/ocspd run, against the lists in hardening/seccomp.go. A call that is on no list fails; so does a kill.
#   test/syscalls.sh [SCRIPT…]   all scripts but those that need time alone
set -eu
cd "$(dirname "$0")/.."
. ./test/packages.sh
packages strace softhsm2 openssl curl
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export GOFLAGS="${GOFLAGS-} -buildvcs=false"
go build -o "$work/syscalls" ./test/syscalls
go test -c -o "$work/test" ./cmd/ocspd
mkdir "$work/traces"
names=$(echo "${*:-accept answers import offline pin proc reload revoke signer-down sources status token-lost}" | tr ' ' '|')
# Their results do not count: traced, everything is so slow that what is waited for does not always come in time.
(cd cmd/ocspd && strace -f -ff -qq -ttt -s 64 -o "$work/traces/t" "$work/test" -test.run "TestScripts/($names)\$" >"$work/log" 2>&1) || grep -e '--- FAIL' "$work/log" || :
"$work/syscalls" "$work/traces"
