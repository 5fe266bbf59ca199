//! Numbers from the first directory of TIFF tags: of EXIF chunks and of TIFF files.

/// EXIF's and TIFF's number of how the stored image is meant to be shown.
pub(super) const ORIENTATION: u16 = 0x112;
/// TIFF's number of what a fourth sample of RGB means.
pub(super) const EXTRA_SAMPLES: u16 = 0x152;

/// The value of a tag that holds one number, a SHORT or a LONG. `bytes` begin with a TIFF header,
/// which classic TIFF and EXIF share. None for no such tag and for damage.
pub(super) fn number_of(bytes: &[u8], tag: u16) -> Option<u32> {
    let little = match bytes.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let number = |at: usize, size: usize| {
        let bytes = bytes.get(at..at.checked_add(size)?)?;
        let push = |number: u32, &byte: &u8| number << 8 | u32::from(byte);
        Some(if little { bytes.iter().rev().fold(0, push) } else { bytes.iter().fold(0, push) })
    };
    let directory = number(4, 4)? as usize;
    // Two bytes of a count, and entries of 12: tag, type, number of values, value.
    for nth in 0..number(directory, 2)? as usize {
        let entry = directory.checked_add(2 + 12 * nth)?;
        if number(entry, 2)? != u32::from(tag) || number(entry + 4, 4)? != 1 {
            continue;
        }
        match number(entry + 2, 2)? {
            3 => return number(entry + 8, 2),
            4 => return number(entry + 8, 4),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_in_both_byte_orders_and_types() {
        let little = b"II*\0\x08\0\0\0\x02\0\x00\x01\x04\0\x01\0\0\0\x07\0\0\0\
            \x12\x01\x03\0\x01\0\0\0\x06\0\0\0";
        let big = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x04\0\0\0\x01\0\0\0\x06";
        for chunk in [&little[..], big] {
            assert_eq!(number_of(chunk, ORIENTATION), Some(6));
            assert_eq!(number_of(chunk, EXTRA_SAMPLES), None);
            for end in 0..chunk.len() - 2 {
                assert_eq!(number_of(&chunk[..end], ORIENTATION), None, "{end}");
            }
        }
        assert_eq!(number_of(little, 0x100), Some(7));
        // A directory that begins, and entries that lie, beyond all bytes.
        assert_eq!(number_of(b"II*\0\xFF\xFF\xFF\xFF\x01\0", ORIENTATION), None);
        assert_eq!(number_of(b"II*\0\x08\0\0\0\xFF\xFF", ORIENTATION), None);
    }
}
