//! Numbers from the first directory of TIFF tags: of EXIF chunks and of TIFF files.

/// EXIF's and TIFF's number of how the stored image is meant to be shown.
pub(super) const ORIENTATION: u16 = 0x112;
/// TIFF's number of how coded bytes are compressed: 5 is LZW.
pub(super) const COMPRESSION: u16 = 0x103;
/// TIFF's number of the samples that a pixel has.
pub(super) const SAMPLES_PER_PIXEL: u16 = 0x115;
/// TIFF's number of where a pixel's samples lie: 2 is planes.
pub(super) const PLANAR_CONFIGURATION: u16 = 0x11C;
/// TIFF's number of what was subtracted before compression: 1 is nothing.
pub(super) const PREDICTOR: u16 = 0x13D;
/// TIFF's number of the width of a tile, which says that there are tiles.
pub(super) const TILE_WIDTH: u16 = 0x142;
/// TIFF's number of what the samples beyond those of the colour mean: 1 is associated alpha.
pub(super) const EXTRA_SAMPLES: u16 = 0x152;

/// The value of a tag that holds one number, as [`first_number_of`].
pub(super) fn number_of(bytes: &[u8], tag: u16) -> Option<u32> {
    numbers_of(bytes, tag).filter(|&(count, _)| count == 1).map(|(_, first)| first)
}

/// The first number of a tag, a SHORT or a LONG. `bytes` begin with a TIFF header, which classic
/// TIFF and EXIF share; BigTIFF's counts and offsets have 8 bytes. None for no such tag and for
/// damage.
pub(super) fn first_number_of(bytes: &[u8], tag: u16) -> Option<u32> {
    numbers_of(bytes, tag).map(|(_, first)| first)
}

/// How many numbers a tag holds, and the first of them.
fn numbers_of(bytes: &[u8], tag: u16) -> Option<(u64, u32)> {
    // Sizes in bytes: of the number of entries, of offsets, counts and values.
    let (little, header, entries_size, word) = match bytes.get(..4)? {
        b"II*\0" => (true, 4, 2, 4),
        b"MM\0*" => (false, 4, 2, 4),
        b"II+\0" => (true, 8, 8, 8),
        b"MM\0+" => (false, 8, 8, 8),
        _ => return None,
    };
    let number = |at: usize, size: usize| {
        let bytes = bytes.get(at..at.checked_add(size)?)?;
        let push = |number: u64, &byte: &u8| number << 8 | u64::from(byte);
        Some(if little { bytes.iter().rev().fold(0, push) } else { bytes.iter().fold(0, push) })
    };
    let offset = |at: usize| usize::try_from(number(at, word)?).ok();
    let directory = offset(header)?;
    let entries = number(directory, entries_size)?;
    let mut entry = directory.checked_add(entries_size)?;
    // Each is a tag, a type, the number of values, and these or where they lie.
    for _ in 0..entries {
        let (found, kind) = (number(entry, 2)?, number(entry + 2, 2)?);
        let (count, value) = (number(entry + 4, word)?, entry + 4 + word);
        let size = match kind {
            3 => 2,
            4 => 4,
            _ => 0,
        };
        if found == u64::from(tag) && size > 0 && count > 0 {
            let inline = count.checked_mul(size as u64)? <= word as u64;
            let at = if inline { value } else { offset(value)? };
            return Some((count, number(at, size)? as u32));
        }
        entry = value.checked_add(word)?;
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
        // Of two numbers, in place, and of three, elsewhere, there is a first one.
        let two = b"II*\0\x08\0\0\0\x01\0\x52\x01\x03\0\x02\0\0\0\x01\0\x02\0";
        let three = b"II*\0\x08\0\0\0\x01\0\x52\x01\x03\0\x03\0\0\0\x16\0\0\0\x09\0\x08\0\x07\0";
        for (bytes, first) in [(&two[..], 1), (three, 9)] {
            assert_eq!(first_number_of(bytes, EXTRA_SAMPLES), Some(first));
            assert_eq!(number_of(bytes, EXTRA_SAMPLES), None);
        }
        let large = b"MM\0+\0\x08\0\0\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x01\
            \x01\x12\0\x03\0\0\0\0\0\0\0\x01\0\x06\0\0\0\0\0\0";
        assert_eq!(number_of(large, ORIENTATION), Some(6));
        // A directory that begins, and entries that lie, beyond all bytes.
        assert_eq!(number_of(b"II*\0\xFF\xFF\xFF\xFF\x01\0", ORIENTATION), None);
        assert_eq!(number_of(b"II*\0\x08\0\0\0\xFF\xFF", ORIENTATION), None);
    }
}
