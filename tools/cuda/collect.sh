#!/usr/bin/env bash
# Builds with the feature `cuda` and gathers what tools/cuda/check.sh wants, stripped, in one folder, and
# compressed in one archive, OUT.tar.xz: what may be carried to a machine with a GPU can be less than the folder.
#
#   tools/cuda/collect.sh OUT [PREFIX]
#
# With PREFIX, a folder where tools/cuda/setup.sh has put a compiler, no toolkit is needed. What is built is for
# compute capability CUDA_COMPUTE_CAP: with PREFIX 90 by default (H100, H200); 80 is an A100's, and newer GPUs
# compile it for themselves when the program starts.
set -euo pipefail
mkdir -p "${1:?folder}"
out=$(cd "$1" && pwd)
prefix=${2:+$(cd "$2" && pwd)}
cd "$(dirname "$0")/../.."
# A folder of its own in cargo's: cargo does not know what the wrapper changes.
folder=${CARGO_TARGET_DIR:-target}/collected
if [ -n "$prefix" ]; then
    # shellcheck disable=SC1091
    . "$prefix/env.sh"
else
    # As there: the driver, cuBLAS and cuDNN are opened at run time, so that the program starts, and says what is
    # missing, without them. It wants the toolkit's libcudart where it runs, as PyTorch's wheels have it.
    case ${RUSTC_WRAPPER:-} in
    */rustc.sh) ;;
    *) export INNER_RUSTC_WRAPPER=${RUSTC_WRAPPER:-} ;;
    esac
    export RUSTC_WRAPPER=$PWD/tools/cuda/rustc.sh
fi
# Executables of a target, wherever cargo puts them.
executables() {
    cargo build --release --locked --target-dir "$folder" --features cuda --message-format=json-render-diagnostics \
        --bin bt-stream --test golden_resnet --test cuda --bench step |
        python3 -c 'import json, sys
for line in sys.stdin:
    found = json.loads(line) if line.startswith("{") else {}
    if found.get("executable"):
        print(found["target"]["name"], found["executable"])'
}
executables | while read -r name path; do strip -o "$out/$name" "$path"; done
ls -l "$out"
python3 -c 'import os, sys, tarfile
folder, archive = sys.argv[1], sys.argv[1] + ".tar.xz"
with tarfile.open(archive, "w:xz") as tar:
    for name in ("bt-stream", "golden_resnet", "cuda", "step"):
        tar.add(os.path.join(folder, name), name)
size = os.path.getsize(archive) / 1e6
print(f"tools/cuda/check.sh takes {folder}, or {archive} ({size:.1f} MB), as BIN")' "$out"
