//! Decoded images in a shard: binary PPM (P6, 8 bit), which Pillow, OpenCV and
//! `webdataset` read too. The writer pads the header to 32 bytes.

/// Length of the header that [`raw_header`] writes.
const HEADER: usize = 32;

/// The header of a decoded RGB image of `width` x `height` pixels: 32 bytes,
/// to be followed by `height * width * 3` bytes of pixels (HWC).
pub fn raw_header(width: u32, height: u32) -> [u8; HEADER] {
    let text = format!("P6\n{width} {height} 255");
    let mut header = [b' '; HEADER];
    header[..text.len()].copy_from_slice(text.as_bytes());
    // "P6\n" + padded sizes and maximum + the single whitespace byte that ends
    // a PPM header. The longest text is 3 + 10 + 1 + 10 + 4 = 28 bytes. The
    // padding goes before the maximum, where any amount of space may stand.
    let tail = b"255\n";
    header[text.len() - 3..text.len()].fill(b' ');
    header[HEADER - tail.len()..].copy_from_slice(tail);
    header
}

/// Width, height and pixels (HWC) of a binary PPM with 8 bits per channel;
/// `None` for any other bytes, and where pixels are missing.
pub fn raw_parse(bytes: &[u8]) -> Option<(u32, u32, &[u8])> {
    let (width, height, start) = raw_size(bytes)?;
    let length = (width as usize).checked_mul(height as usize)?.checked_mul(3)?;
    Some((width, height, bytes.get(start..start.checked_add(length)?)?))
}

/// Width, height and where the pixels begin, from the header alone.
pub(crate) fn raw_size(bytes: &[u8]) -> Option<(u32, u32, usize)> {
    let mut at = bytes.strip_prefix(b"P6").map(|_| 2)?;
    let mut number = || {
        let start = bytes.get(at..)?;
        let space = start.iter().take_while(|b| b.is_ascii_whitespace()).count();
        let digits = start[space..].iter().take_while(|b| b.is_ascii_digit()).count();
        let text = std::str::from_utf8(&start[space..space + digits]).ok()?;
        at += space + digits;
        if space == 0 { None } else { text.parse::<u32>().ok() }
    };
    let (width, height, maximum) = (number()?, number()?, number()?);
    let ends = bytes.get(at).is_some_and(u8::is_ascii_whitespace);
    (maximum == 255 && ends && width > 0 && height > 0).then_some((width, height, at + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_written_is_a_header_read() {
        for (width, height) in [(1, 1), (2, 3), (224, 500), (65_500, 7)] {
            let mut bytes = raw_header(width, height).to_vec();
            let pixels = vec![9u8; (width * height * 3) as usize];
            bytes.extend(&pixels);
            assert_eq!(raw_parse(&bytes), Some((width, height, &pixels[..])));
            bytes.pop();
            assert_eq!(raw_parse(&bytes), None, "a pixel is missing");
        }
        assert_eq!(raw_size(&raw_header(u32::MAX, u32::MAX)), Some((u32::MAX, u32::MAX, 32)));
    }

    #[test]
    fn other_files_are_not_taken_for_decoded_pixels() {
        for bytes in [
            &b"P5\n1 1 255\nabc"[..],
            b"P6\n1 1 65535\nabcdef",
            b"P6",
            b"P6\n0 1 255\n",
            b"P61 1 255\n",
        ] {
            assert_eq!(raw_parse(bytes), None, "{bytes:?}");
        }
        assert_eq!(raw_parse(b"P6 1 1\n255\nabc"), Some((1, 1, &b"abc"[..])));
    }
}
