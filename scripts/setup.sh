#!/bin/bash
# Everything that `make demo` and `make test` need, on a Debian 12 (or newer) machine: Debian packages
# (asked for once, by name) and the Python environment in .venv. Nothing to do takes well under a second.
#
#   scripts/setup.sh [--yes] [--also PACKAGE...]      --yes: do not ask before installing packages
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

PACKAGES=(
	# guests: emulator, firmware, disk tools
	qemu-system-x86 qemu-utils ovmf fuse3 e2fsprogs zerofree gdisk openssh-client
	# the sandbox
	bubblewrap util-linux uidmap
	# tests: file systems to read, registry hives, the shell of small guests
	xfsprogs btrfs-progs ntfs-3g libhivex-bin libwin-hivex-perl busybox-static
	# tests: package databases to read
	rpm db-util
	# tests: kill -9 at every durable step
	strace
	# recipes: images from Debian packages
	mmdebstrap debian-archive-keyring kmod cpio grub-common grub-pc-bin grub-efi-amd64-bin mtools dosfstools
	# formats, hashes, signatures, downloads
	xz-utils zstd openssl gpgv ca-certificates
	python3
)
OLDEST_UV=0.9.0

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

check_machine() {
	[ -r /etc/os-release ] && command -v apt-get > /dev/null ||
		die "this is no Debian system; Calotype's set-up knows Debian 12 or newer"
	local id version
	id=$(. /etc/os-release && echo "${ID:-}")
	version=$(. /etc/os-release && echo "${VERSION_ID:-}")
	if [ "$id" != debian ]; then
		say "this is $id $version, not Debian: going on, but nobody has tried"
	elif [ -n "$version" ] && [ "${version%%.*}" -lt 12 ]; then # testing and sid have no version
		die "this is Debian $version; Debian 12 or newer is needed"
	fi
	[ "$(dpkg --print-architecture)" = amd64 ] || die "an amd64 machine is needed"
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	else
		command -v sudo > /dev/null || die "sudo is not installed; as root, run: $*"
		sudo "$@"
	fi
}

# The packages of the arguments that are not installed, one on each line.
missing() {
	local have
	have=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2> /dev/null || true)
	for package in "$@"; do
		grep -qx "installed $package" <<< "$have" || echo "$package"
	done
}

install_packages() {
	local wanted
	mapfile -t wanted < <(missing "$@")
	[ ${#wanted[@]} -gt 0 ] || return 0
	say "these Debian packages are missing: ${wanted[*]}"
	if [ "$ASK" = yes ] && [ -t 0 ]; then
		read -r -p "setup: install them now with apt-get? [Y/n] " answer
		case $answer in [nN]*) die "then install them yourself: apt-get install ${wanted[*]}" ;; esac
	fi
	local install=(env DEBIAN_FRONTEND=noninteractive
		apt-get install -y -q --no-install-recommends "${wanted[@]}")
	# The machine's lists of packages may be missing or out of date: only then fetch new ones.
	if ! apt-get install --simulate --no-install-recommends "${wanted[@]}" > /dev/null 2>&1 ||
		! as_root "${install[@]}"; then
		as_root apt-get update -q
		as_root "${install[@]}" || die "APT could not install: ${wanted[*]}"
	fi
}

# 0 when version $1 is at least $2.
at_least() { dpkg --compare-versions "$1" ge "$2"; }

find_uv() {
	local uv version
	for uv in "$(command -v uv || true)" .tools/uv/bin/uv; do
		[ -n "$uv" ] && [ -x "$uv" ] || continue
		version=$("$uv" --version 2> /dev/null | cut -d' ' -f2) || continue
		at_least "$version" "$OLDEST_UV" && echo "$uv" && return
	done
	return 1
}

get_uv() {
	find_uv && return
	say "fetching uv into .tools"
	rm -rf .tools/uv
	/usr/bin/python3 -m venv .tools/uv
	.tools/uv/bin/pip install --quiet --disable-pip-version-check "uv>=$OLDEST_UV" >&2 ||
		die "uv could not be fetched from PyPI"
	find_uv || die "the uv from PyPI does not run here"
}

python_environment() {
	local uv frozen=()
	uv=$(get_uv)
	[ -f uv.lock ] && frozen=(--frozen)
	# The system's own Python, whatever comes first on PATH; an environment that is there keeps its own.
	[ -x .venv/bin/python ] || export UV_PYTHON=/usr/bin/python3
	[ -d .venv ] || say "making the Python environment in .venv"
	# Compiled once, so that commands start fast.
	env -u VIRTUAL_ENV UV_PYTHON_DOWNLOADS=never UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy \
		"$uv" sync --quiet "${frozen[@]}" || die "uv could not make the Python environment in .venv"
}

ASK=yes
[ "${1:-}" = --yes ] && ASK=no && shift
[ "${1:-}" = --also ] && PACKAGES+=("${@:2}")
check_machine
mkdir -p .tools
exec 9> .tools/lock
flock 9 # two set-ups at once: one after the other
find_uv > /dev/null || PACKAGES+=(python3-venv) # only to fetch uv
install_packages "${PACKAGES[@]}"
/usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
	die "/usr/bin/python3 is older than 3.11"
python_environment
