//! BatchNorm on the CPU: the passes group by group, over [`crate::nn::cpu::norm`].

use candle_core::{Result, Tensor};

use super::{BatchNorm, EPS, MOMENTUM, Saved, Scratch};
use crate::nn::cpu::micro::Isa;
use crate::nn::cpu::norm::{self, Affine};
use crate::nn::{Workspace, storage};

impl BatchNorm {
    pub(super) fn cpu_train(
        &mut self,
        x: &Tensor,
        residual: Option<&Tensor>,
        y: &Tensor,
        ws: &Workspace,
    ) -> Result<()> {
        let (isa, c, groups) = (Isa::best(), self.weight.len(), ws.groups);
        let x = storage::read(x)?;
        let residual = residual.map(storage::read).transpose()?;
        let part = x.len() / groups;
        self.scratch.mean.resize(groups * c, 0.0);
        self.scratch.inv_std.resize(groups * c, 0.0);
        for g in 0..groups {
            let of = g * part..(g + 1) * part;
            self.statistics(&x[of.clone()], g, ws.moves_statistics())?;
            let r = residual.as_ref().map(|r| &r[of.clone()]);
            let Scratch { norm, constants: [scale, shift, _], .. } = &mut self.scratch;
            let (by, relu) = (Affine { scale, shift }, self.relu);
            storage::with_mut(y, |y| {
                norm::affine(isa, &x[of.clone()], by, r, relu, norm, &mut y[of]);
            })?;
        }
        Ok(())
    }

    /// Group `g`'s statistics: kept, merged into the running ones where these move, made into scale
    /// and shift.
    fn statistics(&mut self, x: &[f32], g: usize, moves: bool) -> Result<()> {
        let c = self.weight.len();
        let Scratch { norm, mean, inv_std, moments: [m, v], constants } = &mut self.scratch;
        for values in [&mut *m, &mut *v] {
            values.resize(c, 0.0);
        }
        norm::moments(Isa::best(), x, c, norm, m, v);
        let n = (x.len() / c) as f64;
        let blend = |running: &mut f32, now: f64| {
            *running = ((1.0 - MOMENTUM) * *running as f64 + MOMENTUM * now) as f32;
        };
        if moves {
            // One after the other: they may be parts of one tensor.
            storage::with_mut(&self.running_mean, |mean| {
                mean.iter_mut().zip(&*m).for_each(|(r, m)| blend(r, *m));
            })?;
            storage::with_mut(&self.running_var, |var| {
                var.iter_mut().zip(&*v).for_each(|(r, v)| blend(r, *v * n / (n - 1.0)));
            })?;
        }
        for i in 0..c {
            mean[g * c + i] = m[i] as f32;
            inv_std[g * c + i] = 1.0 / (v[i] + EPS).sqrt();
        }
        let (gamma, beta) = (storage::read(&self.weight.value)?, storage::read(&self.bias.value)?);
        let inv = &inv_std[g * c..];
        affine_constants(&gamma, &beta, |i| (m[i], inv[i]), constants);
        Ok(())
    }

    pub(super) fn cpu_eval(
        &mut self,
        x: &Tensor,
        residual: Option<&Tensor>,
        y: &Tensor,
    ) -> Result<()> {
        let x = storage::read(x)?;
        let residual = residual.map(storage::read).transpose()?;
        let (gamma, beta) = (storage::read(&self.weight.value)?, storage::read(&self.bias.value)?);
        let mean = storage::read(&self.running_mean)?.to_vec();
        let var = storage::read(&self.running_var)?;
        let inv = |i: usize| 1.0 / (var[i] as f64 + EPS).sqrt();
        let Scratch { norm, constants, .. } = &mut self.scratch;
        affine_constants(&gamma, &beta, |i| (mean[i] as f64, inv(i)), constants);
        let [scale, shift, _] = constants;
        storage::with_mut(y, |y| {
            let by = Affine { scale, shift };
            norm::affine(Isa::best(), &x, by, residual.as_deref(), self.relu, norm, y);
        })
    }

    pub(super) fn cpu_backward(
        &mut self,
        saved: &Saved,
        dout: &Tensor,
        dx: Option<&Tensor>,
    ) -> Result<()> {
        let x = storage::read(&saved.input)?;
        let out = self.output.clone().filter(|_| self.relu);
        let out = out.as_ref().map(storage::read).transpose()?;
        let part = x.len() / saved.groups;
        for g in 0..saved.groups {
            let of = g * part..(g + 1) * part;
            let mask = out.as_ref().map(|out| &out[of.clone()]);
            storage::with_mut(dout, |dout| -> Result<()> {
                let dz = &mut dout[of.clone()];
                self.group_grads(&x[of.clone()], dz, mask, g)?;
                let Scratch { norm, constants: [a, b, k], .. } = &mut self.scratch;
                let (isa, x, abk) = (Isa::best(), &x[of.clone()], [&a[..], &b[..], &k[..]]);
                match dx {
                    None => norm::grad(isa, None, x, abk, norm, dz),
                    Some(dx) => storage::with_mut(dx, |dx| {
                        norm::grad(isa, Some(dz), x, abk, norm, &mut dx[of.clone()]);
                    })?,
                }
                Ok(())
            })??;
        }
        Ok(())
    }

    /// Masks group `g`'s gradient, adds to (group 0: sets) the parameters' gradients and prepares
    /// the constants of dx = a dz + b x + k, with x^ = (x - mean) inv_std and n rows:
    /// dx = gamma inv_std (dz - sum(dz) / n - x^ sum(dz x^) / n).
    fn group_grads(
        &mut self,
        x: &[f32],
        dz: &mut [f32],
        mask: Option<&[f32]>,
        g: usize,
    ) -> Result<()> {
        let c = self.weight.len();
        let Scratch { norm, mean, inv_std, moments, constants } = &mut self.scratch;
        let (mean, inv_std) = (&mean[g * c..(g + 1) * c], &inv_std[g * c..(g + 1) * c]);
        norm::grad_sums(Isa::best(), dz, mask, x, mean, norm, moments);
        let [sum, sum_x] = moments;
        let n = (x.len() / c) as f64;
        let gamma = storage::read(&self.weight.value)?;
        let [a, b, k] = constants;
        for v in [&mut *a, &mut *b, &mut *k] {
            v.resize(c, 0.0);
        }
        for i in 0..c {
            let scale = gamma[i] as f64 * inv_std[i];
            let slope = -scale * inv_std[i] * inv_std[i] * sum_x[i] / n;
            a[i] = scale as f32;
            b[i] = slope as f32;
            k[i] = (-scale * sum[i] / n - slope * mean[i] as f64) as f32;
        }
        storage::with_mut2(&self.weight.grad, &self.bias.grad, |dgamma, dbeta| {
            for i in 0..c {
                let (w, b) = ((sum_x[i] * inv_std[i]) as f32, sum[i] as f32);
                dgamma[i] = if g == 0 { w } else { dgamma[i] + w };
                dbeta[i] = if g == 0 { b } else { dbeta[i] + b };
            }
        })
    }
}

/// Scale and shift of gamma (x - mean) inv_std + beta.
fn affine_constants(
    gamma: &[f32],
    beta: &[f32],
    mean_inv: impl Fn(usize) -> (f64, f64),
    [scale, shift, _]: &mut [Vec<f32>; 3],
) {
    scale.clear();
    shift.clear();
    for i in 0..gamma.len() {
        let (mean, inv) = mean_inv(i);
        let s = gamma[i] as f64 * inv;
        scale.push(s as f32);
        shift.push((beta[i] as f64 - mean * s) as f32);
    }
}
