//! Any bytes as a JPEG: whole, a region, an index of it, and the region with the index. What
//! decodes whole must give the same pixels by region, with and without the index, and with every
//! instruction set.
#![no_main]

use std::sync::{LazyLock, Mutex};

use bt_pipeline::Image;
use bt_pipeline::Level;
use bt_pipeline::jpeg::{Jpeg, JpegDecoder, Region, SideIndex};
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
    // Somewhere that depends on the bytes.
    let number = data.iter().fold(7usize, |n, &b| n.wrapping_mul(31).wrapping_add(b.into()));
    let (left, top) = (number % width, number / 97 % height);
    let region = Region {
        left,
        top,
        width: 1 + number / 7 % (width - left),
        height: 1 + number / 11 % (height - top),
    };
    let index = SideIndex::build_with_spacing(data, 1 + number % 9);
    for index in [None, index.as_ref().ok()] {
        let done = decoder.decode_region_into(&jpeg, region, index, part).is_ok();
        assert!(done || !decoded);
        if decoded {
            for y in 0..region.height {
                let from = 3 * ((region.top + y) * width + region.left);
                assert_eq!(part.row(y), &whole.pixels_hwc[from..from + 3 * region.width]);
            }
        }
    }
});
