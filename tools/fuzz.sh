#!/bin/bash
# Fuzzes the readers of untrusted bytes, one target after the other, with the address sanitizer.
#
#   tools/fuzz.sh MINUTES [TARGET...]            each target for so many minutes
#   tools/fuzz.sh --runs N MINUTES [TARGET...]   or until it has seen N inputs: 10000000 60
#
# libFuzzer without cargo-fuzz, on the stable compiler: RUSTC_BOOTSTRAP=1 allows it the sanitizer's
# flags, `fuzz/rustc.sh` adds coverage (`cargo +nightly fuzz run TARGET` works, too; `config`,
# `checkpoint` and `weights` want `--features program`). The corpus grows in fuzz/corpus, what fails lands in
# fuzz/artifacts: make a named test of it.
set -euo pipefail

# Longest inputs, in bytes: what a target can be reached with, and no more, for speed.
declare -A max_len=(
    [config]=600 [checkpoint]=4096 [shard_index]=600 [manifest]=1200 [tar]=6144 [zst]=3000
    [dct]=3000 [side_index]=3000 [jpeg]=3000 [weights]=2500
)
order=(config dct side_index jpeg shard_index manifest tar zst checkpoint weights)

runs=-1
if [ "${1:-}" = --runs ]; then
    runs=${2:?number of inputs}
    shift 2
fi
minutes=${1:?minutes for each target}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=("${order[@]}")
cd "$(dirname "$0")/../fuzz"
host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=$PWD/target
export RUSTC_BOOTSTRAP=1
export RUSTC_WRAPPER=$PWD/rustc.sh
export RUSTFLAGS="-Zsanitizer=address --cfg fuzzing"
# With a target given, build scripts and macros are built without the sanitizer.
build=(cargo build --release --target "$host")
for target in "${targets[@]}"; do
    : "${max_len[$target]:?no such target}"
    build+=(--bin "$target")
    case $target in config | checkpoint | weights) build+=(--features program) ;; esac
done
"${build[@]}"
# Inputs are chosen evenly (-entropic=0): weighing them takes a tenth of the time.
# Freed memory is kept from use for a while; 4 MiB of it hold hundreds of inputs' and stay in cache.
export ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=4:malloc_context_size=0:max_redzone=64:detect_stack_use_after_return=0
# Files of the targets, in memory where there is a folder of that.
[ -d /dev/shm ] && BT_FUZZ_DIR=$(mktemp -d -p /dev/shm bt-fuzz.XXXXXX) || BT_FUZZ_DIR=$(mktemp -d)
export BT_FUZZ_DIR
trap 'rm -rf "$BT_FUZZ_DIR"' EXIT
failed=0
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    echo "== $target"
    "target/$host/release/$target" "corpus/$target" "seeds/$target" \
        -artifact_prefix="artifacts/$target/" -max_total_time=$((minutes * 60)) -runs="$runs" \
        -rss_limit_mb=2048 -malloc_limit_mb=1024 -timeout=10 -max_len="${max_len[$target]}" \
        -entropic=0 -print_final_stats=1 >"corpus/$target.log" 2>&1 || failed=1
    grep -E "^stat|ERROR|SUMMARY|panicked|Done" "corpus/$target.log" || true
done
exit $failed
