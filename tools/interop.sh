#!/usr/bin/env bash
# Takes what the program writes to the programs it is written for, and theirs to it, and writes what
# came of it to docs/interop.txt.
#
#   tools/interop.sh            makes a virtual environment under target/ with all that is needed
#   tools/interop.sh PYTHON     uses this Python, which has it
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
fi
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")

log=$(mktemp)
trap 'rm -f "$log"' EXIT
BT_PYTHON=$python cargo test --release --locked --test interop -- --nocapture --test-threads 1 2>&1 | tee "$log"
if grep 'skipped:' "$log"; then
    echo "interop.sh: $python lacks something" >&2
    exit 1
fi

{
    echo "The last output of tools/interop.sh, on $(uname -sm); each figure was computed by the program that is named."
    echo
    grep -E 'features differ|^TensorBoard|both kinds of page|^test result' "$log"
} >docs/interop.txt
