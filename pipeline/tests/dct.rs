//! Re-coded images: the JPEG's own pixels on every path, the JPEG's coefficients
//! back, and answers to damage.

#[path = "common/region.rs"]
mod region;
#[path = "../../tests/common/skip.rs"]
mod skip;

use std::path::{Path, PathBuf};

use bt_pipeline::Image;
use bt_pipeline::Level;
use bt_pipeline::dct::{DctDecoder, DctError, DctImage, encode, to_jpeg};
use bt_pipeline::jpeg::{Jpeg, JpegDecoder, JpegError, Region};
use bt_pipeline::rng::Rng;
use region::{check_regions, crop, random_region};
use skip::skip;
use xxhash_rust::xxh3::xxh3_64;

/// Names and bytes of JPEGs of many samplings and sizes, gray and RGB ones, with
/// restart intervals, of the best and the worst quality.
fn fixtures() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpeg");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "jpg"));
    paths.sort();
    assert!(paths.len() > 40);
    let load = |path: PathBuf| {
        (path.file_stem().unwrap().display().to_string(), std::fs::read(path).unwrap())
    };
    paths.into_iter().map(load).collect()
}

fn jpeg_pixels(bytes: &[u8]) -> Image {
    let mut out = Image::default();
    JpegDecoder::new().decode_into(&Jpeg::parse(bytes).unwrap(), &mut out).unwrap();
    out
}

fn pixels(level: Level, packed: &[u8]) -> Result<Image, DctError> {
    let mut out = Image::default();
    DctDecoder::with_level(level).decode_into(&DctImage::parse(packed)?, &mut out)?;
    Ok(out)
}

/// Makes both checksums right again, so that what lies behind them is reached.
fn reseal(packed: &mut [u8]) {
    let long = |bytes: &[u8], at: usize| {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize
    };
    let Some(payload) = packed.len().checked_sub(long(packed, 20).saturating_add(64)) else {
        return;
    };
    if payload < 40 || packed.len() < payload + 64 {
        return;
    }
    let sum = xxh3_64(&packed[payload..packed.len() - 64]);
    packed[24..32].copy_from_slice(&sum.to_le_bytes());
    let sum = xxh3_64(&packed[..payload - 8]);
    packed[payload - 8..payload].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn pixels_are_those_of_the_jpeg_on_every_path() {
    for (name, bytes) in fixtures() {
        let (expected, packed) = (jpeg_pixels(&bytes), encode(&bytes).unwrap());
        for level in Level::available() {
            assert!(pixels(level, &packed).unwrap() == expected, "{name}, {level:?}");
        }
    }
}

#[test]
fn a_region_is_the_crop_of_the_whole() {
    let mut rng = Rng::keyed(51, 0, 0, 0);
    let mut out = Image::default();
    for (name, bytes) in fixtures() {
        let (expected, packed) = (jpeg_pixels(&bytes), encode(&bytes).unwrap());
        let image = DctImage::parse(&packed).unwrap();
        for level in Level::available() {
            let mut decoder = DctDecoder::with_level(level);
            for _ in 0..60 {
                let region = random_region(&mut rng, expected.width, expected.height);
                decoder.decode_region_into(&image, region, &mut out).unwrap();
                assert!(out == crop(&expected, region), "{name}, {region:?}, {level:?}");
                // A new one: what was not decoded is not there from another time.
                let mut decoder = DctDecoder::with_level(level);
                check_regions(&mut rng, &expected, |regions, out| {
                    decoder.decode_regions_into(&image, regions, out).unwrap()
                });
            }
        }
    }
}

#[test]
fn the_jpeg_that_comes_back_has_the_same_coefficients_and_markers() {
    for (name, bytes) in fixtures() {
        let packed = encode(&bytes).unwrap();
        let back = to_jpeg(&packed).unwrap();
        // Packing depends on nothing but the coefficients and the header.
        assert!(encode(&back).unwrap() == packed, "{name}");
        assert!(jpeg_pixels(&back) == jpeg_pixels(&bytes), "{name}");
        assert!(image::load_from_memory(&back).is_ok(), "{name}");
    }
}

#[test]
fn exif_profiles_and_comments_outlive_the_journey() {
    let (_, bytes) = fixtures().pop().unwrap();
    let extra = [
        &b"\xFF\xE1\x00\x0CExif\0\0MM\0\x2A"[..],
        b"\xFF\xE2\x00\x0EICC_PROFILE\0",
        b"\xFF\xFE\x00\x04hi",
    ]
    .concat();
    let marked = [&bytes[..2], &extra, &bytes[2..]].concat();
    let packed = encode(&marked).unwrap();
    let parsed = DctImage::parse(&packed).unwrap();
    assert_eq!(parsed.jpeg().exif(), Some(&b"MM\0\x2A"[..]));
    let back = to_jpeg(&packed).unwrap();
    assert!(back.windows(extra.len()).any(|window| window == extra));
}

#[test]
fn limits_and_regions_outside_are_errors() {
    let (_, bytes) = fixtures().pop().unwrap();
    let packed = encode(&bytes).unwrap();
    let image = DctImage::parse(&packed).unwrap();
    let mut out = Image::default();
    for (left, width) in [(0, 0), (0, image.width() + 1), (usize::MAX, 2)] {
        let region = Region { left, top: 0, width, height: 1 };
        let result = DctDecoder::new().decode_region_into(&image, region, &mut out);
        assert!(matches!(result, Err(DctError::Jpeg(JpegError::Region { .. }))));
    }
    let result = DctDecoder::new().max_pixels(3).decode_into(&image, &mut out);
    assert!(matches!(result, Err(DctError::Jpeg(JpegError::TooLarge { .. }))));
}

#[test]
fn what_cannot_be_re_coded_says_so() {
    let arithmetic = b"\xFF\xD8\xFF\xC9\x00\x0B\x08\x00\x01\x00\x01\x01\x01\x11\x00";
    assert!(encode(arithmetic).unwrap_err().is_unsupported());
    assert!(!encode(b"no JPEG").unwrap_err().is_unsupported());
    for (name, bytes) in fixtures() {
        let cut = encode(&bytes[..bytes.len() - 2]).unwrap_err();
        assert!(!cut.is_unsupported(), "{name}: {cut}");
    }
}

/// A picture of 512 x 512 pixels, noise right of a margin, as a JPEG.
fn noise_with_a_margin(margin: u32) -> Vec<u8> {
    let mut rng = Rng::keyed(54, 0, 0, 0);
    let picture = image::RgbImage::from_fn(512, 512, |x, _| {
        let value = if x < margin { 255 } else { 64 + rng.below(128) as u8 };
        image::Rgb([value, value, value / 2])
    });
    let mut jpeg = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 85)
        .encode_image(&picture)
        .unwrap();
    jpeg
}

#[test]
fn a_blank_margin_says_nothing_about_the_rest() {
    for margin in [0, 16] {
        let jpeg = noise_with_a_margin(margin);
        let packed = encode(&jpeg).unwrap();
        let ratio = packed.len() as f64 / jpeg.len() as f64;
        assert!(ratio < 1.2, "margin of {margin}: {ratio}");
        assert!(packed[10..12].iter().all(|&bits| bits > 1), "{:?}", &packed[10..12]);
    }
}

/// A gray JPEG of two blocks whose DC coefficients are 2047 and then `second`, a restart marker
/// between them: each is coded as its difference from 0.
fn two_blocks(second: i16) -> Vec<u8> {
    let quantisation = [&[0xFF, 0xDB, 0, 67, 0][..], &[1; 64]].concat();
    let frame = [0xFF, 0xC0, 0, 11, 8, 0, 8, 0, 16, 1, 1, 0x11, 0];
    // One code of one bit: DC differences of 11 bits, and the end of a block.
    let table = |class: u8, symbol: u8| {
        let mut segment = vec![0xFF, 0xC4, 0, 20, class << 4, 1];
        segment.extend([0; 15]);
        segment.push(symbol);
        segment
    };
    let scan = [0xFF, 0xDD, 0, 4, 0, 1, 0xFF, 0xDA, 0, 8, 1, 1, 0, 0, 63, 0];
    let block = |dc: i16| {
        // A zero for the code, 11 bits, a zero, ones to the end of the byte.
        let bits = if dc < 0 { dc - 1 } else { dc } as u16 & 0x7FF;
        let [high, low] = (bits << 4 | 0b111).to_be_bytes();
        if low == 0xFF { vec![high, low, 0] } else { vec![high, low] }
    };
    [
        &[0xFF, 0xD8][..],
        &quantisation,
        &frame,
        &table(0, 11),
        &table(1, 0),
        &scan,
        &block(2047),
        &[0xFF, 0xD0],
        &block(second),
        &[0xFF, 0xD9],
    ]
    .concat()
}

#[test]
fn what_only_restart_markers_make_a_jpeg_stays_one() {
    let whole = encode(&two_blocks(1024)).unwrap();
    assert_eq!(encode(&to_jpeg(&whole).unwrap()).unwrap(), whole);
    assert!(encode(&two_blocks(-2047)).unwrap_err().is_unsupported());
}

#[test]
fn a_header_of_several_scans_is_refused() {
    let (_, bytes) = fixtures().into_iter().find(|(name, _)| name == "420_75x49").unwrap();
    let packed = encode(&bytes).unwrap();
    let frame = packed.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    let mut progressive = packed.clone();
    progressive[frame + 1] = 0xC2;
    reseal(&mut progressive);
    assert!(DctImage::parse(&progressive).is_err() && to_jpeg(&progressive).is_err());
    progressive[frame + 1] = 0xC1;
    reseal(&mut progressive);
    assert!(DctImage::parse(&progressive).is_ok());
}

#[test]
fn a_header_that_brings_coded_data_of_its_own_is_refused() {
    for (name, jpeg) in fixtures() {
        let mut packed = encode(&jpeg).unwrap();
        let header = u32::from_le_bytes(packed[16..20].try_into().unwrap()) + 2;
        packed[16..20].copy_from_slice(&header.to_le_bytes());
        let end = 32 + header as usize - 2;
        packed.splice(end..end, [0xFF, 0xD9]);
        let parsed = DctImage::parse_unsealed(&packed);
        assert!(matches!(parsed, Err(DctError::Corrupt("bytes behind the header"))), "{name}");
    }
}

#[test]
fn every_flipped_byte_is_noticed() {
    for (name, bytes) in fixtures() {
        let packed = encode(&bytes).unwrap();
        // The padding holds nothing.
        for at in (0..packed.len() - 64).step_by(1 + packed.len() / 300) {
            let mut damaged = packed.clone();
            damaged[at] ^= 0x10;
            assert!(pixels(Level::detect(), &damaged).is_err(), "{name}, byte {at}");
            assert!(to_jpeg(&damaged).is_err(), "{name}, byte {at}");
        }
        for end in (0..packed.len()).step_by(1 + packed.len() / 100) {
            assert!(DctImage::parse(&packed[..end]).is_err(), "{name} cut to {end}");
        }
    }
}

#[test]
fn damage_behind_right_checksums_never_panics_and_all_paths_agree() {
    let mut rng = Rng::keyed(52, 0, 0, 0);
    let (mut accepted, mut refused) = (0, 0);
    for (name, bytes) in fixtures() {
        let packed = encode(&bytes).unwrap();
        for _ in 0..150 {
            let mut damaged = packed.clone();
            for _ in 0..1 + rng.below(3) {
                let at = rng.below(damaged.len() as u64) as usize;
                damaged[at] = rng.below(256) as u8;
            }
            reseal(&mut damaged);
            let Ok(image) = DctImage::parse(&damaged) else { continue };
            let decode = |level: Level| {
                let mut out = Image::default();
                let mut decoder = DctDecoder::with_level(level).max_pixels(1 << 22);
                decoder.decode_into(&image, &mut out).map(|()| out)
            };
            let expected = decode(Level::SCALAR);
            for level in Level::available() {
                assert!(decode(level) == expected, "{name}, {level:?}");
            }
            let region = random_region(&mut rng, image.width(), image.height());
            let mut decoder = DctDecoder::new().max_pixels(1 << 22);
            let _ = decoder.decode_region_into(&image, region, &mut Image::default());
            let _ = to_jpeg(&damaged);
            if expected.is_ok() { accepted += 1 } else { refused += 1 }
        }
    }
    // Both kinds were seen.
    assert!(accepted > 100 && refused > 100, "{accepted} {refused}");
}

#[test]
fn real_photographs_keep_their_pixels_and_grow_by_an_eighth_at_most() {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/imagenet-sample/*/*.JPEG");
    let mut rng = Rng::keyed(53, 0, 0, 0);
    let (mut before, mut after, mut count) = (0, 0, 0);
    let (mut jpeg_decoder, mut decoder) = (JpegDecoder::new(), DctDecoder::new());
    let (mut expected, mut out) = (Image::default(), Image::default());
    for path in glob::glob(&folder.to_string_lossy()).unwrap().flatten() {
        let bytes = std::fs::read(&path).unwrap();
        let jpeg = match Jpeg::parse(&bytes) {
            Ok(jpeg) => jpeg,
            Err(error) => {
                assert!(error.is_unsupported());
                continue;
            }
        };
        let packed = encode(&bytes).unwrap();
        (before, after, count) = (before + bytes.len(), after + packed.len(), count + 1);
        let image = DctImage::parse(&packed).unwrap();
        jpeg_decoder.decode_into(&jpeg, &mut expected).unwrap();
        decoder.decode_into(&image, &mut out).unwrap();
        assert!(out == expected, "{}", path.display());
        let region = random_region(&mut rng, image.width(), image.height());
        decoder.decode_region_into(&image, region, &mut out).unwrap();
        assert!(out == crop(&expected, region), "{}, {region:?}", path.display());
        assert!(encode(&to_jpeg(&packed).unwrap()).unwrap() == packed, "{}", path.display());
    }
    if count == 0 {
        skip("data", &format!("no photographs in {}", folder.display()));
        return;
    }
    println!("{count} images: {before} bytes, re-coded {after}");
    assert!(after * 100 <= before * 113, "{before} {after}");
}
