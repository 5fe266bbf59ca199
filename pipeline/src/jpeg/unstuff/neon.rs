//! Unstuffing 16 bytes at a time.

use std::arch::aarch64::*;

/// See [`super::unstuff`].
///
/// # Safety
/// `out` must be at least `coded.len() + SLACK` long.
pub(super) unsafe fn unstuff(coded: &[u8], out: &mut [u8]) -> (usize, usize) {
    let (mut read, mut written) = (0, 0);
    // One byte more than the load, to see what follows a final 0xFF.
    while read + 17 <= coded.len() {
        // SAFETY: every aarch64 CPU has NEON. 16 bytes are left in `coded`; `written <= read`, so
        // `out` (longer than `coded`) has room for 16 as well.
        let found = unsafe {
            let bytes = vld1q_u8(coded.as_ptr().add(read));
            vst1q_u8(out.as_mut_ptr().add(written), bytes);
            // Four bits for each byte: NEON has no mask of one.
            let equal = vreinterpretq_u16_u8(vceqq_u8(bytes, vdupq_n_u8(0xFF)));
            vget_lane_u64::<0>(vreinterpret_u64_u8(vshrn_n_u16::<4>(equal)))
        };
        if found == 0 {
            read += 16;
            written += 16;
            continue;
        }
        let before = found.trailing_zeros() as usize / 4;
        read += before;
        written += before;
        if !super::past_ff(coded[read + 1], out, &mut read, &mut written) {
            return (read, written);
        }
    }
    let (more_read, more_written) = super::scalar::unstuff(&coded[read..], &mut out[written..]);
    (read + more_read, written + more_written)
}
