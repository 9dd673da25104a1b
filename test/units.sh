#!/bin/sh
# The units as systemd reads them: no mistake in them, and no more exposed than they may be; the man pages as mandoc reads them.
set -eu
cd "$(dirname "$0")/.."
. ./test/packages.sh
packages systemd mandoc >/dev/null
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
wrong() { failed=1; printf 'WRONG: %s\n' "$*"; }

# verify wants the programs that units start, and the users that they name, on this machine: a root of their own has both.
mkdir -p "$work/root/usr/bin" "$work/root/bin" "$work/root/etc/systemd/system" "$work/root/usr/lib/systemd/system"
go build -buildvcs=false -o "$work/root/usr/bin/ocspd" ./cmd/ocspd
cp /bin/sh "$work/root/bin/sh"
cp systemd/units/*.target systemd/units/*.service systemd/units/*.socket systemd/units/*.timer "$work/root/etc/systemd/system/"
for u in basic sysinit sockets timers multi-user network shutdown umount paths slices; do printf '[Unit]\nDescription=%s\n' $u >"$work/root/usr/lib/systemd/system/$u.target"; done
systemd-analyze verify --man=no --root="$work/root" ocspd.target ocspd-http.socket ocspd-backup.timer ocspd-backup.service >"$work/out" 2>&1 || wrong 'systemd-analyze verify fails'
[ ! -s "$work/out" ] || { wrong 'systemd-analyze verify says:'; cat "$work/out"; }

# The ceilings, in tenths. What remains: all see the root folder of the machine and speak AF_UNIX; keeper must tell its admins apart by name, so that accounts are not
# hidden from it; the dialer has the network, and nothing else.
for limit in front:3 signer:3 keeper:9 dialer@:12 backup:5; do
	unit=ocspd-${limit%:*}.service
	for max in ${limit#*:}; do
		systemd-analyze security --offline=true --threshold="$max" --no-pager "systemd/units/$unit" >"$work/out" 2>&1 || wrong "$unit is more exposed than $max tenths"
		sed -n 's/^→ //p' "$work/out"
	done
done

# A socket that fails to start once stays away: none gives up after some starts, and none is to come up after the service that it is for.
for s in systemd/units/*.socket; do grep -qx StartLimitIntervalSec=0 "$s" || wrong "$s has a limit of starts"; done
for s in $(grep -lx Service=ocspd.service systemd/units/*.socket); do grep -q "^Wants=.*${s##*/}" systemd/units/ocspd.service || wrong "ocspd.service can be up without ${s##*/}"; done

# What a unit writes it cannot execute. (The paths are to be the same: systemd 252 makes what lies below a path of NoExecPaths writable.)
for u in signer keeper backup; do
	[ "$(sed -n 's,^NoExecPaths=\(.*\) /tmp /var/tmp$,\1,p' systemd/units/ocspd-$u.service)" = "$(sed -n 's/^ReadWritePaths=//p' systemd/units/ocspd-$u.service)" ] ||
		wrong "ocspd-$u.service: NoExecPaths are not ReadWritePaths and the folders for temporary files"
done

# The names in the units are those in the program.
for user in ocspd-front ocspd-signer ocspd-keeper; do
	grep -q "= \"$user\"" cmd/ocspd/peer.go && grep -q "^u $user" systemd/units/ocspd.sysusers || wrong "user $user"
done
for name in ocsp http admin signer keeper feed; do
	grep -q "= \"$name\"\$" cmd/ocspd/front.go && grep -qx "FileDescriptorName=$name" systemd/units/*.socket || wrong "socket $name"
done

for page in ocspd ocspd.toml; do
	"$work/root/usr/bin/ocspd" man $page >"$work/$page.man"
	mandoc -T lint -W warning "$work/$page.man" 2>&1 | grep -v 'missing date' >"$work/out" || :
	[ ! -s "$work/out" ] || { wrong "man page $page:"; cat "$work/out"; }
done
# Every verb and every key has its place there.
for verb in 'key install CERT' 'crl import FILE' 'revoke ISSUER' 'token retry NAME' 'backup FILE' reload; do
	mandoc -T ascii "$work/ocspd.man" | col -b | grep -q "$verb" || wrong "man page ocspd lacks '$verb'"
done
for key in $("$work/root/usr/bin/ocspd" config example | sed -n 's/^\([a-z_]*\) *=.*/\1/p' | sort -u); do
	mandoc -T ascii "$work/ocspd.toml.man" | col -b | grep -q "^ *$key = " || wrong "man page ocspd.toml lacks '$key'"
done
sh -n package.sh test/boot.sh package/preinst package/postinst package/prerm package/postrm || wrong 'a script does not parse'
[ $failed = 0 ] && echo 'units and man pages are as they should be'
