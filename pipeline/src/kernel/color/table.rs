//! Values replaced by a table of all of them, which AVX-512 VBMI holds in four registers.

use std::arch::x86_64::*;

use crate::kernel::LANES;

/// Replaces each value, 0..=255, by that of `table` at its place, 0..=255 as well.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(super) fn replace(values: &mut [i16], table: &[i16; 256]) {
    // The low byte of each value, which is looked up; the high one stays 0.
    const LOW: u64 = 0x5555_5555_5555_5555;
    let table = table.map(|value| value as u8);
    // SAFETY: each quarter of the table has 64 bytes.
    let quarter = |at: usize| unsafe { _mm512_loadu_si512(table[64 * at..].as_ptr().cast()) };
    let [first, second, third, fourth] = std::array::from_fn(quarter);
    let (vectors, rest) = values.as_chunks_mut::<LANES>();
    assert!(rest.is_empty(), "rows are padded");
    for vector in vectors {
        // SAFETY: a vector has 64 bytes.
        let value = unsafe { _mm512_loadu_si512(vector.as_ptr().cast()) };
        // Either half is looked up with 7 bits; the eighth tells which one it is.
        let lower = _mm512_maskz_permutex2var_epi8(LOW, first, value, second);
        let upper = _mm512_permutex2var_epi8(third, value, fourth);
        let found = _mm512_mask_blend_epi8(_mm512_movepi8_mask(value), lower, upper);
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(vector.as_mut_ptr().cast(), found) };
    }
}
