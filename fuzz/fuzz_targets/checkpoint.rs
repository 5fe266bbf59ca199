//! Any bytes as a checkpoint: length of `state.json` (2 bytes, little-endian), `state.json`, and
//! what is both weights and optimizer state. The checksums in `state.json` are mended, so that the
//! reader believes the rest.
#![no_main]

use std::sync::LazyLock;

use bt_stream::checkpoint;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

const TENSORS: [&str; 2] = ["weights.safetensors", "optimizer.safetensors"];

/// Both names stand for one file.
static LINKED: LazyLock<()> = LazyLock::new(|| {
    bt_fuzz::put(TENSORS[0], b"");
    let [first, second] = TENSORS.map(|name| bt_fuzz::FOLDER.join(name));
    std::fs::hard_link(first, second).expect("a second name for the tensors");
});

fn mend(state: &[u8], tensors: &[u8]) -> Option<Vec<u8>> {
    let mut state: Value = serde_json::from_slice(state).ok()?;
    let sum = json!({"bytes": tensors.len(), "xxh3": format!("{:016x}", xxh3_64(tensors))});
    state.as_object_mut()?.remove("checksum");
    for (name, listed) in state.get_mut("files")?.as_object_mut()? {
        if TENSORS.contains(&name.as_str()) {
            *listed = sum.clone();
        }
    }
    serde_json::to_vec(&state).ok()
}

fuzz_target!(|data: &[u8]| {
    LazyLock::force(&LINKED);
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_le_bytes(*length));
    let Some((state, tensors)) = rest.split_at_checked(length) else { return };
    let state = mend(state, tensors).unwrap_or_else(|| state.to_vec());
    bt_fuzz::put("state.json", &state);
    bt_fuzz::put(TENSORS[0], tensors);
    let Ok(found) = checkpoint::find(&bt_fuzz::FOLDER) else { return };
    let _ = (found.weights(), found.optimizer(), found.method(), found.probe());
});
