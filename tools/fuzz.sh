#!/bin/bash
# Fuzzes the readers of untrusted bytes, each target for MINUTES, with the address sanitizer.
#
#   tools/fuzz.sh MINUTES [TARGET...]      targets: jpeg side_index dct tar zst shard_index manifest
#
# libFuzzer without cargo-fuzz, on the stable compiler: RUSTC_BOOTSTRAP=1 allows it the sanitizer's
# flags, which are those of cargo-fuzz (`cargo +nightly fuzz run TARGET` works, too). The corpus grows
# in fuzz/corpus, what fails lands in fuzz/artifacts: make a named test of it.
set -euo pipefail
minutes=${1:?minutes for each target}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(jpeg side_index dct tar zst shard_index manifest)
cd "$(dirname "$0")/../fuzz"
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="-Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=4"
# With a target given, build scripts and macros are built without the sanitizer.
build=(cargo build --release --target "$host")
for target in "${targets[@]}"; do build+=(--bin "$target"); done
"${build[@]}"
failed=0
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    echo "== $target"
    ASAN_OPTIONS=detect_leaks=0 "target/$host/release/$target" "corpus/$target" "seeds/$target" \
        -artifact_prefix="artifacts/$target/" -max_total_time=$((minutes * 60)) -rss_limit_mb=2048 \
        -timeout=10 -max_len=20000 -print_final_stats=1 >"corpus/$target.log" 2>&1 || failed=1
    grep -E "^stat|ERROR|SUMMARY|panicked|Done" "corpus/$target.log" || true
done
exit $failed
