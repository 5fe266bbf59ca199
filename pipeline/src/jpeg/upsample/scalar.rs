//! The specification of the triangle filters (`h2v1_fancy_upsample`,
//! `h2v2_fancy_upsample` of libjpeg: weights 3/4 and 1/4, alternating bias).

/// See [`super::h2`].
pub(super) fn h2(row: &[u8], out: &mut [u8]) {
    for (pair, window) in out.chunks_exact_mut(2).zip(row.windows(3)) {
        let [left, this, right] = [window[0], window[1], window[2]].map(u16::from);
        pair[0] = ((3 * this + left + 1) >> 2) as u8;
        pair[1] = ((3 * this + right + 2) >> 2) as u8;
    }
}

/// See [`super::h2v2`].
pub(super) fn h2v2(near: &[u8], far: &[u8], out: &mut [u8]) {
    let sum = |at: usize| 3 * u16::from(near[at]) + u16::from(far[at]);
    for (x, pair) in out.chunks_exact_mut(2).enumerate() {
        let [left, this, right] = [sum(x), sum(x + 1), sum(x + 2)];
        pair[0] = ((3 * this + left + 8) >> 4) as u8;
        pair[1] = ((3 * this + right + 7) >> 4) as u8;
    }
}
