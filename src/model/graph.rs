//! The backbone's evaluation pass as a list of operations, for those who write it down in other
//! formats. The forward pass itself is [`super::ResNet::forward`].

use crate::nn::Conv2dConfig;

/// What flows into an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// The network's input.
    Images,
    /// What the node of this place in the list gives.
    Node(usize),
}

/// An operation. Its parameters are tensors whose names begin with the node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `{name}.weight`, no bias.
    Conv(Conv2dConfig),
    /// `{name}.weight`, `.bias`, `.running_mean`, `.running_var`.
    BatchNorm,
    /// max(x, 0).
    Relu,
    /// The sum of two values.
    Add,
    /// The maximum of square windows.
    MaxPool {
        /// Height and width of a window.
        kernel: usize,
        /// Stride in both directions.
        stride: usize,
        /// Pixels on every side that never win.
        padding: usize,
    },
    /// The mean over height and width: `[N, C]`.
    GlobalAverage,
}

/// One operation of the pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Unique; the front of its tensors' names.
    pub name: String,
    /// What it does.
    pub op: Op,
    /// What it reads, all of it earlier in the list.
    pub inputs: Vec<Value>,
}

/// Operations in an order in which they can be carried out; the last one gives the features.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    /// The operations.
    pub nodes: Vec<Node>,
}

impl Graph {
    pub(super) fn add(&mut self, name: &str, op: Op, inputs: Vec<Value>) -> Value {
        self.nodes.push(Node { name: name.to_owned(), op, inputs });
        Value::Node(self.nodes.len() - 1)
    }
}
