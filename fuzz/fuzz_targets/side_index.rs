//! Any bytes as the side index of a JPEG: length (2 bytes, little-endian), index without its
//! checksum, JPEG. Length, hash and checksum are mended, so that the decoder believes the rest.
#![no_main]

use std::sync::{LazyLock, Mutex};

use bt_fuzz::two_regions;
use bt_pipeline::Image;
use bt_pipeline::jpeg::{Jpeg, JpegDecoder, Region, SideIndex};
use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::xxh3_64;

/// Kept from input to input, as a worker keeps them, for speed.
static KEPT: LazyLock<Mutex<(JpegDecoder, Image)>> = LazyLock::new(Mutex::default);

fuzz_target!(|data: &[u8]| {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_le_bytes(*length));
    let Some((index, bytes)) = rest.split_at_checked(length) else { return };
    let mut index = index.to_vec();
    if index.len() >= 16 {
        index[4..8].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        index[8..16].copy_from_slice(&xxh3_64(bytes).to_le_bytes());
    }
    index.extend((xxh3_64(&index) as u32).to_le_bytes());
    let Ok(index) = SideIndex::from_bytes(&index) else { return };
    let Ok(jpeg) = Jpeg::parse(bytes) else { return };
    let (width, height) = (jpeg.width(), jpeg.height());
    if width * height > 1 << 12 {
        return;
    }
    let (decoder, out) = &mut *KEPT.lock().expect("no panic before");
    for part in [1, 2, 4] {
        let (left, top) = (width - width.div_ceil(part), height - height.div_ceil(part));
        let region =
            Region { left, top, width: width.div_ceil(part), height: height.div_ceil(part) };
        let _ = decoder.decode_region_into(&jpeg, region, Some(&index), out);
    }
    let _ =
        decoder.decode_regions_into(&jpeg, &two_regions(data, width, height), Some(&index), out);
});
