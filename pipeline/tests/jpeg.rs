//! The JPEG decoder against Pillow's pixels, against itself, and against damage.

#[path = "common/region.rs"]
mod region;

use std::path::{Path, PathBuf};

use bt_pipeline::Image;
use bt_pipeline::Level;
use bt_pipeline::jpeg::{Jpeg, JpegDecoder, JpegError, Region, SideIndex};
use bt_pipeline::rng::Rng;
use region::{check_regions, crop, random_region};

fn fixture_folder() -> PathBuf {
    match std::env::var_os("BT_JPEG_FIXTURES") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpeg"),
    }
}

/// Names, JPEG bytes and expected pixels.
fn fixtures() -> Vec<(String, Vec<u8>, Image)> {
    let mut paths: Vec<_> =
        std::fs::read_dir(fixture_folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "jpg"));
    paths.sort();
    assert!(paths.len() > 40);
    let load = |path: PathBuf| {
        let expected = image::open(path.with_extension("png")).unwrap().into_rgb8();
        let (width, height) = (expected.width() as usize, expected.height() as usize);
        let expected = Image { width, height, pixels_hwc: expected.into_raw() };
        (path.file_stem().unwrap().display().to_string(), std::fs::read(path).unwrap(), expected)
    };
    paths.into_iter().map(load).collect()
}

/// The fixtures that side indexes are for: those of a single scan.
fn indexable() -> impl Iterator<Item = (String, Vec<u8>, Image)> {
    fixtures()
        .into_iter()
        .filter(|(_, bytes, _)| bytes.windows(2).filter(|pair| *pair == [0xFF, 0xDA]).count() == 1)
}

fn decode(bytes: &[u8]) -> Result<Image, JpegError> {
    let mut out = Image::default();
    JpegDecoder::new().decode_into(&Jpeg::parse(bytes)?, &mut out)?;
    Ok(out)
}

fn worst_difference(a: &Image, b: &Image) -> u8 {
    assert_eq!((a.width, a.height), (b.width, b.height));
    a.pixels_hwc.iter().zip(&b.pixels_hwc).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

#[test]
fn fixtures_decode_to_pillows_pixels_on_every_path() {
    for (name, bytes, expected) in fixtures() {
        let jpeg = Jpeg::parse(&bytes).unwrap();
        for level in Level::available() {
            let mut out = Image::default();
            JpegDecoder::with_level(level).decode_into(&jpeg, &mut out).unwrap();
            // 0, not 1: the arithmetic is libjpeg's.
            assert_eq!(worst_difference(&out, &expected), 0, "{name}, {level:?}");
        }
    }
}

#[test]
fn a_region_is_the_crop_of_the_whole() {
    let mut rng = Rng::keyed(5, 0, 0, 0);
    let mut decoder = JpegDecoder::new();
    let mut out = Image::default();
    for (name, bytes, expected) in fixtures() {
        let jpeg = Jpeg::parse(&bytes).unwrap();
        for _ in 0..200 {
            let region = random_region(&mut rng, expected.width, expected.height);
            decoder.decode_region_into(&jpeg, region, None, &mut out).unwrap();
            assert!(out == crop(&expected, region), "{name}, {region:?}");
        }
    }
}

#[test]
fn regions_are_each_the_crop_of_the_whole() {
    let mut rng = Rng::keyed(14, 0, 0, 0);
    for (name, bytes, expected) in fixtures() {
        let jpeg = Jpeg::parse(&bytes).unwrap();
        let index = SideIndex::build_with_spacing(&bytes, 2).ok();
        for level in Level::available() {
            for index in [None, index.as_ref()] {
                for _ in 0..30 {
                    // A new one: what was not decoded is not there from another time.
                    let mut decoder = JpegDecoder::with_level(level);
                    check_regions(&mut rng, &expected, |regions, out| {
                        decoder.decode_regions_into(&jpeg, regions, index, out).unwrap()
                    });
                    assert_eq!(decoder.used_index(), index.is_some(), "{name}, {level}");
                }
            }
        }
    }
    let (name, bytes, _) = &fixtures()[0];
    let none = JpegDecoder::new().decode_regions_into(
        &Jpeg::parse(bytes).unwrap(),
        &[],
        None,
        &mut Image::default(),
    );
    assert!(matches!(none, Err(JpegError::Region { .. })), "{name}");
}

/// A picture of many blocks: smooth on the left, noise on the right.
fn large_jpeg(quality: u8) -> Vec<u8> {
    let mut rng = Rng::keyed(8, 0, 0, 0);
    let picture = image::RgbImage::from_fn(500, 390, |x, y| {
        let noise = rng.below(1 + u64::from(x) / 2) as u32;
        image::Rgb([x / 2 + noise / 8, y / 2 + noise / 4, noise].map(|v| v.min(255) as u8))
    });
    let mut bytes = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, quality);
    picture.write_with_encoder(encoder).unwrap();
    bytes
}

#[test]
fn regions_of_large_pictures_are_the_same_with_and_without_an_index() {
    let mut rng = Rng::keyed(9, 0, 0, 0);
    let small = fixtures();
    let (mut whole, mut out) = (Image::default(), Image::default());
    for level in Level::available() {
        let mut decoder = JpegDecoder::with_level(level);
        for (number, quality) in [100, 90, 40, 100].into_iter().enumerate() {
            let bytes = large_jpeg(quality);
            let jpeg = Jpeg::parse(&bytes).unwrap();
            let index = SideIndex::build_with_spacing(&bytes, 4).unwrap();
            let full = Region { left: 0, top: 0, width: jpeg.width(), height: jpeg.height() };
            decoder.decode_region_into(&jpeg, full, Some(&index), &mut whole).unwrap();
            assert!(decoder.used_index());
            for _ in 0..20 {
                // Tables of its own, in between.
                let (_, other, _) = &small[number];
                decoder.decode_into(&Jpeg::parse(other).unwrap(), &mut out).unwrap();
                let region = random_region(&mut rng, whole.width, whole.height);
                decoder.decode_region_into(&jpeg, region, None, &mut out).unwrap();
                assert!(out == crop(&whole, region), "quality {quality}, {region:?}");
                for index in [None, Some(&index)] {
                    check_regions(&mut rng, &whole, |regions, out| {
                        decoder.decode_regions_into(&jpeg, regions, index, out).unwrap()
                    });
                }
            }
        }
    }
}

#[test]
fn fill_bytes_change_nothing_wherever_they_are() {
    let (mut rng, mut out) = (Rng::keyed(13, 0, 0, 0), Image::default());
    let mut filled = 0;
    for (name, bytes, expected) in indexable() {
        let scan = bytes.windows(2).position(|pair| pair == [0xFF, 0xDA]).unwrap() + 2;
        let data = bytes[scan..].iter();
        let data = data.flat_map(|&byte| {
            let fill = if byte == 0xFF { rng.below(4) as usize } else { 0 };
            filled += fill;
            std::iter::repeat_n(0xFF, fill).chain([byte])
        });
        let bytes = [&bytes[..scan], &data.collect::<Vec<_>>()].concat();
        let jpeg = Jpeg::parse(&bytes).unwrap();
        let index = SideIndex::build_with_spacing(&bytes, 2).unwrap();
        for level in Level::available() {
            let mut decoder = JpegDecoder::with_level(level);
            for index in [None, Some(&index)] {
                for _ in 0..10 {
                    let region = random_region(&mut rng, expected.width, expected.height);
                    decoder.decode_region_into(&jpeg, region, index, &mut out).unwrap();
                    assert!(out == crop(&expected, region), "{name}, {region:?}");
                    assert_eq!(decoder.used_index(), index.is_some(), "{name}, {region:?}");
                }
            }
        }
    }
    assert!(filled > 500, "{filled}");
}

#[test]
fn tables_that_are_neither_there_nor_standard_are_an_error() {
    let fixture = |name| fixtures().into_iter().find(|f| f.0 == name).unwrap().1;
    // Table 2 of a sequential JPEG; progressive ones have no standard tables.
    let mut bytes = fixture("no_tables_gray");
    let scan = bytes.windows(2).position(|pair| pair == [0xFF, 0xDA]).unwrap();
    bytes[scan + 6] = 0x22;
    assert!(matches!(decode(&bytes), Err(JpegError::Corrupt(_))));
    let mut bytes = fixture("progressive_gray_33x17");
    for at in 0..bytes.len() - 1 {
        if bytes[at..at + 2] == [0xFF, 0xC4] {
            // A segment for a program.
            bytes[at + 1] = 0xEF;
        }
    }
    assert!(matches!(decode(&bytes), Err(JpegError::Corrupt(_))));
}

/// A JPEG of a scan for each component, with the quantisation tables right before the scans, all of
/// them table 0 if it is `reused`.
fn tables_before_scans(bytes: &[u8], reused: bool) -> Vec<u8> {
    let (mut tables, mut numbers) = (vec![&[][..]; 4], [0; 256]);
    let (mut out, mut at) = (bytes[..2].to_vec(), 2);
    while bytes[at + 1] != 0xD9 {
        let length = usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
        let mut end = at + 2 + length;
        let mut segment = bytes[at..end].to_vec();
        match segment[1] {
            0xDB => {
                for table in bytes[at + 4..end].chunks_exact(65) {
                    tables[usize::from(table[0])] = &table[1..];
                }
                segment.clear();
            }
            0xC0 | 0xC1 => {
                for field in segment[10..].chunks_exact_mut(3) {
                    numbers[usize::from(field[0])] = field[2];
                    field[2] *= u8::from(!reused);
                }
            }
            0xDA => {
                for component in segment[5..].chunks_exact(2).take(usize::from(segment[4])) {
                    let number = numbers[usize::from(component[0])];
                    out.extend([0xFF, 0xDB, 0, 67, number * u8::from(!reused)]);
                    out.extend(tables[usize::from(number)]);
                }
                let is_marker = |at: &usize| {
                    bytes[*at] == 0xFF && !matches!(bytes[at + 1], 0 | 0xD0..=0xD7 | 0xFF)
                };
                end = (end..bytes.len() - 1).find(is_marker).unwrap();
                segment = bytes[at..end].to_vec();
            }
            _ => {}
        }
        out.extend(segment);
        at = end;
    }
    [out, bytes[at..].to_vec()].concat()
}

#[test]
fn a_component_has_the_quantisation_table_of_its_first_scan() {
    let found = |prefix: &'static str| {
        fixtures().into_iter().filter(move |(name, ..)| name.starts_with(prefix))
    };
    for (name, bytes, expected) in found("by_component") {
        for reused in [false, true] {
            let bytes = tables_before_scans(&bytes, reused);
            assert!(decode(&bytes).unwrap() == expected, "{name}, {reused}");
            // Re-coded, it would have the tables of the header alone.
            assert!(bt_pipeline::dct::encode(&bytes).unwrap_err().is_unsupported(), "{name}");
        }
        let table = bytes.windows(2).position(|pair| pair == [0xFF, 0xDB]).unwrap();
        let mut without = bytes.clone();
        // A segment for a program.
        without[table + 1] = 0xEF;
        assert!(matches!(decode(&without), Err(JpegError::Corrupt(_))), "{name}");
    }
    for (name, bytes, expected) in found("progressive_4") {
        // The first scan is of all components: what comes behind it changes nothing.
        let scans: Vec<usize> =
            (0..bytes.len() - 1).filter(|&at| bytes[at..at + 2] == [0xFF, 0xDA]).collect();
        let (front, rest) = bytes.split_at(scans[1]);
        let bytes = [front, &[0xFF, 0xDB, 0, 67, 0], &[99; 64], rest].concat();
        assert!(decode(&bytes).unwrap() == expected, "{name}");
    }
}

/// A tall picture of bands that are noise, which takes long to decode, and bands that are nearly
/// flat.
fn banded_jpeg(sampling: jpeg_encoder::SamplingFactor, interval: u16) -> Vec<u8> {
    let (width, height) = (90, 1100);
    let mut rng = Rng::keyed(12, 0, 0, 0);
    let pixels: Vec<u8> = (0..width * height * 3)
        .map(|at| match at / (width * 3) % 400 {
            0..40 => rng.below(256) as u8,
            y => (y / 2) as u8 ^ u8::from(at % 1000 == 0),
        })
        .collect();
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 90);
    encoder.set_sampling_factor(sampling);
    encoder.set_restart_interval(interval);
    let color = jpeg_encoder::ColorType::Rgb;
    encoder.encode(&pixels, width as u16, height as u16, color).unwrap();
    bytes
}

#[test]
fn a_tall_picture_is_that_of_its_stripes_whatever_its_streams() {
    use jpeg_encoder::SamplingFactor;
    let (mut decoder, mut whole, mut out) =
        (JpegDecoder::new(), Image::default(), Image::default());
    for sampling in [
        SamplingFactor::F_1_1,
        SamplingFactor::F_2_1,
        SamplingFactor::F_1_2,
        SamplingFactor::F_2_2,
        SamplingFactor::F_4_1,
    ] {
        // In MCUs, of which a row has 3 to 12: within a row, of several rows, and too long for two
        // at once.
        for interval in [0, 1, 5, 6, 13, 40, 100, 400, 800] {
            let bytes = banded_jpeg(sampling, interval);
            let jpeg = Jpeg::parse(&bytes).unwrap();
            // None where the encoder wrote a scan for each component.
            let index = SideIndex::build_with_spacing(&bytes, 3).ok();
            assert_eq!(index.is_none(), sampling == SamplingFactor::F_4_1);
            decoder.decode_into(&jpeg, &mut whole).unwrap();
            for top in (0..whole.height).step_by(20) {
                // So low that all of its samples are in memory at once.
                let height = 20.min(whole.height - top);
                let stripe = Region { left: 0, top, width: whole.width, height };
                decoder.decode_region_into(&jpeg, stripe, None, &mut out).unwrap();
                assert!(out == crop(&whole, stripe), "{sampling:?}, {interval}, {stripe:?}");
            }
            let full = Region::full(&jpeg);
            let below = Region { left: 20, top: 33, width: 50, height: whole.height - 60 };
            for region in [full, below] {
                for index in [None, index.as_ref()] {
                    decoder.decode_region_into(&jpeg, region, index, &mut out).unwrap();
                    assert!(out == crop(&whole, region), "{sampling:?}, {interval}, {region:?}");
                    assert_eq!(decoder.used_index(), index.is_some());
                }
            }
        }
    }
}

#[test]
fn regions_outside_and_limits_are_errors() {
    let (_, bytes, _) = fixtures().pop().unwrap();
    let jpeg = Jpeg::parse(&bytes).unwrap();
    let mut out = Image::default();
    for (left, width) in [(0, 0), (0, jpeg.width() + 1), (1, jpeg.width()), (usize::MAX, 2)] {
        let region = Region { left, top: 0, width, height: 1 };
        let result = JpegDecoder::new().decode_region_into(&jpeg, region, None, &mut out);
        assert!(matches!(result, Err(JpegError::Region { .. })), "{region:?}");
    }
    let mut small = JpegDecoder::new().max_pixels(3);
    assert!(matches!(small.decode_into(&jpeg, &mut out), Err(JpegError::TooLarge { .. })));
}

#[test]
fn every_truncation_is_an_error() {
    for (name, bytes, _) in fixtures() {
        let start = bytes.windows(2).rposition(|pair| pair == [0xFF, 0xDA]).unwrap();
        for end in (0..start + 14).step_by(7).chain(start..bytes.len()) {
            let result = decode(&bytes[..end]);
            assert!(result.is_err(), "{name} cut to {end} of {}", bytes.len());
        }
    }
}

#[test]
fn damage_never_panics() {
    let mut rng = Rng::keyed(6, 0, 0, 0);
    let mut decoder = JpegDecoder::new().max_pixels(1 << 22);
    let mut out = Image::default();
    let (mut decoded, mut refused) = (0, 0);
    for (_, bytes, _) in fixtures() {
        for _ in 0..300 {
            let mut bytes = bytes.clone();
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] = rng.below(256) as u8;
            }
            if let Ok(jpeg) = Jpeg::parse(&bytes) {
                let region = random_region(&mut rng, jpeg.width(), jpeg.height());
                let _ = decoder.decode_region_into(&jpeg, region, None, &mut out);
                match decoder.decode_into(&jpeg, &mut out) {
                    Ok(()) => decoded += 1,
                    Err(_) => refused += 1,
                }
            }
        }
    }
    assert!(decoded > 100 && refused > 100, "{decoded} decoded, {refused} refused");
}

#[test]
fn a_huge_picture_without_data_is_refused_before_memory_is_taken() {
    let (_, mut bytes, _) = fixtures().pop().unwrap();
    let frame = bytes.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    bytes[frame + 5..frame + 9].fill(0xFF);
    let jpeg = Jpeg::parse(&bytes).unwrap();
    let result = JpegDecoder::new().max_pixels(u64::MAX).decode_into(&jpeg, &mut Image::default());
    assert!(matches!(result, Err(JpegError::Truncated(_))));
}

#[test]
fn with_an_index_regions_are_the_same_on_every_path() {
    let mut rng = Rng::keyed(7, 0, 0, 0);
    let mut out = Image::default();
    for (name, bytes, expected) in indexable() {
        let jpeg = Jpeg::parse(&bytes).unwrap();
        for level in Level::available() {
            let mut decoder = JpegDecoder::with_level(level);
            for spacing in [1, 2, 3, 100] {
                let index = SideIndex::build_with_spacing(&bytes, spacing).unwrap();
                assert!(index.belongs_to(&bytes));
                let index = SideIndex::from_bytes(&index.to_bytes()).unwrap();
                for _ in 0..40 {
                    let region = random_region(&mut rng, expected.width, expected.height);
                    decoder.decode_region_into(&jpeg, region, Some(&index), &mut out).unwrap();
                    assert!(out == crop(&expected, region), "{name}, {region:?}, every {spacing}");
                    assert!(decoder.used_index(), "{name}, {region:?}, every {spacing}");
                }
            }
        }
    }
}

#[test]
fn an_index_of_other_bytes_is_not_used() {
    let fixtures = fixtures();
    let find = |name: &str| fixtures.iter().find(|f| f.0 == name).unwrap();
    let ((_, bytes, expected), (_, other, _)) = (find("444_75x49"), find("420_75x49"));
    let mut one_bit_off = bytes.clone();
    // In the thumbnail-free header's JFIF density: the pixels do not change.
    one_bit_off[14] ^= 1;
    let jpeg = Jpeg::parse(bytes).unwrap();
    let mut decoder = JpegDecoder::new();
    let mut out = Image::default();
    for foreign in [other, &one_bit_off] {
        let index = SideIndex::build_with_spacing(foreign, 2).unwrap();
        decoder.decode_region_into(&jpeg, Region::full(&jpeg), Some(&index), &mut out).unwrap();
        assert!(out == *expected && !decoder.used_index());
    }
}

#[test]
fn wrong_entries_never_panic_nor_cost_the_picture() {
    let mut rng = Rng::keyed(10, 0, 0, 0);
    let mut decoder = JpegDecoder::new();
    let mut out = Image::default();
    for (_, bytes, _) in indexable() {
        let jpeg = Jpeg::parse(&bytes).unwrap();
        let packed = SideIndex::build_with_spacing(&bytes, 2).unwrap().to_bytes();
        for _ in 0..100 {
            let mut packed = packed.clone();
            // Beyond the hash, and with a checksum that is right again.
            let at = 16 + rng.below(packed.len() as u64 - 20) as usize;
            packed[at] = rng.below(256) as u8;
            let body = packed.len() - 4;
            let checksum = xxhash_rust::xxh3::xxh3_64(&packed[..body]) as u32;
            packed[body..].copy_from_slice(&checksum.to_le_bytes());
            if let Ok(index) = SideIndex::from_bytes(&packed) {
                let region = random_region(&mut rng, jpeg.width(), jpeg.height());
                // An entry that leads to an error is given up, one that does not is not found out.
                decoder.decode_region_into(&jpeg, region, Some(&index), &mut out).unwrap();
            }
        }
    }
}

#[test]
fn an_index_takes_at_most_its_share() {
    for (name, bytes, _) in fixtures() {
        if let Some(index) = SideIndex::build(&bytes).unwrap() {
            assert!(index.to_bytes().len() * 40 <= bytes.len(), "{name}");
        }
    }
}

#[test]
fn several_scans_have_no_side_index() {
    let mut several = 0;
    for (name, bytes, _) in fixtures() {
        if bytes.windows(2).filter(|pair| *pair == [0xFF, 0xDA]).count() > 1 {
            assert_eq!(SideIndex::build(&bytes), Ok(None), "{name}");
            let error = SideIndex::build_with_spacing(&bytes, 2).unwrap_err();
            assert!(error.is_unsupported(), "{name}: {error}");
            several += 1;
        }
    }
    assert!(several > 8);
}
