//! Any bytes as a manifest beside the shard it may list.
#![no_main]

use std::sync::LazyLock;

static SHARD: LazyLock<()> = LazyLock::new(|| {
    bt_fuzz::put("shard-000000.tar", include_bytes!("../seeds/tar/packed.tar"));
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    LazyLock::force(&SHARD);
    bt_fuzz::put("shard.manifest.json", data);
    bt_fuzz::use_all("shard.manifest.json");
});
