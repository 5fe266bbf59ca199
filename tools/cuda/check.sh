#!/usr/bin/env bash
# All checks that want a GPU, in one go, beside PyTorch on the same device.
#
#   tools/cuda/check.sh BIN SHARDS CIFAR OUT [STAGE...]
#
# BIN has the binaries of a build with the feature `cuda`: bt-stream, and the tests golden_resnet and
# cuda and the benchmark step under these names (tools/cuda/collect.sh gathers them); SHARDS is a set
# of JPEG shards of more images than a batch (256), CIFAR a folder with `train` and `test` sets of
# CIFAR-10. Results go to OUT. PyTorch's own CUDA libraries serve both where there is no toolkit.
# Stages, tests, step, compile and train by default:
#   tests      reference vectors, and CPU and CUDA runs side by side
#   step       the step beside PyTorch's eager one
#   compile    ResNet-50's beside torch.compile's
#   train      loader and step together
#   large      ResNet-50's step at the authors' batch of 2048, in parts of as many views as a batch of 256 has
#   profile    where the step's time goes, call by call, ours and PyTorch's
#   cifar      training for real, for TRAIN_SECONDS at most, and a linear probe; the same command resumes it.
#              CIFAR_CONFIG names the configuration, or several to be trained beside each other, lightly's by
#              default; CIFAR_EPOCHS epochs in place of the configuration's
#   twice      an epoch of the first, twice, with train.deterministic: the same losses
set -uo pipefail
bin=$(cd "${1:?folder of binaries}" && pwd) || exit 1
shards=${2:?JPEG shards}
cifar=${3:?CIFAR-10 shards}
out=${4:?folder for results}
stages=${*:5}
here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$out"
site=$(python3 -c 'import nvidia, os; print(list(nvidia.__path__)[0])' 2>/dev/null || true)
if [ -n "$site" ]; then
    for folder in "$site"/*/lib; do LD_LIBRARY_PATH="$folder:${LD_LIBRARY_PATH:-}"; done
    export LD_LIBRARY_PATH
fi
export BT_GOLDEN_DIR="${BT_GOLDEN_DIR:-$here/tests/golden}" BT_DEVICE=cuda:0
# For tests that run the program, which was built elsewhere.
export BT_STREAM="$bin/bt-stream"
rm -f "$out/failed"
run() {
    local name=$1 begun=$SECONDS
    shift
    if timeout "${LIMIT:-300}" "$@" >"$out/$name.txt" 2>&1; then
        echo "== $name, $((SECONDS - begun)) s"
        tail -n "${LINES_SHOWN:-6}" "$out/$name.txt"
    else
        echo "$name" >>"$out/failed"
        echo "== FAILED: $name, $((SECONDS - begun)) s"
        tail -n 30 "$out/$name.txt"
    fi
}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/gpu.txt"

tests() {
    # The reference vectors of PyTorch, in f32 and bf16; a CPU run and a CUDA run step by step.
    run golden-f32 "$bin/golden_resnet" --nocapture &
    BT_PRECISION=bf16 run golden-bf16 "$bin/golden_resnet" --nocapture &
    run cpu-and-cuda "$bin/cuda" --nocapture &
    wait
}

resnet50=(--arch resnet50 --width 64 --stem imagenet --size 224 --batch 256 --projector 8192-8192-8192
    --optimizer sgd)
resnet18=(--arch resnet18 --width 64 --stem cifar --size 32 --batch 512 --projector 2048-2048-2048
    --optimizer sgd)
beside_torch() {
    LINES_SHOWN=8 run "step-$1" python3 "$here/tools/peers/torch_step.py" --device cuda \
        --ours "$bin/step" --steps 10 --rounds 3 "${@:2}"
}
step() {
    beside_torch resnet50 "${resnet50[@]}"
    beside_torch resnet18 "${resnet18[@]}"
}
compile() {
    LIMIT=500 beside_torch resnet50-compiled "${resnet50[@]}" --compile
}

bf16=(--set train.device="'cuda:0'" --set train.precision="'bf16'")
train() {
    # The views finished by the loader and on the device.
    for finisher in cpu cuda; do
        run "train-resnet50-views-$finisher" "$bin/bt-stream" bench train "$shards" \
            --config "$here/configs/imagenet.toml" "${bf16[@]}" --set train.batch_size=256 \
            --set augment.device="'$finisher'"
    done
}
large() {
    run large "$bin/bt-stream" bench step --config "$here/configs/imagenet.toml" "${bf16[@]}" \
        --batch 2048 --set train.micro_batches=8 --warmup 5 --steps 5
}
profile() {
    run profile-resnet50 "$bin/bt-stream" bench step --config "$here/configs/imagenet.toml" "${bf16[@]}" \
        --batch 256 --warmup 5 --profile
    run profile-resnet18 "$bin/bt-stream" bench step --config "$here/configs/cifar10.toml" "${bf16[@]}" \
        --batch 512 --warmup 5 --steps 10 --profile
    run torch-profile-resnet50 python3 "$here/tools/peers/torch_step.py" --device cuda "${resnet50[@]}" --profile
    run torch-profile-resnet18 python3 "$here/tools/peers/torch_step.py" --device cuda "${resnet18[@]}" --profile
}
configs=("$here/configs/cifar10-lightly.toml")
[ -z "${CIFAR_CONFIG:-}" ] || read -ra configs <<<"$CIFAR_CONFIG"
train_cifar=("$bin/bt-stream" train --data "$cifar/train" --set data.val="'$cifar/test'" "${bf16[@]}")
twice() {
    for nth in 1 2; do
        rm -rf "$out/twice-$nth"
        run "twice-$nth" "${train_cifar[@]}" --config "${configs[0]}" --dir "$out/twice-$nth" \
            --set train.epochs=1 --set eval.knn_every=0 --set train.deterministic=true
    done
    run twice python3 -c "
import json, sys
lines = [map(json.loads, open(f'{folder}/metrics.jsonl')) for folder in sys.argv[1:]]
losses = [[line['loss'] for line in run if line['loss'] is not None] for run in lines]
print(len(losses[0]), 'lines, the last losses', *(run[-1] for run in losses))
sys.exit(losses[0] != losses[1])" "$out/twice-1" "$out/twice-2"
}
cifar() {
    local seconds=${TRAIN_SECONDS:?seconds of training} config name options
    [ "$seconds" -gt 20 ] || { echo "TRAIN_SECONDS is over 20" && exit 2; }
    for config in "${configs[@]}"; do
        name=$(basename "$config" .toml)
        options=(--config "$config" --dir "$out/$name")
        [ -n "${CIFAR_EPOCHS:-}" ] && options+=(--set "train.epochs=$CIFAR_EPOCHS")
        [ -d "$out/$name/checkpoints" ] && options+=(--resume)
        # Stopped by its time it has saved what it did, and ends with 130.
        # shellcheck disable=SC2016
        LIMIT=$seconds run "$name" bash -c 'timeout --preserve-status --signal=INT "$@" || [ $? = 130 ]' \
            limited "$((seconds - 20))" "${train_cifar[@]}" "${options[@]}" &
    done
    wait
    for config in "${configs[@]}"; do
        name=$(basename "$config" .toml)
        run "$name-probe" "$bin/bt-stream" probe "$out/$name" --no-untrained
    done
}
# What is missing shows in seconds, not stage by stage.
"$bin/bt-stream" bench step --config "$here/configs/cifar10.toml" "${bf16[@]}" --set model.width=8 \
    --set "model.projector='64'" --batch 8 --warmup 1 --steps 1 >"$out/device.txt" 2>&1 ||
    { cat "$out/device.txt" && exit 1; }
for stage in ${stages:-tests step compile train}; do
    declare -F "$stage" >/dev/null || { echo "no stage $stage" && exit 2; }
    "$stage"
done
[ ! -e "$out/failed" ]
