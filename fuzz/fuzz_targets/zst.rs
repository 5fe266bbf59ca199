//! Any bytes as a `.tar.zst` shard, its seek table included.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bt_fuzz::put("x.tar.zst", data);
    bt_fuzz::use_all("x.tar.zst");
});
