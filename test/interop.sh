#!/bin/sh
# Real clients against a demo that serves: test/interop.sh DEMO_DIR [java]. OCSP-INT-01, OCSP-INT-08, OCSP-INT-09; with java, OCSP-INT-05.
set -eu
demo=$(cd "${1:?usage: test/interop.sh DEMO_DIR [java]}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
pki=$demo/pki url=$(cat "$demo/url") second=$(cat "$demo/url-http")
work=$(mktemp -d)
nginx=
trap '[ -z "$nginx" ] || kill "$nginx" 2>/dev/null || :; rm -rf "$work"' EXIT
bad=0
says() { # what, wanted in the output, command …
	what=$1 want=$2
	shift 2
	"$@" >"$work/out" 2>&1 || :
	if grep -q -- "$want" "$work/out"; then echo "ok    $what"; else
		bad=$((bad + 1))
		echo "WRONG $what: no '$want' in:"
		sed 's/^/      /' "$work/out"
	fi
}
ask() { issuer=$1; shift; openssl ocsp -issuer "$pki/$issuer.pem" -CAfile "$pki/bundle.pem" "$@"; }
both() { "$@" >"$work/both" 2>&1; cat "$work/both"; if grep -q 'Response verify OK' "$work/both" && ! grep -q WARNING "$work/both"; then echo VERIFIED; fi; }

for i in class1 class3; do
	for u in "$url" "$second"; do
		says "openssl: $i-good at $u" "$i-good.pem: good" both ask $i -cert "$pki/$i-good.pem" -url "$u"
		says "openssl: verified, with a nonce" VERIFIED both ask $i -cert "$pki/$i-good.pem" -url "$u"
	done
	says "openssl: $i-revoked" "$i-revoked.pem: revoked" both ask $i -cert "$pki/$i-revoked.pem" -url "$url"
	says "openssl: -sha256" VERIFIED both ask $i -sha256 -cert "$pki/$i-good.pem" -url "$url"
	says "openssl: -no_nonce" 'Response verify OK' ask $i -no_nonce -cert "$pki/$i-good.pem" -url "$url"
	says "openssl: two certificates" VERIFIED both ask $i -cert "$pki/$i-good.pem" -cert "$pki/$i-revoked.pem" -url "$url"
	serial=0x$(openssl x509 -in "$pki/$i-good.pem" -noout -serial | cut -d= -f2)
	says "openssl: -serial, -host" VERIFIED both ask $i -serial "$serial" -host "localhost:${url##*:}"
done
says 'GnuTLS: good' 'Certificate Status: good' ocsptool --ask="$url" --load-cert "$pki/class3-good.pem" --load-issuer "$pki/class3.pem"
says 'GnuTLS: revoked' 'Certificate Status: revoked' ocsptool --ask="$url" --load-cert "$pki/class3-revoked.pem" --load-issuer "$pki/class3.pem"
says 'GnuTLS: verified' 'Verifying OCSP Response: Success' ocsptool --ask="$url" --load-cert "$pki/class3-good.pem" --load-issuer "$pki/class3.pem" --load-trust "$pki/bundle.pem"

nss=sql:$work/nss
mkdir "$work/nss"
certutil -N -d "$nss" --empty-password
certutil -A -d "$nss" -n class1 -t C,C,C -i "$pki/class1.pem"
certutil -A -d "$nss" -n class3 -t ,, -i "$pki/class3.pem"
for k in good revoked; do certutil -A -d "$nss" -n $k -t ,, -i "$pki/class3-$k.pem"; done
says 'NSS: good' '"good" succeeded' ocspclnt -d "$nss" -S good
says 'NSS: revoked' 'has been revoked' ocspclnt -d "$nss" -S revoked

# A server that staples: nginx asks the responder, curl refuses a handshake without a good staple.
port=18443
while awk -v p=":$(printf '%04X' $port)\$" '$4 == "0A" && $2 ~ p { f = 1 } END { exit !f }' /proc/net/tcp; do port=$((port + 1)); done
cat "$pki/class3-good.pem" "$pki/class3.pem" >"$work/chain.pem"
cat "$pki/class3-revoked.pem" "$pki/class3.pem" >"$work/revoked.pem"
server() { # port, chain, key
	cat <<END
	server { listen 127.0.0.1:$1 ssl; ssl_certificate $2; ssl_certificate_key $3; ssl_stapling on; ssl_stapling_verify on;
		ssl_trusted_certificate $pki/bundle.pem; ssl_stapling_responder $url; location / { return 200 "here\n"; } }
END
}
cat >"$work/nginx.conf" <<END
daemon off; pid $work/nginx.pid; error_log $work/nginx.log info; worker_processes 1; user root;
events { worker_connections 64; }
http { access_log off; client_body_temp_path $work/b; proxy_temp_path $work/p; fastcgi_temp_path $work/f; uwsgi_temp_path $work/u; scgi_temp_path $work/s;
$(server $port "$work/chain.pem" "$pki/class3-good.key")
$(server $((port + 1)) "$work/revoked.pem" "$pki/class3-revoked.key")
}
END
nginx -c "$work/nginx.conf" -e "$work/nginx.log" &
nginx=$!
staple() { # nginx fetches the staple after the first handshake
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		curl -sS --cacert "$pki/class1.pem" --cert-status --resolve "$1:$2:127.0.0.1" "https://$1:$2/" 2>&1 | tee "$work/staple"
		if grep -q "$3" "$work/staple"; then return; fi
		sleep 0.5
	done
	cat "$work/nginx.log"
}
says 'nginx and curl: the staple is good' here staple class3-good $port here
says 'nginx: it reads revoked, which it does not staple' 'certificate status "revoked"' staple class3-revoked $((port + 1)) here

if [ "${2-}" = java ]; then
	for c in "class1 good" "class1 revoked" "class3 good" "class3 revoked"; do
		set -- $c
		case $2 in good) want='valid' ;; *) want='Certificate has been revoked' ;; esac
		for u in "$url" "$url/"; do
			chain="$pki/$1-$2.pem"
			[ "$1" = class1 ] || chain="$chain $pki/class3.pem"
			says "Java: $1-$2 at $u" "$want" java "$here/Revocation.java" "$u" "$pki/class1.pem" $chain
		done
	done
fi
[ $bad = 0 ] || { echo "interop: $bad answers were not as wanted"; exit 1; }
