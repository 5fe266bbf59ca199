#!/usr/bin/env bash
# Runs a program that was built with the feature `cuda` where there is no GPU: with CUDA's libraries stood
# in for on the CPU (tools/cuda/stand-in says what that shows and what it cannot).
#
#   tools/cuda/stand_in.sh COMMAND ARGS...
#
# STAND_IN_EAGER lists streams whose work is done as soon as it may be (1 computes, 2 uploads); that of the
# others is done when somebody waits for it.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
# Whole, for the links and for the program that looks there.
mkdir -p "$target"
target=$(cd "$target" && pwd)
cargo build --quiet --release --locked --manifest-path "$root/tools/cuda/stand-in/Cargo.toml" --target-dir "$target"
libraries=$target/cuda-stand-in
mkdir -p "$libraries"
for name in cuda cublas cudnn curand; do
    ln -sf "$target/release/libcuda_stand_in.so" "$libraries/lib$name.so"
done
LD_LIBRARY_PATH=$libraries exec "$@"
