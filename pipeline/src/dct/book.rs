//! The book: a fixed list of profiles for each class of blocks. A profile says
//! how many bits each band's coefficients take, and a block names one.
//!
//! Positions are zig-zag. Band 0 is positions 1..4, band 1 is 4..8, band i from
//! 2 on is 8 (i - 1)..8 i. The most useful profiles come first, so that a
//! picture may use the first 2^k alone and spend k bits a block; the first two are
//! that of a block without AC coefficients and one that suffices for any block.

use std::sync::LazyLock;

/// Bands of a block.
pub(crate) const BANDS: usize = 9;
/// Profiles of a class; an index has at most this many bits.
pub(crate) const MAX_INDEX_BITS: u32 = 12;
/// The most bits of a coefficient in bands 0 and 1: magnitudes up to 1024.
pub(crate) const MAX_WIDE: u8 = 11;
/// The most bits of a coefficient in the other bands.
pub(crate) const MAX_NARROW: u8 = 7;
/// The largest magnitude in bands 2 to 8; beyond it a coefficient is listed.
pub(crate) const NARROW_LIMIT: i16 = 64;

/// Blocks are of luma (or gray, red, green, blue), or of chroma.
pub(crate) const CLASSES: usize = 2;

/// Where band `band` begins; `start(BANDS)` is 64.
pub(crate) const fn start(band: usize) -> usize {
    match band {
        0 => 1,
        1 => 4,
        _ => 8 * (band - 1),
    }
}

/// How the coefficients of a block are packed.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Profile {
    /// Bits of a coefficient, by band.
    pub widths: [u8; BANDS],
    unused: [u8; 6],
    /// Bytes of the block's mask: one for each eight positions up to the last
    /// band that has bits.
    pub mask_bytes: u8,
}

impl Profile {
    /// The profile of a block without AC coefficients.
    pub const EMPTY: Profile = Profile { widths: [0; BANDS], unused: [0; 6], mask_bytes: 0 };

    fn new(widths: [u8; BANDS]) -> Profile {
        Profile { widths, unused: [0; 6], mask_bytes: mask_bytes(&widths) }
    }
}

/// Mask bytes that widths ask for.
pub(crate) fn mask_bytes(widths: &[u8; BANDS]) -> u8 {
    match widths.iter().rposition(|&width| width > 0) {
        None => 0,
        Some(0) => 1,
        Some(band) => band as u8,
    }
}

/// The profiles of one class.
pub(crate) struct Class {
    pub profiles: Vec<Profile>,
}

/// Widths as one number.
pub(crate) fn packed(widths: &[u8; BANDS]) -> u64 {
    widths.iter().fold(0, |number, &width| number << 4 | u64::from(width))
}

/// The file of the book: per class 2^12 profiles of 4 bytes, little-endian; from
/// the lowest bit on the widths, those of bands 0 and 1 in four bits, the others in
/// three.
const FILE: &[u8] = include_bytes!("book.bin");
const _: () = assert!(FILE.len() == CLASSES * (4 << MAX_INDEX_BITS));

/// The book, by class.
pub(crate) static BOOK: LazyLock<[Class; CLASSES]> = LazyLock::new(|| {
    let mut classes = FILE.chunks_exact(4 << MAX_INDEX_BITS).map(|part| {
        part.chunks_exact(4).map(|p| unpack([p[0], p[1], p[2], p[3]])).collect::<Vec<_>>()
    });
    std::array::from_fn(|_| Class { profiles: classes.next().unwrap_or_default() })
});

fn unpack(bytes: [u8; 4]) -> Profile {
    let mut bits = u32::from_le_bytes(bytes);
    Profile::new(std::array::from_fn(|band| {
        let size = if band < 2 { 4 } else { 3 };
        let width = bits & ((1 << size) - 1);
        bits >>= size;
        width as u8
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files written with another book would be misread.
    #[test]
    fn the_book_is_that_of_version_1() {
        assert_eq!(xxhash_rust::xxh3::xxh3_64(FILE), 0xf74b_ffb0_3dbc_f0e7);
    }

    #[test]
    fn no_width_is_beyond_what_the_decoders_load_at_once() {
        for class in BOOK.iter() {
            assert_eq!(class.profiles.len(), 1 << MAX_INDEX_BITS);
            for profile in &class.profiles {
                let (wide, narrow) = profile.widths.split_at(2);
                assert!(wide.iter().all(|&w| w <= MAX_WIDE), "{profile:?}");
                assert!(narrow.iter().all(|&w| w <= MAX_NARROW), "{profile:?}");
            }
        }
    }

    #[test]
    fn the_first_two_profiles_suffice_for_any_block() {
        for class in BOOK.iter() {
            assert_eq!(class.profiles[0].widths, [0; BANDS]);
            let (wide, narrow) = class.profiles[1].widths.split_at(2);
            assert!(wide.iter().all(|&w| w == MAX_WIDE));
            assert!(narrow.iter().all(|&w| w == MAX_NARROW));
        }
    }
}
