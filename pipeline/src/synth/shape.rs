//! The shapes as signed distances: negative inside, in units of the radius.

/// A point or a direction.
pub type Vec2 = [f32; 2];

/// What a scattering is made of; every kind fits a circle of radius 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A filled circle.
    Disc,
    /// A circle with a hole.
    Ring,
    /// An equilateral triangle.
    Triangle,
    /// A square.
    Square,
    /// A plus sign.
    Cross,
    /// A star of five points.
    Star,
}

impl Shape {
    /// The signed distance from `p` to the outline.
    pub fn distance(self, p: Vec2) -> f32 {
        let length = (p[0] * p[0] + p[1] * p[1]).sqrt();
        match self {
            Shape::Disc => length - 0.85,
            Shape::Ring => (length - 0.68).abs() - 0.24,
            Shape::Triangle => polygon(p, &TRIANGLE),
            Shape::Square => polygon(p, &SQUARE),
            Shape::Cross => polygon(p, &CROSS),
            Shape::Star => polygon(p, &STAR),
        }
    }
}

const TRIANGLE: [Vec2; 3] = [[0.0, -1.0], [0.866_025_4, 0.5], [-0.866_025_4, 0.5]];
const SQUARE: [Vec2; 4] = [[-0.75, -0.75], [0.75, -0.75], [0.75, 0.75], [-0.75, 0.75]];
const CROSS: [Vec2; 12] = [
    [-0.28, -0.96],
    [0.28, -0.96],
    [0.28, -0.28],
    [0.96, -0.28],
    [0.96, 0.28],
    [0.28, 0.28],
    [0.28, 0.96],
    [-0.28, 0.96],
    [-0.28, 0.28],
    [-0.96, 0.28],
    [-0.96, -0.28],
    [-0.28, -0.28],
];
// Radius 1 at the points, 0.42 between them, every 36 degrees.
const STAR: [Vec2; 10] = [
    [0.0, -1.0],
    [0.246_869_8, -0.339_787_1],
    [0.951_056_5, -0.309_017],
    [0.399_443_7, 0.129_787_1],
    [0.587_785_3, 0.809_017],
    [0.0, 0.42],
    [-0.587_785_3, 0.809_017],
    [-0.399_443_7, 0.129_787_1],
    [-0.951_056_5, -0.309_017],
    [-0.246_869_8, -0.339_787_1],
];

/// The signed distance to a polygon: the nearest edge, and the parity of the
/// edges crossed by a ray for the sign.
fn polygon(p: Vec2, vertices: &[Vec2]) -> f32 {
    let mut nearest = f32::MAX;
    let mut inside = false;
    let mut a = vertices[vertices.len() - 1];
    for &b in vertices {
        let edge = [b[0] - a[0], b[1] - a[1]];
        let to = [p[0] - a[0], p[1] - a[1]];
        let along = (to[0] * edge[0] + to[1] * edge[1]) / (edge[0] * edge[0] + edge[1] * edge[1]);
        let t = along.clamp(0.0, 1.0);
        let off = [to[0] - edge[0] * t, to[1] - edge[1] * t];
        nearest = nearest.min(off[0] * off[0] + off[1] * off[1]);
        if (a[1] > p[1]) != (b[1] > p[1]) && p[0] < a[0] + edge[0] * (p[1] - a[1]) / edge[1] {
            inside = !inside;
        }
        a = b;
    }
    if inside { -nearest.sqrt() } else { nearest.sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_square_knows_its_distances() {
        assert!((Shape::Square.distance([0.0, 0.0]) + 0.75).abs() < 1e-6);
        assert!((Shape::Square.distance([1.75, 0.0]) - 1.0).abs() < 1e-6);
        assert!((Shape::Square.distance([1.05, 1.15]) - 0.5).abs() < 1e-6);
    }

    #[test]
    fn every_shape_fits_the_unit_circle_and_reaches_most_of_it() {
        let all =
            [Shape::Disc, Shape::Ring, Shape::Triangle, Shape::Square, Shape::Cross, Shape::Star];
        for shape in all {
            let mut reach = 0.0f32;
            for y in -60..=60 {
                for x in -60..=60 {
                    let p = [x as f32 / 40.0, y as f32 / 40.0];
                    if shape.distance(p) < 0.0 {
                        reach = reach.max((p[0] * p[0] + p[1] * p[1]).sqrt());
                    }
                }
            }
            assert!((0.8..=1.08).contains(&reach), "{shape:?} reaches {reach}");
        }
    }
}
