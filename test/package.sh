#!/bin/sh
# The package, built twice from copies in different folders, the second time with nothing compiled before and on another file system: the same bytes; and lintian
# finds no error in it.
set -eu
cd "$(dirname "$0")/.."
. ./test/packages.sh
packages dpkg binutils gcc libc6-dev xz-utils lintian man-db >/dev/null
work=$(mktemp -d)
memory=$(mktemp -d /dev/shm/ocspd.XXXXXX) || memory=$work/none
trap 'chmod -R u+w "$work"; rm -rf "$work" "$memory"' EXIT
failed=0
wrong() { failed=1; printf 'WRONG: %s\n' "$*"; }
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 1767225600) # the copies have no history
export SOURCE_DATE_EPOCH
copy() {
	mkdir -p "$1"
	(git ls-files -co --exclude-standard 2>/dev/null || find . -type f -not -path './demo/*' -not -path './dist/*') | tar -cf - -T - | tar -xf - -C "$1"
}
copy "$work/a"
copy "$work/another/much/deeper/folder"
(cd "$work/a" && ./package.sh 1.2.3)
other=$memory
cp /bin/true "$other/" 2>/dev/null && "$other/true" 2>/dev/null || { other=$work/other && mkdir "$other"; } # no program may run from there
chmod 2777 "$other"
(cd "$work/another/much/deeper/folder" && umask 077 && TMPDIR=$other TZ=Asia/Tokyo LANG=de_DE.UTF-8 GOCACHE="$work/cache" ./package.sh 1.2.3)
deb=$(echo "$work"/a/dist/*.deb)
cmp "$deb" "$work/another/much/deeper/folder/dist/$(basename "$deb")" || wrong 'the two packages differ'
sha256sum "$deb" | cut -d ' ' -f 1

lintian --fail-on error "$deb" 2>&1 | grep -v '^running with root' || :
lintian --fail-on error "$deb" >/dev/null 2>&1 || wrong 'lintian finds errors'
dpkg-deb -x "$deb" "$work/x"
[ "$("$work/x/usr/bin/ocspd" version -o json | sed -n 's/^  "version": "\(.*\)",/\1/p')" = 1.2.3 ] || wrong 'the version is not that of the package'
"$work/x/usr/bin/ocspd" version -o json | grep -q '"sqlite": "3\.' || wrong 'the version of SQLite is missing'
! strings -a "$work/x/usr/bin/ocspd" | grep -q -e "$work" -e "$PWD" || wrong 'a path of the builder is in the binary'
for page in man1/ocspd.1 man5/ocspd.toml.5; do man --warnings=w -l "$work/x/usr/share/man/$page.gz" >/dev/null 2>"$work/err" && [ ! -s "$work/err" ] || wrong "man page $page: $(cat "$work/err")"; done
bash -n "$work/x/usr/share/bash-completion/completions/ocspd" || wrong 'the completion for bash'
[ "$("$work/x/usr/bin/ocspd" config check -c "$work/x/usr/share/doc/ocspd/examples/ocspd.toml")" ] || wrong 'the example is no configuration'
[ $failed = 0 ] && echo 'the same bytes, twice'
