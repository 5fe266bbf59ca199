//! Unstuffing 32 bytes at a time.

use std::arch::x86_64::*;

/// See [`super::unstuff`].
///
/// # Safety
/// AVX2 must be there, and `out` at least `coded.len() + SLACK` long.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn unstuff(coded: &[u8], out: &mut [u8]) -> (usize, usize) {
    let ones = _mm256_set1_epi8(-1);
    let (mut read, mut written) = (0, 0);
    // One byte more than the load, to see what follows a final 0xFF.
    while read + 33 <= coded.len() {
        // SAFETY: 32 bytes are left in `coded`; `written <= read`, so `out`
        // (longer than `coded`) has room for 32 as well.
        let found = unsafe {
            let bytes = _mm256_loadu_si256(coded.as_ptr().add(read).cast());
            _mm256_storeu_si256(out.as_mut_ptr().add(written).cast(), bytes);
            _mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, ones)) as u32
        };
        if found == 0 {
            read += 32;
            written += 32;
            continue;
        }
        let before = found.trailing_zeros() as usize;
        read += before;
        written += before;
        if !super::past_ff(coded[read + 1], out, &mut read, &mut written) {
            return (read, written);
        }
    }
    let (more_read, more_written) = super::scalar::unstuff(&coded[read..], &mut out[written..]);
    (read + more_read, written + more_written)
}
