# packages NAME …: installs what is missing of Debian's packages, as root or by sudo; otherwise prints the line and exits with 2. It also finds Go.
packages() {
	missing=
	for p in "$@"; do
		case $(dpkg-query -W -f '${Status}' "$p" 2>/dev/null) in 'install ok installed') ;; *) missing="$missing $p" ;; esac
	done
	if [ -z "$missing" ]; then
		echo "   all there: $*"
	else
		if [ "$(id -u)" = 0 ]; then as_root=; elif sudo -n true 2>/dev/null; then as_root='sudo -n'; else
			echo "missing:$missing. As root, run: apt-get update && apt-get install -y --no-install-recommends$missing" >&2
			exit 2
		fi
		echo "   installing$missing"
		$as_root apt-get update -qq >/dev/null
		$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
	fi
	command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
	command -v go >/dev/null || { echo 'Go is missing; install version 1.26 or newer' >&2; exit 2; }
}
