//! Smooth random fields: value noise on a lattice.

use crate::rng::Rng;

/// Random values on a `cells + 1` square lattice, joined by smoothstep.
pub struct ValueNoise {
    cells: usize,
    lattice: Vec<f32>,
}

impl ValueNoise {
    /// A field over the unit square with features of size `1 / cells`.
    pub fn new(rng: &mut Rng, cells: usize) -> Self {
        let lattice = (0..(cells + 1) * (cells + 1)).map(|_| rng.unit() as f32).collect();
        ValueNoise { cells, lattice }
    }

    /// The field at `(x, y)`, in 0..1; coordinates outside the unit square are
    /// moved to its border.
    pub fn at(&self, x: f32, y: f32) -> f32 {
        let (column, fx) = self.cell(x);
        let (row, fy) = self.cell(y);
        let value = |r: usize, c: usize| self.lattice[r * (self.cells + 1) + c];
        let top = value(row, column) + (value(row, column + 1) - value(row, column)) * fx;
        let bottom =
            value(row + 1, column) + (value(row + 1, column + 1) - value(row + 1, column)) * fx;
        top + (bottom - top) * fy
    }

    fn cell(&self, t: f32) -> (usize, f32) {
        let scaled = t.clamp(0.0, 1.0) * self.cells as f32;
        let cell = (scaled as usize).min(self.cells - 1);
        let f = scaled - cell as f32;
        (cell, f * f * (3.0 - 2.0 * f))
    }
}

/// A standard normal's stand-in: the sum of four uniforms, variance 1.
pub fn nearly_normal(rng: &mut Rng) -> f32 {
    let bits = rng.bits();
    let sum: u32 = (0..4).map(|i| u32::from((bits >> (16 * i)) as u16)).sum();
    (sum as f32 / 65_536.0 - 2.0) * 1.732_050_8
}
