#!/usr/bin/env bash
# Remote shards against servers that people use: nginx, and moto's S3 server in Python. What cannot be
# installed is said; the tests that want it then say that they are skipped.
#
#   tools/interop/remote.sh VENV             installs moto there, and nginx by apt where there is none
#   tools/interop/remote.sh VENV --offline   installs nothing
set -euo pipefail
venv=${1:?folder of a virtual environment}
offline=${2:-}
cd "$(dirname "$0")/../.."
if [ "$offline" != --offline ]; then
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet "moto[server]" || echo "skipped: moto cannot be installed"
    command -v nginx >/dev/null || { apt-get update -qq && apt-get install -y -qq nginx-light; } >/dev/null ||
        echo "skipped: nginx cannot be installed"
fi
BT_PYTHON="$(cd "$venv" && pwd)/bin/python" \
    cargo test --release --locked -p bt-pipeline --features remote --test remote -- --nocapture
