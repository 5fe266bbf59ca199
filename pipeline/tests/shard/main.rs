//! Shards as their users meet them. One binary, so that the crate is linked once.

#[path = "../common/mod.rs"]
mod common;
mod damage;
mod index;
mod interop;
mod left_out;
mod manifests;
mod memory;
mod million;
mod pack;
mod read;
mod readable;
mod salvage;
mod salvage_known;
#[path = "../../../tests/common/skip.rs"]
mod skip;
mod sources;
mod unpack;
mod verify;
