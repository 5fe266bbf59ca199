#!/usr/bin/env bash
# Takes what the program writes to the programs it is written for, and theirs to it, and writes what
# came of it to docs/interop.txt.
#
#   tools/interop.sh            makes a virtual environment under target/ with all that is needed
#   tools/interop.sh PYTHON     uses this Python, which has it, bt_stream (tools/python) included
#
# Needs the Rust toolchain; the network when the environment is made.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:-}
if [ -z "$python" ]; then
    venv=${CARGO_TARGET_DIR:-target}/interop-venv
    python=$venv/bin/python
    if [ ! -x "$python" ]; then
        python3 -m venv "$venv"
        "$python" -m pip install --quiet numpy torch torchvision timm safetensors onnx onnxruntime tensorboard
    fi
    "$python" -m pip install --quiet ./tools/python
fi
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")

log=$(mktemp)
trap 'rm -f "$log"' EXIT
BT_PYTHON=$python cargo test --release --locked --test interop -- --nocapture --test-threads 1 2>&1 | tee "$log"
"$python" -m unittest discover -v tools/python/tests 2>&1 | tee -a "$log"
if grep -E 'skipped:|\.\.\. skipped' "$log"; then
    echo "interop.sh: $python lacks something" >&2
    exit 1
fi

{
    echo "The last output of tools/interop.sh, on $(uname -sm); each figure was computed by the program that is named."
    echo
    grep -E 'features differ|^TensorBoard|both kinds of page|^test result' "$log"
    echo
    "$python" -c 'import bt_stream, numpy, platform; print(f"bt_stream {bt_stream.__version__} in Python {platform.python_version()}, NumPy {numpy.__version__}:")'
    grep -E '^test_.* \.\.\. ok|^Ran|^OK' "$log" | sed -E 's/ \(.*\) \.\.\./ .../; s/ in [0-9.]+s//'
} >docs/interop.txt
