#!/usr/bin/env bash
# A RUSTC_WRAPPER: CUDA's libraries are opened at run time, where candle asks cudarc to link them. cudarc's sources choose by a
# feature, given here to those two crates that look at it alone: all others stay as they are built elsewhere.
# What was built without it stays what it was: cargo does not know of it.
previous=
for argument; do
    case $previous/$argument in
    --crate-name/cudarc | --crate-name/bt_stream) set -- "$@" --cfg 'feature="dynamic-loading"' ;;
    esac
    previous=$argument
done
# Not for whom this calls: it may be another copy of this script.
inner=${INNER_RUSTC_WRAPPER:-}
unset INNER_RUSTC_WRAPPER
exec ${inner:+"$inner"} "$@"
