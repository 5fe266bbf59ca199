//! The horizontal pass in plain code: the specification of the vector files.

use super::axis::Axis;
use super::block::Block;
use super::{BITS, IN_BITS, fine, mulhrs};

/// Resizes the rows of a block into `out[row * row_len..]`, three planes of
/// values with [`IN_BITS`] fractional bits, clamped to 0..=255. The padding is
/// not touched.
pub(super) fn horizontal(block: &Block<'_>, axis: &Axis, out: &mut [i16], row_len: usize) {
    let one_row = if axis.is_fine() { fine::one_row } else { one_row };
    for (row, out) in block.rows.iter().zip(out.chunks_exact_mut(row_len)) {
        one_row(&row[..block.bytes], axis, out);
    }
}

fn one_row(row_hwc: &[u8], axis: &Axis, planes: &mut [i16]) {
    let stride = planes.len() / 3;
    for x in 0..axis.len() {
        let pixels = row_hwc[3 * (axis.start(x) - axis.lowest())..].chunks_exact(3);
        let mut sums = [0i16; 3];
        for (pixel, &[weight, _]) in pixels.zip(axis.weights(x).iter()) {
            for (sum, &value) in sums.iter_mut().zip(pixel) {
                *sum += mulhrs(i16::from(value) << IN_BITS, weight);
            }
        }
        for (channel, sum) in sums.into_iter().enumerate() {
            planes[channel * stride + x] = sum.clamp(0, 255 << BITS) << (IN_BITS - BITS);
        }
    }
}
