//! Any bytes as a manifest beside the shard it may list.
#![no_main]

const SHARD: &[u8] = include_bytes!("../seeds/tar/four.tar");

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bt_fuzz::put("shard-000000.tar", SHARD);
    bt_fuzz::put("shard.manifest.json", data);
    bt_fuzz::use_all("shard.manifest.json");
});
