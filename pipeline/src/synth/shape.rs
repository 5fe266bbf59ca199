//! The shapes as signed distances: negative inside, in units of the radius.

/// A point or a direction.
pub type Vec2 = [f32; 2];

/// What a scattering is made of; every kind fits a circle of radius 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A filled circle.
    Disc,
    /// An equilateral triangle.
    Triangle,
    /// A plus sign.
    Cross,
}

impl Shape {
    /// The signed distance from `p` to the outline.
    pub fn distance(self, p: Vec2) -> f32 {
        let length = (p[0] * p[0] + p[1] * p[1]).sqrt();
        match self {
            Shape::Disc => length - 0.85,
            Shape::Triangle => polygon(p, &TRIANGLE),
            Shape::Cross => polygon(p, &CROSS),
        }
    }
}

const TRIANGLE: [Vec2; 3] = [[0.0, -1.0], [0.866_025_4, 0.5], [-0.866_025_4, 0.5]];
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
    fn a_cross_knows_its_distances() {
        assert!((Shape::Cross.distance([0.0, 0.0]) + 0.28f32.hypot(0.28)).abs() < 1e-6);
        assert!((Shape::Cross.distance([1.96, 0.0]) - 1.0).abs() < 1e-6);
        assert!((Shape::Cross.distance([1.26, 0.68]) - 0.5).abs() < 1e-6);
    }

    #[test]
    fn every_shape_fits_the_unit_circle_and_reaches_most_of_it() {
        let all = [Shape::Disc, Shape::Triangle, Shape::Cross];
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
