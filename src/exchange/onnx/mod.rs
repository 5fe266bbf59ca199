//! A backbone as an ONNX model: `images` [batch, 3, height, width] (normalised, f32) to `features`
//! [batch, dim], all of batch, height and width open. BatchNorm stands in it as such, with its
//! running statistics.

use std::collections::HashMap;

use anyhow::{Context, Result};
use candle_core::Tensor;
use prost::Message;

use crate::model::{Graph, Node, Op, Value};
use crate::nn::batch_norm::EPS;

pub mod proto;
use proto::*;

/// Format and operator set: those of ONNX 1.12 (2022), which every runtime since then reads.
const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;

/// Name of the model's input.
pub const IMAGES: &str = "images";
/// Name of the model's output.
pub const FEATURES: &str = "features";

/// The model's bytes. `tensors` are the graph's, in PyTorch's layouts, which are ONNX's too.
///
/// # Errors
/// A tensor that the graph needs is missing, or the model is larger than the 2 GB that the format
/// allows.
pub fn model(name: &str, graph: &Graph, tensors: &HashMap<String, Tensor>) -> Result<Vec<u8>> {
    let mut out = GraphProto { name: name.to_owned(), ..Default::default() };
    let mut dim = 3;
    for node in &graph.nodes {
        if let Op::Conv(config) = node.op {
            dim = config.output;
        }
        for parameter in parameters(node) {
            let tensor = tensors.get(&parameter);
            let tensor = tensor.with_context(|| format!("the graph wants tensor '{parameter}'"))?;
            out.initializer.push(initializer(parameter, tensor)?);
        }
        out.node.extend(nodes(node, graph));
    }
    let open = |name: &str| Length::DimParam(name.to_owned());
    let known = |length: usize| Length::DimValue(length as i64);
    out.input = vec![info(IMAGES, [open("batch"), known(3), open("height"), open("width")])];
    out.output = vec![info(FEATURES, [open("batch"), known(dim)])];
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: env!("CARGO_PKG_NAME").into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(out),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
    };
    anyhow::ensure!(model.encoded_len() < i32::MAX as usize, "an ONNX file holds at most 2 GB");
    Ok(model.encode_to_vec())
}

/// Names of the tensors that a node reads beside its inputs, in ONNX's order.
fn parameters(node: &Node) -> Vec<String> {
    let parts: &[&str] = match node.op {
        Op::Conv(_) => &["weight"],
        Op::BatchNorm => &["weight", "bias", "running_mean", "running_var"],
        _ => &[],
    };
    parts.iter().map(|part| format!("{}.{part}", node.name)).collect()
}

/// The node in ONNX's terms: one operation, or two for the pool at the end, which leaves its result
/// in one pixel there.
fn nodes(node: &Node, graph: &Graph) -> Vec<NodeProto> {
    let name_of = |value: &Value| match value {
        Value::Images => IMAGES.to_owned(),
        Value::Node(place) => graph.nodes[*place].name.clone(),
    };
    let mut input: Vec<String> = node.inputs.iter().map(name_of).collect();
    input.extend(parameters(node));
    let one = |op_type: &str, attribute: Vec<AttributeProto>| NodeProto {
        input,
        output: vec![node.name.clone()],
        name: node.name.clone(),
        op_type: op_type.to_owned(),
        attribute,
    };
    match node.op {
        Op::Conv(config) => {
            vec![one("Conv", window(config.kernel, config.stride, config.padding))]
        }
        Op::BatchNorm => {
            let epsilon = AttributeProto {
                name: "epsilon".into(),
                f: EPS as f32,
                kind: AttributeType::Float.into(),
                ..Default::default()
            };
            vec![one("BatchNormalization", vec![epsilon])]
        }
        Op::Relu => vec![one("Relu", Vec::new())],
        Op::Add => vec![one("Add", Vec::new())],
        Op::MaxPool { kernel, stride, padding } => {
            vec![one("MaxPool", window(kernel, stride, padding))]
        }
        Op::GlobalAverage => {
            let mut pool = one("GlobalAveragePool", Vec::new());
            pool.name = "avgpool".into();
            pool.output = vec![pool.name.clone()];
            let flatten = NodeProto {
                input: pool.output.clone(),
                output: vec![FEATURES.into()],
                name: FEATURES.into(),
                op_type: "Flatten".into(),
                ..Default::default()
            };
            vec![pool, flatten]
        }
    }
}

fn window(kernel: usize, stride: usize, padding: usize) -> Vec<AttributeProto> {
    let ints = |name: &str, value: usize, count: usize| AttributeProto {
        name: name.to_owned(),
        ints: vec![value as i64; count],
        kind: AttributeType::Ints.into(),
        ..Default::default()
    };
    vec![ints("kernel_shape", kernel, 2), ints("strides", stride, 2), ints("pads", padding, 4)]
}

fn initializer(name: String, tensor: &Tensor) -> Result<TensorProto> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    Ok(TensorProto {
        dims: tensor.dims().iter().map(|length| *length as i64).collect(),
        data_type: FLOAT,
        name,
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    })
}

fn info<const N: usize>(name: &str, shape: [Length; N]) -> ValueInfoProto {
    let dim = shape.into_iter().map(|length| Dimension { value: Some(length) }).collect();
    let tensor = TensorType { elem_type: FLOAT, shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: name.to_owned(), of: Some(TypeProto { tensor_type: Some(tensor) }) }
}
