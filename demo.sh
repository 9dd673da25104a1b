#!/bin/sh
# The main job, end to end: a token, two CAs, their keys and CRLs, a responder that serves them, and the proof by openssl.
#   ./demo.sh          prove, then go on serving until SIGINT or SIGTERM
#   ./demo.sh --ci     prove, stop, leave the files
#   ./demo.sh clean    remove ./demo/
set -eu
cd "$(dirname "$0")"
top=$(pwd)
d=$top/demo
pki=$d/pki
ca=$pki/ca # what openssl ca keeps of each CA
mode=${1-}
case $mode in '' | --ci | clean) ;; *) echo "usage: ./demo.sh [--ci | clean]" >&2; exit 2 ;; esac

die() { echo "demo.sh: $*" >&2; exit 1; }
alive() { [ -s "$d/pid" ] && kill -0 "$(cat "$d/pid")" 2>/dev/null && grep -qa ocspd "/proc/$(cat "$d/pid")/cmdline" 2>/dev/null; }
if alive; then die "a responder already serves from $d (process $(cat "$d/pid")); stop it first: kill $(cat "$d/pid")"; fi
mkdir -p "$d"
exec 9>"$d/lock"
flock -n 9 || die "another demo.sh is at work in $d; wait for it or stop it"
if [ "$mode" = clean ]; then rm -rf "$d"; echo "removed $d"; exit 0; fi

number=0 began=$(date +%s%N) step_began=
now_ms() { echo $(($(date +%s%N) / 1000000)); }
done_step() { [ -z "$step_began" ] || printf '   done in %d ms\n' $(($(now_ms) - step_began)); step_began=; }
step() { done_step; number=$((number + 1)); step_began=$(now_ms); printf '\n%d. %s\n' $number "$1"; }
say() { printf '   %s\n' "$*"; }
quiet() { "$@" >"$d/out" 2>&1 || { cat "$d/out" >&2; die "this failed: $*"; }; }

serving=
stop() {
	trap - EXIT INT TERM
	rm -f "$d/url" "$d/url-http" "$d/admin"
	if [ -n "$serving" ]; then
		kill -TERM "$serving" 2>/dev/null || :
		wait "$serving" 2>/dev/null || :
	fi
	rm -f "$d/pid"
}
trap 'stop' EXIT
trap 'stop; exit 0' INT TERM

step 'Packages'
. ./test/packages.sh
packages softhsm2 gcc libc6-dev openssl curl ca-certificates
module=
for m in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so; do [ -e "$m" ] && module=$m && break; done
[ -n "$module" ] || die 'the package softhsm2 is installed, but its libsofthsm2.so is not where Debian puts it'

mkdir -p "$d/softhsm/tokens" "$pki" "$ca" "$d/run"
rm -f "$d/url" "$d/url-http" "$d/admin" "$d/pid"

step 'Build (the first time compiles SQLite and all libraries, which takes some minutes on a small machine)'
if [ -z "${HOME-}" ]; then export GOPATH="$d/go" GOCACHE="$d/go/cache"; fi
go build -buildvcs=false -o "$d/ocspd.new" ./cmd/ocspd
mv "$d/ocspd.new" "$d/ocspd"
o=$d/ocspd
say "$("$o" version)"

step 'A token (SoftHSM: software that behaves like a hardware security module)'
export SOFTHSM2_CONF="$d/softhsm/softhsm2.conf"
cat >"$SOFTHSM2_CONF" <<END
directories.tokendir = $d/softhsm/tokens
objectstore.backend = file
log.level = ERROR
slots.removable = false
END
random() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
if [ -s "$d/pin" ] && softhsm2-util --show-slots | grep -q 'Label: *ocsp *$'; then
	say 'the token of an earlier run is there'
else
	rm -rf "$d/softhsm/tokens" "$d/state" && mkdir "$d/softhsm/tokens"
	rm -f "$pki"/*.pem
	(umask 077 && random >"$d/pin" && random >"$d/softhsm/so-pin")
	softhsm2-util --init-token --free --label ocsp --pin "$(cat "$d/pin")" --so-pin "$(cat "$d/softhsm/so-pin")" >/dev/null
	say "made the token 'ocsp'; its PIN is in demo/pin"
fi

# A port of our own: the first that nothing listens on.
used() { awk -v p=":$(printf '%04X' "$1")\$" '$4 == "0A" && $2 ~ p { found = 1 } END { exit !found }' /proc/net/tcp $([ -e /proc/net/tcp6 ] && echo /proc/net/tcp6); }
free_from() { p=$1; while used "$p"; do p=$((p + 1)); done; echo "$p"; }
both() { if [ -s /proc/net/if_inet6 ] && grep -q ' lo$' /proc/net/if_inet6; then echo "\"127.0.0.1:$1\", \"[::1]:$1\""; else echo "\"127.0.0.1:$1\""; fi; }
configure() {
	if used 2560; then port=$(free_from 12560); else port=2560; fi
	http_port=$(free_from 12660)
	admin_port=$(free_from 12760)
	cat >"$d/ocspd.toml" <<END
state = "state"
run   = "run"

[listen]
ocsp  = [$(both "$port")]
http  = [$(both "$http_port")] # stands for port 80
admin = "127.0.0.1:$admin_port"

[token.main]
uri = "pkcs11:token=ocsp?module-path=$module"
pin = "file:pin"
environment = ["SOFTHSM2_CONF=$SOFTHSM2_CONF"]

[audit]
key = "pkcs11:object=audit" # signs the heads of the audit logs, and nothing else

[issuer.class1]
certificate = "pki/class1.pem"
signer      = "pki/class1-ocsp.pem"
key         = "pkcs11:object=class1-ocsp"
unissued    = "unknown" # the index says what was issued

[[issuer.class1.source]]
crl     = "pki/class1.crl"
refresh = "10s"

[[issuer.class1.source]]
index   = "pki/class1.index.txt"
refresh = "10s"

[issuer.class3]
certificate = "pki/class3.pem"
signer      = "pki/class3-ocsp.pem"
key         = "pkcs11:object=class3-ocsp"
unissued    = "good" # a CRL alone: what is not on it counts as good

[[issuer.class3.source]]
crl     = "pki/class3.crl"
refresh = "10s"
END
}
configure

step 'Keys, made inside the token'
for k in class1-ocsp:rsa2048 class3-ocsp:p256 audit:ed25519; do
	label=${k%:*}
	"$o" key show -c "$d/ocspd.toml" "$label" >/dev/null 2>&1 || quiet "$o" key generate -c "$d/ocspd.toml" "$label" --type "${k#*:}"
done
"$o" key list -c "$d/ocspd.toml" | sed 's/^/   /'
say 'One of them, as the token says that it keeps it (key show tells of the others):'
"$o" key show -c "$d/ocspd.toml" class1-ocsp 2>&1 | sed 's/^/     /'

step 'Two CAs: class1, a root, and class3, an intermediate that issues too'
ca_section() { # name, its index.txt
	cat <<END
[ca_$1]
database = $2
serial = $ca/$1.serial
crlnumber = $ca/$1.crlnumber
certificate = $pki/$1.pem
private_key = $pki/$1.key
new_certs_dir = $ca/$1
policy = any
default_md = sha256
default_days = 365
default_crl_days = 7
unique_subject = no
crl_extensions = crl
END
}
cat >"$ca/openssl.cnf" <<END
$(ca_section class1 "$pki/class1.index.txt")
$(ca_section class3 "$ca/class3.index.txt")
[any]
organizationName = optional
commonName = supplied
[crl]
authorityKeyIdentifier = keyid:always
[root]
basicConstraints = critical,CA:true
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[intermediate]
basicConstraints = critical,CA:true,pathlen:0
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
authorityInfoAccess = OCSP;URI:http://127.0.0.1:$port
[leaf]
basicConstraints = CA:false
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth,clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
authorityInfoAccess = OCSP;URI:http://127.0.0.1:$port
[ocsp]
basicConstraints = critical,CA:false
keyUsage = critical,digitalSignature
extendedKeyUsage = OCSPSigning
noCheck = ignored
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
[req]
distinguished_name = dn
[dn]
END
issue() { # CA, section, request, certificate
	quiet openssl ca -batch -notext -config "$ca/openssl.cnf" -name "ca_$1" -extensions "$2" -in "$3" -out "$4.new"
	mv "$4.new" "$4"
}
new_ca() { # name, key type
	mkdir -p "$ca/$1"
	(umask 077 && quiet openssl genpkey -algorithm RSA -pkeyopt "rsa_keygen_bits:$2" -out "$pki/$1.key")
	random >"$ca/$1.serial" && printf '\n' >>"$ca/$1.serial"
	sed -i 's/^[89a-f]/7/' "$ca/$1.serial"
	echo 01 >"$ca/$1.crlnumber"
}
request() { # name, key: a request for /CN=name
	quiet openssl req -new -config "$ca/openssl.cnf" -subj "/CN=$1" -key "$2" -out "$ca/$1.csr"
}
if [ ! -s "$pki/class1.pem" ]; then
	new_ca class1 3072
	: >"$pki/class1.index.txt"
	quiet openssl req -new -x509 -config "$ca/openssl.cnf" -extensions root -subj '/O=ocspd demo/CN=class1' -key "$pki/class1.key" -days 3650 -out "$pki/class1.pem"
	new_ca class3 2048
	: >"$ca/class3.index.txt"
	quiet openssl req -new -config "$ca/openssl.cnf" -subj '/O=ocspd demo/CN=class3' -key "$pki/class3.key" -out "$ca/class3.csr"
	issue class1 intermediate "$ca/class3.csr" "$pki/class3.pem"
fi
cat "$pki/class1.pem" "$pki/class3.pem" >"$pki/bundle.pem"
for c in class1 class3; do say "$(openssl x509 -in "$pki/$c.pem" -noout -subject -enddate | tr '\n' ' ')"; done

step 'Certificates: for the signers, and to ask about'
for c in class1 class3; do
	"$o" key csr -c "$d/ocspd.toml" "$c-ocsp" --subject "/CN=$c OCSP signer" >"$ca/$c-ocsp.csr"
	if [ ! -s "$pki/$c-ocsp.pem" ]; then
		issue $c ocsp "$ca/$c-ocsp.csr" "$ca/$c-ocsp.issued.pem"
		"$o" key install -c "$d/ocspd.toml" "$ca/$c-ocsp.issued.pem" --issuer $c 2>&1 | sed 's/^/   /'
	fi
	for k in good revoked live; do
		if [ ! -s "$pki/$c-$k.pem" ]; then
			(umask 077 && quiet openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$pki/$c-$k.key")
			request $c-$k "$pki/$c-$k.key"
			issue $c leaf "$ca/$c-$k.csr" "$pki/$c-$k.pem"
		fi
	done
done
revoke_once() { grep -q "^R.*/CN=$2\$" "$3" || quiet openssl ca -config "$ca/openssl.cnf" -name "ca_$1" -revoke "$pki/$2.pem" -crl_reason "$4"; }
revoke_once class1 class1-revoked "$pki/class1.index.txt" keyCompromise
revoke_once class3 class3-revoked "$ca/class3.index.txt" superseded

step 'CRLs, valid for 7 days'
for c in class1 class3; do
	quiet openssl ca -config "$ca/openssl.cnf" -name "ca_$c" -gencrl -out "$pki/$c.crl.new"
	mv "$pki/$c.crl.new" "$pki/$c.crl"
	say "$c: $(openssl crl -in "$pki/$c.crl" -noout -crlnumber -lastupdate -nextupdate | tr '\n' ' ')"
done

step 'Serve'
start() {
	: >"$d/log"
	"$o" serve -c "$d/ocspd.toml" >>"$d/log" 2>&1 9>&- &
	serving=$!
	echo "$serving" >"$d/pid"
}
start
tries=0
until "$o" status -c "$d/ocspd.toml" 2>&1 | tee "$d/answer" | grep -q '^serving'; do
	tries=$((tries + 1))
	if ! kill -0 "$serving" 2>/dev/null; then
		if [ $tries -lt 10 ] && grep -q 'address already in use' "$d/log"; then # another demo, started at the same moment, was faster
			configure
			start
			continue
		fi
		cat "$d/log" >&2
		die 'the responder did not start; its log stands above'
	fi
	[ $tries -lt 150 ] || { cat "$d/log" "$d/answer" >&2; die 'the responder is not ready after 30 s; its log stands above'; }
	sleep 0.2
done
url=http://127.0.0.1:$port
say "process $serving on $url, and on http://127.0.0.1:$http_port in place of port 80"
"$o" status -c "$d/ocspd.toml" | sed 's/^/     /'

step 'The proof, by openssl and curl'
failed=0
expect() { # what, wanted words, output file
	for w in $2; do
		grep -q "$(echo "$w" | tr '~' ' ')" "$3" || { failed=$((failed + 1)); say "WRONG: $1: no '$w' in:"; sed 's/^/       /' "$3"; return; }
	done
	if [ "${1#POST}" != "$1" ] && grep -q 'WARNING: no nonce' "$3"; then failed=$((failed + 1)); say "WRONG: $1: no nonce in the answer"; return; fi
	say "$1: $(echo "$2" | tr '~' ' ')"
}
post() { # issuer, certificate, wanted
	openssl ocsp -issuer "$pki/$1.pem" -cert "$pki/$2.pem" -url "$url" -CAfile "$pki/bundle.pem" >"$d/answer" 2>&1 || :
	expect "POST, with a nonce: $2" "Response~verify~OK $3" "$d/answer"
}
get() { # issuer, certificate, wanted
	openssl ocsp -issuer "$pki/$1.pem" -cert "$pki/$2.pem" -no_nonce -reqout "$d/req.der" >/dev/null 2>&1
	path=$(openssl base64 -A -in "$d/req.der" | sed 's/+/%2B/g; s/\//%2F/g; s/=/%3D/g')
	curl -sf -o "$d/resp.der" "$url/$path" || :
	openssl ocsp -issuer "$pki/$1.pem" -cert "$pki/$2.pem" -respin "$d/resp.der" -CAfile "$pki/bundle.pem" >"$d/answer" 2>&1 || :
	expect "GET, by curl:       $2" "Response~verify~OK $3" "$d/answer"
}
for ask in post get; do
	$ask class1 class1-good 'class1-good.pem:~good'
	$ask class1 class1-revoked 'class1-revoked.pem:~revoked Reason:~keyCompromise'
	$ask class3 class3-good 'class3-good.pem:~good'
	$ask class3 class3-revoked 'class3-revoked.pem:~revoked Reason:~superseded'
done
# A CRL that claims to be class1's, signed by somebody else.
mkdir -p "$ca/forger"
[ -s "$ca/forger.key" ] || quiet openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$ca/forger.key"
[ -s "$ca/forger.pem" ] || quiet openssl req -new -x509 -config "$ca/openssl.cnf" -extensions root -subj '/O=ocspd demo/CN=class1' -key "$ca/forger.key" -days 30 -out "$ca/forger.pem"
: >"$ca/forger.index.txt"
echo FF >"$ca/forger.crlnumber"
sed "s#^database = $pki/class1.index.txt#database = $ca/forger.index.txt#; s#$ca/class1.crlnumber#$ca/forger.crlnumber#; s#$pki/class1.pem#$ca/forger.pem#; s#$pki/class1.key#$ca/forger.key#" "$ca/openssl.cnf" >"$ca/forger.cnf"
quiet openssl ca -config "$ca/forger.cnf" -name ca_class1 -gencrl -out "$ca/forged.crl"
if "$o" crl import -c "$d/ocspd.toml" --issuer class1 "$ca/forged.crl" >"$d/answer" 2>&1; then
	failed=$((failed + 1))
	say 'WRONG: a forged CRL was taken'
else
	say "a forged CRL is refused: $(cat "$d/answer")"
fi
post class1 class1-live 'class1-live.pem:~good'
"$o" revoke -c "$d/ocspd.toml" class1 "$pki/class1-live.pem" --reason keyCompromise 2>&1 | sed 's/^/   /'
post class1 class1-live 'class1-live.pem:~revoked Reason:~keyCompromise'
get class1 class1-live 'class1-live.pem:~revoked Reason:~keyCompromise'
"$o" unrevoke -c "$d/ocspd.toml" class1 "$pki/class1-live.pem" --mistake 'the demo revoked it to show that it can' 2>&1 | sed 's/^/   /'
post class1 class1-live 'class1-live.pem:~good'
done_step
rm -f "$d/answer" "$d/req.der" "$d/resp.der" "$d/out"
[ $failed = 0 ] || { stop; die "$failed of the proofs failed; the log is in demo/log"; }

printf '\nAll proven, %d s after the start. SoftHSM keeps keys in files that whoever runs this account can copy: this shows how the\n' $((($(date +%s%N) - began) / 1000000000))
printf 'software works, not hardware custody. For that, name the PKCS#11 module of your HSM in [token.main].\n'
if [ "$mode" = --ci ]; then exit 0; fi
cat <<END

What to try next, in another terminal:
   openssl ocsp -issuer demo/pki/class3.pem -cert demo/pki/class3-live.pem -url $url -CAfile demo/pki/bundle.pem
   demo/ocspd revoke -c demo/ocspd.toml class3 demo/pki/class3-live.pem --reason superseded     (and ask again)
   demo/ocspd lookup -c demo/ocspd.toml class3 demo/pki/class3-live.pem --explain
   demo/ocspd status -c demo/ocspd.toml
   http://127.0.0.1:$admin_port/ in a browser: the status page
   kill -9 any of these and ask on: $(pgrep -P "$serving" 2>/dev/null | tr '\n' ' ' || :)
Serving until Ctrl-C (or kill $serving). ./demo.sh clean removes demo/.
END
echo "http://127.0.0.1:$http_port" >"$d/url-http"
echo "http://127.0.0.1:$admin_port" >"$d/admin"
echo "$url" >"$d/url"
wait "$serving" || die 'the responder ended; see demo/log'
