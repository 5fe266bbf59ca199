#!/usr/bin/env bash
# All checks that want a GPU, in one go, beside PyTorch on the same device.
#
#   tools/cuda/check.sh BIN SHARDS CIFAR OUT
#
# BIN has the binaries of a build with the feature `cuda`: bt-stream, and the tests golden_resnet and
# cuda and the benchmark step under these names (tools/cuda/collect.sh gathers them); SHARDS is a set
# of JPEG shards, CIFAR a folder with `train` and `test` sets of CIFAR-10. Results go to OUT. PyTorch's
# own CUDA libraries serve both where there is no toolkit.
set -uo pipefail
bin=${1:?folder of binaries}
shards=${2:?JPEG shards}
cifar=${3:?CIFAR-10 shards}
out=${4:?folder for results}
here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$out"
site=$(python3 -c 'import nvidia, os; print(list(nvidia.__path__)[0])' 2>/dev/null || true)
if [ -n "$site" ]; then
    for folder in "$site"/*/lib; do LD_LIBRARY_PATH="$folder:${LD_LIBRARY_PATH:-}"; done
    export LD_LIBRARY_PATH
fi
export BT_GOLDEN_DIR="${BT_GOLDEN_DIR:-$here/tests/golden}" BT_DEVICE=cuda:0
failed=0
run() {
    local name=$1
    shift
    echo "== $name"
    if timeout "${LIMIT:-300}" "$@" >"$out/$name.txt" 2>&1; then
        tail -n "${LINES_SHOWN:-6}" "$out/$name.txt"
    else
        failed=1
        echo "FAILED: $name"
        tail -n 30 "$out/$name.txt"
    fi
}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/gpu.txt"

# The reference vectors of PyTorch, in f32 and bf16; a CPU run and a CUDA run step by step.
run golden-f32 "$bin/golden_resnet" --nocapture
BT_PRECISION=bf16 run golden-bf16 "$bin/golden_resnet" --nocapture
run cpu-and-cuda "$bin/cuda" --nocapture

# The step beside PyTorch's.
step() {
    run "step-$1" python3 "$here/tools/peers/torch_step.py" --device cuda --ours "$bin/step" \
        --steps 10 --rounds 3 "${@:2}"
}
step resnet50 --arch resnet50 --width 64 --stem imagenet --size 224 --batch 256 \
    --projector 8192-8192-8192 --optimizer sgd
step resnet18 --arch resnet18 --width 64 --stem cifar --size 32 --batch 512 \
    --projector 2048-2048-2048 --optimizer sgd
LIMIT=500 step resnet50-compiled --arch resnet50 --width 64 --stem imagenet --size 224 --batch 256 \
    --projector 8192-8192-8192 --optimizer sgd --compile

# Loader and step together, the views finished by the loader and on the device.
for finisher in cpu cuda; do
    run "train-resnet50-views-$finisher" "$bin/bt-stream" bench train "$shards" \
        --config "$here/configs/imagenet.toml" --set train.device="'cuda:0'" --set train.precision="'bf16'" \
        --set train.batch_size=256 --set augment.device="'$finisher'" --json
done

# Training for real, as long as there is time: TRAIN_SECONDS, to be resumed by the same command.
if [ "${TRAIN_SECONDS:-0}" -gt 0 ]; then
    resume=()
    [ -d "$out/cifar10/checkpoints" ] && resume=(--resume)
    LIMIT=$TRAIN_SECONDS run cifar10 timeout --signal=INT "$((TRAIN_SECONDS - 30))" "$bin/bt-stream" train \
        --config "$here/configs/cifar10.toml" --data "$cifar/train" --set data.val="'$cifar/test'" \
        --set train.device="'cuda:0'" --set train.precision="'bf16'" --dir "$out/cifar10" "${resume[@]}"
fi
exit $failed
