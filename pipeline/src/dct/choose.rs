//! The encoder's view of a block, and the profile that packs it in fewest bits.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::sync::OnceLock;

use super::book::{
    BANDS, BOOK, CLASSES, MAX_INDEX_BITS, MAX_WIDE, NARROW_LIMIT, Profile, mask_bytes, packed,
    start,
};
use crate::jpeg::{Block, ZIGZAG};

/// What packing a block depends on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outline {
    /// Bit k: the coefficient at zig-zag position k is not zero; bit 0 is not set.
    pub mask: u64,
    /// By band: bits that its widest coefficient needs, and coefficients.
    pub widths: [u8; BANDS],
    pub counts: [u8; BANDS],
}

/// The band of each position.
const BAND: [u8; 64] = {
    let mut bands = [0; 64];
    let mut band = 0;
    while band < BANDS {
        let mut at = start(band);
        while at < start(band + 1) {
            bands[at] = band as u8;
            at += 1;
        }
        band += 1;
    }
    bands
};

/// A coefficient as it is packed in its band: narrow bands hold what fits, and
/// the rest is listed.
pub(super) fn code(value: i16, band: usize) -> u32 {
    let limit = if band < 2 { i16::MAX } else { NARROW_LIMIT };
    let magnitude = u32::from(value.unsigned_abs().min(limit.unsigned_abs()));
    (magnitude - 1) << 1 | u32::from(value < 0)
}

impl Outline {
    /// The outline of a block that is zero from zig-zag position `span` on.
    pub fn of(block: &Block, span: u8) -> Outline {
        let mut outline = Outline::default();
        // By band, the magnitudes less one, or-ed: as wide as the widest.
        let mut magnitudes = [0u32; BANDS];
        for position in 1..usize::from(span.min(64)) {
            let value = block.0[usize::from(ZIGZAG[position])];
            let band = usize::from(BAND[position]);
            if value != 0 {
                outline.mask |= 1 << position;
                outline.counts[band] += 1;
                magnitudes[band] |= code(value, band) >> 1;
            }
        }
        for (band, width) in outline.widths.iter_mut().enumerate() {
            if outline.counts[band] > 0 {
                *width = (33 - magnitudes[band].leading_zeros()) as u8;
            }
        }
        outline
    }

    /// Bits of mask and coefficients under a profile that is wide enough.
    fn bits(&self, profile: &Profile) -> u16 {
        let bands = self.counts.iter().zip(&profile.widths);
        bands.map(|(&n, &w)| u16::from(n) * u16::from(w)).sum::<u16>()
            + 8 * u16::from(profile.mask_bytes)
    }
}

/// More than any block takes.
const TOO_NARROW: u16 = 0x7FFF;
/// Widths of bands 0 and 1, from 0 on.
const WIDTHS: usize = MAX_WIDE as usize + 1;
/// Profiles looked at in one go.
const AT_ONCE: usize = 4;

/// The first profiles of a class, ready for searches: sorted by mask bytes, then
/// by the widths of bands 0 and 1, so that whole groups can be passed over.
struct Searchable {
    exact: HashMap<u64, u16, BuildHasherDefault<Mixer>>,
    numbers: Vec<u16>,
    /// The profiles, and behind them some of zeros, which are too narrow for any
    /// block that is searched for.
    profiles: Vec<Profile>,
    /// Where a group begins, by mask bytes and widths; and the end.
    starts: Vec<u16>,
}

/// By class and index bits.
static SEARCHABLE: [[OnceLock<Searchable>; MAX_INDEX_BITS as usize + 1]; CLASSES] =
    [const { [const { OnceLock::new() }; MAX_INDEX_BITS as usize + 1] }; CLASSES];

/// Hashes one packed number by a multiplication.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u64(&mut self, number: u64) {
        let product = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = product ^ product >> 32;
    }
}

/// A group's place among the groups.
fn group(mask_bytes: u8, width_0: u8, width_1: u8) -> usize {
    (usize::from(mask_bytes) * WIDTHS + usize::from(width_0)) * WIDTHS + usize::from(width_1)
}

impl Searchable {
    fn new(profiles: &[Profile]) -> Searchable {
        let mut exact = HashMap::default();
        for (number, profile) in profiles.iter().enumerate() {
            exact.entry(packed(&profile.widths)).or_insert(number as u16);
        }
        let group_of = |number: u16| {
            let Profile { widths, mask_bytes, .. } = profiles[usize::from(number)];
            group(mask_bytes, widths[0], widths[1])
        };
        let mut numbers: Vec<u16> = (0..profiles.len() as u16).collect();
        numbers.sort_by_key(|&number| group_of(number));
        let starts = (0..=9 * WIDTHS * WIDTHS)
            .map(|group| numbers.partition_point(|&number| group_of(number) < group) as u16)
            .collect();
        let sorted = numbers.iter().map(|&number| profiles[usize::from(number)]);
        let profiles = sorted.chain([Profile::EMPTY; AT_ONCE]).collect();
        Searchable { exact, numbers, profiles, starts }
    }

    /// The best profile for a block: its number, and the bits of mask and coefficients.
    #[inline(always)]
    fn best(
        &self,
        outline: &Outline,
        search: impl Fn(&Searchable, Range<usize>, &Outline) -> (u16, u16),
    ) -> (u16, u16) {
        let bits = outline.counts.iter().zip(&outline.widths);
        let least: u16 = bits.map(|(&n, &w)| u16::from(n) * u16::from(w)).sum();
        let first_bytes = mask_bytes(&outline.widths);
        if let Some(&number) = self.exact.get(&packed(&outline.widths)) {
            return (number, least + 8 * u16::from(first_bytes));
        }
        let [n_0, n_1] = [0, 1].map(|band| u16::from(outline.counts[band]));
        let [w_0, w_1] = [0, 1].map(|band| outline.widths[band]);
        let mut best = (0, TOO_NARROW);
        // All profiles of a group, and those of the groups behind it in the same
        // loop, take so much at least.
        for bytes in first_bytes..=8 {
            let least = least + 8 * u16::from(bytes);
            for width_0 in w_0..=MAX_WIDE {
                let least = least + n_0 * u16::from(width_0 - w_0);
                if least >= best.1 {
                    break;
                }
                for width_1 in w_1..=MAX_WIDE {
                    if least + n_1 * u16::from(width_1 - w_1) >= best.1 {
                        break;
                    }
                    let group = group(bytes, width_0, width_1);
                    let range =
                        usize::from(self.starts[group])..usize::from(self.starts[group + 1]);
                    if range.is_empty() {
                        continue;
                    }
                    let found = search(self, range, outline);
                    if found.1 < best.1 {
                        best = found;
                    }
                }
            }
        }
        (self.numbers[usize::from(best.0)], best.1)
    }

    /// Looks at some profiles: which is best, and the bits of mask and coefficients.
    fn search(&self, range: Range<usize>, outline: &Outline) -> (u16, u16) {
        let mut best = (0, TOO_NARROW);
        for at in range {
            let profile = &self.profiles[at];
            let mut bands = outline.widths.iter().zip(&profile.widths);
            let bits = outline.bits(profile);
            if bits < best.1 && bands.all(|(needed, width)| needed <= width) {
                best = (at as u16, bits);
            }
        }
        best
    }

    /// As [`Searchable::search`], four profiles at a time, the last of which may be
    /// behind the range.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    #[inline]
    fn search_avx2(&self, range: Range<usize>, outline: &Outline) -> (u16, u16) {
        use std::arch::x86_64::*;
        let (mut needed, mut factors) = ([0u8; 16], [0u8; 16]);
        needed[..BANDS].copy_from_slice(&outline.widths);
        factors[..BANDS].copy_from_slice(&outline.counts);
        factors[15] = 8;
        let both = |bytes: &[u8; 16]| {
            // SAFETY: 16 bytes.
            _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
        };
        let (needed, factors) = (both(&needed), both(&factors));
        let (zero, one) = (_mm256_setzero_si256(), _mm256_set1_epi16(1));
        let mut best = _mm256_set1_epi32(i32::from(TOO_NARROW) << 16);
        let mut place = _mm256_add_epi32(
            _mm256_set1_epi32(range.start as i32),
            _mm256_setr_epi32(0, 2, 0, 2, 1, 3, 1, 3),
        );
        for at in range.step_by(AT_ONCE) {
            let four = &self.profiles[at..at + AT_ONCE];
            let sums = |two: &[Profile]| {
                // SAFETY: two profiles of 16 bytes.
                let widths = unsafe { _mm256_loadu_si256(two.as_ptr().cast()) };
                let enough = _mm256_cmpeq_epi8(_mm256_max_epu8(widths, needed), widths);
                let narrow = _mm256_andnot_si256(enough, _mm256_set1_epi8(-1));
                let penalty = _mm256_slli_epi64::<8>(_mm256_sad_epu8(narrow, zero));
                let bits = _mm256_madd_epi16(_mm256_maddubs_epi16(widths, factors), one);
                _mm256_add_epi32(bits, penalty)
            };
            let bits = _mm256_hadd_epi32(sums(&four[..2]), sums(&four[2..]));
            let bits = _mm256_hadd_epi32(bits, bits);
            let bits = _mm256_min_epi32(bits, _mm256_set1_epi32(i32::from(TOO_NARROW)));
            best = _mm256_min_epi32(best, _mm256_or_si256(_mm256_slli_epi32::<16>(bits), place));
            place = _mm256_add_epi32(place, _mm256_set1_epi32(AT_ONCE as i32));
        }
        let best = _mm_min_epi32(_mm256_castsi256_si128(best), _mm256_extracti128_si256::<1>(best));
        let best = _mm_min_epi32(best, _mm_shuffle_epi32::<0b01>(best));
        let best = _mm_cvtsi128_si32(best) as u32;
        (best as u16, (best >> 16) as u16)
    }
}

/// The best of the class's first `2^index_bits` profiles for a block: its number,
/// and the bits of mask and coefficients.
pub(super) fn choose(class: usize, outline: &Outline, index_bits: u32) -> (u16, u16) {
    let searchable = SEARCHABLE[class][index_bits as usize]
        .get_or_init(|| Searchable::new(&BOOK[class].profiles[..1 << index_bits]));
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2(searchable: &Searchable, outline: &Outline) -> (u16, u16) {
            searchable.best(outline, |s, range, outline| s.search_avx2(range, outline))
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: AVX2 was just found.
            return unsafe { avx2(searchable, outline) };
        }
    }
    searchable.best(outline, Searchable::search)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn the_search_finds_what_trying_all_profiles_finds() {
        let mut rng = Rng::keyed(31, 0, 0, 0);
        for case in 0..3000 {
            let mut block = Block([0; 64]);
            let span = 1 + rng.below(64) as u8;
            for &natural in &ZIGZAG[1..usize::from(span)] {
                let magnitude = 1 << rng.below(if case % 3 == 0 { 11 } else { 3 });
                let value = rng.below(2 * magnitude + 1) as i64 - magnitude as i64;
                block.0[usize::from(natural)] = value as i16;
            }
            let outline = Outline::of(&block, span);
            for (class, index_bits) in [(0, 12), (1, 12), (0, 6), (1, 1)] {
                let fits = |p: &&Profile| p.widths.iter().zip(&outline.widths).all(|(a, b)| a >= b);
                let profiles = &BOOK[class].profiles[..1 << index_bits];
                let least = profiles.iter().filter(fits).map(|p| outline.bits(p)).min();
                let (number, bits) = choose(class, &outline, index_bits);
                assert!(fits(&&profiles[usize::from(number)]));
                assert_eq!(Some(bits), least);
            }
        }
    }
}
