//! The network that is trained: backbone and projector, both views in one batch.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::config::ModelConfig;
use super::graph::Graph;
use super::projector::{Projector, ProjectorLayers};
use super::resnet::ResNet;
use super::{init, state};
use crate::nn::{BatchNorm, Engine, Mode, Param, Workspace, storage};

/// Names of the backbone's tensors begin with this.
pub(crate) const BACKBONE: &str = "backbone.";
/// Names of the projector's tensors begin with this.
const PROJECTOR: &str = "projector";

/// Backbone and projector, with explicit forward and backward passes.
pub struct TwinNet {
    config: ModelConfig,
    backbone: ResNet,
    projector: Projector,
    ws: Workspace,
    /// Embeddings as f32: of a projector that ends in another type, and of [`TwinNet::forward_only`].
    full: Option<Tensor>,
    /// Gradients that came from the CPU, and they as activations.
    given: Option<Tensor>,
    given_half: Option<Tensor>,
}

impl TwinNet {
    /// A network initialised as PyTorch and torchvision would (not the same numbers), but that
    /// biases, which a projector without BatchNorm has, begin at zero: Kaiming normal with fan out
    /// for convolutions, uniform within 1 / sqrt(in) for linear layers, BatchNorm 1 and 0.
    ///
    /// # Errors
    /// When the configuration has a width of 0, or the device cannot allocate.
    pub fn new(config: &ModelConfig, seed: u64, device: &Device) -> Result<Self> {
        if config.width == 0 || config.projector.0.contains(&0) {
            bail!("a network's widths must be at least 1");
        }
        let layers = ProjectorLayers {
            input: config.feature_dim(),
            widths: &config.projector.0,
            batch_norm: config.projector_batch_norm,
            output_norm: config.projector_output_norm,
            output_bias: false,
        };
        let mut net = Self {
            config: config.clone(),
            backbone: ResNet::new(BACKBONE, config, device)?,
            projector: Projector::new(PROJECTOR, layers, device)?,
            ws: Workspace::new(device)?,
            full: None,
            given: None,
            given_half: None,
        };
        net.initialise(seed)?;
        Ok(net)
    }

    fn initialise(&mut self, seed: u64) -> Result<()> {
        for (index, p) in self.params().into_iter().enumerate() {
            match p.value.rank() {
                4 => init::kaiming_normal_fan_out(p, seed, index)?,
                2 => init::linear_default(p, seed, index)?,
                _ => {}
            }
        }
        if self.config.zero_init {
            for norm in self.backbone.last_norms() {
                storage::assign(&norm.weight.value, &vec![0.0; norm.weight.len()])?;
            }
        }
        Ok(())
    }

    /// Who computes.
    pub fn engine(&self) -> &Engine {
        self.ws.engine()
    }

    /// As [`Workspace::in_use`].
    pub fn in_use(&self) -> usize {
        self.ws.in_use()
    }

    /// As [`Workspace::kept`].
    pub fn kept(&self) -> usize {
        self.ws.kept()
    }

    /// As [`Workspace::generation`].
    pub fn generation(&self) -> u64 {
        self.ws.generation()
    }

    /// Makes the parameters' halves again, after their values were written.
    fn renew_halves(&mut self) -> Result<()> {
        self.params().into_iter().try_for_each(|p| p.renew_half())
    }

    /// The description it was made from.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Passes end with an error from the moment that `flag` is raised.
    pub fn give_up_on(&mut self, flag: &Arc<AtomicBool>) {
        self.ws.cancelled = Arc::clone(flag);
    }

    /// Dimensions of a feature.
    pub fn feature_dim(&self) -> usize {
        self.config.feature_dim()
    }

    /// Dimensions of an embedding.
    pub fn embedding_dim(&self) -> usize {
        self.config.embedding_dim()
    }

    /// Images `[N, H, W, 3]` to embeddings `[N, D]` in training mode; keeps what
    /// [`TwinNet::backward`] needs. `groups` equal, contiguous parts of the batch get BatchNorm
    /// statistics of their own, in order: with 2 groups, view a's images first, the result is that
    /// of two passes. The embeddings live in a buffer that the next pass overwrites.
    ///
    /// # Errors
    /// When `images` is of another form or does not split into `groups`.
    pub fn forward_train(&mut self, images: &Tensor, groups: usize) -> Result<Tensor> {
        self.ws.mode = Mode::Training;
        self.ws.groups = groups;
        let z = self.pass(images)?;
        self.ws.engine().full(&z, &mut self.full)
    }

    /// [`TwinNet::forward_train`] with one group on images that have been through the network since
    /// its weights moved: running statistics stay as they are.
    ///
    /// # Errors
    /// As [`TwinNet::forward_train`].
    pub fn recompute(&mut self, images: &Tensor) -> Result<()> {
        self.ws.mode = Mode::Recomputing;
        self.ws.groups = 1;
        let recomputed = self.pass(images);
        self.ws.mode = Mode::Training;
        recomputed.map(drop)
    }

    /// The embeddings of [`TwinNet::forward_train`], bit for bit, where no backward pass follows:
    /// activations lie in a few buffers that take turns, and nothing is kept but the embeddings.
    ///
    /// # Errors
    /// As [`TwinNet::forward_train`].
    pub fn forward_only(&mut self, images: &Tensor, groups: usize) -> Result<Tensor> {
        self.ws.mode = Mode::Following;
        self.ws.groups = groups;
        self.ws.invalidate_recordings();
        let z = self.pass(images).and_then(|z| {
            let engine = self.ws.engine();
            let own = storage::reuse(&mut self.full, z.dims(), DType::F32, engine.device())?;
            match z.dtype() {
                DType::F32 => storage::copy(&z, &own)?,
                _ => drop(engine.full(&z, &mut self.full)?),
            }
            self.ws.release(z);
            Ok(own)
        });
        self.ws.mode = Mode::Training;
        z
    }

    /// Backbone and projector in the workspace's mode.
    fn pass(&mut self, images: &Tensor) -> Result<Tensor> {
        let features = self.backbone.forward(images, &mut self.ws)?;
        let z = self.projector.forward(&features, &mut self.ws)?;
        if !storage::same(&z, &features) {
            self.ws.release(features);
        }
        Ok(z)
    }

    /// Sets every parameter's gradient from the embeddings', `[N, D]`.
    ///
    /// # Errors
    /// Without [`TwinNet::forward_train`] before, or when the shape differs.
    pub fn backward(&mut self, grad_embeddings: &Tensor) -> Result<()> {
        let grad = self.ws.engine().taken_in(grad_embeddings, &mut self.given)?;
        let d = self.projector.backward(&grad, &mut self.ws)?;
        self.backbone.backward(&d, &mut self.ws)?;
        self.ws.put_back(d);
        Ok(())
    }

    /// Features `[N, F]` of images in training mode, of the backbone alone: for fine-tuning with
    /// [`TwinNet::backward_features`]. They live in a buffer that the next pass overwrites.
    ///
    /// # Errors
    /// When `images` is of another form.
    pub fn features_train(&mut self, images: &Tensor) -> Result<Tensor> {
        self.ws.mode = Mode::Training;
        self.ws.groups = 1;
        self.ws.invalidate_recordings();
        let features = self.backbone.forward(images, &mut self.ws)?;
        storage::host(&features)
    }

    /// Sets the gradients of [`TwinNet::backbone_params`] from the features', `[N, F]` on the CPU.
    ///
    /// # Errors
    /// Without [`TwinNet::features_train`] before, or when the shape differs.
    pub fn backward_features(&mut self, grad_features: &Tensor) -> Result<()> {
        let grad = self.ws.engine().taken_in(grad_features, &mut self.given)?;
        let grad = self.ws.engine().activations(&grad, &mut self.given_half)?;
        self.backbone.backward(&grad, &mut self.ws)
    }

    /// The backbone's parameters, in PyTorch's order.
    pub fn backbone_params(&mut self) -> Vec<&mut Param> {
        self.backbone.params()
    }

    /// Features `[N, F]` of images `[N, H, W, 3]` in evaluation mode: the backbone alone, running
    /// statistics, a tensor of its own.
    ///
    /// # Errors
    /// When `images` is of another form.
    pub fn features(&mut self, images: &Tensor) -> Result<Tensor> {
        self.evaluate(|net| net.backbone.forward(images, &mut net.ws))
    }

    /// Embeddings `[N, D]` of images in evaluation mode.
    ///
    /// # Errors
    /// When `images` is of another form.
    pub fn embeddings(&mut self, images: &Tensor) -> Result<Tensor> {
        self.evaluate(|net| net.pass(images))
    }

    /// Runs a pass in evaluation mode and copies what it gives to the CPU; its buffer goes back.
    fn evaluate(&mut self, pass: impl FnOnce(&mut Self) -> Result<Tensor>) -> Result<Tensor> {
        self.ws.mode = Mode::Evaluation;
        self.ws.invalidate_recordings();
        let out = pass(self);
        let own = out.and_then(|out| {
            let own = storage::host_copy(&out)?;
            self.ws.release(out);
            Ok(own)
        });
        self.ws.mode = Mode::Training;
        if own.is_err() {
            self.ws.discard_buffers();
        }
        own
    }

    /// The features, `[N, F]`, that the last training pass computed on its way; a copy.
    pub fn last_features(&self) -> Result<Tensor> {
        storage::host_copy(self.last_features_there()?)
    }

    /// [`TwinNet::last_features`] in their buffer, as the device has them.
    pub(crate) fn last_features_there(&self) -> Result<&Tensor> {
        match self.backbone.last_features() {
            Some(features) => Ok(features),
            None => bail!("no training pass yet"),
        }
    }

    /// Every parameter, the backbone's first, in PyTorch's order.
    pub fn params(&mut self) -> Vec<&mut Param> {
        let mut all = self.backbone.params();
        all.extend(self.projector.params());
        all
    }

    /// Every BatchNorm layer, the backbone's first.
    pub(crate) fn norms_mut(&mut self) -> Vec<&mut BatchNorm> {
        let mut all = self.backbone.norms_mut();
        all.extend(self.projector.norms_mut());
        all
    }

    /// Parameters and buffers under torchvision's names (`backbone.conv1.weight`, ..,
    /// `projector.0.weight`, ..) and in its layouts; copies.
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn state_dict(&mut self) -> Result<Vec<(String, Tensor)>> {
        let mut all = Vec::new();
        for p in self.params() {
            all.push((p.name.clone(), state::outside(&p.value)?));
        }
        for norm in self.backbone.norms().into_iter().chain(self.projector.norms()) {
            all.extend(state::buffers(norm)?);
        }
        Ok(all)
    }

    /// The backbone's part of [`TwinNet::state_dict`], without `backbone.`: what torchvision loads
    /// (but for `fc`).
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn backbone_state_dict(&mut self) -> Result<Vec<(String, Tensor)>> {
        let all = self.state_dict()?.into_iter();
        Ok(all.filter_map(|(n, t)| Some((n.strip_prefix(BACKBONE)?.to_string(), t))).collect())
    }

    /// Loads what [`TwinNet::state_dict`] gave; other tensors than the network's are refused. On an
    /// error nothing has changed.
    ///
    /// # Errors
    /// Names the tensor that is missing, unexpected or of another shape.
    pub fn load_state_dict(&mut self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        let params = state::named(self.params());
        state::load(tensors, "", &params, &mut self.norms_mut(), |_| false)?;
        self.renew_halves()
    }

    /// Loads the backbone alone, from torchvision's names (the classifier, `fc`, is passed over) or
    /// from a twin network's (its projector is passed over). On an error nothing has changed.
    ///
    /// # Errors
    /// As [`TwinNet::load_state_dict`].
    pub fn load_backbone(&mut self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        let strip = if tensors.keys().any(|n| n.starts_with(BACKBONE)) { "" } else { BACKBONE };
        let params = state::named(self.backbone.params());
        let mut norms = self.backbone.norms_mut();
        state::load(tensors, strip, &params, &mut norms, |n| {
            n.starts_with("fc.") || (strip.is_empty() && n.starts_with(PROJECTOR))
        })?;
        self.renew_halves()
    }

    /// The backbone's evaluation pass, its tensors named as in [`TwinNet::backbone_state_dict`].
    pub fn backbone_graph(&self) -> Graph {
        let mut graph = self.backbone.graph();
        for node in &mut graph.nodes {
            if let Some(name) = node.name.strip_prefix(BACKBONE) {
                node.name = name.to_owned();
            }
        }
        graph
    }

    /// Multiply-adds of the last forward pass by the definition, convolutions and linear layers.
    pub fn multiply_adds(&self) -> u64 {
        self.backbone.multiply_adds() + self.projector.multiply_adds()
    }

    /// Every gradient under its parameter's name in PyTorch's layout; copies.
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn gradients(&mut self) -> Result<Vec<(String, Tensor)>> {
        let params = self.params().into_iter();
        params.map(|p| Ok((p.name.clone(), state::outside(&p.grad)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Arch, Stem};

    #[test]
    fn an_evaluation_that_fails_keeps_no_memory_from_training() -> Result<()> {
        let arch = ModelConfig { arch: Arch::ResNet18, stem: Stem::Cifar, ..Default::default() };
        let mut net = TwinNet::new(&ModelConfig { width: 4, ..arch }, 1, &Device::Cpu)?;
        let failed = net.evaluate(|net| {
            let _taken = net.ws.take(&[3, 4])?;
            bail!("no more memory")
        });
        assert!(failed.is_err() && net.in_use() == 0);
        Ok(())
    }
}
