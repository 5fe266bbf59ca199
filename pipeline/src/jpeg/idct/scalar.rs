//! The specification of the inverse DCT.

use super::{Block, CONST_BITS, EVEN, ODD, PASS1_BITS, PASS2_BIAS};

/// One dimension: 8 inputs to 8 sums with CONST_BITS more fractional bits.
fn transform(input: [i16; 8], rounding: i32) -> [i32; 8] {
    let x = input.map(i32::from);
    let dot2 = |w: [i32; 2], a: i32, b: i32| (w[0] * a).wrapping_add(w[1] * b);
    let even0 = ((x[0] + x[4]) << CONST_BITS).wrapping_add(rounding);
    let even1 = ((x[0] - x[4]) << CONST_BITS).wrapping_add(rounding);
    let (rotated1, rotated0) = (dot2(EVEN[0], x[2], x[6]), dot2(EVEN[1], x[2], x[6]));
    let even = [
        even0.wrapping_add(rotated0),
        even1.wrapping_add(rotated1),
        even1.wrapping_sub(rotated1),
        even0.wrapping_sub(rotated0),
    ];
    let mut out = [0; 8];
    for (i, w) in ODD.iter().enumerate() {
        let odd = dot2([w[0], w[1]], x[1], x[3]).wrapping_add(dot2([w[2], w[3]], x[5], x[7]));
        out[i] = even[i].wrapping_add(odd);
        out[7 - i] = even[i].wrapping_sub(odd);
    }
    out
}

fn saturate(value: i32) -> i16 {
    value.clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16
}

/// One block to 8 x 8 samples, rows `stride` apart.
pub(super) fn idct(block: &Block, quant: &Block, out: &mut [u8], stride: usize) {
    let mut work = [0i16; 64];
    for x in 0..8 {
        let column: [i16; 8] =
            std::array::from_fn(|y| block.0[y * 8 + x].wrapping_mul(quant.0[y * 8 + x]));
        const SHIFT: u32 = CONST_BITS - PASS1_BITS;
        for (y, sum) in transform(column, 1 << (SHIFT - 1)).into_iter().enumerate() {
            work[y * 8 + x] = saturate(sum >> SHIFT);
        }
    }
    for (y, row) in work.chunks_exact(8).enumerate() {
        let mut row: [i16; 8] = std::array::from_fn(|x| row[x]);
        row[0] = row[0].saturating_add(PASS2_BIAS);
        const SHIFT: u32 = CONST_BITS + PASS1_BITS + 3;
        for (x, sum) in transform(row, 0).into_iter().enumerate() {
            out[y * stride + x] = (sum >> SHIFT).clamp(0, 255) as u8;
        }
    }
}
