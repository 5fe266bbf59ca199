//! `export`, `import` and `train --init` from the command line.

use std::path::Path;

use crate::common::{bt_stream, tiny_run, tiny_shards};

fn output(command: &mut std::process::Command) -> (bool, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_run_is_exported_with_its_card_imported_and_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    let (good, _, errors) = output(tiny_run(&shards, &run).args(["--epochs", "2"]));
    assert!(good, "{errors}");
    std::fs::write(
        run.join("evaluation.json"),
        r#"[{"step":6,"name":"trained network","knn":0.4,"linear":null},
            {"step":12,"name":"trained network","knn":0.5,"linear":null}]"#,
    )
    .unwrap();
    let file = |name: &str| dir.path().join(name);
    let (weights, onnx) = (file("backbone.safetensors"), file("net.onnx"));
    for out in [&weights, &onnx] {
        let (good, said, errors) = output(bt_stream().arg("export").arg(&run).arg(out));
        assert!(good, "{errors}");
        assert!(said.contains(&format!("wrote {}", out.display())), "{said}");
    }
    let card = json(&file("backbone.json"));
    assert_eq!(card["backbone"]["arch"], "resnet18");
    assert_eq!(card["backbone"]["feature_dim"], 64);
    assert_eq!(card["backbone"]["standard"], false);
    assert_eq!(card["data"]["samples"], 96);
    assert_eq!(card["data"]["epochs"], 2);
    assert_eq!(card["input"]["size"], serde_json::json!([16, 16]));
    // Of this checkpoint, and no other.
    let scores = serde_json::json!([{ "name": "trained network", "knn": 0.5, "linear": null }]);
    assert_eq!(card["accuracy"]["evaluation"], scores);
    assert_eq!(card["configuration"]["train"]["batch_size"], 16);
    assert_eq!(json(&file("net.json"))["backbone"], card["backbone"]);

    // The same tensors come back out of what was made of them.
    let imported = file("imported");
    let (good, said, errors) = output(bt_stream().arg("import").arg(&weights).arg(&imported));
    assert!(good && said.contains("resnet18 of width 8"), "{said}{errors}");
    // Without a configuration the stem says which views are meant.
    let state = bt_stream::checkpoint::find(&imported).unwrap().state;
    let views = state.config.views.views().unwrap();
    assert_eq!((views[0].out_size(), errors.contains("barlow-cifar")), ((32, 32), true));
    let again = file("again.safetensors");
    let (good, _, errors) = output(bt_stream().arg("export").arg(&imported).arg(&again));
    assert!(good, "{errors}");
    assert_eq!(std::fs::read(&weights).unwrap(), std::fs::read(again).unwrap());

    // `train --init`, and `import` then `--resume`, are the same run.
    let (direct, one) = (file("direct"), ["--epochs", "1"]);
    let (good, _, errors) =
        output(tiny_run(&shards, &direct).args(one).arg("--init").arg(&weights));
    assert!(good, "{errors}");
    let prepared = file("prepared");
    let mut import = bt_stream();
    import.arg("import").arg(&weights).arg(&prepared).arg("--config");
    let (good, _, errors) = output(import.arg(direct.join("config.toml")));
    assert!(good, "{errors}");
    let (good, _, errors) = output(tiny_run(&shards, &prepared).args(one).arg("--resume"));
    assert!(good, "{errors}");
    let weights_of = |dir: &Path| crate::common::newest_weights(dir)[0].clone();
    assert_eq!(weights_of(&direct), weights_of(&prepared));

    // Another start, another run; another network, an error that names the tensor.
    let fresh = file("fresh");
    assert!(output(tiny_run(&shards, &fresh).args(one)).0);
    assert_ne!(weights_of(&direct), weights_of(&fresh));
    let mut wider = tiny_run(&shards, &file("wider"));
    let (good, _, errors) =
        output(wider.args(["--set", "model.width=4"]).arg("--init").arg(&weights));
    assert!(!good && errors.contains("conv1.weight"), "{errors}");
}

#[test]
fn a_name_that_tells_no_format_is_refused_before_anything_is_read() {
    let (good, _, errors) = output(bt_stream().args(["export", "no-such-run", "backbone.bin"]));
    assert!(!good && errors.contains("--format"), "{errors}");
}
