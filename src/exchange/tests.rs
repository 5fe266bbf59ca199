use std::collections::HashMap;

use bt_pipeline::Position;
use candle_core::Device;
use prost::Message;

use super::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto};
use super::*;
use crate::checkpoint::{self, State, Tensors};
use crate::learner::Learner;
use crate::model::Arch;

fn model(arch: Arch, stem: Stem, width: usize) -> ModelConfig {
    let projector = crate::model::ProjectorWidths(vec![6]);
    ModelConfig { arch, width, stem, zero_init: false, projector, ..Default::default() }
}

/// A network whose running statistics are not those of a new one.
fn trained(config: &ModelConfig) -> TwinNet {
    let mut net = TwinNet::new(config, 3, &Device::Cpu).unwrap();
    let images = Tensor::randn(0.3f32, 1.2, (4, 32, 32, 3), &Device::Cpu).unwrap();
    net.forward_train(&images, 2).unwrap();
    net
}

/// An array N,C,H,W.
#[derive(Clone, Default)]
struct Nchw {
    shape: [usize; 4],
    values: Vec<f32>,
}

/// Carries an ONNX graph out by the operators' definitions, one loop each, and knows nothing of the
/// network it came from. Operators' defaults are those of the specification.
struct Interpreter {
    values: HashMap<String, Nchw>,
}

impl Interpreter {
    fn run(graph: &GraphProto, images: Nchw) -> Nchw {
        let mut all =
            Interpreter { values: HashMap::from([(graph.input[0].name.clone(), images)]) };
        for tensor in &graph.initializer {
            let values = tensor.raw_data.chunks_exact(4);
            let values = values.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let mut shape = [1; 4];
            tensor.dims.iter().enumerate().for_each(|(i, d)| shape[i] = *d as usize);
            all.values.insert(tensor.name.clone(), Nchw { shape, values });
        }
        for node in &graph.node {
            let out = all.apply(node);
            assert!(all.values.insert(node.output[0].clone(), out).is_none(), "{}", node.name);
        }
        all.values.remove(&graph.output[0].name).unwrap()
    }

    fn apply(&self, node: &NodeProto) -> Nchw {
        let input = |i: usize| self.values.get(&node.input[i]).expect("values come before use");
        let find = |name: &str| node.attribute.iter().find(|a| a.name == name);
        let x = input(0);
        let [n, c, h, w] = x.shape;
        match node.op_type.as_str() {
            "Relu" => Nchw { values: x.values.iter().map(|v| v.max(0.0)).collect(), ..*x },
            "Add" => {
                assert_eq!(x.shape, input(1).shape);
                let sum = x.values.iter().zip(&input(1).values).map(|(a, b)| a + b);
                Nchw { values: sum.collect(), ..*x }
            }
            "BatchNormalization" => {
                let epsilon = find("epsilon").map_or(1e-5, |a| a.f);
                let at = |i: usize, channel: usize| input(i).values[channel];
                let normal = |(i, v): (usize, &f32)| {
                    let k = i / (h * w) % c;
                    (v - at(3, k)) / (at(4, k) + epsilon).sqrt() * at(1, k) + at(2, k)
                };
                Nchw { values: x.values.iter().enumerate().map(normal).collect(), ..*x }
            }
            "GlobalAveragePool" => {
                let means = x.values.chunks_exact(h * w);
                let means = means.map(|plane| plane.iter().sum::<f32>() / (h * w) as f32).collect();
                Nchw { shape: [n, c, 1, 1], values: means }
            }
            "Flatten" => Nchw { shape: [n, c * h * w, 1, 1], values: x.values.clone() },
            "MaxPool" => slide(
                x,
                c,
                |o| o..o + 1,
                &node.attribute,
                |_, window| window.iter().flatten().copied().fold(f32::NEG_INFINITY, f32::max),
            ),
            "Conv" => {
                let kernel = input(1);
                assert_eq!(kernel.shape[1], c);
                let len = kernel.values.len() / kernel.shape[0];
                slide(
                    x,
                    kernel.shape[0],
                    |_| 0..c,
                    &node.attribute,
                    |o, window| {
                        let weights = &kernel.values[o * len..][..len];
                        let terms = window.iter().zip(weights).filter_map(|(v, k)| Some((*v)? * k));
                        terms.sum()
                    },
                )
            }
            other => panic!("operator {other}"),
        }
    }
}

/// `of(output channel, window)` at every place of the window, which holds the channels that `from`
/// names; `None` is padding.
fn slide(
    x: &Nchw,
    out: usize,
    from: impl Fn(usize) -> std::ops::Range<usize>,
    attributes: &[AttributeProto],
    of: impl Fn(usize, &[Option<f32>]) -> f32,
) -> Nchw {
    let ints = |name: &str| {
        let found = attributes.iter().find(|a| a.name == name).unwrap();
        found.ints.iter().map(|v| *v as usize).collect::<Vec<_>>()
    };
    let (kernel, stride, pads) = (ints("kernel_shape"), ints("strides"), ints("pads"));
    let [n, c, h, w] = x.shape;
    let places =
        |i: usize, length: usize| (length + pads[i] + pads[i + 2] - kernel[i]) / stride[i] + 1;
    let (oh, ow) = (places(0, h), places(1, w));
    let (mut values, mut window) = (Vec::with_capacity(n * out * oh * ow), Vec::new());
    for (image, o) in (0..n).flat_map(|i| (0..out).map(move |o| (i, o))) {
        for (row, column) in (0..oh).flat_map(|r| (0..ow).map(move |c| (r, c))) {
            window.clear();
            for channel in from(o) {
                for (i, j) in (0..kernel[0]).flat_map(|i| (0..kernel[1]).map(move |j| (i, j))) {
                    let y = (row * stride[0] + i).checked_sub(pads[0]).filter(|y| *y < h);
                    let z = (column * stride[1] + j).checked_sub(pads[1]).filter(|z| *z < w);
                    let at = |(y, z)| x.values[((image * c + channel) * h + y) * w + z];
                    window.push(y.zip(z).map(at));
                }
            }
            values.push(of(o, &window));
        }
    }
    Nchw { shape: [n, out, oh, ow], values }
}

#[test]
fn the_onnx_graph_carried_out_by_definition_gives_the_networks_features() {
    let nets = [
        (Arch::ResNet18, Stem::Cifar, 16),
        (Arch::ResNet18, Stem::CifarPad2, 15),
        (Arch::ResNet34, Stem::Imagenet, 40),
        (Arch::ResNet50, Stem::Imagenet, 33),
    ];
    for (arch, stem, side) in nets {
        let mut net = trained(&model(arch, stem, 2));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backbone.onnx");
        export_onnx(&mut net, &path).unwrap();
        let model = ModelProto::decode(&*std::fs::read(&path).unwrap()).unwrap();
        let images = Tensor::randn(0f32, 1.0, (2, side, side + 3, 3), &Device::Cpu).unwrap();
        let want = net.features(&images).unwrap();
        let nchw = images.permute((0, 3, 1, 2)).unwrap().flatten_all().unwrap();
        let images = Nchw { shape: [2, 3, side, side + 3], values: nchw.to_vec1().unwrap() };
        let got = Interpreter::run(&model.graph.unwrap(), images);
        let want: Vec<f32> = want.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(got.values.len(), want.len(), "{arch}");
        let largest = want.iter().fold(0f32, |most, v| most.max(v.abs()));
        for (got, want) in got.values.iter().zip(&want) {
            assert!((got - want).abs() < 1e-4 * largest, "{arch}: {got} and {want}");
        }
    }
}

#[test]
fn an_exported_backbone_tells_its_own_shape_and_comes_back_whole() {
    let shapes = [
        (Arch::ResNet18, Stem::Cifar, 2),
        (Arch::ResNet34, Stem::Imagenet, 1),
        (Arch::ResNet50, Stem::Imagenet, 3),
    ];
    for (arch, stem, width) in shapes {
        let config = model(arch, stem, width);
        let mut net = trained(&config);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backbone.safetensors");
        export_safetensors(&mut net, &path).unwrap();
        let tensors = import::read(&path).unwrap();
        let found = import::describe(&tensors, &ModelConfig::default(), Stem::Cifar).unwrap();
        assert_eq!((found.arch, found.stem, found.width), (arch, stem, width));
        let mut other = TwinNet::new(&config, 99, &Device::Cpu).unwrap();
        other.load_backbone(&tensors).unwrap();
        let again = dir.path().join("again.safetensors");
        export_safetensors(&mut other, &again).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), std::fs::read(again).unwrap());
    }
}

#[test]
fn a_backbone_in_an_nn_sequential_has_torchvisions_names_again() {
    let mut net = trained(&model(Arch::ResNet50, Stem::Imagenet, 2));
    let want: HashMap<String, Tensor> = net.backbone_state_dict().unwrap().into_iter().collect();
    let parts = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"];
    let numbered = |numbers: [u8; 6]| -> HashMap<String, Tensor> {
        let name = |name: &str| {
            let (part, rest) = name.split_once('.').unwrap();
            let number = numbers[parts.iter().position(|p| *p == part).unwrap()];
            format!("backbone.{number}.{rest}")
        };
        want.iter().map(|(inner, tensor)| (name(inner), tensor.clone())).collect()
    };
    let mut given = numbered([0, 1, 4, 5, 6, 7]);
    given.insert("projection_head.layers.0.weight".into(), want["conv1.weight"].clone());
    let found = import::backbone(given, None).unwrap();
    let names = |tensors: &HashMap<String, Tensor>| {
        tensors.keys().cloned().collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names(&found), names(&want));
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values(&found["layer3.0.conv2.weight"]), values(&want["layer3.0.conv2.weight"]));
    assert_eq!(
        import::describe(&found, &ModelConfig::default(), Stem::Cifar).unwrap().arch,
        Arch::ResNet50
    );
    // As it would be of lightly's ResNet for CIFAR: another network.
    let refused = import::backbone(numbered([0, 1, 2, 3, 4, 5]), None).unwrap_err().to_string();
    assert!(refused.contains("no ReLU"), "{refused}");
}

#[test]
fn what_is_no_resnet_is_refused_with_the_reason() {
    let tensor =
        |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    let refused = |tensors: &[(&str, &[usize])]| {
        let tensors = tensors.iter().map(|(n, s)| ((*n).to_owned(), tensor(s))).collect();
        import::describe(&tensors, &ModelConfig::default(), Stem::Cifar).unwrap_err().to_string()
    };
    assert!(refused(&[("patch_embed.weight", &[4])]).contains("no tensor `conv1.weight`"));
    assert!(refused(&[("conv1.weight", &[8, 1, 7, 7])]).contains("[8, 1, 7, 7]"));
    assert!(refused(&[("conv1.weight", &[8, 3, 7, 7])]).contains("[0, 0, 0, 0] basic blocks"));
}

/// The padding of a stem is in no shape: it is what the file's program has, unless it is said.
#[test]
fn the_stem_of_solo_learns_files_pads_by_2() {
    let mut net = trained(&model(Arch::ResNet18, Stem::CifarPad2, 2));
    let bare: HashMap<String, Tensor> = net.backbone_state_dict().unwrap().into_iter().collect();
    let behind = |prefix: &str, classifier: &str| -> HashMap<String, Tensor> {
        let mut all: HashMap<String, Tensor> =
            bare.iter().map(|(name, t)| (format!("{prefix}{name}"), t.clone())).collect();
        all.insert(classifier.to_owned(), bare["bn1.weight"].clone());
        all
    };
    assert!(import::is_padded_by_2(&behind("backbone.", "classifier.weight")));
    assert!(import::is_padded_by_2(&behind("encoder.", "classifier.weight")));
    assert!(!import::is_padded_by_2(&behind("backbone.", "fc.weight")));
    assert!(!import::is_padded_by_2(&behind("", "classifier.weight")));
    let stem = |base: Stem, small: Stem| {
        let base = ModelConfig { stem: base, ..ModelConfig::default() };
        import::describe(&bare, &base, small).unwrap().stem
    };
    assert_eq!(stem(Stem::Imagenet, Stem::CifarPad2), Stem::CifarPad2);
    assert_eq!(stem(Stem::Cifar, Stem::CifarPad2), Stem::Cifar);
    assert_eq!(stem(Stem::CifarPad2, Stem::Cifar), Stem::CifarPad2);
}

#[test]
fn a_teacher_starts_from_the_imported_backbone_too() {
    let text = "method = \"byol\"\n[model]\narch = \"resnet18\"\nwidth = 2\nstem = \"cifar\"\n\
                projector = \"6\"\n[loss]\npredictor_hidden = 4\n";
    let config = RunConfig::parse(text, "", &[]).unwrap();
    let mut source = trained(&config.model);
    let tensors = source.backbone_state_dict().unwrap().into_iter().collect();
    let mut learner = Learner::new(&config, &Device::Cpu).unwrap();
    learner.start_from(&tensors).unwrap();
    let state: HashMap<String, Tensor> = learner.state().unwrap().into_iter().collect();
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for name in ["layer2.0.conv1.weight", "bn1.running_mean"] {
        let teacher = &state[&format!("teacher.backbone.{name}")];
        assert_eq!(values(teacher), values(&tensors[name]));
    }
}

#[test]
fn timm_gets_only_networks_that_it_has_under_their_name() {
    let mut net = trained(&model(Arch::ResNet18, Stem::Cifar, 2));
    let dir = tempfile::tempdir().unwrap();
    let error = export_timm(&mut net, &RunConfig::default(), dir.path()).unwrap_err().to_string();
    assert!(error.contains("width 2") && error.contains("--format"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_card_does_not_take_the_weights_place() {
    let state = State::new(0, Position::default(), 0, &RunConfig::default());
    let checkpoint = Checkpoint { path: "step-0000000000".into(), state };
    for format in [Format::Torchvision, Format::Onnx] {
        let error = format.export(&checkpoint, Path::new("weights.json")).unwrap_err();
        assert!(error.is::<Misconfigured>() && error.to_string().contains("the card"), "{error}");
    }
}

#[test]
fn a_ruined_network_is_not_exported() {
    let config = RunConfig { model: model(Arch::ResNet18, Stem::Cifar, 2), ..RunConfig::default() };
    let mut net = trained(&config.model);
    storage::with_mut(&net.params()[0].value, |values| values[3] = f32::NAN).unwrap();
    let tensors = Tensors { weights: net.state_dict().unwrap(), ..Tensors::default() };
    let dir = tempfile::tempdir().unwrap();
    let state = State::new(1, Position::default(), 8, &config);
    checkpoint::save(dir.path(), state, tensors, 1).unwrap();
    let found = checkpoint::find(dir.path()).unwrap();
    let out = dir.path().join("backbone.safetensors");
    let error = Format::Torchvision.export(&found, &out).unwrap_err().to_string();
    assert!(error.contains("conv1.weight is not finite") && !out.exists(), "{error}");
}

#[test]
fn a_backbone_is_found_behind_the_prefix_that_others_give_it() {
    let mut net = trained(&model(Arch::ResNet18, Stem::Cifar, 8));
    let bare: HashMap<String, Tensor> = net.backbone_state_dict().unwrap().into_iter().collect();
    let behind = |prefixes: &[&str]| -> HashMap<String, Tensor> {
        let mut all = HashMap::new();
        for prefix in prefixes {
            all.extend(bare.iter().map(|(name, t)| (format!("{prefix}{name}"), t.clone())));
            let fc = Tensor::zeros((2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
            all.insert(format!("{prefix}fc.0.weight"), fc);
        }
        all
    };
    let names = |tensors: &HashMap<String, Tensor>| {
        let mut names: Vec<String> = tensors.keys().cloned().collect();
        names.sort();
        names
    };
    let solo = import::backbone(behind(&["backbone."]), None).unwrap();
    assert_eq!(names(&solo), names(&bare));
    // MoCo has two of them.
    let moco = ["module.encoder_q.", "module.encoder_k."];
    let error = import::backbone(behind(&moco), None).unwrap_err().to_string();
    assert!(error.contains("`module.encoder_k.`, `module.encoder_q.`"), "{error}");
    let query = import::backbone(behind(&moco), Some(moco[0])).unwrap();
    assert_eq!(names(&query), names(&bare));
    let error = import::backbone(behind(&moco), Some("encoder.")).unwrap_err().to_string();
    assert!(error.contains("no backbone stands behind `encoder.`"), "{error}");
    let error = import::backbone(behind(&[""]), Some("encoder.")).unwrap_err().to_string();
    assert!(error.contains("leave --prefix out"), "{error}");
}
