#!/bin/sh
# OCSP-KEY-03, OCSP-KEY-18, by what arrives at the token: the whole life of a key and a responder under OpenSC's pkcs11-spy. No call wraps, copies or
# unwraps a key or changes one; none asks for a private value; and each process logs in once. (The custody report does try what must be refused,
# and it is.) At the end the same search is shown to find what others do.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill $server 2>/dev/null || :; wait; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
go build -buildvcs=false -o "$work/ocspd" ./cmd/ocspd
cd "$work"
spy=$(ls /usr/lib/*/pkcs11-spy.so | head -n 1)
softhsm=/usr/lib/softhsm/libsofthsm2.so
mkdir tokens trace
printf 'directories.tokendir = %s/tokens\nobjectstore.backend = file\nlog.level = ERROR\n' "$work" >softhsm2.conf
export SOFTHSM2_CONF="$work/softhsm2.conf" PKCS11SPY=$softhsm
softhsm2-util --init-token --free --label ocsp --pin spy-PIN --so-pin spy-SO-PIN >/dev/null
printf 'spy-PIN\n' >pin
chmod 600 pin
configure() { # NAME: NAME.toml, whose trace is trace/NAME
	cat >"$1.toml" <<-EOF
		state = "state"
		run = "run"
		[listen]
		ocsp = ["127.0.0.1:0"]
		admin = ""
		[token.main]
		uri = "pkcs11:token=ocsp?module-path=$spy"
		pin = "file:pin"
		environment = ["PKCS11SPY=$softhsm", "PKCS11SPY_OUTPUT=$work/trace/$1", "SOFTHSM2_CONF=$work/softhsm2.conf"]
		paths = ["$work/trace"]
		[issuer.class1]
		certificate = "class1.pem"
		signer = "class1-ocsp.pem"
		key = "pkcs11:object=class1-ocsp"
		unissued = "unknown"
		[[issuer.class1.source]]
		index = "index.txt"
	EOF
}
# judge FILE LOGINS [probes]: what must not be in a trace. The custody report's probes may stand there, refused.
judge() {
	awk -v logins="$2" -v probes="${3-}" '
		/^[0-9]+: C_/ {
			call = $2
			if (call == "C_Login") n++
			if (call ~ /^C_(WrapKey|CreateObject|GetOperationState|SetPIN|InitPIN|InitToken)$/) bad(call)
			if (call ~ /^C_(CopyObject|UnwrapKey|DeriveKey|SetAttributeValue|Decrypt.*|SignRecover.*)$/ && probes == "") bad(call)
		}
		/^Returned:  0 / && call ~ /^C_(CopyObject|UnwrapKey|DeriveKey|SetAttributeValue|Decrypt.*|SignRecover.*)$/ { bad(call " was done") }
		/^ +CKA_(VALUE|PRIVATE_EXPONENT|PRIME_1|PRIME_2|EXPONENT_1|EXPONENT_2|COEFFICIENT) / { bad(call " asks for " $1) }
		END {
			if (n + 0 != logins) bad(n + 0 " calls of C_Login, not " logins)
			if (NR == 0) bad("the trace is empty")
			exit failed
		}
		function bad(what) { print FILENAME ":" NR ": " what; failed = 1 }' "$1"
}
failed=0
verb() { # NAME LOGINS PROBES verb …
	name=$1 logins=$2 probes=$3
	shift 3
	configure "$name"
	./ocspd -c "$name.toml" "$@" >"$name.out" 2>"$name.err" || { cat "$name.out" "$name.err"; echo "ocspd $* failed" >&2; exit 1; }
	judge "trace/$name" "$logins" $probes || failed=1
}

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=class1 -keyout class1.key -out class1.pem -days 30 \
	-addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
printf 'keyUsage=critical,digitalSignature\nextendedKeyUsage=OCSPSigning\nnoCheck=yes\nauthorityKeyIdentifier=keyid\n' >extensions
printf 'V\t%s\t\t0A01\tunknown\t/CN=good\n' "$(date -u -d '+20 days' +%y%m%d%H%M%SZ)" >index.txt
certify() { openssl x509 -req -in request.pem -CA class1.pem -CAkey class1.key -CAcreateserial -days 20 -extfile extensions -out new.pem 2>/dev/null; }
asks() { # REQUESTS
	url=$(sed -n 's/.*msg=listens.* on=\([^ ]*\) as=ocsp.*/http:\/\/\1/p' log)
	n=0
	while [ $n -lt "$1" ]; do
		openssl ocsp -issuer class1.pem -serial 0x0A01 -url "$url" -CAfile class1.pem >answer 2>&1 && grep -q '0x0A01: good' answer && grep -q 'verify OK' answer || return 1
		n=$((n + 1))
	done
}

verb info 0 '' token info
verb generate 1 '' key generate class1-ocsp --type rsa2048
verb show 1 '' key show class1-ocsp
verb csr 1 '' key csr class1-ocsp
cp csr.out request.pem
certify
verb install 1 '' key install new.pem --issuer class1
verb check 1 '' issuer check class1
configure serve
./ocspd -c serve.toml serve >log 2>&1 &
server=$!
tries=0
until asks 1; do
	tries=$((tries + 1))
	kill -0 $server && [ $tries -lt 100 ] || { cat log answer; exit 1; }
	sleep 0.2
done
asks 10
./ocspd -c serve.toml reload 2>/dev/null >&2
asks 3
verb generate2 1 '' key generate class1-next --type p256 # beside the service
verb csr2 1 '' key csr class1-next
cp csr2.out request.pem
certify
sed -i 's/object=class1-ocsp/object=class1-next/; s/class1-ocsp\.pem/class1-next.pem/' serve.toml
./ocspd -c serve.toml key install new.pem --issuer class1 2>/dev/null >&2 # of another process, into the same trace: the second login
./ocspd -c serve.toml reload 2>/dev/null >&2
asks 10
verb list 1 '' key list
cp serve.toml custody.toml
sed -i "s,trace/serve,trace/custody," custody.toml
./ocspd -c custody.toml custody report -o json >custody.json 2>custody.err || [ $? -le 2 ] || { cat custody.err; exit 1; }
judge trace/custody 1 probes || failed=1
grep -q 'C_CopyObject' trace/custody || { echo "the custody report tried nothing"; failed=1; }
kill $server
wait $server || { cat log; exit 1; }
server=
judge trace/serve 2 || failed=1
configure destroy
sed -i 's/object=class1-ocsp/object=class1-next/; s/class1-ocsp\.pem/class1-next.pem/' destroy.toml
./ocspd -c destroy.toml key destroy class1-ocsp --yes "$(sed -n 's/^SPKI SHA-256 *//p' generate.out)" >destroy.out 2>&1 || { cat destroy.out; exit 1; }
judge trace/destroy 1 || failed=1
[ $failed = 0 ] || exit 1
echo "ok: $(cat trace/* | grep -c '^[0-9]*: C_') calls of $(ls trace | wc -l) processes, $(cat trace/* | grep -c 'C_Sign$') of them signatures"

# The search finds what it is for: a tool of others that reads a private value, puts a key in, logs in twice; and each call that it knows of.
finds() { # WHAT FILE LOGINS
	if judge "$2" "$3" >found; then echo "the search does not find $1"; exit 1; fi
	grep -q "$1" found || { echo "the search finds something else than $1:"; cat found; exit 1; }
}
tool() { # TRACE, options of pkcs11-tool
	export PKCS11SPY_OUTPUT="$work/$1"
	shift
	pkcs11-tool --module "$spy" --token-label ocsp --login --pin spy-PIN "$@" >/dev/null 2>&1 || :
}
tool other --keygen --key-type aes:16 --label secret --sensitive
tool planted-value --read-object --type secrkey --label secret
openssl ecparam -name prime256v1 -genkey -noout -outform DER -out outside.der
tool planted-key --write-object outside.der --type privkey --id 99
finds C_CreateObject planted-key 1
cat trace/show trace/csr >planted-logins
finds '2 calls of C_Login' planted-logins 1
for call in C_WrapKey C_CopyObject C_UnwrapKey C_DeriveKey C_SetAttributeValue C_DecryptInit; do
	{ cat trace/show; printf '\n99: %s\nReturned:  0 CKR_OK\n' $call; } >planted
	finds $call planted 1
	[ $call = C_WrapKey ] || ! judge planted 1 probes >found || { echo "a probe that succeeded is not found"; exit 1; }
done
for attribute in CKA_VALUE CKA_PRIVATE_EXPONENT CKA_PRIME_1; do
	{ cat trace/show; printf '\n99: C_GetAttributeValue\n[in] pTemplate[1]: \n    %s             0000000000000000 / 0\nReturned:  17 CKR_ATTRIBUTE_SENSITIVE\n' $attribute; } >planted
	finds "C_GetAttributeValue asks for $attribute" planted 1
done
finds 'asks for CKA_' planted-value 1
echo 'ok: the search finds what is planted'
