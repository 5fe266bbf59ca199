//! Any bytes as a tar shard without index.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bt_fuzz::put("x.tar", data);
    bt_fuzz::use_all("x.tar");
});
