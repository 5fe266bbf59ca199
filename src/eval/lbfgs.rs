//! Limited-memory BFGS for smooth convex functions of a few thousand to a few
//! million parameters: Nocedal and Wright, "Numerical Optimization", alg. 7.4
//! and 7.5, with a backtracking line search.

use std::collections::VecDeque;

/// Pairs of steps and gradient differences that are remembered.
const MEMORY: usize = 10;
/// Share of the predicted decrease that a step must reach (Armijo).
const SUFFICIENT: f64 = 1e-4;
/// Halvings of a step before the search gives up: the floor of f32's noise.
const MAX_HALVINGS: u32 = 20;

/// Where the search ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ended {
    /// The smallest value that was found.
    pub value: f64,
    /// Iterations done.
    pub iterations: usize,
}

/// Minimises `f` from `x`, in place. `f(x, gradient)` writes the gradient and
/// returns the value. Ends after `max_iterations`, when the gradient's norm has
/// fallen to `tolerance` times the first one, or when no step helps any more.
pub fn minimize(
    x: &mut [f32],
    max_iterations: usize,
    tolerance: f64,
    mut f: impl FnMut(&[f32], &mut [f32]) -> f64,
) -> Ended {
    let mut gradient = vec![0.0f32; x.len()];
    let mut value = f(x, &mut gradient);
    let enough = tolerance * norm(&gradient);
    let mut memory: VecDeque<Pair> = VecDeque::with_capacity(MEMORY);
    let (mut trial, mut trial_gradient) = (x.to_vec(), gradient.clone());
    for iteration in 0..max_iterations {
        if norm(&gradient) <= enough {
            return Ended { value, iterations: iteration };
        }
        let mut direction = descent(&gradient, &memory);
        let mut slope = dot(&direction, &gradient);
        if slope >= 0.0 {
            // Rounding spoilt the model: start again from the steepest descent.
            memory.clear();
            direction = descent(&gradient, &memory);
            slope = dot(&direction, &gradient);
        }
        // Without a model the scale is unknown: the first step has length 1 at most.
        let mut step = if memory.is_empty() { (1.0 / norm(&gradient)).min(1.0) } else { 1.0 };
        let mut halvings = 0;
        let lower = loop {
            for ((to, from), d) in trial.iter_mut().zip(&*x).zip(&direction) {
                *to = from + step as f32 * d;
            }
            let tried = f(&trial, &mut trial_gradient);
            if tried.is_finite() && tried <= value + SUFFICIENT * step * slope {
                break Some(tried);
            }
            halvings += 1;
            if halvings > MAX_HALVINGS {
                break None;
            }
            step *= 0.5;
        };
        let Some(lower) = lower else {
            return Ended { value, iterations: iteration };
        };
        remember(&mut memory, x, &trial, &gradient, &trial_gradient);
        x.copy_from_slice(&trial);
        std::mem::swap(&mut gradient, &mut trial_gradient);
        value = lower;
    }
    Ended { value, iterations: max_iterations }
}

/// A step `s`, the gradient's difference `y` over it, and 1 / (y . s).
struct Pair {
    s: Vec<f32>,
    y: Vec<f32>,
    rho: f64,
}

fn remember(memory: &mut VecDeque<Pair>, x: &[f32], to: &[f32], g: &[f32], g_to: &[f32]) {
    let difference =
        |a: &[f32], b: &[f32]| -> Vec<f32> { a.iter().zip(b).map(|(a, b)| a - b).collect() };
    let (s, y) = (difference(to, x), difference(g_to, g));
    let curvature = dot(&s, &y);
    // A pair without positive curvature would make the model indefinite.
    if curvature > 1e-10 * dot(&y, &y) {
        if memory.len() == MEMORY {
            memory.pop_front();
        }
        memory.push_back(Pair { s, y, rho: 1.0 / curvature });
    }
}

/// The two-loop recursion: minus the model's inverse Hessian times the gradient.
fn descent(gradient: &[f32], memory: &VecDeque<Pair>) -> Vec<f32> {
    let mut q: Vec<f32> = gradient.iter().map(|g| -g).collect();
    let mut alphas = Vec::with_capacity(memory.len());
    for pair in memory.iter().rev() {
        let alpha = pair.rho * dot(&pair.s, &q);
        add_scaled(&mut q, -alpha, &pair.y);
        alphas.push(alpha);
    }
    if let Some(last) = memory.back() {
        let scale = (1.0 / (last.rho * dot(&last.y, &last.y))) as f32;
        q.iter_mut().for_each(|v| *v *= scale);
    }
    for (pair, alpha) in memory.iter().zip(alphas.iter().rev()) {
        let beta = pair.rho * dot(&pair.y, &q);
        add_scaled(&mut q, alpha - beta, &pair.s);
    }
    q
}

fn add_scaled(to: &mut [f32], scale: f64, from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t += scale as f32 * f);
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn norm(a: &[f32]) -> f64 {
    dot(a, a).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minimum_of_an_ill_conditioned_quadratic_is_found() {
        let target: Vec<f32> = (0..30).map(|i| (i as f32 * 0.7).sin()).collect();
        let weight = |i: usize| 10f64.powf(i as f64 / 10.0);
        let mut x = vec![0.0f32; 30];
        let ended = minimize(&mut x, 200, 1e-6, |x, gradient| {
            let mut value = 0.0;
            for i in 0..x.len() {
                let off = f64::from(x[i] - target[i]);
                value += 0.5 * weight(i) * off * off;
                gradient[i] = (weight(i) * off) as f32;
            }
            value
        });
        assert!(ended.iterations < 200, "{ended:?}");
        for (found, wanted) in x.iter().zip(&target) {
            assert!((found - wanted).abs() < 1e-3, "{found} for {wanted}");
        }
    }

    #[test]
    fn a_point_without_slope_stays() {
        let mut x = [3.0f32];
        let ended = minimize(&mut x, 10, 1e-6, |_, gradient| {
            gradient[0] = 0.0;
            1.0
        });
        assert_eq!((x, ended), ([3.0], Ended { value: 1.0, iterations: 0 }));
    }
}
