#!/usr/bin/env bash
# All checks that want a GPU, in one go, beside PyTorch on the same device.
#
#   tools/cuda/check.sh BIN SHARDS CIFAR OUT [STAGE...]
#
# BIN has the binaries of a build with the feature `cuda`: bt-stream, and the tests golden_resnet and
# cuda and the benchmark step under these names; a folder or an archive of them (tools/cuda/collect.sh
# makes both). SHARDS is a set of JPEG shards of more images than a batch (256), CIFAR a folder with
# `train` and `test` sets of CIFAR-10. PyTorch's own CUDA libraries serve both where there is no toolkit.
#
# OUT gets few files, as a machine that is lent gives few back, and what was done is there whenever the
# script is killed: all.txt, what every run printed; runs.tgz, metrics and evaluations of training runs;
# failed, the names of what went wrong; NAME.txt, of runs that are on their way alone. Runs themselves,
# with their checkpoints, are in RUNS (bt-stream-runs among the temporary files by default).
#
# Stages, by default all but train, in this order. A run takes LIMIT seconds at most, 120 by default, 240
# in compile:
#   tests      reference vectors, and CPU and CUDA runs side by side
#   cifar      training for real, for TRAIN_SECONDS at most (120 by default), and a linear probe; the same
#              command resumes it. CIFAR_CONFIG names the configuration, or several to be trained beside each
#              other, lightly's by default; CIFAR_EPOCHS epochs in place of the configuration's
#   step       the step beside PyTorch's eager one: ResNet-18's, and ResNet-50's where compile does not come too
#   large      ResNet-50's step at the authors' batch of 2048, in parts of as many views as a batch of 256 has
#   twice      an epoch of the first of CIFAR_CONFIG, twice, with train.deterministic: the same losses
#   profile    where the step's time goes, call by call, ours and PyTorch's
#   train      loader and step together
#   compile    ResNet-50's step beside PyTorch's eager one and torch.compile's
set -uo pipefail
bin=${1:?folder or archive of binaries}
shards=${2:?JPEG shards}
cifar=${3:?CIFAR-10 shards}
out=${4:?folder for results}
stages=("${@:5}")
[ ${#stages[@]} -gt 0 ] || stages=(tests cifar step large twice profile compile)
for stage in "${stages[@]}"; do
    case $stage in
    tests | cifar | step | large | twice | profile | train | compile) ;;
    *) echo "no stage $stage" && exit 2 ;;
    esac
done
here=$(cd "$(dirname "$0")/../.." && pwd)
runs=${RUNS:-${TMPDIR:-/tmp}/bt-stream-runs}
mkdir -p "$out" "$runs" && out=$(cd "$out" && pwd) && runs=$(cd "$runs" && pwd) || exit 1
if [ -f "$bin" ]; then
    unpacked=$(mktemp -d) || exit 1
    trap 'rm -rf "$unpacked"' EXIT
    python3 -c 'import sys, tarfile
tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="data")' "$bin" "$unpacked" || exit 1
    bin=$unpacked
fi
bin=$(cd "$bin" && pwd) || exit 1
site=$(python3 -c 'import nvidia, os; print(list(nvidia.__path__)[0])' 2>/dev/null || true)
if [ -n "$site" ]; then
    for folder in "$site"/*/lib; do LD_LIBRARY_PATH="$folder:${LD_LIBRARY_PATH:-}"; done
    export LD_LIBRARY_PATH
fi
export BT_GOLDEN_DIR="${BT_GOLDEN_DIR:-$here/tests/golden}" BT_DEVICE=cuda:0
# For tests that run the program, which was built elsewhere.
export BT_STREAM="$bin/bt-stream"
export PYTHONUNBUFFERED=1
rm -f "$out/failed"
# Runs a command; what it prints is kept whole, and SHOWN of it, six lines at the end by default, shown.
run() {
    local name=$1 begun=$SECONDS status shown
    read -ra shown <<<"${SHOWN:-tail -n 6}"
    shift
    timeout -k 10 "${LIMIT:-120}" "$@" >"$out/$name.txt" 2>&1
    status=$?
    # One at a time, of runs beside each other.
    (
        flock 9
        if [ $status = 0 ]; then
            echo "== $name, $((SECONDS - begun)) s"
        else
            # 124 and 137: stopped at its limit.
            echo "$name" >>"$out/failed"
            echo "== FAILED: $name, status $status, $((SECONDS - begun)) s"
        fi | tee -a "$out/all.txt"
        [ $status = 0 ] || shown=(tail -n 30)
        "${shown[@]}" "$out/$name.txt" | cut -c 1-180
        cat "$out/$name.txt" >>"$out/all.txt" && rm "$out/$name.txt"
    ) 9>"$runs/lock"
}
# Of every run what tells how it went, anew after each stage.
keep_runs() {
    (cd "$runs" && find . -name metrics.jsonl -o -name evaluation.json -o -name summary.json) |
        tar czf "$runs/runs.tgz" -C "$runs" -T - && mv "$runs/runs.tgz" "$out/runs.tgz"
}

tests() {
    # The reference vectors of PyTorch, in f32 and bf16; a CPU run and a CUDA run step by step.
    run golden-f32 "$bin/golden_resnet" --nocapture &
    BT_PRECISION=bf16 run golden-bf16 "$bin/golden_resnet" --nocapture &
    SHOWN="tail -n 16" run cpu-and-cuda "$bin/cuda" --nocapture &
    wait
}

resnet50=(--arch resnet50 --width 64 --stem imagenet --size 224 --batch 256 --projector 8192-8192-8192
    --optimizer sgd)
resnet18=(--arch resnet18 --width 64 --stem cifar --size 32 --batch 512 --projector 2048-2048-2048
    --optimizer sgd)
beside_torch() {
    SHOWN="tail -n 9" run "step-$1" python3 "$here/tools/peers/torch_step.py" --device cuda \
        --ours "$bin/step" --limit 40 --steps 10 --rounds 3 "${@:2}"
}
step() {
    beside_torch resnet18 "${resnet18[@]}"
    [[ " ${stages[*]} " == *" compile "* ]] || beside_torch resnet50 "${resnet50[@]}"
}
compile() {
    LIMIT=${LIMIT:-240} beside_torch resnet50-compiled "${resnet50[@]}" --compile
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
    # The longest calls come first.
    local SHOWN="head -n 24"
    run profile-resnet50 "$bin/bt-stream" bench step --config "$here/configs/imagenet.toml" "${bf16[@]}" \
        --batch 256 --warmup 5 --profile
    run profile-resnet18 "$bin/bt-stream" bench step --config "$here/configs/cifar10.toml" --set model.stem=cifar "${bf16[@]}" \
        --batch 512 --warmup 5 --steps 10 --profile
    run torch-profile-resnet50 python3 "$here/tools/peers/torch_step.py" --device cuda "${resnet50[@]}" \
        --rounds 1 --profile
    run torch-profile-resnet18 python3 "$here/tools/peers/torch_step.py" --device cuda "${resnet18[@]}" \
        --rounds 1 --profile
}
configs=("$here/configs/cifar10-lightly.toml")
[ -z "${CIFAR_CONFIG:-}" ] || read -ra configs <<<"$CIFAR_CONFIG"
train_cifar=("$bin/bt-stream" train --data "$cifar/train" --set data.val="'$cifar/test'" "${bf16[@]}")
twice() {
    for nth in 1 2; do
        rm -rf "$runs/twice-$nth"
        run "twice-$nth" "${train_cifar[@]}" --config "${configs[0]}" --dir "$runs/twice-$nth" \
            --set train.epochs=1 --set eval.knn_every=0 --set train.deterministic=true
    done
    run twice python3 -c "
import json, sys
lines = [map(json.loads, open(f'{folder}/metrics.jsonl')) for folder in sys.argv[1:]]
losses = [[line['loss'] for line in run if line['loss'] is not None] for run in lines]
print(len(losses[0]), 'lines, the last losses', *(run[-1] for run in losses))
sys.exit(losses[0] != losses[1])" "$runs/twice-1" "$runs/twice-2"
}
cifar() {
    local seconds=${TRAIN_SECONDS:-120} config name options
    [ "$seconds" -gt 20 ] || { echo "TRAIN_SECONDS is over 20" && exit 2; }
    for config in "${configs[@]}"; do
        name=$(basename "$config" .toml)
        options=(--config "$config" --dir "$runs/$name")
        [ -n "${CIFAR_EPOCHS:-}" ] && options+=(--set "train.epochs=$CIFAR_EPOCHS")
        [ -d "$runs/$name/checkpoints" ] && options+=(--resume)
        # Stopped by its time it has saved what it did, and ends with 130.
        # shellcheck disable=SC2016
        LIMIT=$seconds run "$name" bash -c 'timeout -k 10 --preserve-status --signal=INT "$@" || [ $? = 130 ]' \
            limited "$((seconds - 20))" "${train_cifar[@]}" "${options[@]}" &
    done
    wait
    for config in "${configs[@]}"; do
        name=$(basename "$config" .toml)
        run "$name-probe" "$bin/bt-stream" probe "$runs/$name" --no-untrained
    done
}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee -a "$out/all.txt"
# What is missing shows in seconds, not stage by stage: a few steps of ImageNet's network, of which the fourth
# is recorded and the others replay it.
LIMIT=60 SHOWN="tail -n 1" run device "$bin/bt-stream" bench step --config "$here/configs/imagenet.toml" "${bf16[@]}" \
    --set model.width=8 --set "model.projector='64'" --batch 8 --warmup 5 --steps 2
[ ! -e "$out/failed" ] || exit 1
for stage in "${stages[@]}"; do
    "$stage"
    keep_runs
done
[ ! -e "$out/failed" ]
