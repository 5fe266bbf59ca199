#!/usr/bin/env bash
# Packs the first 1,000 training and 200 test images of each CIFAR-10 class and
# trains configs/cifar10-subset.toml with three seeds; prints loss and kNN by epoch.
# Usage: tools/cifar10_subset.sh FOLDER_WITH_CIFAR10_SHARDS [OUT]
set -euo pipefail
data=$1
out=${2:-runs/cifar10-subset}
cd "$(dirname "$0")/.."
cargo build --release --workspace
mkdir -p "$out"
[ -e "$out/train" ] || target/release/shard pack "$data/cifar10-train-{000000..000009}.tar.zst" "$out/train" --per-class 1000
[ -e "$out/test" ] || target/release/shard pack "$data/cifar10-test-{000000..000001}.tar.zst" "$out/test" --per-class 200
for seed in 0 1 2; do
    target/release/bt-stream train --config configs/cifar10-subset.toml --data "$out/train" \
        --val "$out/test" --dir "$out/seed-$seed" --seed $seed
    target/release/bt-stream knn "$out/seed-$seed" --k 20 --temperature 0.1
done
