//! `shard`: packs, indexes, lists, verifies and unpacks image shards.

fn main() {}
