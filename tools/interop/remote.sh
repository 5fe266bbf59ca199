#!/usr/bin/env bash
# Remote shards against servers that people use: nginx, and moto's S3 server in Python.
#
#   tools/interop/remote.sh VENV      installs moto there, and nginx by apt where there is none
set -euo pipefail
venv=${1:?folder of a virtual environment}
cd "$(dirname "$0")/../.."
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet "moto[server]"
command -v nginx >/dev/null || { apt-get update -qq && apt-get install -y -qq nginx-light; } >/dev/null || true
BT_PYTHON="$(cd "$venv" && pwd)/bin/python" \
    cargo test --release --locked -p bt-pipeline --features remote --test remote -- --nocapture
