//! Repairs: what seek tables, indexes and a sample's neighbours tell of what is lost.

use bt_pipeline::shard::{Limits, OpenOptions, index_shards, salvage, verify};

use super::salvage::{Archive, Bench, all_but, header};

/// Six samples, compressed: two in the third frame, one in each other, the end with the last. The
/// frames, and the bytes that each has when it is decompressed.
fn framed() -> ([Vec<u8>; 5], [u32; 5]) {
    let members = ["cls", "png"];
    let end = Archive { bytes: vec![0; 1024] };
    let parts = [0..1, 1..2, 2..4, 4..5, 5..6].map(|numbers| Archive::samples(numbers, &members));
    let sizes = parts.each_ref().map(|part| part.bytes.len() as u32);
    let sizes = [sizes[0], sizes[1], sizes[2], sizes[3], sizes[4] + 1024];
    let last = [&parts[4].bytes[..], &end.bytes].concat();
    let [a, b, c, d, _] = parts;
    let tars = [a.bytes, b.bytes, c.bytes, d.bytes, last];
    (tars.map(|tar| zstd::bulk::compress(&tar, 1).unwrap()), sizes)
}

/// Frames and their seek table.
fn seekable(frames: &[Vec<u8>; 5], sizes: &[u32; 5]) -> Vec<u8> {
    let mut bytes = frames.concat();
    let lengths = frames.iter().zip(sizes).flat_map(|(frame, &size)| [frame.len() as u32, size]);
    let head = [0x184D_2A5E, 5 * 8 + 9];
    bytes.extend(head.into_iter().chain(lengths).chain([5]).flat_map(u32::to_le_bytes));
    bytes.push(0);
    bytes.extend(0x8F92_EAB1_u32.to_le_bytes());
    bytes
}

#[test]
fn a_frame_that_is_damaged_or_too_large_costs_the_samples_in_it_alone() {
    let mut bench = Bench { name: "s-000000.tar.zst", ..Bench::new() };
    let (frames, sizes) = framed();
    let whole = seekable(&frames, &sizes);
    let mut torn = frames.clone();
    torn[2].fill(0);
    let torn = seekable(&torn, &sizes);
    let large = u64::from(sizes[2]);
    assert!(sizes.iter().all(|&size| u64::from(size) <= large));
    for (damaged, frame_bytes, cause) in [
        (&torn, large, "a zstd frame cannot be decompressed"),
        (&whole, large - 1, "is over the limit"),
    ] {
        bench.limits.frame_bytes = frame_bytes;
        for indexed in [false, true] {
            bench.write(&whole, damaged, indexed);
            let (saved, lost, faults) = bench.outcome(true);
            let missed = if indexed { vec![2, 3] } else { vec![] };
            assert_eq!((saved, lost), (all_but(6, &[2, 3]), missed), "{cause}");
            assert!(faults.len() == 2 && faults[0].contains(cause), "{faults:?}");
            // What follows stands where it stood.
            let lost = bench.salvage().unwrap().lost;
            let behind: u32 = sizes[..3].iter().sum();
            assert!(lost.iter().any(|it| it.offset == u64::from(behind)), "{lost:?}");
        }
    }
    bench.limits = Limits::default();
    bench.write(&whole, &whole, false);
    assert_eq!(bench.outcome(true), (all_but(6, &[]), vec![], vec![]));
}

#[test]
fn frames_are_expanded_as_far_as_the_limit_and_what_is_beyond_is_told() {
    let mut bench = Bench { name: "s-000000.tar.zst", ..Bench::new() };
    let (frames, sizes) = framed();
    let whole = seekable(&frames, &sizes);
    bench.write(&whole, &whole, false);
    let all: u32 = sizes.iter().sum();
    for (shard_bytes, saved, told) in [(all, 6, 0), (all - 1, 5, 2)] {
        bench.limits.shard_bytes = shard_bytes.into();
        let (numbers, lost, faults) = bench.outcome(true);
        assert_eq!((numbers, lost), ((0..saved).collect(), vec![]));
        assert_eq!(faults.len(), told, "{faults:?}");
        assert!(told == 0 || faults[0].contains("when decompressed (limit)"), "{faults:?}");
    }
}

#[test]
fn headers_whose_checksums_are_sums_of_signed_bytes_are_found() {
    let bench = Bench::new();
    let mut whole = Archive::samples(0..6, &["cls", "png"]).ended();
    for block in whole.chunks_mut(512).filter(|block| block[257..262] == *b"ustar") {
        // A user called ä.
        block[265..267].copy_from_slice(b"\xC3\xA4");
        block[148..156].fill(b' ');
        let sum: i64 = block.iter().map(|&byte| i64::from(byte as i8)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    let mut damaged = whole.clone();
    damaged[header(&whole, "03.png")] ^= 1;
    for (shard, gone) in [(&whole, vec![]), (&damaged, vec![3])] {
        bench.write(&whole, shard, false);
        let (saved, lost, _) = bench.outcome(true);
        assert_eq!((saved, lost), (all_but(6, &gone), gone));
    }
}

#[test]
fn a_window_over_the_limit_is_not_made_for_a_repair() {
    let mut bench = Bench { name: "s-000000.tar.zst", ..Bench::new() };
    let mut stream = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    stream.window_log(20).unwrap();
    std::io::Write::write_all(&mut stream, &Archive::samples(0..3, &["png", "cls"]).ended())
        .unwrap();
    let whole = stream.finish().unwrap();
    bench.write(&whole, &whole, false);
    bench.limits.zstd_window_log = 20;
    assert_eq!(bench.outcome(true), (all_but(3, &[]), vec![], vec![]));
    bench.limits.zstd_window_log = 19;
    let error = bench.salvage().unwrap_err().to_string();
    assert!(error.contains("no sample can be saved: cannot be decompressed further"), "{error}");
}

#[test]
fn a_shard_that_is_not_there_is_told_and_the_others_are_saved() {
    let folder = tempfile::tempdir().unwrap();
    for (name, numbers) in [("a.tar", 0..2), ("b.tar", 2..4)] {
        let tar = Archive::samples(numbers, &["png", "cls"]).ended();
        std::fs::write(folder.path().join(name), tar).unwrap();
    }
    let (manifest, pattern) =
        (folder.path().join("manifest.json"), folder.path().to_string_lossy());
    index_shards(&pattern, Some(&manifest), &[], &Limits::default(), 1, &mut |_| {}).unwrap();
    std::fs::remove_file(folder.path().join("a.tar")).unwrap();
    let options = OpenOptions::default();
    let report = verify(&pattern, &options, false, 1, &mut |_| {}).unwrap();
    assert_eq!((report.shards, report.samples), (2, 2));
    let out = folder.path().join("out");
    let saved = salvage(&pattern, &out, &options, 1, &mut |_| {}).unwrap();
    assert_eq!(saved.packed.manifest.samples, 2);
    for damage in [report.damage, saved.lost] {
        assert!(damage.len() == 1 && damage[0].shard.ends_with("a.tar"), "{damage:?}");
    }
}

#[test]
fn a_sample_that_lacks_what_others_have_beside_the_same_members_is_lost() {
    let bench = Bench::new();
    let (two, three) = (["png", "cls"], ["png", "cls", "json"]);
    let mut archive = Archive::samples(0..6, &three);
    archive.sample(6, &two).sample(7, &three);
    // Members that are the same and lie otherwise tell nothing.
    let mut others = Archive::samples(0..6, &two);
    others.sample(6, &["png", "json", "cls"]).sample(7, &two);
    for (archive, member) in [(archive, "03.json"), (others, "03.png")] {
        let (whole, mut damaged) = (archive.ended(), archive.ended());
        damaged[header(&whole, member)] ^= 1;
        bench.write(&whole, &damaged, false);
        let (saved, lost, _) = bench.outcome(true);
        assert_eq!((saved, lost), (all_but(8, &[3]), vec![3]), "{member}");
    }
}

#[test]
fn an_index_vouches_only_for_the_image_that_it_knows() {
    let bench = Bench::new();
    let (whole, mut damaged) = (raw(0..7, 1).ended(), raw(0..7, 1).ended());
    damaged[header(&whole, "04.ppm")] ^= 1;
    // The index was not made for just these bytes.
    damaged.extend([0; 512]);
    bench.write(&whole, &damaged, true);
    let (saved, lost, _) = bench.outcome(false);
    assert_eq!((saved, lost), (all_but(7, &[4]), vec![4]));
    damaged[header(&whole, "05.ppm") + 1000] ^= 1;
    bench.write(&whole, &damaged, true);
    let (saved, lost, _) = bench.outcome(false);
    assert_eq!((saved, lost), (all_but(7, &[4, 5]), vec![4, 5]));
}

/// Samples whose images can be decoded whatever their bytes are.
fn raw(numbers: std::ops::Range<u8>, value: u8) -> Archive {
    let mut archive = Archive::default();
    for number in numbers {
        let image = [&bt_pipeline::shard::raw_header(20, 20)[..], &[value; 1200]].concat();
        archive.add(&format!("{number:02}.ppm"), &image, b'0');
    }
    archive
}

#[test]
fn an_image_that_is_not_the_indexs_is_lost_only_where_the_index_is_the_shards() {
    let bench = Bench::new();
    let (whole, mut damaged) = (raw(0..30, 1).ended(), raw(0..30, 1).ended());
    // Where the fingerprint of the index does not look.
    damaged[header(&whole, "10.ppm") + 1000] ^= 1;
    bench.write(&whole, &damaged, true);
    let (saved, lost, faults) = bench.outcome(false);
    assert_eq!((saved, lost, faults), (all_but(30, &[10]), vec![10], vec![]));
    // Of an index of another shard with the same keys nothing is believed ...
    bench.write(&raw(0..6, 2).ended(), &raw(0..7, 1).ended(), true);
    assert_eq!(bench.outcome(false), (all_but(7, &[]), vec![], vec![]));
    // ... and of one with other keys nothing is missing.
    bench.write(&raw(50..60, 1).ended(), &raw(0..7, 1).ended(), true);
    assert_eq!(bench.outcome(false), (all_but(7, &[]), vec![], vec![]));
}

#[test]
fn samples_that_are_missed_are_told_in_the_order_of_the_shard() {
    let bench = Bench::new();
    let whole = raw(0..30, 1).ended();
    bench.write(&whole, &whole[..header(&whole, "05.ppm")], true);
    let saved = bench.salvage().unwrap();
    let lost: Vec<_> = saved.lost.iter().filter_map(|lost| lost.key.clone()).collect();
    assert_eq!(lost, (5..30).map(|number| format!("{number:02}")).collect::<Vec<_>>());
}

#[test]
fn where_some_samples_have_a_label_one_before_damage_without_it_is_not_believed() {
    let bench = Bench::new();
    let mut archive = Archive::samples(0..3, &["png"]);
    for number in 3..6 {
        // No other has an image of this kind, so that no other is like a part of these.
        let image = [&bt_pipeline::shard::raw_header(1, 1)[..], b"rgb"].concat();
        archive.add(&format!("{number:02}.ppm"), &image, b'0');
        archive.add(&format!("{number:02}.cls"), b"1", b'0');
    }
    let whole = archive.sample(6, &["png", "cls"]).sample(7, &["png"]).ended();
    let mut damaged = whole.clone();
    damaged[header(&whole, "06.cls")] ^= 1;
    bench.write(&whole, &damaged, false);
    let lost = bench.salvage().unwrap().lost;
    let keys: Vec<_> = lost.iter().filter_map(|lost| lost.key.as_deref()).collect();
    assert_eq!(keys, ["06", "07"], "{lost:?}");
}

#[test]
fn a_name_that_is_too_long_for_readers_costs_its_sample_alone() {
    let mut bench = Bench::new();
    bench.limits.name_bytes = 120;
    let (folder, key, extension) = ("d".repeat(50), "k".repeat(30), "e".repeat(30));
    let mut archive = raw(0..2, 1);
    for extension in ["ppm", &extension] {
        let image = [&bt_pipeline::shard::raw_header(1, 1)[..], b"rgb"].concat();
        archive.add(&format!("{folder}/{key}.{extension}"), &image, b'0');
    }
    archive.bytes.extend(raw(2..4, 1).bytes);
    bench.write(&archive.ended(), &archive.ended(), false);
    let saved = bench.salvage().unwrap();
    assert_eq!((saved.packed.manifest.samples, saved.lost.len()), (4, 1));
    assert_eq!(saved.lost[0].cause, "its name is too long");
}

#[test]
fn an_image_with_bytes_missing_or_too_many_is_lost_though_it_can_be_decoded() {
    let bench = Bench::new();
    let mut archive = Archive::default();
    for number in 0..8u8 {
        archive.add(&format!("{number:02}.cls"), &[b'0' + number % 7], b'0');
        archive.bytes.extend(raw(number..number + 1, 1).bytes);
    }
    let whole = archive.ended();
    for (missing, more) in [(100, 0), (512, 0), (700, 0), (0, 100), (0, 700)] {
        let (at, mut damaged) = (header(&whole, "04.ppm") + 600, whole.clone());
        damaged.splice(at..at + missing, std::iter::repeat_n(0xA5, more));
        bench.write(&whole, &damaged, false);
        let (saved, lost, faults) = bench.outcome(true);
        assert_eq!((saved, lost), (all_but(8, &[4]), vec![4]), "{missing} {more}: {faults:?}");
    }
}

#[test]
fn an_index_vouches_for_a_sample_only_with_all_its_members() {
    let bench = Bench::new();
    let whole = Archive::samples(0..8, &["png", "cls", "json"]).ended();
    let mut damaged = whole.clone();
    // Image and label of sample 4 are there.
    damaged[header(&whole, "04.json")] ^= 1;
    bench.write(&whole, &damaged, true);
    let (saved, lost, _) = bench.outcome(true);
    assert_eq!((saved, lost), (all_but(8, &[4]), vec![4]));
}

#[test]
fn labels_that_are_others_than_in_an_index_made_for_other_bytes_are_kept() {
    let bench = Bench::new();
    let shard = Archive::samples(0..6, &["cls", "png"]).ended();
    let mut before = shard.clone();
    for number in 0..6 {
        before[header(&shard, &format!("{number:02}.cls")) + 512] = b'9';
    }
    bench.write(&before, &[&shard[..], &[0; 512]].concat(), true);
    assert_eq!(bench.outcome(true), (all_but(6, &[]), vec![], vec![]));
}

#[test]
fn of_samples_of_very_many_kinds_none_tells_what_another_lacks() {
    let bench = Bench::new();
    for (kinds, beside) in [(63, 0), (64, 1)] {
        let mut archive = Archive::samples(0..1, &["png", "cls"]);
        for kind in 1..=kinds {
            archive.sample(kind, &["png", &format!("x{kind}"), "cls"]);
        }
        let torn = kinds + 2;
        for number in torn - 1..=torn + 1 {
            archive.sample(number, &["png", "cls"]);
        }
        let (whole, mut damaged) = (archive.ended(), archive.ended());
        damaged[header(&whole, &format!("{torn:02}.png"))] ^= 1;
        bench.write(&whole, &damaged, false);
        let gone: Vec<u64> = (torn - beside..=torn).collect();
        let (saved, lost, _) = bench.outcome(true);
        assert_eq!((saved, lost), (all_but(torn + 2, &gone), gone), "{kinds}");
    }
}
