#!/bin/sh
# ./package.sh [VERSION]: builds dist/ocspd_VERSION-1_ARCH.deb for Debian 12 and newer. The same source, Go and C compiler give the same bytes, wherever the
# checkout lies and whoever builds: times are that of the last commit (SOURCE_DATE_EPOCH overrides it), and no path gets into the binary.
set -eu
cd "$(dirname "$0")"
version=${1-0.1.0~dev}
case $version in [0-9]*) ;; *) version=- ;; esac
case $version in *[!0-9A-Za-z.+~]* | -) echo "usage: ./package.sh [VERSION], like 1.2.3" >&2; exit 2 ;; esac
. ./test/packages.sh
packages dpkg binutils gcc libc6-dev xz-utils >/dev/null
if [ -z "${SOURCE_DATE_EPOCH-}" ]; then
	# Whoever owns the checkout, and wherever it lies: not the history of a folder above it. Without one, the last date in the list of changes, or the first version's.
	SOURCE_DATE_EPOCH=$(test -e .git && git -c safe.directory='*' log -1 --format=%ct 2>/dev/null) ||
		SOURCE_DATE_EPOCH=$(date -u -d "$(grep -om 1 '20[0-9][0-9]-[0-9][0-9]-[0-9][0-9]' CHANGELOG.md || echo 2026-01-01)" +%s)
fi
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
umask 022
arch=$(dpkg --print-architecture)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
put() { # mode, target folder, file …
	mode=$1 to=$root$2
	shift 2
	mkdir -p "$to"
	install -m "$mode" "$@" "$to"
}
zipped() { mkdir -p "$root$(dirname "$1")" && gzip -9n >"$root$1"; }

if [ -z "${HOME-}" ]; then export GOPATH="$work/go" GOCACHE="$work/go/cache"; fi
mkdir -p "$root/usr/bin"
CGO_CFLAGS='-O2 -g0 -fstack-protector-strong -D_FORTIFY_SOURCE=2' CGO_LDFLAGS='-Wl,-z,relro,-z,now' \
	go build -trimpath -buildvcs=false -buildmode=pie -ldflags "-s -w -buildid= -X main.release=$version" -o "$root/usr/bin/ocspd" ./cmd/ocspd
ocspd=$root/usr/bin/ocspd

put 644 /lib/systemd/system systemd/units/*.target systemd/units/*.service systemd/units/*.socket systemd/units/*.timer
mkdir -p "$root/usr/lib/sysusers.d" "$root/usr/lib/tmpfiles.d"
install -m 644 systemd/units/ocspd.sysusers "$root/usr/lib/sysusers.d/ocspd.conf"
install -m 644 systemd/units/ocspd.tmpfiles "$root/usr/lib/tmpfiles.d/ocspd.conf"
"$ocspd" man ocspd | zipped /usr/share/man/man1/ocspd.1.gz
"$ocspd" man ocspd.toml | zipped /usr/share/man/man5/ocspd.toml.5.gz
for shell in bash:bash-completion/completions/ocspd zsh:zsh/vendor-completions/_ocspd fish:fish/vendor_completions.d/ocspd.fish; do
	mkdir -p "$root/usr/share/$(dirname "${shell#*:}")"
	"$ocspd" completion "${shell%%:*}" >"$root/usr/share/${shell#*:}"
done
doc=/usr/share/doc/ocspd
put 644 $doc README.md ARCHITECTURE.md SECURITY.md doc/install.md doc/recipes.md package/copyright
put 644 $doc/examples/signer.service.d package/signer.service.d/*.conf
"$ocspd" config example >"$root$doc/examples/ocspd.toml"
zipped $doc/changelog.gz <CHANGELOG.md
zipped $doc/changelog.Debian.gz <<END
ocspd ($version-1) stable; urgency=medium

  * Built from the source of version $version. What has changed is in
    changelog.gz.

 -- The ocspd authors <ocspd@example.org>  $(date -R -u -d "@$SOURCE_DATE_EPOCH")
END

# The oldest glibc that has every symbol which the binary asks for.
glibc=$(objdump -T "$ocspd" | sed -n 's/.*(\{0,1\}GLIBC_\([0-9.]*\)).*/\1/p' | sort -uV | tail -n 1)
put 755 /DEBIAN package/preinst package/postinst package/prerm package/postrm
cat >"$root/DEBIAN/control" <<END
Package: ocspd
Version: $version-1
Architecture: $arch
Maintainer: The ocspd authors <ocspd@example.org>
Installed-Size: $(find "$root" ! -path "$root/DEBIAN*" -printf '%y %s\n' | awk '{ n += $1 == "f" ? int(($2 + 1023) / 1024) : 1 } END { print n }')
Depends: libc6 (>= ${glibc:-2.36}), init-system-helpers (>= 1.54~), systemd (>= 252) | systemd-standalone-sysusers, systemd (>= 252) | systemd-standalone-tmpfiles
Recommends: ca-certificates
Suggests: softhsm2, opensc, openssl
Section: net
Priority: optional
Description: OCSP responder whose keys stay in a PKCS#11 token
 ocspd answers, signed, whether certificates are still good (RFC 6960), for
 several certification authorities at once. It takes revocation data from
 CRLs and from OpenSSL's index.txt, keeps it in SQLite, and signs with keys
 that never leave a hardware security module.
 .
 Three processes, each with a user and a sandbox of its own, speak to clients,
 hold the token, and read what the authorities publish. Stale, damaged or half
 imported data never becomes "good".
END
(cd "$root" && find . -type f ! -path './DEBIAN/*' -printf '%P\n' | sort | xargs md5sum >DEBIAN/md5sums)
find "$root" -type d -exec chmod 00755 {} + # a setgid TMPDIR would be inherited
find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
mkdir -p dist
deb=dist/ocspd_$version-1_$arch.deb
dpkg-deb --root-owner-group --threads-max=1 -Zxz --build "$root" "$deb" >/dev/null
echo "$deb"
