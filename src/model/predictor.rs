//! The predictor of BYOL and SimSiam: a small network behind the embeddings.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor};

use super::projector::{Projector, ProjectorLayers};
use super::{init, state};
use crate::loss::PredictorShape;
use crate::nn::{BatchNorm, Param, Workspace};

/// Front of its tensors' names.
const PREDICTOR: &str = "predictor";
/// Keeps its draws apart from those of the network's parameters.
const FIRST_INDEX: usize = 1 << 20;

/// Linear, BN, ReLU, linear with bias: embeddings `[N, D]` to predictions `[N, D]`.
pub struct Predictor {
    layers: Projector,
    ws: Workspace,
    /// The predictions' gradient on the network's device.
    given: Option<Tensor>,
    shape: PredictorShape,
}

impl Predictor {
    /// A predictor for embeddings of `dim` dimensions, initialised as PyTorch would (the last bias
    /// begins at zero).
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn new(shape: PredictorShape, dim: usize, seed: u64, device: &Device) -> Result<Self> {
        let layers = ProjectorLayers {
            input: dim,
            widths: &[shape.hidden, dim],
            batch_norm: true,
            output_norm: false,
            output_bias: true,
        };
        let mut layers = Projector::new(PREDICTOR, layers, device)?;
        for (index, p) in layers.params().into_iter().enumerate() {
            if p.value.rank() == 2 {
                init::linear_default(p, seed, FIRST_INDEX + index)?;
            }
        }
        Ok(Self { layers, ws: Workspace::new(device)?, given: None, shape })
    }

    /// Whether both views go through it, or only view a.
    pub fn both(&self) -> bool {
        self.shape.both
    }

    /// Predictions in training mode; `groups` as in
    /// [`TwinNet::forward_train`](super::TwinNet::forward_train).
    ///
    /// # Errors
    /// When `z` is of another form.
    pub fn forward(&mut self, z: &Tensor, groups: usize) -> Result<Tensor> {
        self.ws.groups = groups;
        self.layers.forward(z, &mut self.ws)
    }

    /// Sets every gradient from the predictions' and hands the embeddings' to `use_it`.
    ///
    /// # Errors
    /// Without a forward pass before, or when the shape differs.
    pub fn backward(
        &mut self,
        grad: &Tensor,
        use_it: impl FnOnce(&Tensor) -> Result<()>,
    ) -> Result<()> {
        let grad = self.ws.engine().taken_in(grad, &mut self.given)?;
        let d = self.layers.backward(&grad, &mut self.ws)?;
        use_it(&d)?;
        self.ws.put_back(d);
        Ok(())
    }

    /// Every parameter, in PyTorch's order.
    pub fn params(&mut self) -> Vec<&mut Param> {
        self.layers.params()
    }

    /// Every BatchNorm layer.
    pub(crate) fn norms_mut(&mut self) -> Vec<&mut BatchNorm> {
        self.layers.norms_mut()
    }

    /// Parameters and buffers, `predictor.0.weight`, ..; copies.
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn state_dict(&mut self) -> Result<Vec<(String, Tensor)>> {
        let mut all = Vec::new();
        for p in self.layers.params() {
            all.push((p.name.clone(), state::outside(&p.value)?));
        }
        for norm in self.layers.norms() {
            all.extend(state::buffers(norm)?);
        }
        Ok(all)
    }

    /// Loads what [`Predictor::state_dict`] gave.
    ///
    /// # Errors
    /// Names the tensor that is missing, unexpected or of another shape.
    pub fn load_state_dict(&mut self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        let params = state::named(self.layers.params());
        state::load(tensors, "", &params, &mut self.layers.norms_mut(), |_| false)?;
        self.layers.params().into_iter().try_for_each(|p| p.renew_half())
    }
}
