//! Pixel operations, one folder each, under `augment`.
//!
//! A view travels as rows: [`Rows`] hold three planes of each row as 16-bit integers, 0..=255
//! each, padded to a whole number of vectors. The operations are written once, as plain loops (over
//! integers; colours are computed in 32-bit floats) that say exactly what comes out;
//! `crate::level::multiversion` compiles them for each instruction set, so all of them give the
//! same bytes. Where shuffles decide, or sums that must stay in registers (resize, blur), a scalar
//! function specifies and a generic one over `vector::Vector` must agree with it.

#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

pub mod blur;
pub mod color;
pub mod resize;
mod row;
pub mod store;
mod vector;

pub use crate::scratch::Scratch;
pub use row::{LANES, Rows, padded};

/// Largest brightness, contrast or saturation factor: what is computed with it
/// stays far within the integers that it is cut to before values are limited to
/// 0..=255.
pub const MAX_FACTOR: f64 = 7.0;

/// Largest blur, in pixels.
pub const MAX_SIGMA: f32 = 32.0;
