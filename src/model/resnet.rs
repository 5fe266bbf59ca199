//! ResNet-18, 34 and 50 in torchvision's layout, of any base width, without the classifier.

use candle_core::{Device, Result, Tensor};

use super::config::ModelConfig;
use super::graph::{Graph, Op, Value};
use crate::nn::{AvgPool, BatchNorm, Conv2d, Conv2dConfig, MaxPool, Param, Workspace};

/// A convolution and the BatchNorm behind it.
struct ConvNorm {
    conv: Conv2d,
    norm: BatchNorm,
}

impl ConvNorm {
    fn forward(
        &mut self,
        x: &Tensor,
        residual: Option<&Tensor>,
        ws: &mut Workspace,
    ) -> Result<Tensor> {
        let y = self.conv.forward(x, ws)?;
        let out = self.norm.forward(&y, residual, ws)?;
        ws.release(y);
        Ok(out)
    }

    /// Adds both to `graph`, reading `x`.
    fn describe(&self, x: Value, graph: &mut Graph) -> Value {
        let name = self.conv.weight.name.trim_end_matches(".weight");
        let y = graph.add(name, Op::Conv(self.conv.config()), vec![x]);
        graph.add(self.norm.name(), Op::BatchNorm, vec![y])
    }
}

/// A basic block (two 3x3) or a bottleneck (1x1, 3x3, 1x1), its last ReLU behind the addition.
struct Block {
    /// All but the last are followed by ReLU; the last adds the shortcut first.
    convs: Vec<ConvNorm>,
    downsample: Option<ConvNorm>,
}

impl Block {
    fn forward(&mut self, x: &Tensor, ws: &mut Workspace) -> Result<Tensor> {
        let (last, before) = self.convs.split_last_mut().expect("a block has convolutions");
        let mut y = x.clone();
        for (i, layer) in before.iter_mut().enumerate() {
            let out = layer.forward(&y, None, ws)?;
            if i > 0 {
                ws.release(y);
            }
            y = out;
        }
        let Some(down) = &mut self.downsample else {
            let out = last.forward(&y, Some(x), ws)?;
            ws.release(y);
            return Ok(out);
        };
        // Both BatchNorms in one pass.
        let (shortcut, z) = (down.conv.forward(x, ws)?, last.conv.forward(&y, ws)?);
        ws.release(y);
        let out = last.norm.forward_pair(&z, &mut down.norm, &shortcut, ws)?;
        ws.release(shortcut);
        ws.release(z);
        Ok(out)
    }

    /// Takes the output's gradient, returns the input's.
    fn backward(&mut self, dout: Tensor, ws: &mut Workspace) -> Result<Tensor> {
        let mut layers = self.convs.iter_mut().rev();
        let mut layer = layers.next().expect("a block has convolutions");
        // The last BatchNorm leaves the gradient of the shortcut, or of its convolution, in `dout`.
        let mut d = ws.take_over(layer.norm.input()?)?;
        match &mut self.downsample {
            None => layer.norm.backward(&dout, Some(&d))?,
            Some(down) => layer.norm.backward_pair(&mut down.norm, &dout, &d)?,
        }
        for before in layers {
            layer.conv.backward_weight(&d)?;
            // The layer before does not need its output, this one's input, where that is taken
            // over.
            let dx = ws.take_over(layer.conv.input()?)?;
            layer.conv.backward_input(&d, &dx, false)?;
            before.norm.backward(&dx, None)?;
            ws.put_back(std::mem::replace(&mut d, dx));
            layer = before;
        }
        layer.conv.backward_weight(&d)?;
        let dx = match &mut self.downsample {
            None => {
                layer.conv.backward_input(&d, &dout, true)?;
                dout
            }
            Some(down) => {
                down.conv.backward_weight(&dout)?;
                // The block's input: both convolutions' weights have their gradients.
                let dx = ws.take_over(layer.conv.input()?)?;
                // The cheaper one to add where the other was written: a bottleneck's is a plain
                // product.
                down.conv.backward_input(&dout, &dx, false)?;
                layer.conv.backward_input(&d, &dx, true)?;
                ws.put_back(dout);
                dx
            }
        };
        ws.put_back(d);
        Ok(dx)
    }

    fn describe(&self, name: &str, x: Value, graph: &mut Graph) -> Value {
        let shortcut = self.downsample.as_ref().map_or(x, |d| d.describe(x, graph));
        let (last, mut y) = (self.convs.len() - 1, x);
        for (i, layer) in self.convs.iter().enumerate() {
            y = layer.describe(y, graph);
            if i == last {
                y = graph.add(&format!("{name}.add"), Op::Add, vec![y, shortcut]);
            }
            y = graph.add(&format!("{name}.relu{}", i + 1), Op::Relu, vec![y]);
        }
        y
    }

    fn layers(&self) -> impl Iterator<Item = &ConvNorm> {
        self.convs.iter().chain(&self.downsample)
    }

    fn layers_mut(&mut self) -> impl Iterator<Item = &mut ConvNorm> {
        self.convs.iter_mut().chain(&mut self.downsample)
    }
}

/// A ResNet up to and with the global average pool.
pub struct ResNet {
    stem: ConvNorm,
    pool: Option<MaxPool>,
    blocks: Vec<Block>,
    average: AvgPool,
}

/// A convolution that keeps the images' size, but for its stride.
fn same(input: usize, output: usize, kernel: usize, stride: usize) -> Conv2dConfig {
    Conv2dConfig { input, output, kernel, stride, padding: kernel / 2 }
}

/// Makes the layers of one network under torchvision's names.
struct Maker<'a> {
    prefix: &'a str,
    device: &'a Device,
}

impl Maker<'_> {
    fn conv_norm(
        &self,
        conv: &str,
        norm: &str,
        config: Conv2dConfig,
        relu: bool,
    ) -> Result<ConvNorm> {
        let norm = format!("{}{norm}", self.prefix);
        Ok(ConvNorm {
            conv: Conv2d::new(&format!("{}{conv}", self.prefix), config, self.device)?,
            norm: BatchNorm::new(&norm, config.output, relu, self.device)?,
        })
    }

    fn block(
        &self,
        name: &str,
        input: usize,
        planes: usize,
        stride: usize,
        bottleneck: bool,
    ) -> Result<Block> {
        let expansion = if bottleneck { 4 } else { 1 };
        let output = planes * expansion;
        // (kernel, stride, output): a bottleneck strides in its 3x3.
        let plan = if bottleneck {
            vec![(1, 1, planes), (3, stride, planes), (1, 1, output)]
        } else {
            vec![(3, stride, planes), (3, 1, planes)]
        };
        let mut convs = Vec::new();
        let mut from = input;
        for (i, &(kernel, stride, to)) in plan.iter().enumerate() {
            let (conv, norm) = (format!("{name}.conv{}", i + 1), format!("{name}.bn{}", i + 1));
            convs.push(self.conv_norm(&conv, &norm, same(from, to, kernel, stride), true)?);
            from = to;
        }
        let shortcut = [format!("{name}.downsample.0"), format!("{name}.downsample.1")];
        let downsample = (stride != 1 || input != output)
            .then(|| {
                let [conv, norm] = &shortcut;
                self.conv_norm(conv, norm, same(input, output, 1, stride), false)
            })
            .transpose()?;
        Ok(Block { convs, downsample })
    }
}

impl ResNet {
    /// A network whose tensors' names begin with `prefix`; weights zero, BatchNorms fresh.
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn new(prefix: &str, config: &ModelConfig, device: &Device) -> Result<Self> {
        let (maker, width) = (Maker { prefix, device }, config.width);
        let (kernel, stride, padding) = config.stem.window();
        let window = Conv2dConfig { input: 3, output: width, kernel, stride, padding };
        let stem = maker.conv_norm("conv1", "bn1", window, true)?;
        let mut blocks = Vec::new();
        let mut from = width;
        for (layer, &count) in config.arch.blocks().iter().enumerate() {
            for i in 0..count {
                let stride = if layer > 0 && i == 0 { 2 } else { 1 };
                let (name, planes) = (format!("layer{}.{i}", layer + 1), width << layer);
                let bottleneck = config.arch.bottleneck();
                blocks.push(maker.block(&name, from, planes, stride, bottleneck)?);
                from = planes * config.arch.expansion();
            }
        }
        Ok(Self {
            stem,
            pool: config.stem.is_pooled().then(|| MaxPool::new(3, 2, 1)),
            blocks,
            average: AvgPool::default(),
        })
    }

    /// Images `[N, H, W, 3]` to features `[N, F]`.
    ///
    /// # Errors
    /// When `images` is of another form, or too small.
    pub fn forward(&mut self, images: &Tensor, ws: &mut Workspace) -> Result<Tensor> {
        let mut x = match &mut self.pool {
            None => self.stem.forward(images, None, ws)?,
            Some(pool) => {
                let z = self.stem.conv.forward(images, ws)?;
                let x = self.stem.norm.forward_pooled(&z, pool, ws)?;
                ws.release(z);
                x
            }
        };
        for block in &mut self.blocks {
            let y = block.forward(&x, ws)?;
            ws.release(std::mem::replace(&mut x, y));
        }
        let features = self.average.forward(&x, ws)?;
        ws.release(x);
        Ok(features)
    }

    /// Sets every gradient from the features'. The images get none.
    ///
    /// # Errors
    /// Without a forward pass in training mode before, or when shapes do not fit.
    pub fn backward(&mut self, grad_features: &Tensor, ws: &mut Workspace) -> Result<()> {
        let last = self.blocks.last().and_then(|block| block.convs.last());
        let last = last.expect("a network has blocks");
        // Each block's gradient then lies where its output, or that of one behind it, was.
        let mut d = ws.take_over(last.norm.output()?)?;
        self.average.backward(grad_features, &d)?;
        for block in self.blocks.iter_mut().rev() {
            d = block.backward(d, ws)?;
        }
        match &mut self.pool {
            None => self.stem.norm.backward(&d, None)?,
            Some(pool) => {
                let dx = self.stem.norm.backward_pooled(pool, &d, ws)?;
                ws.put_back(std::mem::replace(&mut d, dx));
            }
        }
        self.stem.conv.backward_weight(&d)?;
        ws.put_back(d);
        Ok(())
    }

    /// The evaluation pass, operation by operation, its tensors under the network's own names.
    pub fn graph(&self) -> Graph {
        let mut graph = Graph::default();
        let mut y = self.stem.describe(Value::Images, &mut graph);
        y = graph.add("relu", Op::Relu, vec![y]);
        if let Some(pool) = &self.pool {
            let (kernel, stride, padding) = pool.window();
            y = graph.add("maxpool", Op::MaxPool { kernel, stride, padding }, vec![y]);
        }
        for (i, block) in self.blocks.iter().enumerate() {
            y = block.describe(&format!("block{i}"), y, &mut graph);
        }
        graph.add("features", Op::GlobalAverage, vec![y]);
        graph
    }

    /// The last training pass's features, in their buffer.
    pub fn last_features(&self) -> Option<&Tensor> {
        self.average.last()
    }

    /// Multiply-adds of the last pass.
    pub fn multiply_adds(&self) -> u64 {
        let layers = self.blocks.iter().flat_map(Block::layers);
        std::iter::once(&self.stem).chain(layers).map(|l| l.conv.multiply_adds()).sum()
    }

    /// Parameters in torchvision's order.
    pub fn params(&mut self) -> Vec<&mut Param> {
        let layers = self.blocks.iter_mut().flat_map(Block::layers_mut);
        std::iter::once(&mut self.stem)
            .chain(layers)
            .flat_map(|l| [&mut l.conv.weight, &mut l.norm.weight, &mut l.norm.bias])
            .collect()
    }

    /// BatchNorm layers in torchvision's order.
    pub fn norms(&self) -> Vec<&BatchNorm> {
        let layers = self.blocks.iter().flat_map(Block::layers);
        std::iter::once(&self.stem).chain(layers).map(|l| &l.norm).collect()
    }

    /// BatchNorm layers in torchvision's order.
    pub fn norms_mut(&mut self) -> Vec<&mut BatchNorm> {
        let layers = self.blocks.iter_mut().flat_map(Block::layers_mut);
        std::iter::once(&mut self.stem).chain(layers).map(|l| &mut l.norm).collect()
    }

    /// The last BatchNorm of each block, which `zero_init` silences.
    pub(super) fn last_norms(&mut self) -> impl Iterator<Item = &mut BatchNorm> {
        self.blocks.iter_mut().filter_map(|b| b.convs.last_mut()).map(|l| &mut l.norm)
    }
}
