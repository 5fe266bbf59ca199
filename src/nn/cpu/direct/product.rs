//! Outputs and input gradients from bands.

use super::{Direct, SCRATCH, Scratch};
use crate::nn::cpu::micro::{CHUNK, Isa, MAX_MR, Tile};
use crate::nn::cpu::product::{Panels, Scatter};
use crate::nn::cpu::{Shared, each};

/// Floats of packed weights up to which all of them pass by each tile of positions.
const PANEL_FLOATS: usize = 144 * 1024;

/// One product over a gather's bands.
pub(in crate::nn::cpu) struct Part<'a> {
    /// Chunks of the taps that take part, [`Direct::chunks_of`].
    pub offsets: &'a [usize],
    /// Weights, packed in the order of `offsets`.
    pub panels: &'a Panels,
    /// Where the grid's positions go; those outside its size go nowhere.
    pub scatter: &'a Scatter,
}

/// Where a band's product goes.
struct Target<'a> {
    image: usize,
    band: usize,
    part: &'a Part<'a>,
    dst: Shared,
    accumulate: bool,
}

impl Direct {
    /// dst (+)= gathered rows x panels, for each part; as [`super::product::product`], whose checks
    /// hold for every part. Several parts share a source and write different pixels.
    pub(in crate::nn::cpu) fn product(
        &self,
        isa: Isa,
        src: &[f32],
        parts: &[Part<'_>],
        dst: Shared,
        accumulate: bool,
    ) {
        each(self.gather.n * self.bands, |task| {
            let (image, band) = (task / self.bands, task % self.bands);
            SCRATCH.with_borrow_mut(|s| {
                self.fill(isa, src, image, band, s);
                for part in parts {
                    self.band_product(isa, &Target { image, band, part, dst, accumulate }, s);
                }
            });
        });
    }

    fn band_product(&self, isa: Isa, to: &Target<'_>, s: &mut Scratch) {
        let (mr, offsets, weights) = (isa.mr(), to.part.offsets, to.part.panels);
        let positions = self.rows(to.band).len() * self.columns;
        let panels = weights.cols().div_ceil(isa.nr());
        let waste = s.waste.get(isa.nr());
        waste.fill(0.0);
        let waste = waste.as_mut_ptr();
        let (len, slack) = self.band_len();
        let band = s.band.filled(len + slack);
        // Weights that the second-level cache holds pass by every tile; larger ones one panel at a
        // time.
        let small = weights.cols() * offsets.len() * CHUNK <= PANEL_FLOATS;
        let group = if small { panels } else { 1 };
        for first in (0..panels).step_by(group) {
            for q in (0..positions).step_by(mr) {
                let rows = self.destinations(q, positions, mr, to, waste);
                for j in first..first + group {
                    let (j0, cols, b) = weights.panel(isa, j, 0..offsets.len());
                    let rows = rows.map(|r| if r == waste { r } else { r.wrapping_add(j0) });
                    let tile = Tile {
                        chunks: offsets.len(),
                        a: band[q * CHUNK..].as_ptr(),
                        offsets: offsets.as_ptr(),
                        b: b.as_ptr(),
                        rows: rows.as_ptr(),
                        n_rows: mr,
                        cols,
                        accumulate: to.accumulate,
                    };
                    // SAFETY: position q + mr - 1 of the last chunk ends at most MAX_MR + columns
                    // lines behind the band, which `fill` has; `b` is a whole panel. The rows are
                    // pixels of this band, which this task alone writes, or this thread's waste.
                    unsafe { isa.tile(&tile) };
                }
            }
        }
    }

    /// Destinations of `mr` positions from `q` on; the border's go to waste.
    fn destinations(
        &self,
        q: usize,
        positions: usize,
        mr: usize,
        to: &Target<'_>,
        waste: *mut f32,
    ) -> [*mut f32; MAX_MR] {
        let (s, width) = (to.part.scatter, self.gather.grid.1);
        let first_row = self.rows(to.band).start;
        let (mut y, mut x) = (q / self.columns, q % self.columns);
        let mut out = [waste; MAX_MR];
        for out in out.iter_mut().take(mr.min(positions - q)) {
            let py = (first_row + y) * s.stride + s.origin.0;
            let px = x * s.stride + s.origin.1;
            // Beyond the size: the last row or column of a part that has one less than others.
            if x < width && py < s.size.0 && px < s.size.1 {
                let pixel = (to.image * s.size.0 + py) * s.size.1 + px;
                *out = to.dst.at(pixel * to.part.panels.cols());
            }
            x += 1;
            if x == self.columns {
                (x, y) = (0, y + 1);
            }
        }
        out
    }
}
