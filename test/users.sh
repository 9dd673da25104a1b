#!/bin/sh
# The three roles as three users, as the units run them, but without systemd: with the shipped sysusers.d and tmpfiles.d, sockets passed with the owners and modes that the
# socket units give them, in a mount and network namespace of its own. Exit 3: this machine cannot; why is printed.
set -eu
cd "$(dirname "$0")/.."
if [ -z "${OCSPD_USERS-}" ]; then
	[ "$(id -u)" = 0 ] || { echo 'skipped: other users need root'; exit 3; }
	. ./test/packages.sh
	packages softhsm2 openssl systemd perl-base util-linux iproute2 >/dev/null
	unshare -m -n true 2>/dev/null || { echo 'skipped: no namespaces here'; exit 3; }
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	go build -buildvcs=false -o "$work/ocspd" ./cmd/ocspd
	chmod 755 "$work" "$work/ocspd"
	code=0
	OCSPD_USERS=$work unshare -m -n -p -f --mount-proc --kill-child "$0" || code=$?
	exit $code
fi
work=$OCSPD_USERS
o=$work/ocspd
cp -a /etc "$work/etc" && mount --bind "$work/etc" /etc
for d in /var/lib/ocspd /var/lib/systemd /var/backups /run/ocspd; do mkdir -p $d "$work/fs$d" && chmod 755 "$work/fs$d" && mount --bind "$work/fs$d" $d; done
ip link set lo up
failed=0
ok() { printf '  %s\n' "$*"; }
wrong() { failed=$((failed + 1)); printf '  WRONG: %s\n' "$*"; }
as() { u=$1 && shift && setpriv --reuid "$u" --regid "$u" --init-groups -- "$@"; }
rm -rf /etc/ocspd && mkdir -p /etc/ocspd
systemd-sysusers "$(pwd)/systemd/units/ocspd.sysusers" >/dev/null
systemd-tmpfiles --create "$(pwd)/systemd/units/ocspd.tmpfiles"
useradd -M alice && usermod -aG ocspd-admin alice && useradd -M mallory

# A token and a CA, all set up by verbs that root calls.
mkdir -p "$work/tokens" && chown ocspd-signer: "$work/tokens"
printf 'directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n' "$work/tokens" >/etc/ocspd/softhsm.conf
export SOFTHSM2_CONF=/etc/ocspd/softhsm.conf
module=
for m in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so; do [ -e "$m" ] && module=$m && break; done
pin=$(openssl rand -hex 8)
as ocspd-signer softhsm2-util --init-token --free --label ocsp --pin "$pin" --so-pin "$pin" >/dev/null
# The PIN as systemd keeps it, which root's verbs unseal by themselves, and as signer's unit gets it.
mkdir -p -m 700 /etc/credstore.encrypted && rm -f /etc/credstore.encrypted/ocspd.*
echo "$pin" | systemd-creds encrypt --with-key=host --name=pin - /etc/credstore.encrypted/ocspd.pin 2>/dev/null
mkdir -m 700 "$work/credentials" && echo "$pin" >"$work/credentials/pin" && chmod 400 "$work/credentials/pin" && chown -R ocspd-signer: "$work/credentials"
cat >/etc/ocspd/ocspd.toml <<END
[listen]
ocsp = ["127.0.0.1:2560"]
[token.main]
uri = "pkcs11:token=ocsp?module-path=$module"
pin = "credential:pin"
environment = ["SOFTHSM2_CONF=$SOFTHSM2_CONF"]
[issuer.ca]
certificate = "ca.pem"
signer = "/var/lib/ocspd/certs/signer.pem"
key = "pkcs11:object=signer"
unissued = "good"
[[issuer.ca.source]]
crl = "/etc/ocspd/ca.crl"
refresh = "10s"
END
cd "$work"
printf 'database=%s\ncrlnumber=%s\ndefault_md=sha256\ndefault_crl_days=7\ncertificate=/etc/ocspd/ca.pem\nprivate_key=ca.key\ncrl_extensions=e\n[e]\nauthorityKeyIdentifier=keyid\n' "$work/index" "$work/number" | sed '1i [ca]\ndefault_ca=x\n[x]' >ca.cnf
: >index && echo 01 >number
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -subj /CN=ca -days 30 -addext keyUsage=critical,keyCertSign,cRLSign -out /etc/ocspd/ca.pem 2>/dev/null
openssl ca -config ca.cnf -gencrl -out /etc/ocspd/ca.crl 2>/dev/null
cert() { # request, certificate, extensions
	printf "$3" >ext
	openssl x509 -req -in "$1" -CA /etc/ocspd/ca.pem -CAkey ca.key -CAcreateserial -days 20 -extfile ext -out "$2" 2>/dev/null
}
openssl req -newkey rsa:2048 -nodes -keyout leaf.key -subj /CN=leaf -out leaf.csr 2>/dev/null
cert leaf.csr leaf.pem 'authorityKeyIdentifier=keyid\n'
"$o" key generate signer --type p256 >/dev/null 2>&1 || wrong 'root: key generate'
"$o" key csr signer >signer.csr 2>/dev/null || wrong 'root: key csr'
cert signer.csr signer.pem 'keyUsage=critical,digitalSignature\nextendedKeyUsage=OCSPSigning\nnoCheck=ignored\nauthorityKeyIdentifier=keyid\n'
"$o" key install signer.pem --issuer ca >out 2>&1 || { wrong 'root: key install'; cat out; }
[ -z "$(find tokens ! -user ocspd-signer)" ] && ok 'root: key verbs became ocspd-signer' || wrong "files in the token's folder that are not signer's: $(find tokens ! -user ocspd-signer)"
"$o" crl import --issuer ca /etc/ocspd/ca.crl >out 2>&1 || { wrong 'root: crl import without keeper'; cat out; }
find /var/lib/ocspd -mindepth 2 \( -user root -o -group root \) ! -path '*/certs/*' | grep . && wrong 'root has files in the state' || ok 'root: data verbs became ocspd-keeper'

# What the socket units do: sockets with an owner and a mode, handed to a role of a user of its own.
cat >hold.pl <<'END'
use strict; use Socket; use POSIX ();
$^F = 200; # sockets survive exec
sub unix { my ($name, $user, $group, $mode) = @_;
	my $path = "/run/ocspd/$name.sock"; socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die; bind($s, pack_sockaddr_un($path)) or die; listen($s, 100) or die;
	chown scalar getpwnam($user), scalar getgrnam($group), $path or die; chmod $mode, $path or die; [$name, $s] }
sub tcp { my ($name, $port) = @_; socket(my $s, AF_INET, SOCK_STREAM, 0) or die; bind($s, pack_sockaddr_in($port, inet_aton("127.0.0.1"))) or die; listen($s, 100) or die; [$name, $s] }
my %held = (front => [tcp("ocsp", 2560)], signer => [unix("signer", "ocspd-signer", "ocspd-front", 0660)],
	keeper => [unix("keeper", "ocspd-keeper", "ocspd-admin", 0660), unix("feed", "ocspd-keeper", "ocspd", 0660), tcp("admin", 2561)]);
for my $role (qw(keeper signer front)) {
	defined(my $pid = fork) or die;
	if (!$pid) {
		my @s = @{$held{$role}};
		my @high = map { POSIX::dup2(fileno($_->[1]), 100 + fileno($_->[1])) } @s;
		POSIX::dup2($high[$_], 3 + $_) for 0 .. $#s;
		POSIX::close($_) for 3 + @s .. 60, @high;
		$ENV{LISTEN_PID} = $$; $ENV{LISTEN_FDS} = @s; $ENV{LISTEN_FDNAMES} = join ":", map { $_->[0] } @s;
		$ENV{CREDENTIALS_DIRECTORY} = $ARGV[1] if $role eq "signer";
		open STDERR, ">>", "$role.log"; umask($role eq "keeper" ? 0027 : 0077);
		exec "setpriv", "--reuid", "ocspd-$role", "--regid", "ocspd-$role", "--init-groups", "--bounding-set", "-all", "--inh-caps", "-all", "--no-new-privs", $ARGV[0], $role;
	}
	open my $f, ">", "$role.pid"; print $f $pid;
}
1 while wait > 0;
END
perl hold.pl "$o" "$work/credentials" &
tries=0
until as alice "$o" status >out 2>&1 && grep -q '^serving' out; do
	tries=$((tries + 1))
	[ $tries -lt 100 ] || { wrong 'it does not serve:'; cat out ./*.log; break; }
	sleep 0.2
done
ask() { openssl ocsp -issuer /etc/ocspd/ca.pem -cert leaf.pem -url http://127.0.0.1:2560 -CAfile /etc/ocspd/ca.pem 2>&1; }
ask | grep -q 'leaf.pem: good' && ok 'front, signer and keeper answer as three users: good' || { wrong 'no answer:'; ask; cat ./*.log; }
as alice "$o" revoke ca leaf.pem >out 2>&1 && ! grep -q warning out && ok 'alice, of ocspd-admin, revokes; signer and front confirm' || { wrong 'revoke by alice:'; cat out; }
ask | grep -q 'leaf.pem: revoked' && ok 'revoked' || { wrong 'not revoked:'; ask; }
as alice "$o" reload >out 2>&1 && ! grep -q warning out && ok 'alice reloads all three' || { wrong 'reload:'; cat out; }
"$o" audit show 2>/dev/null | grep hand.revoke | grep -q alice && ok 'the log names her' || wrong 'the log does not name alice'
as mallory "$o" status >out 2>&1 && wrong 'mallory gets a status' || grep -q 'permission denied.*ocspd-admin' out && ok 'mallory is told to be of ocspd-admin' || wrong "mallory: $(cat out)"
"$o" token check >out 2>&1 && "$o" issuer check >>out 2>&1 && "$o" key list >>out 2>&1 && ok 'root checks token, issuers and keys, with the sealed PIN, beside the signer' || { wrong 'root: checks:'; cat out; }
"$o" custody report --out report.json >out 2>&1 && "$o" custody verify report.json >>out 2>&1 && ok 'root makes the custody report' || { wrong 'root: custody report'; cat out; }
"$o" key generate spare --type p256 >made 2>&1 && "$o" key destroy spare --yes "$(sed -n 's/^SPKI SHA-256 *//p' made)" >out 2>&1 && "$o" audit show 2>/dev/null | grep 'key.destroy.*spare' | grep -q ok &&
	ok 'root makes and destroys a key, which keeper records' || { wrong 'root: key destroy:'; cat made out; }
as ocspd-signer "$o" key list >out 2>&1 && wrong 'a verb of another user has the PIN' || grep -q 'run this as root' out && ok 'who is not root is told that only root can unseal' || { wrong 'who is not root:'; cat out; }
grep -rqsF "$pin" /etc /run/ocspd /var/lib/ocspd ./out ./made report.json ./*.log && wrong 'the PIN lies about' || ok 'the PIN is nowhere else'
denied() { ! as "$1" test -"$2" "$3" || wrong "$1 may -$2 $3"; }
for u in ocspd-front mallory; do for f in keeper keeper/ocspd.db gen/ca.current signer/highwater; do denied $u r /var/lib/ocspd/$f; done; done
for f in gen gen/ca.current keeper; do denied ocspd-signer w /var/lib/ocspd/$f; done
for f in signer signer/highwater certs .; do denied ocspd-keeper w /var/lib/ocspd/$f; done
denied ocspd-keeper r "$work/tokens/$(ls tokens)/token.object"
for s in ocspd-front:keeper ocspd-signer:keeper ocspd-keeper:signer mallory:signer mallory:feed alice:signer alice:feed; do denied "${s%:*}" w /run/ocspd/"${s#*:}".sock; done
for r in front signer keeper; do
	grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' "/proc/$(cat $r.pid)/status" | grep -v 0000000000000000 && wrong "$r has capabilities"
	[ "$(stat -c %U "/proc/$(cat $r.pid)")" = ocspd-$r ] || [ "$(awk '/^Uid/ { print $2 }' "/proc/$(cat $r.pid)/status")" = "$(id -u ocspd-$r)" ] || wrong "$r is not ocspd-$r"
done
find /var/lib/ocspd -mindepth 2 ! -path '*/certs/*' -printf '%u %M %P\n' | awk '
	/^ocspd-keeper .* (keeper|gen)\// || /^ocspd-signer .* signer\// { if ($2 ~ /.......[r-][w-][x-]$/ && substr($2, 8) !~ /^---/) { print; bad = 1 } next } { print; bad = 1 } END { exit bad }' >out ||
	{ wrong 'files of the wrong owner, or that others may read:'; cat out; }
grep -h -i -e level=error -e panic ./*.log && wrong 'a role complains' || :
[ $failed = 0 ] && echo 'three roles, three users'
