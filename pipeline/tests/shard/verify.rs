//! What verification finds: the ends of archives, every field of an index, the counts of a
//! manifest.

use std::path::Path;

use bt_pipeline::shard::{
    Depth, Limits, OpenOptions, ShardSet, Tree, index_path, index_shards, scan, unpack, verify,
};
use serde_json::Value;

use super::damage::{plain, read_all};

/// What `verify` says of a shard: offsets and causes.
fn verified(path: &Path) -> Vec<(u64, String)> {
    let pattern = path.to_string_lossy();
    let report = verify(&pattern, &OpenOptions::default(), false, 1, &mut |_| {}).unwrap();
    report.damage.into_iter().map(|damage| (damage.offset, damage.cause)).collect()
}

#[test]
fn an_archive_ends_with_two_zero_blocks_or_the_file_and_what_follows_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let samples = |keys: &[&str]| -> Vec<u8> {
        let image = bt_pipeline::shard::raw_header(1, 1);
        let image = [&image[..], b"rgb"].concat();
        keys.iter().flat_map(|key| plain(&format!("{key}.ppm"), &image)).collect()
    };
    let (ab, cd, end) = (samples(&["a", "b"]), samples(&["c", "d"]), vec![0; 1024]);
    let ab_end = ab.len() as u64;
    // Blocks, the samples that are read or none for an error, where bytes are that are not, what
    // verification says.
    type Case<'a> = (&'a [&'a [u8]], Option<usize>, Option<u64>, Option<(u64, &'a str)>);
    let zero = &end[..512];
    // More than is read at a time.
    let (zeros, noise) = (vec![0; 70_000], vec![1; 70_000]);
    let far = ab_end + 1024 + 70_000;
    let cases: [Case<'_>; 10] = [
        (&[&ab, &end], Some(2), None, None),
        (&[&ab, &end, &end, zero, &end[..100]], Some(2), None, None),
        (&[&ab], Some(2), None, Some((ab_end, "no end-of-archive marker"))),
        (&[&ab, zero], Some(2), None, Some((ab_end + 512, "no end-of-archive marker"))),
        (&[&ab, zero, &zero[..9]], Some(2), None, Some((ab_end + 521, "no end-of-archive"))),
        (&[&ab, zero, &cd, &end], None, None, Some((ab_end, "a lone block of zeros"))),
        (&[&ab, zero, b"x"], None, None, Some((ab_end, "a lone block of zeros"))),
        (&[&ab, &end, &cd, &end], Some(2), Some(ab_end + 1024), Some((ab_end + 1024, "more"))),
        (&[&ab, &end, &zeros, &noise], Some(2), Some(far), Some((far, "more"))),
        (&[&ab, &end, zero, b"\0x"], Some(2), Some(ab_end + 1537), Some((ab_end + 1537, "more"))),
    ];
    for (number, (blocks, read, trailing, damage)) in cases.into_iter().enumerate() {
        for name in ["a.tar", "a.tar.zst"] {
            let (path, mut bytes) = (folder.path().join(name), blocks.concat());
            if name.ends_with("zst") {
                bytes = zstd::encode_all(&bytes[..], 1).unwrap();
            }
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(read_all(&path, Limits::default()).ok(), read, "{number} {name}");
            let found = scan(&path, Depth::Full, &Limits::default()).map(|found| found.trailing);
            assert_eq!(found.ok(), read.map(|_| trailing), "{number} {name}");
            let said = verified(&path);
            assert_eq!(said.len(), usize::from(damage.is_some()), "{number} {name}: {said:?}");
            if let (Some((at, cause)), Some((found, text))) = (damage, said.first()) {
                assert!(*found == at && text.starts_with(cause), "{number} {name}: {said:?}");
            }
            let pattern = path.to_string_lossy();
            let reports = index_shards(&pattern, None, &[], &Limits::default(), 1, &mut |_| {});
            let told = reports.ok().map(|reports| reports[0].trailing);
            assert_eq!(told, read.map(|_| trailing), "{number} {name}");
            let _ = std::fs::remove_file(index_path(&path));
        }
    }
}

#[test]
fn every_field_of_a_seek_table_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar.zst");
    let image = [&bt_pipeline::shard::raw_header(1, 1)[..], b"rgb"].concat();
    let parts = [plain("a.ppm", &image), [plain("b.ppm", &image), vec![0; 1024]].concat()];
    let frames = parts.each_ref().map(|part| zstd::bulk::compress(part, 1).unwrap());
    let sizes = |frame: usize| [frames[frame].len() as u32, parts[frame].len() as u32];
    // Compressed size, decompressed size, checksum.
    let checksum = |frame: usize| xxhash_rust::xxh64::xxh64(&parts[frame], 0) as u32;
    let good = [0, 1].map(|frame| [sizes(frame)[0], sizes(frame)[1], checksum(frame)]);
    let found = |table: &[[u32; 3]]| {
        let fields = table.as_flattened().iter().flat_map(|field| field.to_le_bytes());
        let mut bytes = frames.concat();
        let count = table.len() as u32;
        bytes.extend([0x184D_2A5E, 12 * count + 9].iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(fields);
        bytes.extend(count.to_le_bytes());
        bytes.push(0x80);
        bytes.extend(0x8F92_EAB1_u32.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        let read = read_all(&path, Limits::default());
        (verified(&path), read.is_ok())
    };
    assert_eq!(found(&good), (vec![], true));
    for field in 0..3 {
        let mut shifted = good;
        shifted[0][field] += 1;
        shifted[1][field] -= 1;
        let (said, readable) = found(&shifted);
        assert!(!readable);
        assert!(said.iter().any(|(at, _)| *at == 0), "field {field}: {said:?}");
    }
    // Of very many frames not all are told one by one.
    let (said, _) = found(&[&good[..], &[[0, 0, 1]; 5000]].concat());
    assert_eq!(said.len(), 1001);
    assert!(said[1000].1.starts_with("4000 more frames"), "{:?}", said[1000]);
}

#[test]
fn unpacking_fails_where_a_shard_has_fewer_samples_than_its_index() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    // So large that the index still belongs to it: damage between what its fingerprint looks at.
    let image = [&bt_pipeline::shard::raw_header(20, 20)[..], &[7; 1200]].concat();
    let mut tar: Vec<u8> = (0..20).flat_map(|i| plain(&format!("{i:02}.ppm"), &image)).collect();
    tar.extend([0; 1024]);
    std::fs::write(&path, &tar).unwrap();
    let pattern = path.to_string_lossy().into_owned();
    index_shards(&pattern, None, &[], &Limits::default(), 1, &mut |_| {}).unwrap();
    let unpacked = |to: &str| {
        let out = folder.path().join(to);
        unpack(&pattern, &out, Tree::Members, &OpenOptions::default(), &mut |_| {})
    };
    assert_eq!(unpacked("whole").unwrap().samples, 20);
    let at = 8 * 2048;
    tar[at..at + 1024].fill(0);
    std::fs::write(&path, &tar).unwrap();
    let error = unpacked("torn").unwrap_err().to_string();
    assert!(error.contains("8 samples, but 20 were expected"), "{error}");
    assert!(error.contains("a.tar") && error.contains("17408"), "{error}");
}

/// Changes bytes of the entry of sample 0 in an index.
pub fn changed_entry(index: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let entries = u64::from_le_bytes(index[72..80].try_into().unwrap()) as usize;
    changed_index(index, entries + at, bytes)
}

/// Changes bytes of an index and mends its checksums.
pub fn changed_index(index: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut index = index.to_vec();
    index[at..at + bytes.len()].copy_from_slice(bytes);
    let entries = u64::from_le_bytes(index[72..80].try_into().unwrap()) as usize;
    let length = u64::from_le_bytes(index[80..88].try_into().unwrap()) as usize;
    let hash = xxhash_rust::xxh3::xxh3_64(&index[entries..entries + length]);
    index[88..96].copy_from_slice(&hash.to_le_bytes());
    let table = 64 + 32 * usize::from(index[12]);
    let hash = xxhash_rust::xxh3::xxh3_64(&[&index[..56], &index[64..table]].concat());
    index[56..64].copy_from_slice(&hash.to_le_bytes());
    index
}

#[test]
fn verification_compares_all_that_an_index_says() {
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("a.tar");
    let image = [&bt_pipeline::shard::raw_header(2, 2)[..], b"rgbrgbrgbrgb"].concat();
    let members = [plain("a.ppm", &image), plain("a.cls", b"3"), plain("b.txt", b"no image")];
    std::fs::write(&tar, [&members.concat()[..], &[0; 1024]].concat()).unwrap();
    let index = scan(&tar, Depth::Full, &Limits::default()).unwrap().bytes;
    let written = |bytes: &[u8]| {
        std::fs::write(index_path(&tar), bytes).unwrap();
        verified(&tar).into_iter().map(|(_, cause)| cause).collect::<Vec<_>>()
    };
    assert_eq!(written(&index), Vec::<String>::new());
    for (at, size, name) in [
        (0, 8, "offset"),
        (8, 8, "start"),
        (16, 4, "length"),
        (20, 4, "span"),
        (24, 8, "checksum"),
        (40, 4, "label"),
        (44, 4, "width"),
        (48, 4, "height"),
        (52, 1, "format"),
    ] {
        let entries = u64::from_le_bytes(index[72..80].try_into().unwrap()) as usize;
        let mut field = index[entries + at..entries + at + size].to_vec();
        field[0] ^= 1;
        let found = written(&changed_entry(&index, at, &field));
        assert!(found.len() == 1 && found[0].contains(name), "{name}: {found:?}");
        // Of these, 0 says that it is not known.
        if ["checksum", "width", "height"].contains(&name) {
            let unknown = changed_entry(&index, at, &vec![0; size]);
            assert_eq!(written(&unknown), Vec::<String>::new(), "{name}");
        }
    }
    let unlabelled = written(&changed_entry(&index, 40, &[255; 4]));
    assert_eq!(unlabelled, ["label 3, the index says none"]);
    for (at, value, name) in [(40, 9u32, "classes"), (44, 0, "without an image")] {
        let found = written(&changed_index(&index, at, &value.to_le_bytes()));
        assert!(found.len() == 1 && found[0].contains(name), "{name}: {found:?}");
    }
}

#[test]
fn a_manifest_whose_counts_are_wrong_is_refused_or_found_by_verification() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("manifest.json");
    let image = [&bt_pipeline::shard::raw_header(1, 1)[..], b"rgb"].concat();
    for (name, labels) in [("a.tar", [Some("0"), Some("2")]), ("b.tar", [None, Some("2")])] {
        let mut tar = Vec::new();
        for (number, label) in labels.into_iter().enumerate() {
            tar.extend(plain(&format!("{number}.ppm"), &image));
            tar.extend(
                label.map_or(vec![], |label| plain(&format!("{number}.cls"), label.as_bytes())),
            );
        }
        std::fs::write(folder.path().join(name), [&tar[..], &[0; 1024]].concat()).unwrap();
    }
    let pattern = folder.path().to_string_lossy().into_owned();
    index_shards(&pattern, Some(&manifest), &[], &Limits::default(), 1, &mut |_| {}).unwrap();
    let text = std::fs::read_to_string(&manifest).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let options = OpenOptions::default();
    let check = |change: &dyn Fn(&mut Value), pattern: &str| {
        let mut json = json.clone();
        change(&mut json);
        std::fs::write(&manifest, json.to_string()).unwrap();
        let opened = ShardSet::open(pattern, &options).is_ok();
        let report = verify(pattern, &options, false, 1, &mut |_| {});
        (opened, report.map(|report| report.damage).map_err(|error| error.to_string()))
    };
    let clean = (true, Ok(Vec::new()));
    assert_eq!(check(&|_| {}, &pattern), clean);
    // Sums that are wrong in themselves.
    type Case<'a> = (&'a dyn Fn(&mut Value), &'a str);
    let cases: [Case<'_>; 5] = [
        (&|json| json["samples"] = 5.into(), "samples in all"),
        (&|json| json["bytes"] = 1.into(), "bytes in all"),
        (&|json| json["unlabelled"] = 0.into(), "without a label"),
        (&|json| json["classes"][0]["samples"] = 2.into(), "in its classes"),
        (&|json| json["classes"][0]["samples"] = u64::MAX.into(), "too many samples"),
    ];
    for (change, expected) in cases {
        let (opened, report) = check(change, &pattern);
        let text = report.unwrap_err();
        assert!(!opened && text.contains("manifest.json") && text.contains(expected), "{text}");
    }
    // Those that only the samples tell, whatever names the shards.
    let swap = |json: &mut Value, a: i32, b: i32, unlabelled: i32| {
        json["classes"][0]["samples"] = a.into();
        json["classes"][1]["samples"] = b.into();
        json["unlabelled"] = unlabelled.into();
    };
    let all =
        [pattern.clone(), format!("{pattern}/*.tar"), manifest.to_string_lossy().into_owned()];
    for pattern in &all {
        for (a, b, unlabelled, expected) in [
            (0, 1, 1, "0 samples of class 0, but its shards have 1"),
            (1, 1, 0, "0 samples without a label, but its shards have 1"),
        ] {
            let (opened, report) = check(&|json| swap(json, a, b, unlabelled), pattern);
            let damage = report.unwrap();
            assert!(opened && damage.len() == 1, "{pattern}: {damage:?}");
            assert!(damage[0].shard.ends_with("manifest.json"), "{damage:?}");
            assert!(damage[0].cause.contains(expected), "{damage:?}");
        }
        assert_eq!(check(&|_| {}, pattern), clean);
    }
    let (opened, report) = check(&|json| json["shards"][0]["seekable"] = false.into(), &pattern);
    let damage = report.unwrap();
    assert!(opened && damage.len() == 1, "{damage:?}");
    assert!(damage[0].shard.ends_with("a.tar"), "{damage:?}");
    assert_eq!(damage[0].cause, "it can be read in any order, the manifest says it cannot");
    // Of a part of its shards a manifest's sums say nothing.
    assert_eq!(check(&|json| swap(json, 0, 1, 1), &format!("{pattern}/a.tar")), clean);
}

#[test]
fn what_cannot_be_counted_contradicts_no_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("manifest.json");
    let image = [&bt_pipeline::shard::raw_header(1, 1)[..], b"rgb"].concat();
    let sample = |key: &str, label: &[u8]| {
        [plain(&format!("{key}.ppm"), &image), plain(&format!("{key}.cls"), label)].concat()
    };
    let (a, b) = (sample("a", b"0"), sample("b", b"1"));
    let shard = |parts: &[&[u8]]| std::fs::write(folder.path().join("a.tar"), parts.concat());
    shard(&[&a, &b, &[0; 1024]]).unwrap();
    let pattern = folder.path().to_string_lossy().into_owned();
    index_shards(&pattern, Some(&manifest), &[], &Limits::default(), 1, &mut |_| {}).unwrap();
    let verified = || verify(&pattern, &OpenOptions::default(), false, 1, &mut |_| {}).unwrap();
    assert_eq!(verified().damage, []);
    // Cut short, and with a label that is none: a sample that is there all the same.
    for (parts, samples) in
        [([&a, &b[..515], &[]], 1), ([&a[..], &sample("b", b"x"), &[0; 1024]], 2)]
    {
        shard(&parts).unwrap();
        let report = verified();
        assert_eq!(report.samples, samples);
        assert!(!report.damage.is_empty());
        assert!(report.damage.iter().all(|it| it.shard.ends_with("a.tar")), "{report:?}");
    }
}

#[test]
fn a_side_index_that_does_not_describe_its_image_is_found_by_verification() {
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("a.tar");
    let jpeg = |seed: u32| {
        let noise =
            |x, y| image::Rgb([x, y, x ^ y].map(|n: u32| (n.wrapping_mul(seed) >> 3) as u8));
        let mut bytes = std::io::Cursor::new(Vec::new());
        let image = image::RgbImage::from_fn(320, 240, noise);
        image.write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
        bytes.into_inner()
    };
    let members = [plain("a.jpg", &jpeg(0x9E37_79B1)), plain("b.jpg", &jpeg(0x85EB_CA77))];
    std::fs::write(&tar, [&members.concat()[..], &[0; 1024]].concat()).unwrap();
    let index = scan(&tar, Depth::Full, &Limits::default()).unwrap().bytes;
    std::fs::write(index_path(&tar), &index).unwrap();
    let set = ShardSet::open(&tar.to_string_lossy(), &OpenOptions::default()).unwrap();
    assert!((0..2).all(|sample| set.has_side_index(sample).unwrap()));
    assert_eq!(verified(&tar), []);
    // The last section holds the side indexes, and the last byte of that is sample b's.
    let field = |at: usize| u64::from_le_bytes(index[at..at + 8].try_into().unwrap()) as usize;
    let section = 64 + 3 * 32;
    let mut damaged = index.clone();
    damaged[field(section + 8) + field(section + 16) - 1] ^= 1;
    std::fs::write(index_path(&tar), &damaged).unwrap();
    let options = OpenOptions::default();
    let found = verify(&tar.to_string_lossy(), &options, false, 1, &mut |_| {}).unwrap().damage;
    assert!(found.len() == 1 && found[0].key.as_deref() == Some("b"), "{found:?}");
    assert!(found[0].cause.contains("side index"), "{found:?}");
}

#[test]
fn an_index_of_other_samples_than_there_are_is_found_by_verification() {
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("a.tar");
    let image = [&bt_pipeline::shard::raw_header(1, 1)[..], b"rgb"].concat();
    let scanned = |keys: &[&str]| {
        let members = keys.iter().map(|key| plain(&format!("{key}.ppm"), &image));
        std::fs::write(&tar, [members.collect::<Vec<_>>().concat(), vec![0; 1024]].concat())
            .unwrap();
        scan(&tar, Depth::Full, &Limits::default()).unwrap().bytes
    };
    for (indexed, there, causes) in [
        (&["a", "b", "c"][..], &["a", "b"][..], &["2 samples, the index says 3"][..]),
        (&["a", "b"], &["a", "b", "c"], &["not in the index", "3 samples, the index says 2"]),
        (&["a", "b"], &["a", "c"], &["the index has sample `b` here"]),
    ] {
        let (index, own) = (scanned(indexed), scanned(there));
        // The shard that it was made for: bytes and fingerprint.
        std::fs::write(index_path(&tar), changed_index(&index, 16, &own[16..32])).unwrap();
        let said: Vec<_> = verified(&tar).into_iter().map(|(_, cause)| cause).collect();
        assert_eq!(said, causes);
    }
}

#[test]
fn an_index_that_is_damaged_or_another_shards_is_found_by_verification() {
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("a.tar");
    let scanned = |value: u8| {
        let image = [&bt_pipeline::shard::raw_header(1, 1)[..], &[value; 3]].concat();
        std::fs::write(&tar, [plain("a.ppm", &image), vec![0; 1024]].concat()).unwrap();
        scan(&tar, Depth::Full, &Limits::default()).unwrap().bytes
    };
    let (other, own) = (scanned(1), scanned(2));
    let mut damaged = own.clone();
    damaged[150] ^= 1;
    for (index, cause) in [(other, "other content"), (damaged, "checksum")] {
        std::fs::write(index_path(&tar), index).unwrap();
        let report =
            verify(&tar.to_string_lossy(), &OpenOptions::default(), false, 1, &mut |_| {}).unwrap();
        assert_eq!((report.indexed, report.samples), (1, 1), "{cause}");
        assert_eq!(report.damage.len(), 1, "{report:?}");
        let text = &report.damage[0].cause;
        assert!(text.contains(cause) && text.contains("shard index"), "{text}");
    }
}

#[test]
fn a_sample_that_cannot_be_read_is_all_that_an_index_is_compared_without() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    // So many that the index still belongs to it: damage between what its fingerprint looks at.
    let image = [&bt_pipeline::shard::raw_header(20, 20)[..], &[7; 1200]].concat();
    let sample = |i: u8| {
        let label = if i == 8 || i == 15 { b'8' } else { b'0' + i % 8 };
        [plain(&format!("{i:02}.cls"), &[label]), plain(&format!("{i:02}.ppm"), &image)]
    };
    let mut tar = (0..18).flat_map(sample).collect::<Vec<_>>().concat();
    tar.extend([0; 1024]);
    std::fs::write(&path, &tar).unwrap();
    index_shards(&path.to_string_lossy(), None, &[], &Limits::default(), 1, &mut |_| {}).unwrap();
    assert_eq!(verified(&path), []);
    // Both samples of the largest label, of which one becomes another and one none.
    for (number, label) in [(8, b'7'), (15, b'x')] {
        let at = number * 3072 + 512;
        assert_eq!(tar[at], b'8');
        tar[at] = label;
    }
    std::fs::write(&path, &tar).unwrap();
    let report =
        verify(&path.to_string_lossy(), &OpenOptions::default(), false, 1, &mut |_| {}).unwrap();
    assert_eq!(report.samples, 18);
    let keys: Vec<_> = report.damage.iter().filter_map(|damage| damage.key.as_deref()).collect();
    assert_eq!((keys, report.damage.len()), (vec!["08", "15"], 2), "{report:?}");
}

#[test]
fn what_is_no_image_is_found_by_those_that_decode_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let image = [&bt_pipeline::shard::raw_header(1, 1)[..], b"rgb"].concat();
    let (a, c) = (plain("a.ppm", &image), plain("c.ppm", &image));
    let members = [a, plain("b.jpg", b"no image"), c, vec![0; 1024]];
    std::fs::write(&path, members.concat()).unwrap();
    let said = verified(&path);
    assert!(said.len() == 1 && said[0].1.starts_with("not an image"), "{said:?}");
    assert_eq!(said[0].0, 1536);
    let pattern = path.to_string_lossy();
    let reports = index_shards(&pattern, None, &[], &Limits::default(), 1, &mut |_| {}).unwrap();
    assert_eq!((reports[0].samples, reports[0].unreadable), (3, 1));
}

/// A link to itself: an error of the system, as of a disk that fails.
#[cfg(unix)]
#[test]
fn an_index_that_cannot_be_looked_at_is_not_taken_for_absent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let image = [&bt_pipeline::shard::raw_header(1, 1)[..], b"rgb"].concat();
    std::fs::write(&path, [plain("a.ppm", &image), vec![0; 1024]].concat()).unwrap();
    assert_eq!(verified(&path), []);
    std::os::unix::fs::symlink(index_path(&path), index_path(&path)).unwrap();
    let said = verified(&path);
    assert!(said.len() == 1 && said[0].1.contains("a.tar.idx"), "{said:?}");
}
