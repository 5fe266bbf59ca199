//! Any bytes as the index of a shard. What ties it to the shard and its checksums are mended, so
//! that the reader believes the rest.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::xxh3_64;

const SHARD: &[u8] = include_bytes!("../seeds/tar/packed.tar");

static WRITTEN: LazyLock<()> = LazyLock::new(|| bt_fuzz::put("x.tar", SHARD));

/// As `docs/shard-format.md` says.
fn fingerprint(shard: &[u8]) -> u64 {
    let length = shard.len();
    let mut bytes = (length as u64).to_le_bytes().to_vec();
    bytes.extend(&shard[..length.min(4096)]);
    for quarter in 1..4 {
        let at = length / 4 * quarter;
        bytes.extend(&shard[at..length.min(at + 512)]);
    }
    bytes.extend(&shard[length.saturating_sub(4096)..]);
    xxh3_64(&bytes)
}

fn mend(index: &mut [u8]) {
    let long = |bytes: &[u8], at: usize| {
        bytes
            .get(at..at + 8)
            .map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")) as usize)
    };
    if index.len() < 64 {
        return;
    }
    let length = index.len() as u64;
    index[16..24].copy_from_slice(&(SHARD.len() as u64).to_le_bytes());
    index[24..32].copy_from_slice(&fingerprint(SHARD).to_le_bytes());
    index[48..56].copy_from_slice(&length.to_le_bytes());
    let sections = usize::from(index[12]).min((index.len() - 64) / 32);
    for row in 0..sections {
        let at = 64 + 32 * row;
        let (Some(start), Some(bytes)) = (long(index, at + 8), long(index, at + 16)) else {
            return;
        };
        let end = start.saturating_add(bytes);
        if let Some(section) = index.get(start..end) {
            let hash = xxh3_64(section);
            index[at + 24..at + 32].copy_from_slice(&hash.to_le_bytes());
        }
    }
    let head = [&index[..56], &index[64..64 + 32 * sections]].concat();
    index[56..64].copy_from_slice(&xxh3_64(&head).to_le_bytes());
}

fuzz_target!(|data: &[u8]| {
    let mut index = data.to_vec();
    mend(&mut index);
    LazyLock::force(&WRITTEN);
    bt_fuzz::put("x.tar.idx", &index);
    bt_fuzz::use_all("x.tar");
});
