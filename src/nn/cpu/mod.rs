//! The CPU backend's arithmetic: plain slices in, plain slices out; knows neither tensors nor
//! layers.
//!
//! One blocked product with packed operands (`product`) serves a convolution's output and its input
//! gradient, `weight_grad` the gradient of its weight; on wide images `direct` does both without
//! packing patches, and 3 x 3 convolutions of stride 1 go by `winograd`'s tiles, with fewer
//! products. All run on the micro-kernels of `micro`. `norm` and `pool` are passes over memory.
//! Every reduction has a partition that depends on shapes alone, so results do not depend on the
//! number of threads; they do depend on the instruction set.

pub mod conv;
pub mod direct;
pub mod gather;
pub mod micro;
pub mod norm;
pub mod pool;
pub mod product;
pub mod weight_grad;
pub mod winograd;

use bytemuck::{Pod, Zeroable};

/// A growable, line-aligned scratch of floats. Growing loses the content; it never shrinks.
#[derive(Default)]
pub struct Buffer {
    data: Vec<Line>,
}

/// One cache line; what gives [`Buffer`] its alignment.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl Buffer {
    /// `len` floats of unspecified content, allocated only when more than ever before are asked
    /// for.
    pub fn get(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.data.len() < lines {
            self.data = Vec::new();
            self.data.reserve_exact(lines);
            crate::nn::storage::ask_for_huge_pages(self.data.as_ptr(), lines);
            self.data.resize(lines, Line([0.0; 16]));
        }
        &mut bytemuck::cast_slice_mut(&mut self.data)[..len]
    }

    /// The first `len` floats, as `get` left them.
    ///
    /// # Panics
    /// When `get` was never called with `len` or more.
    pub fn filled(&self, len: usize) -> &[f32] {
        assert!(len <= self.data.len() * 16, "scratch was never filled to {len}");
        &bytemuck::cast_slice(&self.data)[..len]
    }
}

/// A pointer that tasks of one parallel region share, each writing elements of its own.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T = f32>(pub *mut T);

// SAFETY: the pointer is only an address; each use states why its elements are nobody else's.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The address `offset` elements in; a method, so that closures capture the whole wrapper.
    pub(crate) fn at(self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }
}

/// Elements of a tensor with these sides. Sides are fields that anybody may set, and a slice is not
/// long enough because their product wraps around to little.
///
/// # Panics
/// When no memory has as many.
pub(crate) fn elements(sides: &[usize]) -> usize {
    let product = sides.iter().try_fold(1usize, |product, &side| product.checked_mul(side));
    product.expect("a tensor fits the memory")
}

/// Runs `f(0)`, .., `f(tasks - 1)` on rayon's threads; alone on the caller's when there is but one.
pub(crate) fn each(tasks: usize, f: impl Fn(usize) + Sync + Send) {
    use rayon::prelude::*;
    if tasks <= 1 || rayon::current_num_threads() == 1 {
        (0..tasks).for_each(f);
    } else {
        (0..tasks).into_par_iter().with_max_len(1).for_each(f);
    }
}

/// Runs `f(i, item)` for each of `items`, as [`each`] does.
pub(crate) fn each_mut<T: Send>(items: &mut [T], f: impl Fn(usize, &mut T) + Sync + Send) {
    use rayon::prelude::*;
    if items.len() <= 1 || rayon::current_num_threads() == 1 {
        items.iter_mut().enumerate().for_each(|(i, item)| f(i, item));
    } else {
        items.par_iter_mut().with_max_len(1).enumerate().for_each(|(i, item)| f(i, item));
    }
}
