//! The textures as signed distances: negative on the figure, in the unit of
//! the point, which the texture's period is given in too.

use super::shape::Vec2;
use crate::rng::{Rng, mix};

/// A pattern that covers the plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Texture {
    /// Straight parallel bands.
    Stripes,
    /// Level parallel bands.
    Layers,
    /// A checkerboard.
    Checks,
    /// Bands that turn by right angles.
    Zigzag,
    /// Bricks in a running bond; the mortar is the ground.
    Bricks,
    /// Thin lines that cross.
    Grid,
    /// Islands of no particular shape.
    Blotches,
    /// The borders of irregular cells.
    Cells,
    /// Rings around one centre.
    Ripples,
}

/// A texture with its drawn parameters.
pub struct Pattern {
    texture: Texture,
    period: f32,
    /// Width of the figure as a share of the period.
    duty: f32,
    salt: u64,
}

impl Pattern {
    /// Draws what makes one instance of `texture` differ from another.
    pub fn new(rng: &mut Rng, texture: Texture, period: f32) -> Self {
        let duty = rng.uniform(0.38, 0.62) as f32;
        Pattern { texture, period, duty, salt: rng.bits() }
    }

    /// The signed distance at `p`.
    pub fn distance(&self, p: Vec2) -> f32 {
        let t = self.period;
        match self.texture {
            Texture::Stripes => band(p[0], t, self.duty),
            Texture::Layers => band(p[1], t, self.duty),
            Texture::Grid => {
                let line = |x: f32| band(x, 1.1 * t, 0.25);
                line(p[0]).min(line(p[1]))
            }
            Texture::Blotches => self.blotches(p),
            Texture::Checks => {
                let (a, b) = (band(p[0], 1.5 * t, 0.5), band(p[1], 1.5 * t, 0.5));
                let size = a.abs().min(b.abs());
                if (a < 0.0) == (b < 0.0) { -size } else { size }
            }
            Texture::Zigzag => {
                let turn = (p[0] - 1.6 * t * (p[0] / (1.6 * t)).round()).abs();
                // The slope of 45 degrees narrows the band by the square root of 2.
                band(p[1] + turn, 1.2 * t, self.duty) * std::f32::consts::FRAC_1_SQRT_2
            }
            Texture::Bricks => self.bricks(p),
            Texture::Cells => self.cells(p),
            Texture::Ripples => band((p[0] * p[0] + p[1] * p[1]).sqrt(), t, self.duty),
        }
    }

    /// Value noise of two sizes around its middle.
    fn blotches(&self, p: Vec2) -> f32 {
        let size = 1.2 * self.period;
        let fine = self.value([p[0] / size, p[1] / size], 0);
        let finer = self.value([2.3 * p[0] / size, 2.3 * p[1] / size], 1);
        // The slope of the noise is about 2 per cell.
        (fine + 0.45 * finer - 0.725) * size * 0.6
    }

    fn value(&self, p: Vec2, octave: u64) -> f32 {
        let home = [p[0].floor(), p[1].floor()];
        let at = |dx: f32, dy: f32| {
            let (x, y) = ((home[0] + dx) as i32 as u32, (home[1] + dy) as i32 as u32);
            let hash = mix(self.salt ^ mix(octave) ^ mix(u64::from(x) ^ (u64::from(y) << 32)));
            f32::from(hash as u16) / 65_536.0
        };
        let soft = |f: f32| f * f * (3.0 - 2.0 * f);
        let (fx, fy) = (soft(p[0] - home[0]), soft(p[1] - home[1]));
        let top = at(0.0, 0.0) + (at(1.0, 0.0) - at(0.0, 0.0)) * fx;
        let bottom = at(0.0, 1.0) + (at(1.0, 1.0) - at(0.0, 1.0)) * fx;
        top + (bottom - top) * fy
    }

    fn bricks(&self, p: Vec2) -> f32 {
        let (height, width) = (0.95 * self.period, 2.0 * self.period);
        let row = (p[1] / height).floor();
        let shift = if (row * 0.5).fract() == 0.0 { 0.0 } else { 0.5 * width };
        let x = (p[0] + shift) - width * ((p[0] + shift) / width).floor();
        let y = p[1] - row * height;
        let mortar = 0.13 * self.period;
        let to_edge = x.min(width - x).min(y.min(height - y));
        mortar - to_edge
    }

    /// Worley's cellular noise: the difference of the distances to the nearest
    /// and the second nearest point of a jittered lattice is small on borders.
    fn cells(&self, p: Vec2) -> f32 {
        let size = 1.5 * self.period;
        let home = [(p[0] / size).floor(), (p[1] / size).floor()];
        let (mut first, mut second) = (f32::MAX, f32::MAX);
        for step in 0..25 {
            let cell = [home[0] + (step % 5) as f32 - 2.0, home[1] + (step / 5) as f32 - 2.0];
            let hash = mix(self.salt
                ^ mix(cell[0] as i32 as u32 as u64 ^ ((cell[1] as i32 as u32 as u64) << 32)));
            let jitter = [hash as u16, (hash >> 16) as u16].map(|b| f32::from(b) / 65_536.0);
            let off = [
                (cell[0] + 0.1 + 0.8 * jitter[0]) * size - p[0],
                (cell[1] + 0.1 + 0.8 * jitter[1]) * size - p[1],
            ];
            let distance = (off[0] * off[0] + off[1] * off[1]).sqrt();
            second = second.min(first.max(distance));
            first = first.min(distance);
        }
        0.15 * self.period - 0.5 * (second - first)
    }
}

/// Bands of `duty * period` every `period`, the middle of one at 0.
fn band(x: f32, period: f32, duty: f32) -> f32 {
    let from_middle = (x - period * (x / period).round()).abs();
    from_middle - 0.5 * duty * period
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_texture_has_figure_and_ground_and_no_jumps() {
        use Texture::{Blotches, Bricks, Cells, Checks, Grid, Layers, Ripples, Stripes, Zigzag};
        let all = [Stripes, Layers, Checks, Zigzag, Bricks, Grid, Cells, Ripples, Blotches];
        for texture in all {
            let pattern = Pattern::new(&mut Rng::keyed(3, 0, 0, 0), texture, 10.0);
            let at = |x: i32, y: i32| pattern.distance([x as f32 * 0.1, y as f32 * 0.1]);
            let mut inside = 0;
            for y in -150..150 {
                for x in -300..300 {
                    inside += u32::from(at(x, y) < 0.0);
                    // A distance changes by no more than the way that was gone; the
                    // noise of blotches is a distance only about.
                    let most = if texture == Blotches { 0.2 } else { 0.11 };
                    assert!((at(x + 1, y) - at(x, y)).abs() < most, "{texture:?} at {x} {y}");
                }
            }
            let share = f64::from(inside) / 180_000.0;
            assert!((0.15..0.85).contains(&share), "{texture:?} covers {share}");
        }
    }
}
