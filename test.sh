#!/bin/sh
# The gate: everything that a change must pass. `./test.sh long` adds the trials that take longer.
set -eu
cd "$(dirname "$0")"
top=$(pwd)
mode=${1-}
case $mode in '' | long) ;; *) echo "usage: ./test.sh [long]" >&2; exit 2 ;; esac
part() { printf '\n== %s\n' "$*"; }
failed=0 ran=0 skipped=0
check() { # name, command …: a part that is counted
	name=$1
	shift
	part "$name"
	ran=$((ran + 1))
	if "$@"; then :; else
		failed=$((failed + 1))
		echo "FAILED: $name"
	fi
}
trial() { # name, command …: the same, for what says by exit code 3 that this machine cannot
	name=$1 code=0
	shift
	part "$name"
	ran=$((ran + 1))
	"$@" || code=$?
	case $code in
	0) ;;
	3) ran=$((ran - 1)) skipped=$((skipped + 1)) ;;
	*) failed=$((failed + 1)); echo "FAILED: $name" ;;
	esac
}

part 'packages'
. ./test/packages.sh
packages softhsm2 gcc libc6-dev openssl curl ca-certificates opensc sqlite3 gnutls-bin libnss3-tools nginx-light p11-kit p11-kit-modules \
	$([ "$mode" != long ] || echo openjdk-17-jdk-headless libtpm2-pkcs11-1 libtpm2-pkcs11-tools swtpm tpm2-abrmd tpm2-tools dbus-daemon)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${HOME-}" ]; then export GOPATH="$work/go" GOCACHE="$work/go/cache"; fi
export GOFLAGS="${GOFLAGS-} -buildvcs=false"

formatted() {
	files=$(gofmt -l $(git ls-files '*.go' 2>/dev/null || find . -name '*.go'))
	[ -z "$files" ] || { echo "gofmt would change: $files"; return 1; }
}
staticcheck() {
	(cd test/staticcheck && go build -o "$work/staticcheck" honnef.co/go/tools/cmd/staticcheck) && "$work/staticcheck" ./...
}
vet() { go vet ./... && go vet -tags probe ./cmd/ocspd; } # the second is what walls are tried with
tidy() { go mod tidy -diff && (cd test/staticcheck && go mod tidy -diff); }
demo() { # from a copy, so that a demo in this checkout is left alone
	mkdir "$work/copy"
	(git ls-files -co --exclude-standard 2>/dev/null || find . -type f -not -path './demo/*' -not -path './.git/*') | tar -cf - -T - | tar -xf - -C "$work/copy"
	"$work/copy/demo.sh" --ci && "$work/copy/demo.sh" --ci >"$work/demo.out" && tail -n 3 "$work/demo.out" && no_process_left
}
interop() { # clients of others against the demo, which serves
	"$work/copy/demo.sh" >"$work/demo.out" 2>&1 &
	demo=$!
	tries=0
	until [ -s "$work/copy/demo/url" ]; do
		kill -0 $demo 2>/dev/null && [ $tries -lt 300 ] || { cat "$work/demo.out"; return 1; }
		tries=$((tries + 1))
		sleep 0.2
	done
	result=0
	test/interop.sh "$work/copy/demo" ${1-} || result=1
	"$work/copy/demo/ocspd" check responder "$(cat "$work/copy/demo/url")" --issuer "$work/copy/demo/pki/class1.pem" --issuer "$work/copy/demo/pki/class3.pem" --conformance || result=1
	kill $demo
	wait $demo || :
	no_process_left && return $result
}
no_process_left() {
	for c in /proc/[0-9]*/cmdline; do
		if { tr '\0' ' ' <"$c"; } 2>/dev/null | grep -q "^$work/copy/demo/ocspd "; then echo "left running: ${c%/cmdline}"; return 1; fi
	done
}

check 'format' formatted
check 'modules' tidy
check 'vet' vet
check 'staticcheck' staticcheck
check 'units and man pages' test/units.sh
check 'responder without cgo' env CGO_ENABLED=0 go build ./responder ./pki ./ingest ./generation
check 'demo, twice' demo
check 'clients of others' interop $([ "$mode" = long ] && echo java)
check 'tests, with the race detector' go test -race -timeout 20m -parallel 3 ./... # scripts wait more than they work
check 'what arrives at the token' test/spy.sh
check 'tokens of others' test/tokens.sh p11-kit nss
trial 'three roles, three users' test/users.sh
trial 'keeper killed' test/kill.sh 5
trial 'files damaged' test/flip.sh 100
trial 'disk full' test/full.sh
trial 'import on processors that are never idle' bench/crowd.sh 200000

if [ "$mode" = long ]; then
	trial 'keeper killed, 100 times' test/kill.sh 100
	check 'every kind of token' test/tokens.sh
	check 'token away for a minute' env OCSPD_AWAY=60 go test -timeout 20m -run 'TestScripts/token-(lost|hang)' ./cmd/ocspd
	trial 'files damaged, 10,000 times' test/flip.sh 10000
	trial 'power cut' test/power.sh 10
	check 'system calls against the lists' test/syscalls.sh
	trial 'import of 1,000,000' bench/import.sh 1000000
	trial 'import of 5,000,000' bench/import.sh 5000000
	trial '10,000,000 statuses' bench/statuses.sh 10000000
	check 'package, the same bytes twice' test/package.sh
	trial 'a machine that boots' test/boot.sh
	check 'mutants' test/mutants.sh
	check '2,000,000 mutated requests' env OCSPD_FLOOD=2000000 go test -timeout 60m -run REQ19Flood -v ./responder
	for fuzz in $(grep -rho '^func Fuzz[A-Za-z0-9]*' --include='*_test.go' . | sed 's/func //' | sort -u); do
		dir=$(grep -rl "^func $fuzz(" --include='*_test.go' . | head -n 1 | xargs dirname)
		check "fuzz $fuzz" go test -run '^$' -fuzz "^$fuzz\$" -fuzztime 3m "$dir"
	done
fi

printf '\n%d passed, %d failed, %d skipped\n' $((ran - failed)) $failed $skipped
[ $failed = 0 ] && { [ "$mode" != long ] || [ $skipped = 0 ]; } # what could not run keeps only the long form from being green
