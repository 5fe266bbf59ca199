//! The horizontal pass in plain code: the specification of the vector files.

use super::axis::Axis;
use super::{BITS, IN_BITS, mulhrs};

/// Resizes one row of interleaved 8-bit pixels into three planes of values with
/// [`IN_BITS`] fractional bits, clamped to 0..=255. The padding is not touched.
pub(super) fn horizontal(crop_hwc: &[u8], axis: &Axis, planes: &mut [i16]) {
    let stride = planes.len() / 3;
    for x in 0..axis.len() {
        let (start, weights) = (axis.start(x), axis.weights(x));
        let mut sums = [0i16; 3];
        for (pixel, &weight) in crop_hwc[3 * start..].chunks_exact(3).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(pixel) {
                *sum += mulhrs(i16::from(value) << IN_BITS, weight);
            }
        }
        for (channel, sum) in sums.into_iter().enumerate() {
            planes[channel * stride + x] = sum.clamp(0, 255 << BITS) << (IN_BITS - BITS);
        }
    }
}
