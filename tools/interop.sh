#!/usr/bin/env bash
# Takes what the program writes to the programs it is written for, and theirs to it, and writes what
# came of it to docs/interop.txt. What cannot be installed is said and left out; the exit code is 0 where
# all else passed, and docs/interop.txt is written only where nothing was left out.
#
#   tools/interop.sh                 a virtual environment under target/, made where it is not there
#   tools/interop.sh VENV            this one
#   tools/interop.sh VENV --offline  installs nothing
#
# Needs the Rust toolchain, Python 3.9 or later, 8 GB of disk (PyTorch) and, once, the network. Chromium is
# taken from Debian's packages where it is not there and this may be done. A VENV that holds all of it:
#   pip install PACKAGES ./tools/python     with the packages named below
set -euo pipefail
cd "$(dirname "$0")/.."

packages="numpy pillow torch torchvision timm safetensors onnx onnxruntime tensorboard prometheus_client
    viztracer playwright webdataset"
target=${CARGO_TARGET_DIR:-target}
venv=${1:-$target/interop-venv}
offline=${2:-}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

say() { echo "$*" | tee -a "$log"; }
step() { echo; echo "== $*"; }

# --- install -----------------------------------------------------------------------------------
if [ "$offline" != --offline ]; then
    step "the counterparts"
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    # One by one where all together fail: one that is missing does not cost the others.
    "$venv/bin/python" -m pip install --quiet $packages || for package in $packages; do
        "$venv/bin/python" -m pip install --quiet "$package" || say "skipped: $package cannot be installed"
    done
    "$venv/bin/python" -m pip install --quiet --force-reinstall --no-deps ./tools/python ||
        say "skipped: tools/python cannot be built"
fi
venv=$(cd "$venv" && pwd)
python=$venv/bin/python

browser=${BT_BROWSER:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
if [ -z "$browser" ] && [ "$offline" != --offline ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium >/dev/null || true
    browser=$(command -v chromium || true)
fi

# --- check -------------------------------------------------------------------------------------
failed=
step "torchvision, timm, onnxruntime, TensorBoard, Prometheus, Perfetto, a browser (tests/interop)"
BT_PYTHON=$python BT_BROWSER=${browser:-chromium} \
    cargo test --release --workspace --locked --test interop -- --nocapture --test-threads 1 2>&1 | tee -a "$log" || failed+=" tests/interop"

step "webdataset, GNU tar, zstd (tools/interop/webdataset_shards.py)"
if "$python" -c 'import webdataset, PIL' 2>/dev/null; then
    cargo build --release --workspace --locked
    "$python" tools/interop/webdataset_shards.py "$target/release/shard" 2>&1 | tee -a "$log" || failed+=" webdataset"
else
    say "skipped: $python has not all of webdataset, PIL"
fi

step "Python, with torch (tools/python/tests)"
if "$python" -c 'import bt_stream' 2>/dev/null; then
    "$python" -m unittest discover -v tools/python/tests 2>&1 | tee -a "$log" || failed+=" tools/python"
else
    say "skipped: $python has no bt_stream"
fi

if [ -x tools/interop/remote.sh ]; then
    step "servers of shards (tools/interop/remote.sh)"
    tools/interop/remote.sh "$venv" "$offline" 2>&1 | sed 's/^/remote: /' | tee -a "$log" || failed+=" remote"
fi

# --- tell --------------------------------------------------------------------------------------
step "result"
if [ -n "$failed" ]; then
    echo "interop.sh: failed:$failed" >&2
    exit 1
fi
if grep -E 'skipped:|\.\.\. skipped' "$log"; then
    echo "interop.sh: all that could be run passed; docs/interop.txt stays as it is" >&2
    exit 0
fi
{
    echo "The last output of tools/interop.sh, on $(uname -sm); each figure was computed by the program that is named."
    echo
    # The harness writes a test's name in front of its first line.
    sed -E 's/^test [a-z_:]+ \.\.\. //' "$log" |
        grep -E 'features differ|^TensorBoard|^prometheus_client|^Perfetto|kinds of page|^test result'
    echo
    grep -E '^ok     ' "$log"
    echo
    "$python" -c 'import bt_stream, numpy, platform, torch; print(f"bt_stream {bt_stream.__version__} in Python {platform.python_version()}, NumPy {numpy.__version__}, torch {torch.__version__}:")'
    grep -E '^test_.* \.\.\. ok|^Ran|^OK' "$log" | sed -E 's/ \(.*\) \.\.\./ .../; s/ in [0-9.]+s//'
    if grep -q '^remote: ' "$log"; then
        echo
        echo "Servers of shards: the tests' own, nginx, moto's S3:"
        sed -n -E 's/^remote: (test )/\1/p' "$log"
    fi
} >docs/interop.txt
echo "interop.sh: all passed; docs/interop.txt is written"
