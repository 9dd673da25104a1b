#!/bin/sh
# Each kind of token that is to be had in software: a key is made in it, certified by openssl, served with; openssl asks, and verifies.
# What a token cannot do must be told by a message of ours. test/tokens.sh [softhsm] [p11-kit] [nss] [tpm]; all of them without an argument.
set -eu
cd "$(dirname "$0")/.."
top=$(pwd)
work=$(mktemp -d)
chmod 755 "$work"
pids=
cleanup() {
	for p in $pids; do kill "$p" 2>/dev/null || :; done
	wait
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
go build -buildvcs=false -o "$work/ocspd" ./cmd/ocspd
module() { ls /usr/lib/*/"$1" 2>/dev/null | head -n 1; }
fail() {
	echo "$token: $*" >&2
	[ ! -s log ] || tail -n 20 log >&2
	exit 1
}
refused() { # words of the message, verb …
	words=$1
	shift
	if ocspd "$@" >out 2>&1; then fail "ocspd $* was to be refused"; fi
	grep -q "$words" out || { cat out; fail "ocspd $* does not say '$words'"; }
}
ocspd() { "$work/ocspd" -c ocspd.toml "$@"; }

softhsm() { # a folder of its own
	mkdir tokens
	printf 'directories.tokendir = %s/tokens\nobjectstore.backend = file\nlog.level = ERROR\n' "$PWD" >softhsm2.conf
	SOFTHSM2_CONF=$PWD/softhsm2.conf softhsm2-util --init-token --free --label ocsp --pin tokens-PIN --so-pin tokens-SO-PIN >/dev/null
}
token_softhsm() {
	softhsm
	uri="pkcs11:token=ocsp?module-path=/usr/lib/softhsm/libsofthsm2.so"
	more="environment = [\"SOFTHSM2_CONF=$PWD/softhsm2.conf\"]"
}
token_p11_kit() { # the same, but by way of a server
	softhsm
	SOFTHSM2_CONF=$PWD/softhsm2.conf p11-kit server -f -n "$PWD/socket" --provider /usr/lib/softhsm/libsofthsm2.so pkcs11: >server.log 2>&1 &
	pids="$pids $!"
	appears socket
	uri="pkcs11:token=ocsp?module-path=$(module pkcs11/p11-kit-client.so)"
	more="environment = [\"P11_KIT_SERVER_ADDRESS=unix:path=$PWD/socket\"]"
	cannot='ed25519'
}
token_nss() { # the certificate store of Firefox; it says of no key that it was made inside
	mkdir db
	certutil -N -d sql:db -f pin
	uri="pkcs11:token=NSS%20Certificate%20DB?module-path=$(module libsoftokn3.so)"
	more="init_args = \"configdir='sql:$PWD/db' certPrefix='' keyPrefix='' secmod='secmod.db' flags=''\"
paths = [\"$PWD/db\"]"
	accept='accept = ["key-not-local"]'
	cannot='ed25519'
}
token_tpm() { # a TPM 2.0 of swtpm, behind the resource manager
	mkdir tpm store
	swtpm socket --tpm2 --tpmstate "dir=$PWD/tpm" --ctrl "type=unixio,path=$PWD/tpm.sock.ctrl" --server "type=unixio,path=$PWD/tpm.sock" --flags not-need-init,startup-clear >swtpm.log 2>&1 &
	pids="$pids $!"
	DBUS_SESSION_BUS_ADDRESS=unix:path=$PWD/bus
	export DBUS_SESSION_BUS_ADDRESS
	dbus-daemon --session --nofork --nopidfile "--address=$DBUS_SESSION_BUS_ADDRESS" >bus.log 2>&1 &
	pids="$pids $!"
	appears tpm.sock.ctrl # where the other side looks for it
	appears bus
	tpm2-abrmd --session --allow-root "--tcti=swtpm:path=$PWD/tpm.sock" >abrmd.log 2>&1 &
	pids="$pids $!"
	export TPM2_PKCS11_STORE="$PWD/store" TPM2_PKCS11_TCTI=tabrmd:bus_type=session TPM2TOOLS_TCTI=tabrmd:bus_type=session
	tries=0
	until tpm2_ptool init >ptool.log 2>&1; do
		tries=$((tries + 1))
		[ $tries -lt 50 ] || { cat ptool.log abrmd.log; fail 'the TPM does not come up'; }
		sleep 0.2
	done
	tpm2_ptool addtoken --pid=1 --sopin=tokens-SO-PIN --userpin=tokens-PIN --label=ocsp >ptool.log 2>&1 || { cat ptool.log; fail 'no token could be made in the TPM'; }
	uri="pkcs11:token=ocsp?module-path=$(module libtpm2_pkcs11.so.1)"
	more="environment = [\"TPM2_PKCS11_STORE=$PWD/store\", \"TPM2_PKCS11_TCTI=tabrmd:bus_type=session\", \"DBUS_SESSION_BUS_ADDRESS=unix:path=$PWD/bus\"]"
	cannot='ed25519 rsa2048'
}
appears() {
	tries=0
	until [ -e "$1" ]; do
		tries=$((tries + 1))
		[ $tries -lt 100 ] || fail "$1 does not appear"
		sleep 0.1
	done
}

trial() { # the life of a key and a responder in this token
	token=$1 accept='' more='' cannot=''
	mkdir "$work/$token"
	cd "$work/$token"
	printf 'tokens-PIN\n' >pin
	chmod 600 pin
	"token_$(echo "$token" | tr - _)"
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=class1 -keyout class1.key -out class1.pem -days 30 \
		-addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
	day=$(date -u -d '+20 days' +%y%m%d%H%M%SZ)
	printf 'V\t%s\t\t0A01\tunknown\t/CN=good\nR\t%s\t250601120000Z,keyCompromise\t0A02\tunknown\t/CN=revoked\n' "$day" "$day" >index.txt
	cat >ocspd.toml <<-EOF
		state = "state"
		run = "run"
		[listen]
		ocsp = ["127.0.0.1:0"]
		admin = ""
		[token.main]
		uri = "$uri"
		pin = "file:pin"
		$more
		[issuer.class1]
		certificate = "class1.pem"
		signer = "class1-ocsp.pem"
		key = "pkcs11:object=class1-ocsp"
		unissued = "unknown"
		$accept
		[[issuer.class1.source]]
		index = "index.txt"
	EOF
	ocspd token info >/dev/null 2>&1 || fail "the token is not found"
	ocspd key generate class1-ocsp --type p256 >key.log 2>&1 || { cat key.log; fail 'no key can be made'; }
	for kind in $cannot; do
		case $kind in
		ed25519) refused 'cannot make keys of this type; use another, such as p256' key generate impossible --type ed25519 ;;
		rsa2048) refused 'with this key the token does not sign by CKM_RSA_PKCS; use a key of another type, such as p256' key generate impossible --type rsa2048 ;;
		esac
	done
	if [ -n "$accept" ]; then
		sed -i 's/^accept = .*/accept = []/' ocspd.toml
		refused 'key-not-local' token check
		sed -i "s/^accept = .*/$accept/" ocspd.toml
	fi
	ocspd key csr class1-ocsp >request.pem 2>>key.log
	printf 'keyUsage=critical,digitalSignature\nextendedKeyUsage=OCSPSigning\nnoCheck=yes\nauthorityKeyIdentifier=keyid\n' >extensions
	openssl x509 -req -in request.pem -CA class1.pem -CAkey class1.key -CAcreateserial -days 20 -extfile extensions -out new.pem 2>/dev/null
	ocspd key install new.pem --issuer class1 >install.log 2>&1 || { cat install.log; fail 'the certificate is refused'; }
	ocspd token check >check.log 2>&1 || { cat check.log; fail 'token check finds faults'; }
	: >log
	"$work/ocspd" -c ocspd.toml serve >log 2>&1 &
	server=$!
	pids="$pids $server"
	tries=0
	until openssl ocsp -issuer class1.pem -serial 0x0A01 -url "$(sed -n 's/.*msg=listens.* on=\([^ ]*\) as=ocsp.*/http:\/\/\1/p' log)" -CAfile class1.pem >answer 2>&1 &&
		grep -q '0x0A01: good' answer; do
		tries=$((tries + 1))
		kill -0 $server 2>/dev/null && [ $tries -lt 100 ] || { cat answer; fail 'it does not answer'; }
		sleep 0.2
	done
	url=$(sed -n 's/.*msg=listens.* on=\([^ ]*\) as=ocsp.*/http:\/\/\1/p' log)
	for n in 1 2 3 4 5 6 7 8; do # each with a nonce, so that each is signed
		openssl ocsp -issuer class1.pem -serial 0x0A02 -url "$url" -CAfile class1.pem >answer 2>&1
		grep -q '0x0A02: revoked' answer && grep -q 'Response verify OK' answer && ! grep -q 'no nonce' answer || { cat answer; fail "answer $n is wrong"; }
	done
	ocspd token bench --key class1-ocsp --time 300ms >bench.log 2>&1 || { cat bench.log; fail 'token bench fails beside the service'; }
	kill $server
	wait $server || fail "it did not stop in order"
	if grep -q 'level=ERROR' log; then fail 'errors in the log'; fi
	echo "ok: $token: $(sed -n 's/^ *1  *\([0-9]*\).*/\1/p' bench.log) signatures a second in one session; $(grep -c . key.log) lines on the making of the key"
	cd "$top"
}

[ $# -gt 0 ] || set -- softhsm p11-kit nss tpm
for token; do trial "$token"; done
