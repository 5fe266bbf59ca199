//! Any bytes as a JPEG: whole, one and two regions, an index of it, and the regions with the index.
//! What decodes whole must give the same pixels by regions, with and without the index, and with
//! every instruction set.
#![no_main]

use std::sync::{LazyLock, Mutex};

use bt_fuzz::{assert_part, two_regions};
use bt_pipeline::Image;
use bt_pipeline::Level;
use bt_pipeline::jpeg::{Jpeg, JpegDecoder, SideIndex};
use libfuzzer_sys::fuzz_target;

/// Small, for speed; enough for several MCUs in each direction, whatever the sampling.
const MAX_PIXELS: u64 = 1 << 12;

/// Kept from input to input, as a worker keeps them, for speed.
struct Decoders {
    decoder: JpegDecoder,
    scalar: JpegDecoder,
    whole: Image,
    other: Image,
    part: Image,
}

static DECODERS: LazyLock<Mutex<Decoders>> = LazyLock::new(|| {
    Mutex::new(Decoders {
        decoder: JpegDecoder::new().max_pixels(MAX_PIXELS),
        scalar: JpegDecoder::with_level(Level::SCALAR).max_pixels(MAX_PIXELS),
        whole: Image::default(),
        other: Image::default(),
        part: Image::default(),
    })
});

fuzz_target!(|data: &[u8]| {
    let Ok(jpeg) = Jpeg::parse(data) else { return };
    let (width, height) = (jpeg.width(), jpeg.height());
    if (width * height) as u64 > MAX_PIXELS {
        return;
    }
    let mut decoders = DECODERS.lock().expect("no panic before");
    let Decoders { decoder, scalar, whole, other, part } = &mut *decoders;
    let decoded = decoder.decode_into(&jpeg, whole).is_ok();
    let by_scalar = scalar.decode_into(&jpeg, other).is_ok();
    assert_eq!(decoded, by_scalar);
    assert!(!decoded || whole == other);
    let regions = two_regions(data, width, height);
    let index = SideIndex::build_with_spacing(data, 1 + regions[0].left % 9);
    for index in [None, index.as_ref().ok()] {
        for regions in [&regions[..1], &regions] {
            match decoder.decode_regions_into(&jpeg, regions, index, part) {
                Ok(union) if decoded => assert_part(regions, part, union, whole),
                done => assert!(done.is_ok() || !decoded),
            }
        }
    }
});
