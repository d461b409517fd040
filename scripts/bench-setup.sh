#!/bin/bash
# What `make bench` needs besides scripts/setup.sh: the peers (Debian packages, asked for once; Glance from
# PyPI in an environment of its own), matplotlib for the plots, and the bench set of images in
# ~/.cache/calotype/bench. A peer that cannot be had is left out of the tables.
#
#   scripts/bench-setup.sh [--yes]      --yes: do not ask before installing packages
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

GLANCE=33.0.0
GLANCE_VENV=.tools/bench/glance

say() { printf 'bench-setup: %s\n' "$*" >&2; }

glance() {
	[ -e "$GLANCE_VENV/glance-$GLANCE" ] && return
	say "installing Glance $GLANCE into $GLANCE_VENV"
	rm -rf "$GLANCE_VENV"
	"$UV" venv --quiet --python /usr/bin/python3 "$GLANCE_VENV" &&
		"$UV" pip install --quiet --python "$GLANCE_VENV/bin/python" "glance==$GLANCE" gunicorn &&
		touch "$GLANCE_VENV/glance-$GLANCE"
}

[ "$(uname -m)" = x86_64 ] || { say "an amd64 machine is needed"; exit 1; }
scripts/setup.sh "$@" --also restic borgbackup casync curl || say "going on with the peers that are there"
UV=$(command -v uv || echo .tools/uv/bin/uv)
mkdir -p .tools/bench
exec 9> .tools/bench/lock
flock 9 # two set-ups at once: one after the other
"$UV" pip install --quiet --python .venv/bin/python --group bench || say "there will be no plots"
glance || say "going on without Glance"
.venv/bin/python bench/images.py
