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

out=docs/interop.txt
{
    echo "# The last output of tools/interop.sh: each line was printed by the program it names."
    BT_PYTHON=$python cargo test -q --release --locked --test interop -- --nocapture --test-threads 1 2>&1 |
        grep -vE '^(running|\.*|Finished|)$'
} | tee "$out.new"
if grep -q '^skipped' "$out.new"; then
    rm "$out.new"
    echo "interop.sh: $python lacks something" >&2
    exit 1
fi
mv "$out.new" "$out"
