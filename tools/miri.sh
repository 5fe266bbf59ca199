#!/bin/bash
# Runs the tests of the pipeline's unsafe code that Miri can run: scalar paths of the decoders and
# kernels, index, tar reader, batch buffers.
#
#   tools/miri.sh [TEST...]       wants `rustup +nightly component add miri`
#
# Miri has no AVX: the detection of CPU features then chooses the scalar paths. It knows neither files
# in memory maps nor zstd's C code, so that what opens shard sets is left out; the fuzz targets run
# that under the address sanitizer (tools/fuzz.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(
    batch:: dct:: jpeg:: kernel:: order:: rng:: shard::format shard::group shard::raw shard::tar_write
)
export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-tree-borrows"
cargo +nightly miri test -p bt-pipeline --lib --target-dir target/miri -- \
    "${tests[@]}"
