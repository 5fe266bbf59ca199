#!/usr/bin/env bash
# Builds with the feature `cuda` and gathers what tools/cuda/check.sh wants, stripped, in one folder.
#
#   tools/cuda/collect.sh OUT [PREFIX]
#
# With PREFIX, a folder where tools/cuda/setup.sh has put a compiler, no toolkit is needed.
set -euo pipefail
out=${1:?folder}
prefix=${2:-}
cd "$(dirname "$0")/../.."
target=x86_64-unknown-linux-gnu
if [ -n "$prefix" ]; then
    # shellcheck disable=SC1091
    . "$prefix/env.sh"
fi
mkdir -p "$out"
build=(--release --locked --target "$target" --features cuda)
cargo build "${build[@]}" --bin bt-stream
strip -o "$out/bt-stream" "target/$target/release/bt-stream"
# The executable of a test or benchmark, wherever cargo puts it.
executable() {
    cargo "$1" "${build[@]}" "--$1" "$2" --no-run --message-format=json |
        python3 -c 'import json, sys
found = [json.loads(line).get("executable") for line in sys.stdin if line.startswith("{")]
print([path for path in found if path][-1])'
}
strip -o "$out/golden_resnet" "$(executable test golden_resnet)"
strip -o "$out/cuda" "$(executable test cuda)"
strip -o "$out/step" "$(executable bench step)"
ls -l "$out"
