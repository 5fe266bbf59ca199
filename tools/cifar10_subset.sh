#!/usr/bin/env bash
# Packs the first 1,000 training and 200 test images of each CIFAR-10 class and
# trains configs/cifar10-subset.toml with three seeds; prints loss and kNN by epoch.
# The same command goes on where it was interrupted.
# Usage: tools/cifar10_subset.sh FOLDER_WITH_CIFAR10_SHARDS [OUT]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
data=$(cd "${1:?folder with the shards of CIFAR-10}" && pwd)
out=${2:-$root/runs/cifar10-subset}
target=${CARGO_TARGET_DIR:-$root/target}
mkdir -p "$out" "$target"
out=$(cd "$out" && pwd)
CARGO_TARGET_DIR=$(cd "$target" && pwd)
export CARGO_TARGET_DIR
bin=$CARGO_TARGET_DIR/release
cd "$root"
cargo build --release --workspace
# The manifest is the last that a pack puts in place.
packed() { [ -e "$out/$1/shard.manifest.json" ]; }
packed train || "$bin/shard" pack "$data/cifar10-train-{000000..000009}.tar.zst" "$out/train" --per-class 1000
packed test || "$bin/shard" pack "$data/cifar10-test-{000000..000001}.tar.zst" "$out/test" --per-class 200
for seed in 0 1 2; do
    resume=()
    [ ! -d "$out/seed-$seed/checkpoints" ] || resume=(--resume)
    "$bin/bt-stream" train --config configs/cifar10-subset.toml --data "$out/train" \
        --val "$out/test" --dir "$out/seed-$seed" --seed $seed "${resume[@]}"
    "$bin/bt-stream" knn "$out/seed-$seed" --k 20 --temperature 0.1
done
