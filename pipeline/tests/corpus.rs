//! Damaged input of every kind we know, each in a set of good samples: a bad
//! sample is left out and listed, a bad file is refused in one line; nothing
//! panics, nothing hangs, memory stays bounded. `shard/damage.rs` has the tars.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bt_pipeline::augment::Preset;
use bt_pipeline::shard::{
    Depth, Limits, OpenOptions, ShardSet, index_path, index_shards, scan, verify,
};
use bt_pipeline::synth::{self, Spec};
use bt_pipeline::{Loader, LoaderConfig, OnBad, Position};
use image::{ExtendedColorType, ImageEncoder};

/// Good samples around the bad one.
const GOOD: u64 = 15;
/// Longest that one case may take; all take milliseconds.
const TIME: Duration = Duration::from_secs(20);

/// How one damaged input ends.
#[derive(Debug, PartialEq)]
enum End {
    /// The epoch is complete; so many samples are in the ledger.
    Listed(usize),
    /// Opening or reading failed with this line.
    Refused(String),
}

/// Opens the set and reads two epochs, with `shard verify` on the side.
fn end_of(folder: &Path, limits: Limits) -> End {
    let pattern = folder.to_str().unwrap().to_owned();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let options = OpenOptions { limits, ..OpenOptions::default() };
        let _ = verify(&pattern, &options, true, 1, &mut |_| {});
        let run = || -> bt_pipeline::Result<usize> {
            let set = Arc::new(ShardSet::open(&pattern, &options)?);
            let mut config = LoaderConfig::training(Preset::BarlowCifar.views(), 1, 3);
            (config.threads, config.max_bad, config.on_bad) = (2, 0.5, OnBad::Skip);
            config.decode.max_bytes = limits.member_bytes;
            if !set.seekable() {
                config.shuffle = bt_pipeline::Shuffle::Window { shards: 1, samples: 4 };
            }
            let mut stream = Loader::new(set, config)?.start(Position::default(), 2)?;
            stream.by_ref().try_for_each(|batch| batch.map(drop))?;
            Ok(stream.stats().take_bad().len())
        };
        let _ = sender.send(match run() {
            Ok(listed) => End::Listed(listed),
            Err(error) => End::Refused(error.to_string()),
        });
    });
    receiver.recv_timeout(TIME).expect("the case hangs, or its thread panicked")
}

fn member(name: &str, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_size(data.len() as u64);
    header.set_cksum();
    let mut bytes = [header.as_bytes(), data].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A tar of good samples with `middle` between them.
fn tar_with(middle: &[u8]) -> Vec<u8> {
    let spec = Spec { images: GOOD, side: 20, ..Spec::default() };
    let mut tar = Vec::new();
    for sample in 0..GOOD {
        if sample == GOOD / 2 {
            tar.extend(middle);
        }
        let (image, label) = synth::draw(&spec, sample);
        tar.extend(member(&format!("{sample:04}.png"), &synth::encode_png(&image).unwrap()));
        tar.extend(member(&format!("{sample:04}.cls"), label.to_string().as_bytes()));
    }
    tar.extend([0; 1024]);
    tar
}

/// A 40 x 30 picture with some texture, coded by `image`.
fn coded(extension: &str) -> Vec<u8> {
    let pixels: Vec<u8> =
        (0..40 * 30 * 3).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 27) as u8 * 8).collect();
    let mut out = Vec::new();
    let rgb = ExtendedColorType::Rgb8;
    match extension {
        "jpg" => image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, 85)
            .write_image(&pixels, 40, 30, rgb)
            .unwrap(),
        "png" => {
            image::codecs::png::PngEncoder::new(&mut out).write_image(&pixels, 40, 30, rgb).unwrap()
        }
        "bmp" => {
            image::codecs::bmp::BmpEncoder::new(&mut out)
                .write_image(&pixels, 40, 30, rgb)
                .unwrap();
        }
        _ => out = [b"P6 40 30 255\n", &pixels[..]].concat(),
    }
    out
}

fn find(bytes: &[u8], marker: &[u8]) -> usize {
    bytes.windows(marker.len()).position(|window| window == marker).unwrap()
}

fn changed(bytes: &[u8], at: usize, to: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

/// A PNG's chunk with its CRC.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [&kind[..], data].concat();
    let mut crc = !0u32;
    for &byte in &body {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    [&(data.len() as u32).to_be_bytes()[..], &body, &(!crc).to_be_bytes()].concat()
}

/// Images that cannot be used, with their extension.
fn bad_images() -> Vec<(String, &'static str, Vec<u8>)> {
    let (jpg, png, ppm, bmp) = (coded("jpg"), coded("png"), coded("ppm"), coded("bmp"));
    let mut cases: Vec<(String, &'static str, Vec<u8>)> = Vec::new();
    for (extension, bytes) in [("jpg", &jpg), ("png", &png), ("ppm", &ppm), ("bmp", &bmp)] {
        let mut add = |what: &str, bytes: Vec<u8>| {
            cases.push((format!("{extension}: {what}"), extension, bytes));
        };
        for percent in [1, 20, 50, 80] {
            add(&format!("{percent}% of it"), bytes[..bytes.len() * percent / 100].to_vec());
        }
        add("no byte", Vec::new());
        add("zeros", vec![0; 2000]);
        add("noise", (0..2000u32).map(|i| (i.wrapping_mul(2_246_822_519) >> 21) as u8).collect());
        add("text", b"<html>404 not found</html>".to_vec());
    }
    let (sof, dht) = (find(&jpg, &[0xFF, 0xC0]), find(&jpg, &[0xFF, 0xC4]));
    let (dqt, sos) = (find(&jpg, &[0xFF, 0xDB]), find(&jpg, &[0xFF, 0xDA]));
    let header =
        [b"\x89PNG\r\n\x1A\n", &chunk(b"IHDR", b"\0\0\xEA\x60\0\0\xEA\x60\x08\x02\0\0\0")[..]]
            .concat();
    let pieces: Vec<(&str, &'static str, Vec<u8>)> = vec![
        ("jpg: 60,000 x 60,000", "jpg", changed(&jpg, sof + 5, &[0xEA, 0x60, 0xEA, 0x60])),
        ("jpg: no columns", "jpg", changed(&jpg, sof + 7, &[0, 0])),
        ("jpg: no component", "jpg", changed(&jpg, sof + 9, &[0])),
        ("jpg: nine components", "jpg", changed(&jpg, sof + 9, &[9])),
        ("jpg: sampling 0 x 0", "jpg", changed(&jpg, sof + 11, &[0])),
        ("jpg: sampling 15 x 15", "jpg", changed(&jpg, sof + 11, &[0xFF])),
        ("jpg: precision 0", "jpg", changed(&jpg, sof + 4, &[0])),
        ("jpg: arithmetic coding", "jpg", changed(&jpg, sof + 1, &[0xC9])),
        ("jpg: lossless", "jpg", changed(&jpg, sof + 1, &[0xC3])),
        ("jpg: no frame header", "jpg", changed(&jpg, sof + 1, &[0xFE])),
        ("jpg: a scan with tables that are not there", "jpg", changed(&jpg, sos + 6, &[0x33])),
        ("jpg: a Huffman table of 16 x 255 codes", "jpg", changed(&jpg, dht + 5, &[0xFF; 16])),
        ("jpg: a table longer than the file", "jpg", changed(&jpg, dht + 2, &[0xFF, 0xFF])),
        ("jpg: a segment of length 0", "jpg", changed(&jpg, dqt + 2, &[0, 0])),
        ("jpg: no scan", "jpg", jpg[..sos].to_vec()),
        ("jpg: a scan of no data", "jpg", jpg[..sos + 14].to_vec()),
        ("png: 60,000 x 60,000", "png", [&header[..], &png[33..]].concat()),
        ("png: a chunk of another CRC", "png", changed(&png, png.len() / 2, b"XXXX")),
        ("png: no columns", "png", changed(&png, 16, &[0; 4])),
        ("png: no data", "png", png[..33].to_vec()),
        ("ppm: 60,000 x 60,000", "ppm", b"P6 60000 60000 255\n123".to_vec()),
        ("ppm: 2^64 - 1 columns", "ppm", b"P6 18446744073709551615 1 255\n123".to_vec()),
        ("ppm: no columns", "ppm", b"P6 0 1 255\n".to_vec()),
        ("ppm: no numbers", "ppm", b"P6 x y z\n".to_vec()),
        ("bmp: 2^31 - 1 columns", "bmp", changed(&bmp, 18, &[0xFF, 0xFF, 0xFF, 0x7F])),
        ("webp: a header alone", "webp", b"RIFF\x1A\0\0\0WEBPVP8 ".to_vec()),
        ("gif: 65,535 x 65,535", "gif", b"GIF89a\xFF\xFF\xFF\xFF\0\0\0".to_vec()),
        (
            "tif: a directory that holds itself",
            "tif",
            b"II\x2A\0\x08\0\0\0\x01\0\x08\0\0\0".to_vec(),
        ),
    ];
    cases.extend(pieces.into_iter().map(|(what, ext, bytes)| (what.to_owned(), ext, bytes)));
    cases
}

#[test]
fn a_bad_image_of_any_kind_is_left_out_and_listed_once() {
    let cases = bad_images();
    assert!(cases.len() >= 60, "{}", cases.len());
    let before = peak_memory();
    for (what, extension, bytes) in cases {
        let folder = tempfile::tempdir().unwrap();
        let middle =
            [member(&format!("bad.{extension}"), &bytes), member("bad.cls", b"1")].concat();
        std::fs::write(folder.path().join("a.tar"), tar_with(&middle)).unwrap();
        assert_eq!(end_of(folder.path(), Limits::default()), End::Listed(1), "{what}");
    }
    let grown = peak_memory().saturating_sub(before);
    assert!(grown < 100 << 20, "the peak of memory grew by {} MB", grown >> 20);
}

#[test]
fn a_bomb_is_refused_before_it_goes_off() {
    let before = peak_memory();
    let refused = |name: &str, bytes: &[u8], limits: Limits, expected: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), bytes).unwrap();
        match end_of(folder.path(), limits) {
            End::Refused(text) => {
                assert!(text.contains(expected) && text.lines().count() == 1, "{name}: {text}");
            }
            End::Listed(count) => panic!("{name}: read, {count} listed"),
        }
    };
    let small = Limits { member_bytes: 1 << 20, ..Limits::default() };
    // A gigabyte of zeros in some 100 KB: a member over the limit.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_path("bomb.png").unwrap();
    header.set_size(1 << 30);
    header.set_cksum();
    std::io::Write::write_all(&mut encoder, header.as_bytes()).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 1 << 30), &mut encoder).unwrap();
    let bomb = encoder.finish().unwrap();
    refused("bomb.tar.zst", &bomb, small, "limit");
    // A window of 2 GiB.
    let window = [&[0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xA8][..], &[0; 64]].concat();
    refused("window.tar.zst", &window, Limits::default(), "window.tar.zst");
    let mut claims = tar_with(&[]);
    claims[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    let sum: u32 =
        (0..512).map(|i| if (148..156).contains(&i) { 32 } else { u32::from(claims[i]) }).sum();
    claims[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    refused("claims.tar", &claims, Limits::default(), "claims.tar");
    let grown = peak_memory().saturating_sub(before);
    assert!(grown < 150 << 20, "the peak of memory grew by {} MB", grown >> 20);
}

#[test]
fn a_damaged_index_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let shard = folder.path().join("a.tar");
    std::fs::write(&shard, tar_with(&[])).unwrap();
    let index = scan(&shard, Depth::Full, &Limits::default()).unwrap().bytes;
    let other = {
        let path = folder.path().join("b.tar");
        std::fs::write(&path, tar_with(&member("more.png", &coded("png")))).unwrap();
        let bytes = scan(&path, Depth::Full, &Limits::default()).unwrap().bytes;
        std::fs::remove_file(path).unwrap();
        bytes
    };
    let mut cases: Vec<(String, Vec<u8>)> = vec![
        ("no byte".into(), Vec::new()),
        ("zeros".into(), vec![0; index.len()]),
        ("of another shard".into(), other),
        ("text".into(), b"not an index ".repeat(99)),
        ("one byte more".into(), [&index[..], b"x"].concat()),
    ];
    for percent in [1, 10, 30, 60, 99] {
        cases.push((format!("{percent}%"), index[..index.len() * percent / 100].to_vec()));
    }
    for at in (0..index.len()).step_by(index.len() / 24) {
        cases.push((format!("byte {at} flipped"), changed(&index, at, &[index[at] ^ 0x20])));
    }
    for (what, bytes) in cases {
        std::fs::write(index_path(&shard), bytes).unwrap();
        match end_of(folder.path(), Limits::default()) {
            End::Refused(text) => {
                assert!(text.contains("a.tar") && text.lines().count() == 1, "{what}: {text}");
            }
            // Padding between sections holds nothing.
            End::Listed(listed) => assert!(listed == 0 && what.starts_with("byte"), "{what}"),
        }
    }
    // What the line says to do helps.
    let pattern = shard.to_str().unwrap();
    index_shards(pattern, None, &[], &Limits::default(), 1, &mut |_| {}).unwrap();
    assert_eq!(end_of(folder.path(), Limits::default()), End::Listed(0));
}

#[test]
fn a_damaged_zstd_shard_is_refused_or_its_samples_are_listed() {
    let tar = tar_with(&[]);
    let whole = zstd::encode_all(&tar[..], 3).unwrap();
    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    for percent in [1, 10, 50, 90, 99] {
        cases.push((format!("{percent}%"), whole[..whole.len() * percent / 100].to_vec()));
    }
    for part in 1..12 {
        let at = whole.len() * part / 12;
        cases.push((format!("byte {at} flipped"), changed(&whole, at, &[whole[at] ^ 0x10])));
    }
    cases.push(("another frame's beginning".into(), [&whole[..], &whole[..20]].concat()));
    cases.push(("noise behind it".into(), [&whole[..], b"noise"].concat()));
    let mut refused = 0;
    for (what, bytes) in cases {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.tar.zst"), bytes).unwrap();
        match end_of(folder.path(), Limits::default()) {
            End::Refused(text) => {
                refused += 1;
                assert!(text.contains("a.tar.zst") && text.lines().count() == 1, "{what}: {text}");
            }
            End::Listed(_) => {}
        }
    }
    // A frame without a checksum hides a flipped bit, and then the images show it.
    assert!(refused >= 5, "{refused}");
}

/// Archives with damage between their samples, each kind in several places, with what is to be
/// found in the answer; none where samples are listed instead.
fn bad_tars() -> Vec<(String, Vec<u8>, Option<&'static str>)> {
    let tar = tar_with(&[]);
    // Of the images: labels fit into a block, so that less of them can be lost.
    let headers: Vec<usize> = (0..tar.len() - 1024)
        .step_by(512)
        .filter(|&at| tar[at + 4..].starts_with(b".png\0"))
        .collect();
    assert_eq!(headers.len() as u64, GOOD);
    let mut cases = Vec::new();
    let mut add = |what: String, bytes: Vec<u8>, answer| cases.push((what, bytes, answer));
    for part in 1..8 {
        let at = headers[headers.len() * part / 8];
        let inserted = |bytes: &[u8]| [&tar[..at], bytes, &tar[at..]].concat();
        let without = |bytes: usize| [&tar[..at], &tar[at + bytes..]].concat();
        add(
            format!("ends in a header, at {at}"),
            tar[..at + 100].to_vec(),
            Some("inside a header"),
        );
        add(format!("ends in data, at {at}"), tar[..at + 513].to_vec(), Some("cut short"));
        add(
            format!("half a header of zeros at {at}"),
            changed(&tar, at, &[0; 256]),
            Some("header"),
        );
        add(
            format!("a header of another file's name at {at}"),
            changed(&tar, at, b"x"),
            Some("checksum"),
        );
        add(format!("noise of a block at {at}"), inserted(&[0x5A; 512]), Some("header"));
        add(format!("noise of no block's length at {at}"), inserted(&[0x5A; 777]), Some("header"));
        add(format!("100 bytes are missing at {at}"), without(100), Some("header"));
        // What is left are its data, which are no header.
        add(format!("a header is missing at {at}"), without(512), Some("header"));
    }
    for (what, label) in [("no number", &b"cat"[..]), ("none", b""), ("too large", b"4000000000")] {
        let sample = [member("bad.png", &coded("png")), member("bad.cls", label)].concat();
        add(format!("a label that is {what}"), tar_with(&sample), None);
    }
    let twice = [member("bad.png", &coded("png")), member("bad.PNG", &coded("png"))].concat();
    add("a key with two images".to_owned(), tar_with(&twice), None);
    cases
}

#[test]
fn a_damaged_tar_is_refused_where_it_is_damaged_and_a_bad_sample_of_it_is_listed() {
    let before = peak_memory();
    for (what, bytes, answer) in bad_tars() {
        for compressed in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let name = if compressed { "a.tar.zst" } else { "a.tar" };
            let stored =
                if compressed { zstd::encode_all(&bytes[..], 1).unwrap() } else { bytes.clone() };
            std::fs::write(folder.path().join(name), stored).unwrap();
            match (answer, end_of(folder.path(), Limits::default())) {
                (Some(part), End::Refused(text)) => {
                    assert!(text.contains(name) && text.contains(part), "{what}: {text}");
                    assert!(text.lines().count() == 1, "{what}: {text}");
                }
                (None, end) => assert_eq!(end, End::Listed(1), "{what}"),
                (_, end) => panic!("{what}: {end:?}"),
            }
        }
    }
    let grown = peak_memory().saturating_sub(before);
    assert!(grown < 100 << 20, "the peak of memory grew by {} MB", grown >> 20);
}

#[test]
fn a_manifest_or_a_shard_that_does_not_fit_the_other_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let shard = folder.path().join("a.tar");
    let manifest = folder.path().join("a.manifest.json");
    let whole = tar_with(&[]);
    std::fs::write(&shard, &whole).unwrap();
    let pattern = shard.to_str().unwrap();
    index_shards(pattern, Some(&manifest), &[], &Limits::default(), 1, &mut |_| {}).unwrap();
    let text = std::fs::read(&manifest).unwrap();
    assert_eq!(end_of(folder.path(), Limits::default()), End::Listed(0));
    let longer = tar_with(&member("more.png", &coded("png")));
    let other = changed(&whole, 600, &[whole[600] ^ 1]);
    let mut cases: Vec<(String, &[u8], Vec<u8>)> = vec![
        ("the shard became longer".into(), &longer, text.clone()),
        ("the shard became shorter".into(), &whole[..whole.len() - 512], text.clone()),
        ("the shard is empty".into(), b"", text.clone()),
        ("a shard of the same length".into(), &other, text.clone()),
        ("a manifest nested 100,000 deep".into(), &whole, {
            let format = b"{\"format\": \"bt-stream shards\", \"shards\": ".to_vec();
            [format, vec![b'['; 100_000]].concat()
        }),
    ];
    // Whatever byte of it changes: refused, or what it says still holds.
    for at in (0..text.len()).step_by(text.len() / 24) {
        let bytes = changed(&text, at, &[text[at] ^ 0x10]);
        cases.push((format!("byte {at} of the manifest flipped"), &whole, bytes));
    }
    let mut refused = 0;
    for (what, tar, json) in &cases {
        std::fs::write(&shard, tar).unwrap();
        std::fs::write(&manifest, json).unwrap();
        match end_of(folder.path(), Limits::default()) {
            End::Refused(text) => {
                refused += 1;
                assert!(text.contains("a.") && text.lines().count() == 1, "{what}: {text}");
            }
            End::Listed(listed) => {
                assert!(
                    listed == 0 && (what.starts_with("byte") || what.contains("nested")),
                    "{what}"
                );
            }
        }
    }
    assert!(refused >= 10, "{refused} of {}", cases.len());
}

/// The largest resident size so far, in bytes; 0 where the system does not say.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kilobytes.unwrap_or(0u64) << 10
}
