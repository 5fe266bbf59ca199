//! One image: what is drawn first (nuisance and class), then the pixels.

use super::Spec;
use super::color::{Rgb, lerp, two_lumas, with_luma};
use super::noise::{ValueNoise, nearly_normal};
use super::shape::{Shape, Vec2};
use super::texture::{Pattern, Texture};
use crate::{Image, rng::Rng};

/// What an index of [`super::CLASSES`] looks like.
enum Class {
    Texture(Texture),
    Shape(Shape),
}

const LOOKS: [Class; 12] = [
    Class::Texture(Texture::Stripes),
    Class::Shape(Shape::Disc),
    Class::Texture(Texture::Checks),
    Class::Shape(Shape::Triangle),
    Class::Texture(Texture::Zigzag),
    Class::Shape(Shape::Cross),
    Class::Texture(Texture::Bricks),
    Class::Texture(Texture::Cells),
    Class::Texture(Texture::Layers),
    Class::Texture(Texture::Ripples),
    Class::Texture(Texture::Grid),
    Class::Texture(Texture::Blotches),
];

/// A region with colours and polarity of its own; the figure runs on across its
/// border.
struct Patch {
    centre: Vec2,
    ground: [Rgb; 2],
    ink: Rgb,
}

/// What bears the class. Lengths are in image sides.
enum Figure {
    Pattern { pattern: Pattern, turn: Vec2, centre: Vec2 },
    Scattering { shape: Shape, instances: Vec<Instance> },
}

/// One shape of a scattering.
struct Instance {
    centre: Vec2,
    radius: f32,
    turn: Vec2,
}

/// A short line of some colour, which says nothing about the class.
struct Scratch {
    from: Vec2,
    to: Vec2,
    half_width: f32,
    colour: Rgb,
}

/// Everything that is drawn before a pixel is.
struct Scene {
    patches: Vec<Patch>,
    figure: Figure,
    ground_noise: ValueNoise,
    warp: [ValueNoise; 2],
    warp_size: f32,
    scratches: Vec<Scratch>,
    /// Brightness changes along this direction by up to its length.
    light: Vec2,
    noise: f32,
}

/// Draws image `i`, of class `class`.
pub fn draw(spec: &Spec, i: u64, class: usize) -> Image {
    let mut rng = Rng::keyed(spec.seed, spec.split, i, SCENE);
    let scene = Scene::new(&mut rng, &LOOKS[class]);
    let mut image = Image::new(spec.side, spec.side);
    let pixel = 1.0 / spec.side as f32;
    for (at, out) in image.pixels_hwc.chunks_exact_mut(3).enumerate() {
        let p = [at % spec.side, at / spec.side].map(|c| (c as f32 + 0.5) * pixel);
        let lit = scene.colour(p, pixel);
        let grain = scene.noise * nearly_normal(&mut rng);
        for (byte, value) in out.iter_mut().zip(lit) {
            let noisy = value + grain + 0.4 * scene.noise * nearly_normal(&mut rng);
            *byte = (noisy.clamp(0.0, 1.0) * 255.0 + 0.5) as u8;
        }
    }
    image
}

/// Keeps these draws apart from those of the views.
const SCENE: u64 = 0x5CE9E;

impl Scene {
    fn new(rng: &mut Rng, class: &Class) -> Self {
        let figure = match *class {
            Class::Texture(texture) => pattern(rng, texture),
            Class::Shape(shape) => scattering(rng, shape),
        };
        let cells = 2 + rng.below(6) as usize;
        let turn = direction(rng);
        let strength = rng.uniform(0.0, 0.35) as f32;
        Scene {
            patches: (0..1 + rng.below(4)).map(|_| Patch::new(rng)).collect(),
            figure,
            ground_noise: ValueNoise::new(rng, cells),
            warp: [ValueNoise::new(rng, 2), ValueNoise::new(rng, 2)],
            warp_size: rng.uniform(0.0, 0.3) as f32,
            scratches: (0..rng.below(4)).map(|_| scratch(rng)).collect(),
            light: turn.map(|t| t * strength),
            noise: rng.uniform(0.01, 0.05) as f32,
        }
    }

    /// The colour at `p`, before noise. `pixel` is a pixel's width.
    fn colour(&self, p: Vec2, pixel: f32) -> Rgb {
        let bent = [0, 1].map(|i| p[i] + self.warp_size * (self.warp[i].at(p[0], p[1]) - 0.5));
        let tint = self.ground_noise.at(p[0], p[1]);
        let figure = coverage(self.figure.distance(bent), pixel);
        let paint =
            |patch: &Patch| lerp(lerp(patch.ground[0], patch.ground[1], tint), patch.ink, figure);
        let (near, next) = self.nearest_patches(p);
        let mut colour = paint(near.1);
        // Half the difference is the distance to the border, about.
        let over = coverage(0.5 * (next.0 - near.0), pixel);
        if over > 0.0 {
            colour = lerp(colour, paint(next.1), over);
        }
        for scratch in &self.scratches {
            colour = lerp(colour, scratch.colour, 0.9 * coverage(scratch.distance(p), pixel));
        }
        let light = 1.0 + 2.0 * (self.light[0] * (p[0] - 0.5) + self.light[1] * (p[1] - 0.5));
        colour.map(|v| v * light)
    }

    /// The two patches whose centres are nearest, with their distances.
    fn nearest_patches(&self, p: Vec2) -> ((f32, &Patch), (f32, &Patch)) {
        let mut best = (f32::MAX, &self.patches[0]);
        let mut second = best;
        for patch in &self.patches {
            let (x, y) = (p[0] - patch.centre[0], p[1] - patch.centre[1]);
            let distance = (x * x + y * y).sqrt();
            if distance < best.0 {
                second = best;
                best = (distance, patch);
            } else if distance < second.0 {
                second = (distance, patch);
            }
        }
        (best, second)
    }
}

impl Patch {
    fn new(rng: &mut Rng) -> Self {
        let (ground_luma, ink_luma) = two_lumas(rng, 0.4);
        let step = rng.uniform(-0.1, 0.1) as f32;
        Patch {
            centre: [rng.unit() as f32, rng.unit() as f32],
            ground: [ground_luma, (ground_luma + step).clamp(0.03, 0.97)]
                .map(|luma| with_luma(rng, luma)),
            ink: with_luma(rng, ink_luma),
        }
    }
}

impl Figure {
    fn distance(&self, p: Vec2) -> f32 {
        match self {
            Figure::Pattern { pattern, turn, centre } => {
                pattern.distance(rotate([p[0] - centre[0], p[1] - centre[1]], *turn))
            }
            Figure::Scattering { shape, instances } => {
                instances.iter().map(|one| one.distance(*shape, p)).fold(f32::MAX, f32::min)
            }
        }
    }
}

impl Instance {
    fn distance(&self, shape: Shape, p: Vec2) -> f32 {
        let local = rotate([p[0] - self.centre[0], p[1] - self.centre[1]], self.turn);
        shape.distance(local.map(|v| v / self.radius)) * self.radius
    }
}

impl Scratch {
    fn distance(&self, p: Vec2) -> f32 {
        let along = [self.to[0] - self.from[0], self.to[1] - self.from[1]];
        let off = [p[0] - self.from[0], p[1] - self.from[1]];
        let length = (along[0] * along[0] + along[1] * along[1]).max(1e-9);
        let t = ((off[0] * along[0] + off[1] * along[1]) / length).clamp(0.0, 1.0);
        let (x, y) = (off[0] - along[0] * t, off[1] - along[1] * t);
        (x * x + y * y).sqrt() - self.half_width
    }
}

fn pattern(rng: &mut Rng, texture: Texture) -> Figure {
    let period = rng.uniform(0.15, 0.28) as f32;
    Figure::Pattern {
        pattern: Pattern::new(rng, texture, period),
        turn: tilt(rng),
        centre: [rng.uniform(0.2, 0.8) as f32, rng.uniform(0.2, 0.8) as f32],
    }
}

/// Shapes of about one size, none on top of another, thrown until there is no
/// room left.
fn scattering(rng: &mut Rng, shape: Shape) -> Figure {
    let size = rng.uniform(0.13, 0.21) as f32;
    let mut instances: Vec<Instance> = Vec::new();
    for _ in 0..60 {
        let centre = [rng.uniform(-0.05, 1.05) as f32, rng.uniform(-0.05, 1.05) as f32];
        let radius = size * rng.uniform(0.8, 1.2) as f32;
        let turn = tilt(rng);
        let free = instances.iter().all(|other| {
            let (x, y) = (centre[0] - other.centre[0], centre[1] - other.centre[1]);
            let room = 0.95 * (radius + other.radius);
            x * x + y * y > room * room
        });
        if free {
            instances.push(Instance { centre, radius, turn });
        }
    }
    Figure::Scattering { shape, instances }
}

fn scratch(rng: &mut Rng) -> Scratch {
    let from = [rng.unit() as f32, rng.unit() as f32];
    let (turn, length) = (direction(rng), rng.uniform(0.15, 0.5) as f32);
    let brightness = rng.uniform(0.1, 0.9) as f32;
    Scratch {
        from,
        to: [from[0] + turn[0] * length, from[1] + turn[1] * length],
        half_width: rng.uniform(0.008, 0.02) as f32,
        colour: with_luma(rng, brightness),
    }
}

/// A uniformly random direction, without trigonometry: a point of the disc,
/// drawn by rejection, made a unit vector.
fn direction(rng: &mut Rng) -> Vec2 {
    loop {
        let v = [rng.uniform(-1.0, 1.0) as f32, rng.uniform(-1.0, 1.0) as f32];
        let square = v[0] * v[0] + v[1] * v[1];
        if (0.01..=1.0).contains(&square) {
            return v.map(|c| c / square.sqrt());
        }
    }
}

/// A direction within 20 degrees of upright: more would make stripes layers.
fn tilt(rng: &mut Rng) -> Vec2 {
    let slope = rng.uniform(-0.35, 0.35) as f32;
    let length = (1.0 + slope * slope).sqrt();
    [1.0 / length, slope / length]
}

fn rotate(p: Vec2, turn: Vec2) -> Vec2 {
    [p[0] * turn[0] - p[1] * turn[1], p[0] * turn[1] + p[1] * turn[0]]
}

/// How much of a pixel lies inside, from the distance of its middle.
fn coverage(distance: f32, pixel: f32) -> f32 {
    (0.5 - distance / pixel).clamp(0.0, 1.0)
}
