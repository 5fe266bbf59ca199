//! Bad input is answered by one clear line and a non-zero exit.

mod common;

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use bt_pipeline::Image;
use bt_pipeline::shard::{Limits, PackOptions, open_source, pack};
use bt_pipeline::synth;
use bt_stream::metrics::BAD_SAMPLES_FILE;
use candle_core::{DType, Device, Tensor};
use common::{bt_stream, tiny_run, tiny_shards, write_tar};

/// The one line of a command that fails.
fn complaint(command: &mut Command) -> String {
    let output: Output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // Which one is tested with the command line (tests/interop/command_line.rs).
    assert!(matches!(output.status.code(), Some(1..=3)), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    // A command prints its configuration first; comments and TOML are no complaint.
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("bt-stream: ")).collect();
    let [line] = &lines[..] else { panic!("expected one line of complaint:\n{said}") };
    assert!(said.trim_end().ends_with(line), "the complaint is the last line:\n{said}");
    (*line).to_owned()
}

fn says(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "`{part}` is missing from: {line}");
    }
}

#[test]
fn no_such_folder() {
    let dir = tempfile::tempdir().unwrap();
    let line = complaint(&mut tiny_run(&dir.path().join("nowhere"), &dir.path().join("run")));
    says(&line, &["nowhere"]);
}

#[test]
fn a_run_that_goes_on_in_another_folder_than_its_shards_are_named_from() {
    let dir = tempfile::tempdir().unwrap();
    tiny_shards(dir.path());
    let run = dir.path().join("run");
    let mut command = tiny_run(Path::new("shards"), &run);
    assert!(command.current_dir(&dir).args(["--epochs", "1"]).output().unwrap().status.success());
    let mut command = bt_stream();
    command.args(["train", "--resume", "--epochs", "2", "--dir"]).arg(&run).current_dir(&run);
    says(&complaint(&mut command), &["data.train: the run's shards were not found", "shards: No"]);
}

#[test]
fn an_empty_shard_set() {
    let dir = tempfile::tempdir().unwrap();
    let shards = dir.path().join("shards");
    std::fs::create_dir(&shards).unwrap();
    let line = complaint(&mut tiny_run(&shards, &dir.path().join("run")));
    says(&line, &["shards"]);
    let empty = write_tar(&dir.path().join("empty"), 0, |_, _| unreachable!());
    let line = complaint(&mut tiny_run(&empty, &dir.path().join("run")));
    says(&line, &["no samples"]);
    // A run that is refused for what is found after its folder was taken leaves none.
    let run = dir.path().join("refused");
    let shards = tiny_shards(dir.path());
    says(&complaint(tiny_run(&shards, &run).args(["--init", "/nope"])), &["/nope"]);
    assert!(!run.exists());
    std::fs::create_dir(&run).unwrap();
    says(&complaint(tiny_run(&shards, &run).args(["--init", "/nope"])), &["/nope"]);
    assert!(run.exists());
}

#[test]
fn a_class_file_that_is_not_a_number() {
    let dir = tempfile::tempdir().unwrap();
    let spec = synth::Spec { images: 8, side: 16, ..Default::default() };
    let shards = write_tar(&dir.path().join("shards"), 24, |sample, _| {
        let png = synth::encode_png(&synth::draw(&spec, sample).0).unwrap();
        (png, if sample == 5 { "tabby cat".into() } else { "0".into() })
    });
    let mut command = tiny_run(&shards, &dir.path().join("run"));
    let line = complaint(command.args(["--set", "data.on_bad=stop"]));
    says(&line, &["000005", "tabby cat"]);
}

#[test]
fn a_profile_where_no_device_is() {
    let line =
        complaint(bt_stream().args(["bench", "step", "--profile", "--set", "train.device='cpu'"]));
    says(&line, &["--profile", "CUDA device"]);
}

#[test]
fn a_key_that_does_not_exist() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.toml");
    std::fs::write(&file, "[train]\nbatchsize = 3\n").unwrap();
    let mut command = bt_stream();
    let line = complaint(command.arg("train").arg("--config").arg(&file));
    says(&line, &["batchsize", "batch_size"]);
    std::fs::write(&file, "[train\n").unwrap();
    let line = complaint(bt_stream().arg("train").arg("--config").arg(&file));
    says(&line, &["run.toml"]);
}

#[test]
fn parts_that_a_batch_has_not() {
    for parts in ["0", "3", "6", "16", "32"] {
        let parts = format!("train.micro_batches={parts}");
        let mut command = bt_stream();
        command.args(["config", "--set", "train.batch_size=8", "--set", &parts]);
        says(&complaint(&mut command), &["train.micro_batches", "even", "batch of 8"]);
        let mut command = bt_stream();
        let set = ["--set", "train.device='cpu'", "--set", &parts];
        command.args(["bench", "step", "--batch", "8"]).args(set);
        says(&complaint(&mut command), &["train.micro_batches", "even"]);
    }
}

#[test]
fn a_batch_larger_than_the_data_set() {
    let dir = tempfile::tempdir().unwrap();
    let shards = tiny_shards(dir.path());
    let mut command = tiny_run(&shards, &dir.path().join("run"));
    let line = complaint(command.args(["--batch-size", "97"]));
    says(&line, &["train.batch_size = 97", "96 samples"]);
}

#[test]
fn a_checkpoint_of_another_architecture() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    let output = tiny_run(&shards, &run).args(["--epochs", "1"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut command = tiny_run(&shards, &run);
    let line = complaint(command.args(["--resume", "--set", "model.width=16"]));
    says(&line, &["model.width = 8", "not 16", "step-0000000006"]);
    let mut command = tiny_run(&shards, &run);
    let line = complaint(command.args(["--resume", "--set", "loss.predictor=8"]));
    says(&line, &["loss.predictor = 0", "not 8"]);
    // Without --resume a run is never overwritten.
    let line = complaint(&mut tiny_run(&shards, &run));
    says(&line, &["--resume"]);
}

#[test]
fn what_the_command_line_has_wrong_is_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    let data = format!("data.train={shards:?}");
    let study = dir.path().join("study.toml");
    std::fs::write(&study, "title = \"x\"\nseed = [0]\n").unwrap();
    let study = study.to_str().unwrap();
    let good = dir.path().join("good.toml");
    std::fs::write(&good, "title = \"x\"\nseeds = [0]\n[[cells]]\nname = \"a\"\n").unwrap();
    let good = good.to_str().unwrap();
    let run = run.to_str().unwrap();
    let cases: &[&[&str]] = &[
        &["study", study],
        &["study", "nowhere.toml"],
        &["train", "--dir", run],
        &["train", "--resume"],
        &["train", "--dir", run, "--set", &data, "--batch-size", "97"],
        &["config", "--set", "views.b.random_resized_crop.size=64"],
        &["config", "--set", "eval.temperature=inf"],
        &["config", "--explain", "nokey"],
        &["linear", run, "--labels", "2"],
        &["linear", run, "--lr", "nan"],
        &["linear", run, "--finetune", "--batch-size", "1"],
        &["linear", run, "--out", "network.pth"],
        &["linear", run, "--state", "no/such/folder/state"],
        &["probe", run, "--held-out", "2"],
        &["knn", run, "--k", "0"],
        &["bench", "step", "--batch", "9223372036854775807"],
        &["bench", "step", "--warmup", "18446744073709551615"],
        &["bench", "step", "--steps", "0"],
        &["study", good, "--first-step", "9223372036854775807"],
        &["inspect", "shards", "--sheet", "sheet.png", "--side", "0"],
        &["embed", run, "shards", "out.txt"],
    ];
    for case in cases {
        let output = bt_stream().args(*case).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{case:?}: {said}");
    }
    // What is not there is another matter.
    let output = bt_stream().args(["knn", run]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn more_damage_than_may_be_is_a_failure_of_the_data() {
    let dir = tempfile::tempdir().unwrap();
    let spec = synth::Spec { images: 600, side: 16, ..Default::default() };
    let shards = write_tar(&dir.path().join("shards"), 600, |sample, label| {
        let mut png = synth::encode_png(&synth::draw(&spec, sample).0).unwrap();
        png.truncate(if sample % 3 == 0 { 40 } else { png.len() });
        (png, label.to_string())
    });
    let mut command = tiny_run(&shards, &dir.path().join("run"));
    let output = command.args(["--epochs", "1"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("max_bad"), "{said}");
    let ledger = std::fs::read_to_string(dir.path().join("run").join(BAD_SAMPLES_FILE)).unwrap();
    assert!(ledger.lines().count() > 9, "{ledger}");
}

#[test]
fn names_that_are_no_ascii_are_taken_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    // Combining marks, a space that does not break, and a quote.
    let names = ["\u{91a}\u{93f}\u{924}\u{94d}\u{930}", "cafe\u{301}", "a\u{a0}b", "say \"so\""];
    for name in names {
        let (shards, run) = (dir.path().join(format!("{name} in")), dir.path().join(name));
        std::fs::rename(tiny_shards(dir.path()), &shards).unwrap();
        let output = tiny_run(&shards, &run).args(["--epochs", "1"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(run.join("config.toml").exists(), "{name}");
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let run = dir.path().join(std::ffi::OsStr::from_bytes(b"run\xff"));
        let output = tiny_run(&dir.path().join("cafe\u{301} in"), &run).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("not UTF-8"));
    }
}

/// Runs `command` with a limit on file sizes, whose excess is an error of the
/// write, as a full disk is.
fn with_file_limit(command: &Command, kib: u32) -> Command {
    let mut limited = Command::new("bash");
    limited.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {kib}; exec \"$@\"")).arg("limited");
    limited.arg(command.get_program()).args(command.get_args());
    limited
}

#[test]
fn a_disk_that_is_full_when_a_checkpoint_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    let line = complaint(&mut with_file_limit(&tiny_run(&shards, &run), 64));
    says(&line, &["checkpoint", "step-"]);
    assert!(leftovers(&run.join("checkpoints")).is_empty());
    // With `warn` the run goes on to its end; that the last one fails, too, is a failure then.
    let warned = dir.path().join("warned");
    let mut command = tiny_run(&shards, &warned);
    command.args(["--set", "checkpoint.on_error=warn", "--epochs", "1"]);
    let output = with_file_limit(&command, 64).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("warning: cannot write the checkpoint"), "{said}");
    assert_eq!(bt_stream::metrics::read(&warned).unwrap().last().unwrap().step, 6);
}

/// Shards that are packed: an index beside each, frames with a seek table.
fn packed(shards: &Path, out: &Path, zstd: Option<i32>) {
    let source = open_source(shards.to_str().unwrap(), out, &Limits::default()).unwrap();
    let options = PackOptions { zstd, ..PackOptions::default() };
    pack(&*source, out, "test", &options, &mut |_| {}).unwrap();
    for entry in std::fs::read_dir(out).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().ends_with(".manifest.json") {
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn every_limit_can_be_set_and_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let plain = tiny_shards(dir.path());
    let [indexed, framed, streamed, nested] =
        ["indexed", "framed", "streamed", "nested"].map(|name| dir.path().join(name));
    packed(&plain, &indexed, None);
    packed(&plain, &framed, Some(1));
    std::fs::create_dir(&streamed).unwrap();
    let tar = std::fs::read(plain.join("part-0.tar")).unwrap();
    std::fs::write(streamed.join("a.tar.zst"), zstd::encode_all(&tar[..], 1).unwrap()).unwrap();
    write_one(&nested, &format!("{}/a", "d/".repeat(60)));
    let wide = synth::encode_png(&Image::new(1001, 1000)).unwrap();
    let large =
        write_tar(&dir.path().join("large"), 16, |_, label| (wide.clone(), label.to_string()));
    for (shards, limit, answer) in [
        (&plain, "data.limits.members=100", "more than 100 members (limit)"),
        (&plain, "data.limits.members_per_sample=1", "more than 1 members (limit)"),
        (&plain, "data.limits.label=2", "expected a class number from 0 to 2"),
        (&plain, "data.limits.member_bytes=64", "limit of 64"),
        (&large, "data.max_megapixels=1", "above the limit of 1000000"),
        (&plain, "data.max_megapixels=0", "`data.max_megapixels` must be at least 1"),
        (&nested, "data.limits.name_bytes=80", "limit"),
        (&indexed, "data.limits.index_bytes=900", "over the limit of 900"),
        (&framed, "data.limits.frame_bytes=4096", "4096"),
        (&streamed, "data.limits.zstd_window_log=10", "a.tar.zst"),
    ] {
        let run = dir.path().join("run");
        let mut command = tiny_run(shards, &run);
        command.args(["--set", "data.shuffle=window", "--set", "train.epochs=1"]);
        let works = shards == &nested || command.output().unwrap().status.success();
        assert!(works, "{}: it is read within the usual limits", shards.display());
        std::fs::remove_dir_all(&run).unwrap_or_default();
        let line = complaint(command.args(["--set", limit]));
        says(&line, &[answer]);
        std::fs::remove_dir_all(&run).unwrap_or_default();
    }
}

/// A tar of one image under a long path.
fn write_one(folder: &Path, name: &str) {
    std::fs::create_dir(folder).unwrap();
    let mut tar = tar::Builder::new(std::fs::File::create(folder.join("a.tar")).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_size(14);
    header.set_cksum();
    tar.append_data(&mut header, format!("{name}.ppm"), &b"P6 1 1 255\nabc"[..]).unwrap();
    tar.into_inner().unwrap();
}

fn leftovers(folder: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn an_import_into_a_folder_that_holds_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weights.safetensors");
    let (aside, lines) = (dir.path().join("aside"), dir.path().join("lines"));
    std::fs::create_dir_all(aside.join("checkpoints/aside-0000000003")).unwrap();
    std::fs::create_dir(&lines).unwrap();
    std::fs::write(lines.join("metrics.jsonl"), "{}\n").unwrap();
    for run in [aside, lines] {
        let line = complaint(bt_stream().arg("import").arg(&file).arg(&run));
        says(&line, &["already holds a run"]);
    }
}

#[test]
fn a_pytorch_file_that_torch_never_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weights.pth");
    // {"conv1.weight": torch._utils._rebuild_tensor_v2()}
    let pickle = b"\x80\x02}X\x0c\x00\x00\x00conv1.weightctorch._utils\n_rebuild_tensor_v2\n)Rs.";
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&file).unwrap());
    zip.start_file("a/data.pkl", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(pickle).unwrap();
    zip.finish().unwrap();
    let line = complaint(bt_stream().arg("import").arg(&file).arg(dir.path().join("run")));
    says(&line, &["weights.pth", "no state dict"]);
}

#[test]
fn a_backbone_wider_than_any_that_was_ever_trained() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wide.safetensors");
    let tensor = |shape: &[usize]| Tensor::zeros(shape, DType::U8, &Device::Cpu).unwrap();
    let mut tensors: HashMap<String, Tensor> = (1..=4)
        .flat_map(|layer| [0, 1].map(|block| format!("layer{layer}.{block}.conv1.weight")))
        .map(|name| (name, tensor(&[1])))
        .collect();
    tensors.insert("layer4.1.conv2.weight".into(), tensor(&[64, 64, 3, 3]));
    let run = dir.path().join("run");
    // The second width is one that a configuration may have, of a network of 150 GB.
    for (width, words) in [
        (20_000, ["model.width", "20000"]),
        (8_000, ["layer4.1.conv2.weight has shape [64, 64, 3, 3]", "[64000, 64000, 3, 3]"]),
    ] {
        tensors.insert("conv1.weight".into(), tensor(&[width, 3, 3, 3]));
        candle_core::safetensors::save(&tensors, &file).unwrap();
        let line = complaint(bt_stream().arg("import").arg(&file).arg(&run));
        says(&line, &["cannot import", "wide.safetensors"]);
        says(&line, &words);
        assert!(!run.exists());
    }
}
