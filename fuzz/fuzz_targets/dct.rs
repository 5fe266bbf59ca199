//! Any bytes as a re-coded image, beyond its checksums: every instruction set gives the same
//! pixels or the same error, regions are crops of the whole, and what is valid becomes a JPEG.
#![no_main]

use std::sync::{LazyLock, Mutex};

use bt_fuzz::{assert_part, two_regions};
use bt_pipeline::Image;
use bt_pipeline::Level;
use bt_pipeline::dct::{DctDecoder, DctImage, to_jpeg};
use bt_pipeline::jpeg::Region;
use libfuzzer_sys::fuzz_target;

/// Small, for speed; enough for several MCUs in each direction, whatever the sampling.
const MAX_PIXELS: u64 = 1 << 12;

/// Kept from input to input, as a worker keeps them, for speed.
static DECODERS: LazyLock<Mutex<Vec<DctDecoder>>> = LazyLock::new(|| {
    let with = |level| DctDecoder::with_level(level).max_pixels(MAX_PIXELS);
    Mutex::new(Level::available().into_iter().map(with).collect())
});

fuzz_target!(|data: &[u8]| {
    let _ = to_jpeg(data);
    let Ok(image) = DctImage::parse_unsealed(data) else { return };
    let (width, height) = (image.width(), image.height());
    if (width * height) as u64 > MAX_PIXELS {
        return;
    }
    let full = Region::full(image.jpeg());
    let regions = two_regions(data, width, height);
    let mut expected = None;
    for decoder in DECODERS.lock().expect("no panic before").iter_mut() {
        let (mut whole, mut part) = (Image::default(), Image::default());
        let decoded = decoder.decode_region_into(&image, full, &mut whole);
        for regions in [&regions[..1], &regions] {
            match decoder.decode_regions_into(&image, regions, &mut part) {
                Ok(union) if decoded.is_ok() => assert_part(regions, &part, union, &whole),
                done => assert!(done.is_ok() || decoded.is_err()),
            }
        }
        let outcome = decoded.map(|()| whole);
        assert!(*expected.get_or_insert(outcome.clone()) == outcome);
    }
});
