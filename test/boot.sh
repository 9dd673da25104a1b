#!/bin/sh
# The appliance on a Debian 12 that boots, in a container (systemd-nspawn): the package is installed, a SoftHSM token made, the PIN sealed; it serves on 2560 and
# 80, and is asked from outside by openssl. Then every role is killed, one hangs, a PIN is refused, the configuration changes under load, the machine reboots, the
# package is upgraded, removed and purged.
#   test/boot.sh [TREE]     TREE: a Debian 12 that debootstrap made, to be copied; else one is fetched
# Exit 3: this machine cannot run it; why is printed.
set -eu
cd "$(dirname "$0")/.."
cannot() { echo "skipped: $*"; exit 3; }
[ "$(id -u)" = 0 ] || cannot 'a container that boots needs root'
. ./test/packages.sh
unshare -m -n -p -f true 2>/dev/null || cannot 'namespaces are not allowed here'
packages debootstrap systemd-container iproute2 openssl curl >/dev/null
tree=${1-}
work=$(mktemp -d)
top=$(pwd)
name=ocspd-boot-$$
veth=ve-ob$$
root=$work/debian
net=$(($$ % 60 * 4)) # of its own, where several run at once
outside=198.51.100.$((net + 1)) guest=198.51.100.$((net + 2))
run= leader= web=
stop_machine() {
	[ -z "$run" ] || { kill -TERM "$run" 2>/dev/null || :; wait "$run" 2>/dev/null || :; }
	run=
}
trap '[ -z "$web" ] || kill "$web"; stop_machine; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

number=0 failed=0
step() { number=$((number + 1)); printf '\n%2d. %s\n' $number "$*"; }
ok() { printf '    %s\n' "$*"; }
wrong() { failed=$((failed + 1)); printf '    WRONG: %s\n' "$*"; }
inside() { nsenter -t "$leader" -a -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
shell() { inside sh -euc "$1"; }
expect() { # what, words to find, command …
	what=$1 words=$2
	shift 2
	"$@" >"$work/out" 2>&1 && code=0 || code=$?
	if grep -q -e "$words" "$work/out"; then ok "$what"; else
		wrong "$what: no '$words' (exit $code) in:"
		sed 's/^/       /' "$work/out" | head -n 30
	fi
}
must() { # what, command …
	what=$1
	shift
	if "$@" >"$work/out" 2>&1; then ok "$what"; else
		wrong "$what (exit $?):"
		sed 's/^/       /' "$work/out" | head -n 30
	fi
}
eventually() { # seconds, command …
	tries=$(($1 * 5))
	shift
	until "$@" >"$work/out" 2>&1; do
		tries=$((tries - 1))
		[ $tries -gt 0 ] || return 1
		sleep 0.2
	done
}
serving() { inside ocspd status | grep -q '^serving'; }
pid_of() { inside systemctl show -P MainPID "ocspd-$1.service"; }
ask() { # port, certificate, more for openssl: from outside. With a nonce, which needs a new signature, unless $nonce says otherwise
	port=$1 certificate=$2
	shift 2
	openssl ocsp ${nonce-} -issuer "$ca/class1.pem" -cert "$ca/$certificate.pem" -url "http://$guest:$port" -CAfile "$ca/class1.pem" "$@" 2>&1 | grep -v WARNING
}
answers() { # what, port, certificate, status
	ask "$2" "$3" >"$work/out" || :
	if grep -q 'Response verify OK' "$work/out" && grep -q "$3.pem: $4" "$work/out"; then ok "$1: $3 is $4"; else
		wrong "$1: $3 is not $4:"
		sed 's/^/       /' "$work/out"
	fi
}

init_of() { for p in $(cat "/proc/$1/task/$1/children"); do [ "$(cat "/proc/$p/comm" 2>/dev/null)" = systemd ] && echo "$p" && return; done; return 1; }
boot() {
	systemd-nspawn --quiet --directory="$root" --machine="$name" --register=no --keep-unit --network-veth-extra="$veth:host0" --private-network --boot --console=pipe \
		--system-call-filter='landlock_create_ruleset landlock_add_rule landlock_restrict_self sched_setattr' \
		>"$work/console" 2>&1 </dev/null &
	run=$!
	# nspawn has helpers first; the machine's first process is the child that has become systemd.
	eventually 30 init_of "$run" || { cat "$work/console"; cannot 'the container does not start'; }
	leader=$(init_of "$run")
	eventually 60 shell 'case $(systemctl is-system-running) in running | degraded) ;; *) exit 1 ;; esac' || { cat "$work/console" "$work/out"; cannot 'Debian does not boot in a container here'; }
	ip address add $outside/30 dev "$veth" 2>/dev/null || :
	ip link set "$veth" up
	shell "ip address add $guest/30 dev host0; ip link set host0 up; ip link set lo up"
}

step 'Debian 12'
if [ -n "$tree" ]; then cp -a "$tree" "$root"; else
	debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,openssl,ca-certificates,curl,softhsm2,procps,iproute2 bookworm "$root" >"$work/log" 2>&1 ||
		{ tail -n 3 "$work/log"; cannot 'Debian 12 cannot be fetched'; }
fi
rm -f "$root/etc/machine-id" && : >"$root/etc/machine-id"
ok "$(cat "$root/etc/debian_version"), $(du -sm "$root" | cut -f 1) MiB"

step 'The package, of two versions'
old=$(./package.sh 0.0.1) && new=$(./package.sh 0.0.2)
cp "$old" "$root/root/old.deb" && cp "$new" "$root/root/new.deb"
ok "$old, $new"
boot
ok "booted: $(inside systemctl --version | head -n 1)"

step 'Installation'
shell 'mkdir /etc/ocspd && echo other >/etc/ocspd/ocspd.conf'
expect 'a foreign /etc/ocspd is refused, with what to do' 'mv /etc/ocspd /etc/ocspd.old' inside dpkg -i /root/old.deb
shell 'rm -r /etc/ocspd'
expect 'installed; it says what is next' 'install.md' inside dpkg -i /root/old.deb
expect 'a start without a configuration fails' 'ocspd.target' inside systemctl start ocspd.target
expect '... and says what to do' 'config example' inside systemctl --no-pager --full status ocspd.service

step 'A token, its sealed PIN, a CA, the configuration'
ca=$work/ca
mkdir "$ca"
new() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$ca/$1.key" 2>/dev/null; }
issue() { # CA, name, extensions
	[ -e "$ca/$2.csr" ] || { new "$2" && openssl req -new -key "$ca/$2.key" -subj "/CN=$2" -out "$ca/$2.csr"; }
	echo "$3" | tr ';' '\n' >"$ca/ext"
	openssl x509 -req -in "$ca/$2.csr" -CA "$ca/$1.pem" -CAkey "$ca/$1.key" -CAserial "$ca/$1.srl" -CAcreateserial -days 30 -extfile "$ca/ext" -out "$ca/$2.pem" 2>/dev/null
}
new_ca() {
	new "$1"
	openssl req -new -x509 -key "$ca/$1.key" -subj "/CN=$1" -days 60 -addext keyUsage=critical,keyCertSign,cRLSign -out "$ca/$1.pem" 2>/dev/null
	: >"$ca/$1.index"
	echo 01 >"$ca/$1.crlnumber"
	cat >"$ca/$1.cnf" <<END
[ca]
default_ca = x
[x]
database = $ca/$1.index
crlnumber = $ca/$1.crlnumber
certificate = $ca/$1.pem
private_key = $ca/$1.key
default_md = sha256
default_crl_days = 7
crl_extensions = e
[e]
authorityKeyIdentifier = keyid
END
}
crl() { openssl ca -config "$ca/$1.cnf" -gencrl -out "$ca/$1.crl" 2>/dev/null && install -m 644 "$ca/$1.crl" "$root/srv/$1.crl"; }
# A CA's web server: whatever is asked, the CRL of class3.
serve_crl() {
	perl -MIO::Socket::INET -e 'my $l = IO::Socket::INET->new(LocalAddr => "$ARGV[0]:8099", Listen => 5, ReuseAddr => 1) or die;
		while (my $c = $l->accept) { while (<$c>) { last if /^\r?$/ } open my $f, "<:raw", $ARGV[1] or die; local $/; my $b = <$f>;
		print $c "HTTP/1.1 200 OK\r\nContent-Length: " . length($b) . "\r\nConnection: close\r\n\r\n$b"; close $c }' "$outside" "$ca/class3.crl" &
	web=$!
}
issuer() { # name, label, CRL
	cat <<END
[issuer.$1]
certificate = "$1.pem"
signer      = "/var/lib/ocspd/certs/$2.pem"
key         = "pkcs11:object=$2"
unissued    = "good"
[[issuer.$1.source]]
crl     = "$3"
refresh = "10s"
END
}
shell 'adduser --quiet ocspd-signer softhsm 2>/dev/null || usermod -aG softhsm ocspd-signer
	openssl rand -hex 16 >/root/pin
	mkdir -p -m 700 /etc/credstore.encrypted
	systemd-creds encrypt --name=pin /root/pin /etc/credstore.encrypted/ocspd.pin
	setpriv --reuid ocspd-signer --regid ocspd-signer --init-groups softhsm2-util --init-token --free --label ocsp --pin "$(cat /root/pin)" --so-pin "$(openssl rand -hex 16)"' >/dev/null
new_ca class1
for c in good revoked live; do issue class1 $c 'authorityKeyIdentifier=keyid'; done
openssl ca -config "$ca/class1.cnf" -revoke "$ca/revoked.pem" -crl_reason keyCompromise 2>/dev/null
crl class1
cp "$ca/class1.pem" "$root/etc/ocspd/"
config() { # issuers
	cat <<END
[token.main]
uri = "pkcs11:token=ocsp?module-path=/usr/lib/softhsm/libsofthsm2.so"
pin = "credential:pin"
[audit]
key = "pkcs11:object=audit"
END
	for i in "$@"; do
		case $i in class3) issuer $i $i-ocsp "http://$outside:8099/class3.crl" ;; *) issuer $i $i-ocsp /srv/$i.crl ;; esac
	done
}
config class1 >"$root/etc/ocspd/ocspd.toml"
delegate='keyUsage=critical,digitalSignature;extendedKeyUsage=OCSPSigning;noCheck=ignored;authorityKeyIdentifier=keyid'
signer_for() { # issuer, label
	must "key $2" inside ocspd key generate "$2" --type p256
	inside ocspd key csr "$2" --subject "/CN=$2" >"$ca/$2.csr"
	issue "$1" "$2" "$delegate"
	must "certificate of $2" inside ocspd key install - --issuer "$1" <"$ca/$2.pem"
}
must 'the key of the log' inside ocspd key generate audit --type ed25519
signer_for class1 class1-ocsp
expect 'issuer check' 'class1: ok' inside ocspd issuer check
expect 'token check' 'class1-ocsp of class1: ok: signed and verified' inside ocspd token check
expect 'the PIN is nowhere but sealed' '^no$' shell 'grep -rqsF "$(cat /root/pin)" /etc /run /tmp /var/lib/ocspd && echo found || echo no'

step 'It serves'
must 'systemctl start ocspd.target' inside systemctl start ocspd.target
eventually 20 serving && ok 'ocspd status says serving' || { wrong 'status:'; sed 's/^/       /' "$work/out"; inside journalctl --no-pager -n 60 -u 'ocspd*'; }
answers 'port 2560' 2560 good good
answers 'port 2560' 2560 revoked revoked
shell 'systemctl enable ocspd-http.socket && systemctl restart ocspd-front.service' >"$work/out" 2>&1
answers 'port 80' 80 good good
expect 'healthz' ALLOK inside curl -fsS http://127.0.0.1:2561/healthz

step 'Who they are'
for r in front signer keeper; do
	p=$(pid_of $r)
	shell "grep -E '^(Uid|Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/$p/status" >"$work/out"
	u=$(inside id -u ocspd-$r)
	if grep -q "^Uid:.$u.$u.$u.$u" "$work/out" && [ "$(grep -c '^Cap.*0000000000000000$' "$work/out")" = 5 ] && grep -q '^NoNewPrivs:.1' "$work/out" && grep -q '^Seccomp:.2' "$work/out"; then
		ok "$r: user ocspd-$r, no capability, no new privileges, seccomp"
	else wrong "$r:"; sed 's/^/       /' "$work/out"; fi
	! perl -e 'exit(syscall(444, 0, 0, 1) < 1)' || expect '... and Landlock' 'landlock=holds' inside journalctl --no-pager -u ocspd-$r
	shell "systemctl show -P NRestarts ocspd-$r" | grep -q '^0$' || wrong "$r was started more than once"
done
for r in signer keeper; do expect "$r cannot map as code what it writes" '^noexec$' shell "nsenter -t $(pid_of $r) -m findmnt -no OPTIONS -T /var/lib/ocspd/$r | grep -o noexec"; done
for r in front signer keeper; do expect "$r has no network" '^0$' shell "nsenter -t $(pid_of $r) -n ip -o link show up | grep -cv ' lo:' || :"; done
expect 'a stranger cannot open keeper.sock' 'ermission denied' inside setpriv --reuid games --regid games --clear-groups ocspd status
must 'a member of ocspd-admin can' shell 'useradd -G ocspd-admin alice && setpriv --reuid alice --regid alice --init-groups ocspd status'
must 'alice revokes' inside setpriv --reuid alice --regid alice --init-groups ocspd revoke class1 "0x$(openssl x509 -in "$ca/live.pem" -noout -serial | cut -d = -f 2)" --reason superseded
answers 'after revoke' 2560 live revoked
expect '... and the log says that it was she' 'alice' inside ocspd audit show
for f in 'ocspd-front /var/lib/ocspd/keeper/ocspd.db' 'ocspd-front /run/ocspd/keeper.sock' 'ocspd-signer /run/ocspd/keeper.sock' 'ocspd-keeper /run/ocspd/signer.sock' \
	'ocspd-keeper /var/lib/ocspd/signer/highwater' 'ocspd-front /var/lib/ocspd/gen/class1.current'; do
	inside setpriv --reuid "${f% *}" --regid "${f% *}" --init-groups sh -c "test -r '${f#* }' || test -w '${f#* }'" && wrong "${f% *} can open ${f#* }" || ok "${f% *} cannot open ${f#* }"
done

step 'Started and stopped as people do'
must 'systemctl stop ocspd, start ocspd' shell 'systemctl stop ocspd && systemctl start ocspd'
eventually 20 serving && ok 'serves' || { wrong 'does not serve'; inside ocspd status; }
must 'restarted eight times' shell 'for i in 1 2 3 4 5 6 7 8; do systemctl restart ocspd.target; done'
eventually 20 serving && ok 'serves' || { wrong 'does not serve'; inside ocspd status; }
must 'a role of a stopped target started' shell 'systemctl stop ocspd.target && systemctl start ocspd-keeper'
eventually 20 serving && ok 'serves, whole' || { wrong 'does not serve'; inside ocspd status; }
answers 'on both ports' 80 good good
shell 'chmod 600 /etc/ocspd/ocspd.toml; systemctl restart ocspd-front' >"$work/out" 2>&1 && wrong 'front starts without its configuration' || ok 'a front that cannot read its configuration does not start'
before=$(inside systemctl show -P NRestarts ocspd-front)
sleep 10
expect '... and is tried again with pauses' '^yes$' shell "[ \$(systemctl show -P NRestarts ocspd-front) -le $((before + 5)) ] && echo yes"
expect '... and says what to do' 'permission denied.*let all read it' inside journalctl --no-pager -n 20 -u ocspd-front
inside chmod 644 /etc/ocspd/ocspd.toml
eventually 20 serving && ok 'serves, by itself' || { wrong 'does not serve'; inside ocspd status; }

step 'Evidence'
ask 2560 good -respout "$root/root/answer.der" >"$work/out" || :
sleep 2
expect 'an answer caught on the wire is proven' '^proven: ' inside ocspd audit prove /root/answer.der
expect 'both logs are whole' 'signed by ocspd/signer' inside ocspd audit verify
must '... and signed in the token' shell '! test -e /var/lib/ocspd/keeper/audit.key && test -s /var/lib/ocspd/signer/keeper-head'
must 'custody report, by root, beside the signer that runs' inside ocspd custody report --out /root/custody.html
must 'custody report as JSON' inside ocspd custody report --out /root/custody.json
expect '... can be checked offline' 'class1' inside ocspd custody verify /root/custody.json
expect 'a key made and destroyed' 'is destroyed' shell 'ocspd key generate old --type p256 >/root/made; ocspd key destroy old --yes "$(sed -n "s/^SPKI SHA-256 *//p" /root/made)"'
expect '... is in the log' 'key.destroy.*old' inside ocspd audit show
expect 'accept reaches the signer that runs' 'does not stand before the last signature' inside ocspd accept clock --note 'a trial'

step 'Each role killed'
nonce=-no_nonce
answers 'for front to hold' 2560 good good
answers 'for front to hold' 2560 revoked revoked
for r in front signer keeper; do
	p=$(pid_of $r)
	shell "kill -9 $p"
	answers "right after kill -9 of $r" 2560 good good
	[ $r != front ] || answers 'for front to hold' 2560 revoked revoked
	eventually 20 serving && [ "$(pid_of $r)" != "$p" ] && ok "$r is back" || { wrong "$r is not back"; inside journalctl --no-pager -n 30 -u ocspd-$r; }
done

step 'A signer that hangs'
p=$(pid_of signer)
shell "kill -STOP $p"
answers 'while it hangs, from what front holds' 2560 revoked revoked
eventually 90 shell "[ \$(systemctl show -P MainPID ocspd-signer) -gt 0 ] && [ \$(systemctl show -P MainPID ocspd-signer) != $p ]" && ok 'the watchdog killed it' || wrong 'it was not killed'
eventually 20 serving && ok 'serving again' || wrong 'not serving again'
expect 'systemd says why' 'watchdog' inside journalctl --no-pager -u ocspd-signer

nonce=
step 'Reload under load'
reload() { inside systemctl reload ocspd.service >"$work/out" 2>&1 && ok "$1: systemctl reload ocspd" || { wrong "$1: systemctl reload ocspd:"; inside journalctl --no-pager -n 5 -u ocspd.service; }; }
(
	n=0 bad=0
	while [ ! -e "$work/enough" ]; do
		n=$((n + 1))
		{ ask 2560 good && ask 80 good; } >"$work/load" && [ "$(grep -c 'good.pem: good' "$work/load")" = 2 ] || { bad=$((bad + 1)); cat "$work/load" >>"$work/load.bad"; }
	done
	echo "$n $bad" >"$work/load.count"
) &
load=$!
new_ca class3
issue class3 three 'authorityKeyIdentifier=keyid'
crl class3
serve_crl
cp "$ca/class3.pem" "$root/etc/ocspd/"
config class1 class3 >"$root/etc/ocspd/ocspd.toml"
signer_for class3 class3-ocsp
reload 'a new issuer'
expect '... is there' class3 inside ocspd issuer list
fetched() { openssl ocsp -issuer "$ca/class3.pem" -cert "$ca/three.pem" -url "http://$guest:2560" -CAfile "$ca/class3.pem" 2>&1 | grep -q 'three.pem: good'; }
eventually 20 fetched && ok 'its CRL was fetched, though keeper has no network' || { wrong 'its CRL was not fetched:'; inside ocspd crl status; inside journalctl --no-pager -n 20 -u ocspd-keeper -u 'ocspd-dialer@*'; }
echo '[nonsense' >>"$root/etc/ocspd/ocspd.toml"
expect 'a bad file is refused: systemctl' 'failed' inside systemctl reload ocspd.service
expect '... and why' 'ocspd.toml:' inside ocspd reload
config class1 class3 >"$root/etc/ocspd/ocspd.toml"
printf '[listen]\nocsp = ["0.0.0.0:2570"]\n' >>"$root/etc/ocspd/ocspd.toml"
expect 'a changed listener needs a restart, which is said' 'listen.*next start' inside ocspd reload
must 'front restarted under load' inside systemctl restart ocspd-front.service
expect '... and that systemd holds others is said' 'systemd holds 0.0.0.0:2560' shell 'sleep 2; ocspd status'
config class1 class3 >"$root/etc/ocspd/ocspd.toml"
reload 'back again'

step 'A key roll under load'
sed -i 's/class1-ocsp/class1-ocsp-2/' "$root/etc/ocspd/ocspd.toml"
signer_for class1 class1-ocsp-2
reload 'the new key'
signed_by() { ask 2560 good -resp_text | sed -n 's/^ *Subject: *//p'; }
[ "$(signed_by)" = CN=class1-ocsp-2 ] && ok '... signs' || { wrong "it is $(signed_by) that signs:"; inside journalctl --no-pager -n 12 -u ocspd.service -u ocspd-signer -u ocspd-keeper; }
expect 'the old one is destroyed' 'is destroyed' shell 'ocspd key destroy class1-ocsp --yes "$(ocspd key show class1-ocsp | sed -n "s/^SPKI SHA-256 *//p")"'
expect '... and the issuer is as it should be' 'class1: ok' inside ocspd issuer check class1

step 'Upgrade under load'
must 'apt-get install of the next version' inside apt-get install -y /root/new.deb
expect 'it is the next version' 'ocspd 0.0.2' inside ocspd version
for r in front signer keeper; do expect "$r runs it" '^/usr/bin/ocspd$' inside readlink "/proc/$(pid_of $r)/exe"; done
eventually 20 serving || wrong 'not serving after the upgrade'
sleep 1
: >"$work/enough"
wait $load
read -r n bad <"$work/load.count"
[ "$bad" = 0 ] && [ "$n" -gt 20 ] && ok "$n rounds of questions on both ports since before the reload, all answered" || { wrong "$bad of $n rounds failed:"; head -n 20 "$work/load.bad"; }
answers 'what was revoked by hand' 2560 live revoked

step 'A backup'
inside systemctl start ocspd-backup.service >"$work/out" 2>&1 && ok 'systemctl start ocspd-backup.service' || { wrong 'ocspd-backup.service:'; inside journalctl --no-pager -n 20 -u ocspd-backup; }
expect 'is there, for keeper alone' 'ocspd-keeper.*/ocspd-2' shell 'stat -c "%a %U %n" /var/backups/ocspd/*'

step 'A restored backup'
inside ocspd revoke class1 "0x$(openssl x509 -in "$ca/good.pem" -noout -serial | cut -d = -f 2)" --reason superseded >/dev/null
answers 'after the backup' 2560 good revoked
must 'systemctl stop ocspd.target' inside systemctl stop ocspd.target
expect 'restore names what the backup lacks' 'ocspd revoke class1' shell 'ocspd restore /var/backups/ocspd/ocspd-2*.db'
must 'systemctl start ocspd.target' inside systemctl start ocspd.target
eventually 20 serving && ok 'serves' || { wrong 'does not serve'; inside ocspd status; }
answers 'as in the backup' 2560 good good
answers 'as in the backup' 2560 live revoked

step 'A reboot'
inside systemctl --no-block poweroff
wait "$run" 2>/dev/null || :
run=
boot
eventually 30 serving && ok 'serves, by itself' || { wrong 'does not serve'; sed 's/^/       /' "$work/out"; inside journalctl --no-pager -b -n 60 -u 'ocspd*'; }
answers 'after the reboot' 2560 revoked revoked
answers 'after the reboot' 80 live revoked
nonce=-no_nonce
answers 'after the reboot, for front to hold' 80 good good

step 'A refused PIN'
shell 'echo 000000 | systemd-creds encrypt --name=pin - /etc/credstore.encrypted/ocspd.pin; systemctl restart ocspd-signer.service' >"$work/out" 2>&1 && wrong 'signer started' || ok 'signer does not start'
answers 'front goes on' 2560 good good
nonce=
sleep 5
expect 'it is not started again' '^failed 77 0$' shell 'for p in ActiveState ExecMainStatus NRestarts; do systemctl show -P $p ocspd-signer; done | xargs'
must 'the PIN set right, token retry' shell 'systemd-creds encrypt --name=pin /root/pin /etc/credstore.encrypted/ocspd.pin; ocspd token retry main; systemctl start ocspd-signer.service'
eventually 20 serving && ok 'serves' || { wrong 'does not serve'; inside ocspd status; }

step 'Stop, removal, purge'
must 'systemctl stop ocspd.target' inside systemctl stop ocspd.target
expect 'nothing listens any more' '^0$' shell 'sleep 1; ss -Hltn | wc -l'
must 'start again' inside systemctl start ocspd.target
must 'dpkg --remove' inside dpkg --remove ocspd
expect 'configuration and data are kept' '^kept$' shell 'test -s /etc/ocspd/ocspd.toml && test -s /var/lib/ocspd/keeper/ocspd.db && ! pgrep ocspd && echo kept'
must 'dpkg -i again' inside dpkg -i /root/new.deb
must '... and start' shell 'systemctl start ocspd.target'
eventually 20 serving && ok 'serves' || { wrong 'does not serve'; inside ocspd status; }
answers 'with its data' 2560 live revoked
must 'dpkg --purge' inside dpkg --purge ocspd
expect 'state and configuration are gone; token, PIN and backups are there' '^so it is$' shell \
	'! test -e /etc/ocspd/ocspd.toml && ! test -e /var/lib/ocspd/keeper && test -n "$(ls /var/lib/softhsm/tokens)" && test -e /etc/credstore.encrypted/ocspd.pin && test -n "$(ls /var/backups/ocspd)" && echo so it is'
expect 'nothing of it is left in systemd' '^0$' shell 'systemctl list-unit-files "ocspd*" --no-legend | grep -v /run | wc -l'

step 'Anew, with what is left, and the PIN in a file'
expect 'the /etc/ocspd that was left is not taken over in silence' 'touch /etc/ocspd/.ocspd' inside dpkg -i /root/new.deb
must '... but when that is said' shell 'touch /etc/ocspd/.ocspd; dpkg -i /root/new.deb'
shell 'rm /etc/credstore.encrypted/ocspd.pin; install -o root -g ocspd-signer -m 0640 /root/pin /etc/ocspd/pin'
config class1 | sed 's/class1-ocsp/class1-ocsp-2/; s,credential:pin,file:pin,' >"$root/etc/ocspd/ocspd.toml"
must 'the certificate' inside ocspd key install - --issuer class1 <"$ca/class1-ocsp-2.pem"
must 'systemctl start ocspd.target' inside systemctl start ocspd.target
eventually 20 serving && ok 'serves' || { wrong 'does not serve'; inside ocspd status; inside journalctl --no-pager -n 40 -u 'ocspd-*'; }
answers 'from nothing but token and CRL' 2560 revoked revoked
answers 'from nothing but token and CRL' 2560 live good

printf '\n%d steps, %d things wrong\n' $number $failed
[ $failed = 0 ]
