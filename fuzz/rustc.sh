#!/bin/sh
# The compiler, with coverage for our own crates alone: what they call is not what is fuzzed, and
# libFuzzer goes through all counters after each input. Comparisons are not traced, which costs
# the decoders half of their speed.
rustc=$1
shift
case " $* " in
*" --crate-name bt_"*)
    exec "$rustc" "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    ;;
esac
exec "$rustc" "$@"
