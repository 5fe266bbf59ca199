//! Indexes that are not as specified, and what is made of those that are.

use bt_pipeline::shard::{
    Depth, Limits, OpenOptions, ReadScratch, ShardIndex, ShardSet, index_path, scan,
};
use bt_pipeline::{Error, Result};

use super::damage::plain;
use super::verify::{changed_entry, changed_index};

/// A shard of two samples with labels 3 and 4, its index in bytes, and its folder.
fn two() -> (tempfile::TempDir, std::path::PathBuf, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let members = [
        plain("a.jpg", b"one"),
        plain("a.cls", b"3"),
        plain("b.jpg", b"two"),
        plain("b.cls", b"4"),
    ];
    std::fs::write(&path, [&members.concat()[..], &[0; 1024]].concat()).unwrap();
    let index = scan(&path, Depth::Full, &Limits::default()).unwrap().bytes;
    (folder, path, index)
}

/// An index with more sections: kind and bytes of an element, all of them the first 16 bytes of the
/// entries.
fn with_sections(index: &[u8], more: &[(u32, u32)]) -> Vec<u8> {
    let (head, rest) = index.split_at(64);
    let (table, body) = rest.split_at(64);
    let shift = 32 * more.len() as u64;
    let mut bytes = head.to_vec();
    let sections = 2 + more.len() as u32;
    bytes[12..16].copy_from_slice(&sections.to_le_bytes());
    bytes[48..56].copy_from_slice(&(index.len() as u64 + shift).to_le_bytes());
    for row in table.chunks(32) {
        let at = u64::from_le_bytes(row[8..16].try_into().unwrap()) + shift;
        bytes.extend([&row[..8], &at.to_le_bytes(), &row[16..]].concat());
    }
    let checksum = xxhash_rust::xxh3::xxh3_64(&body[..16]);
    for (kind, element) in more {
        bytes.extend([kind.to_le_bytes(), element.to_le_bytes()].concat());
        bytes.extend([128 + shift, 16, checksum].map(u64::to_le_bytes).concat());
    }
    bytes.extend(body);
    changed_index(&bytes, 12, &sections.to_le_bytes())
}

/// The index as one that was made for `shard`.
pub fn fitting(index: &[u8], shard: &[u8]) -> Vec<u8> {
    let (length, quarter) = (shard.len(), shard.len() / 4);
    let mut seen = (length as u64).to_le_bytes().to_vec();
    seen.extend(&shard[..length.min(4096)]);
    for at in [quarter, quarter * 2, quarter * 3] {
        seen.extend(&shard[at..length.min(at + 512)]);
    }
    seen.extend(&shard[length.saturating_sub(4096)..]);
    let of_shard = [length as u64, xxhash_rust::xxh3::xxh3_64(&seen)].map(u64::to_le_bytes);
    changed_index(index, 16, &of_shard.concat())
}

#[test]
fn an_index_that_is_not_as_specified_is_refused() {
    let (folder, _, index) = two();
    let path = folder.path().join("x.idx");
    let open = |bytes: &[u8], limits: &Limits| -> Result<ShardIndex> {
        std::fs::write(&path, bytes).unwrap();
        ShardIndex::open(&path, limits)
    };
    let usual = Limits::default();
    let bytes = index.len() as u64;
    let changed = |at: usize, value: u32| changed_index(&index, at, &value.to_le_bytes());
    assert!(open(&index, &Limits { index_bytes: bytes, ..usual }).is_ok());
    let many = |sections: usize| with_sections(&index, &vec![(99, 1); sections - 2]);
    for (bytes, limits, cause) in [
        (index.clone(), Limits { index_bytes: bytes - 1, ..usual }, "over the limit"),
        (changed(0, 0), usual, "not a shard index"),
        (changed(8, 2), usual, "index version 2"),
        (changed(32, 3), usual, "3 samples, but 128 bytes"),
        (changed(48, bytes as u32 + 8), usual, "should have"),
        (changed(64, 99), usual, "no entries"),
        (changed(68, 32), usual, "no entries"),
        (changed(96, 99), usual, "no keys"),
        (many(65), usual, "65 sections"),
        (with_sections(&index, &[(16, 16)]), usual, ""),
        (with_sections(&index, &[(16, 8), (16, 8)]), usual, ""),
        (many(64), usual, ""),
    ] {
        match open(&bytes, &limits) {
            Ok(index) => assert!(cause.is_empty() && index.len() == 2, "{cause}"),
            Err(error) => {
                let text = error.to_string();
                assert!(!cause.is_empty() && text.contains(cause), "{cause}: {text}");
            }
        }
    }
    for length in 0..index.len() {
        assert!(open(&index[..length], &usual).is_err(), "{length}");
    }
}

#[test]
fn side_indexes_are_as_many_as_samples() {
    let (folder, shard, _) = two();
    let path = folder.path().join("x.idx");
    // Of three samples, by a section of the ends of two.
    let three = [&plain("0.jpg", b"zero")[..], &std::fs::read(&shard).unwrap()].concat();
    std::fs::write(&shard, three).unwrap();
    let index = scan(&shard, Depth::Full, &Limits::default()).unwrap().bytes;
    std::fs::write(&path, with_sections(&index, &[(16, 8)])).unwrap();
    let error = ShardIndex::open(&path, &Limits::default()).unwrap_err().to_string();
    assert!(error.contains("another number of samples"), "{error}");
    // Of elements of another size nothing is known.
    std::fs::write(&path, with_sections(&index, &[(16, 4)])).unwrap();
    assert!(ShardIndex::open(&path, &Limits::default()).is_ok());
}

#[test]
fn a_sample_that_a_scan_finds_fault_with_is_refused_when_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let long = [&b"5"[..], &[b' '; 64]].concat();
    for (label, sound) in [(&b"cat"[..], false), (&long, false), (&long[..64], true)] {
        let bytes = [plain("a.jpg", b"1"), plain("a.cls", label), plain("b.jpg", b"2")].concat();
        std::fs::write(&path, bytes).unwrap();
        let set = ShardSet::open(&path.to_string_lossy(), &OpenOptions::default()).unwrap();
        let mut scratch = ReadScratch::new();
        match set.read(0, &mut scratch) {
            Ok(sample) => assert!(sound && sample.label == Some(5)),
            Err(Error::Sample { key, cause, .. }) => {
                assert!(!sound && key == "a" && cause.contains("class number"), "{cause}");
            }
            Err(error) => panic!("{error}"),
        }
        assert_eq!(set.read(1, &mut scratch).unwrap().image, b"2");
    }
}

#[test]
fn an_image_that_differs_from_its_checksum_is_refused_where_that_is_asked_for() {
    let (_folder, path, index) = two();
    for (checksum, sound) in [(1u64, false), (0, true)] {
        let index = changed_entry(&index, 24, &checksum.to_le_bytes());
        std::fs::write(index_path(&path), index).unwrap();
        for verify in [false, true] {
            let options = OpenOptions { verify, ..OpenOptions::default() };
            let set = ShardSet::open(&path.to_string_lossy(), &options).unwrap();
            let read = set.read(0, &mut ReadScratch::new()).map(|sample| sample.label);
            assert_eq!(read.is_ok(), sound || !verify, "{checksum} {verify}");
        }
    }
}
