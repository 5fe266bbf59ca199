//! The cross-correlation matrix C of a batch, as figures and as a picture.

use bt_pipeline::Image;

use super::fit;

/// Rows and columns of C that are drawn at most: with more of them the diagonal is
/// too thin to be seen.
pub const MOST_ROWS: usize = 64;

/// The cross-correlation matrix of one batch.
#[derive(Clone, Debug)]
pub struct Correlation {
    /// When it was taken.
    pub name: String,
    /// Rows (and columns).
    pub dim: usize,
    /// `dim * dim` values, row after row, -1 to 1.
    pub values: Vec<f32>,
}

impl Correlation {
    /// Mean of the diagonal.
    pub fn on_diag_mean(&self) -> f64 {
        let diagonal = self.values.iter().step_by(self.dim + 1);
        diagonal.map(|v| f64::from(*v)).sum::<f64>() / self.dim.max(1) as f64
    }

    /// Root mean square of what is not on the diagonal.
    pub fn off_diag_rms(&self) -> f64 {
        let square = |v: &f32| f64::from(*v) * f64::from(*v);
        let all: f64 = self.values.iter().map(square).sum();
        let on: f64 = self.values.iter().step_by(self.dim + 1).map(square).sum();
        let count = self.dim * self.dim - self.dim;
        ((all - on).max(0.0) / count.max(1) as f64).sqrt()
    }
}

/// C as a picture on white, at most its first [`MOST_ROWS`] rows and columns, large enough to be
/// looked at.
pub fn correlation_image(c: &Correlation) -> Image {
    let side = c.dim.min(MOST_ROWS);
    let mut out = Image::new(side, side);
    for (i, pixel) in out.pixels_hwc.chunks_exact_mut(3).enumerate() {
        let [r, g, b, strength] = colour(c.values[i / side * c.dim + i % side]);
        let over_white = |channel: u8| {
            let (channel, strength) = (u32::from(channel), u32::from(strength));
            ((channel * strength + 255 * (255 - strength)) / 255) as u8
        };
        pixel.copy_from_slice(&[r, g, b].map(over_white));
    }
    fit(&out, side * (256 / side).max(1))
}

/// Orange over 0, blue under it, opaque at 1.
pub(crate) fn colour(value: f32) -> [u8; 4] {
    let strength = (value.abs().min(1.0) * 255.0).round() as u8;
    let [r, g, b] = if value >= 0.0 { [230, 110, 20] } else { [40, 120, 240] };
    [r, g, b, strength]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_of_c_is_large_and_on_white_and_its_figures_are_those_of_the_matrix() {
        let c = Correlation {
            name: String::new(),
            dim: 3,
            values: vec![1., 0., -1., 0., 1., 0., 0., 0., 1.],
        };
        let opaque = correlation_image(&c);
        assert_eq!((opaque.width, opaque.height), (255, 255));
        assert_eq!(opaque.row(0)[..3], [230, 110, 20]);
        assert_eq!(opaque.row(0)[3 * 100..][..3], [255; 3]);
        assert!((c.on_diag_mean() - 1.0).abs() < 1e-9);
        assert!((c.off_diag_rms() - (1.0f64 / 6.0).sqrt()).abs() < 1e-9);
    }
}
