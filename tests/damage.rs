//! Damaged checkpoints and configurations of every kind: the checkpoint before is taken, the
//! configuration is refused in one line; nothing panics, nothing hangs, memory stays bounded.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use bt_pipeline::Position;
use bt_stream::checkpoint::{self, State, Tensors};
use bt_stream::config::RunConfig;
use candle_core::{Device, Tensor};

/// Longest that one case may take; all take milliseconds.
const TIME: Duration = Duration::from_secs(20);

/// What `work` gives, within [`TIME`].
fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(TIME).unwrap_or_else(|_| panic!("{what}: it hangs, or panicked"))
}

fn save(run: &Path, step: u64) -> PathBuf {
    let named = |name: &str, value: f32| {
        vec![(name.to_owned(), Tensor::full(value, (40, 30), &Device::Cpu).unwrap())]
    };
    let state = State::new(step, Position { epoch: 1, batch: 2 }, 10, &RunConfig::default());
    let tensors = Tensors {
        weights: named("w", step as f32),
        optimizer: named("m", 0.5),
        method: named("q", 0.1),
        probe: Vec::new(),
    };
    checkpoint::save(run, state, tensors, 3).unwrap()
}

/// What is done to one file of a checkpoint; nothing is left of it where there are no bytes.
fn damages(name: &str, whole: &[u8], other: &[u8]) -> Vec<(String, Option<Vec<u8>>)> {
    let mut cases = vec![
        (format!("{name} is missing"), None),
        (format!("{name} is empty"), Some(Vec::new())),
        (format!("{name} is zeros"), Some(vec![0; whole.len()])),
        (format!("{name} has a byte more"), Some([whole, b"x"].concat())),
        (format!("{name} is another file"), Some(other.to_vec())),
    ];
    for percent in [1, 30, 70, 99] {
        let part = whole[..whole.len() * percent / 100].to_vec();
        cases.push((format!("{percent}% of {name}"), Some(part)));
    }
    for part in 0..16 {
        let at = whole.len() * part / 16;
        let mut bytes = whole.to_vec();
        bytes[at] ^= 0x01;
        cases.push((format!("byte {at} of {name} flipped"), Some(bytes)));
    }
    cases
}

#[test]
fn whatever_is_damaged_of_a_checkpoint_the_one_before_it_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().to_owned();
    save(&run, 1);
    let newest = save(&run, 2);
    let names =
        ["weights.safetensors", "optimizer.safetensors", "method.safetensors", "state.json"];
    let mut count = 0;
    for (number, name) in names.iter().enumerate() {
        let path = newest.join(name);
        let whole = fs::read(&path).unwrap();
        let other = fs::read(newest.join(names[(number + 1) % 4])).unwrap();
        for (what, bytes) in damages(name, &whole, &other) {
            match bytes {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let run = run.clone();
            let (step, said) = in_time(&what, move || {
                let said = RefCell::new(String::new());
                let found = checkpoint::latest(&run, |text| said.borrow_mut().push_str(text));
                (found.unwrap().map(|found| found.state.step), said.into_inner())
            });
            assert_eq!(step, Some(1), "{what}");
            assert!(
                said.contains("step-0000000002") && said.lines().count() == 1,
                "{what}: {said}"
            );
            fs::write(&path, &whole).unwrap();
            count += 1;
        }
    }
    assert!(count >= 60, "{count}");
    assert_eq!(checkpoint::find(&run).unwrap().state.step, 2);
}

#[test]
fn a_state_that_lies_is_refused_even_where_its_checksum_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let newest = save(folder.path(), 2);
    let path = newest.join("state.json");
    let text = fs::read_to_string(&path).unwrap();
    let deep = format!("{{\"files\": {}", "[".repeat(100_000));
    for (from, to) in [
        ("\"format\": 1", "\"format\": 7"),
        ("\"step\": 2", "\"step\": -2"),
        ("\"step\": 2", "\"step\": 1e99"),
        ("weights.safetensors", "../state.json"),
        ("weights.safetensors", "/etc/passwd"),
        ("optimizer.safetensors", "nothing"),
        ("\"bytes\": ", "\"bytes\": 9"),
        ("\"batch_size\": 256", "\"batch_size\": 0"),
        ("\"method\": \"barlow\"", "\"method\": \"magic\""),
        (text.as_str(), deep.as_str()),
        (text.as_str(), "[]"),
    ] {
        assert!(text.contains(from), "{from}");
        // Without its checksum, as earlier versions wrote it.
        let lie = text.replacen(from, to, 1).replace("\"checksum\"", "\"old\"");
        fs::write(&path, lie).unwrap();
        let newest = newest.clone();
        let found = in_time(to, move || checkpoint::find(&newest).map(|found| found.state.step));
        assert!(found.is_err(), "{from} -> {to}");
    }
}

#[test]
fn a_configuration_of_any_nonsense_is_refused_in_one_line() {
    let whole = RunConfig::default().to_toml().unwrap();
    let mut cases: Vec<String> =
        ["[train", "= 3", "train = 3", "[train]\nepochs = 3\nepochs = 4", "\u{0}"]
            .map(str::to_owned)
            .into();
    for value in ["-1", "1e400", "\"x\"", "[1, 2]", "{}", "99999999999999999999", "2020-01-01", "0"]
    {
        for key in ["train.epochs", "train.batch_size", "eval.k", "model.width", "data.max_bad"] {
            let number = value.parse::<f64>().is_ok_and(|v| (0.0..1e300).contains(&v));
            if !(number && key == "data.max_bad") {
                cases.push(format!("{key} = {value}"));
            }
        }
    }
    cases.extend([
        format!("loss = {}", "[".repeat(100_000)),
        format!("loss = {}", "{a=".repeat(100_000)),
        format!("{}b = 1", "a.".repeat(100_000)),
        format!("[{}b]", "a.".repeat(100_000)),
        format!("{}b = 1", "loss.a.".repeat(50_000)),
        "views.a.random_resized_crop.size = 0".to_owned(),
        "views.a.random_resized_crop.size = [18446744073709551615, 2]".to_owned(),
        "views.both.gaussian_blur.sigma = [nan, 1.0]".to_owned(),
        "method = \"moco\"\n[loss]\nqueue = -5".to_owned(),
        whole.replace('=', ":"),
    ]);
    for part in 1..40 {
        cases.push(format!("{}\u{7f}", &whole[..whole.len() * part / 40]));
    }
    assert!(cases.len() >= 60, "{}", cases.len());
    for text in cases {
        let what: String = text.chars().take(60).collect();
        let error = in_time(&what, move || RunConfig::parse(&text, "run.toml", &[]).map(drop));
        let Err(error) = error else { panic!("`{what}` was accepted") };
        let said = format!("{error:#}");
        assert!(!said.is_empty() && said.lines().count() == 1, "`{what}`: {said}");
    }
}

#[test]
fn the_seeds_that_configurations_are_fuzzed_from_are_accepted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/config");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let mut parts = text.split('\0');
        let file = parts.next().unwrap();
        let overrides: Vec<String> = parts.map(str::to_owned).collect();
        RunConfig::parse(file, "seed.toml", &overrides).unwrap();
        count += 1;
    }
    assert!(count >= 5, "{count}");
}
