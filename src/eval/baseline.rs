//! The floor that a representation must rise above: what the pixels themselves
//! and the colours alone say about the class.

/// Steps of each colour channel in a histogram.
const STEPS: usize = 6;

/// Values of a colour histogram.
pub const HISTOGRAM_DIM: usize = STEPS * STEPS * STEPS;

/// The joint histogram of an image's colours, [`HISTOGRAM_DIM`] square roots of
/// shares: the cosine between two of them is Bhattacharyya's coefficient.
pub fn colour_histogram(pixels: &[u8]) -> Vec<f32> {
    let mut counts = vec![0u32; HISTOGRAM_DIM];
    for pixel in pixels.chunks_exact(3) {
        let [r, g, b] = [0, 1, 2].map(|c| usize::from(pixel[c]) * STEPS / 256);
        counts[(r * STEPS + g) * STEPS + b] += 1;
    }
    let total = (pixels.len() / 3).max(1) as f32;
    counts.iter().map(|count| (*count as f32 / total).sqrt()).collect()
}

/// The pixels as features: 0 is middle gray.
pub fn raw_pixels(pixels: &[u8]) -> Vec<f32> {
    pixels.iter().map(|p| f32::from(*p) / 127.5 - 1.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_forgets_places_and_has_length_one() {
        let pixels: Vec<u8> = (0..=255u8).flat_map(|v| [v, 255 - v, v / 2]).collect();
        let mut moved = pixels.clone();
        moved.rotate_left(300);
        let histogram = colour_histogram(&pixels);
        assert_eq!(histogram, colour_histogram(&moved));
        let length: f32 = histogram.iter().map(|v| v * v).sum();
        assert!((length - 1.0).abs() < 1e-5);
        assert_eq!(colour_histogram(&[255; 3])[HISTOGRAM_DIM - 1], 1.0);
    }

    #[test]
    fn middle_gray_is_near_zero() {
        assert!(raw_pixels(&[127, 128]).iter().all(|v| v.abs() < 0.01));
    }
}
