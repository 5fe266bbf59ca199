//! A run seen from outside: TensorBoard's own reader, a scrape of its figures, its trace, its page.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::common::{bt_stream, tiny_run, tiny_shards};
use crate::{python, script_output, text};

fn done(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn tensorboards_own_reader_finds_curves_histograms_and_pictures_of_a_resumed_run() -> Result<()> {
    let Some(python) = python("tensorboard") else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    let every = ["--set", "train.diagnose_every=6"];
    done(tiny_run(&shards, &run).args(every).args(["--epochs", "2"]));
    // A process that was killed after it wrote more than its checkpoint holds: files are read in
    // the order of their names, which begin with the second.
    std::thread::sleep(Duration::from_millis(1100));
    let newest = bt_stream::checkpoint::list(&run.join("checkpoints")).pop().unwrap();
    std::fs::remove_dir_all(newest)?;
    done(tiny_run(&shards, &run).args(every).args(["--epochs", "3", "--resume"]));
    let found: Value =
        serde_json::from_str(&script_output(&python, "tensorboard_events.py", &[text(&run)])?)?;
    let loss = found["scalars"]["train/loss"].as_array().unwrap();
    let steps: Vec<u64> = loss.iter().map(|event| event[0].as_u64().unwrap()).collect();
    ensure!(steps == (1..=18).collect::<Vec<_>>(), "{steps:?}");
    let own = bt_stream::metrics::read(&run)?;
    let own: Vec<f64> = own.iter().filter_map(|line| line.loss).collect();
    for (event, own) in loss.iter().zip(&own) {
        ensure!((event[1].as_f64().unwrap() - own).abs() <= 1e-6 * own.abs(), "{event} {own}");
    }
    let std = &found["histograms"]["embeddings/std"];
    ensure!(std[0][0] == 6 && std[0][1] == 32.0, "a value for each of 32 dimensions: {std}");
    ensure!(found["images"]["views"][0] == serde_json::json!([6, 8 * 68 + 4, 2 * 68 + 4]));
    ensure!(found["images"]["correlation"][0][1] == 256, "{}", found["images"]);
    println!(
        "TensorBoard {}: {} scalars, {} histograms, {} kinds of pictures read",
        found["version"].as_str().unwrap_or("?"),
        found["scalars"].as_object().map_or(0, |tags| tags.len()),
        found["histograms"].as_object().map_or(0, |tags| tags.len()),
        found["images"].as_object().map_or(0, |tags| tags.len()),
    );
    Ok(())
}

/// The figures of a run that listens on `address`.
fn scrape(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_run_in_progress_can_be_scraped() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    let mut command = tiny_run(&shards, &run);
    // Long enough to be met; it is ended as soon as it was.
    command.args(["--epochs", "100000", "--metrics", "127.0.0.1:0"]);
    command.args(["--set", "checkpoint.every_steps=0", "--set", "checkpoint.every_epochs=100000"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let address = lines
        .find_map(|line| {
            let line = line.unwrap();
            Some(line.strip_prefix("metrics on http://")?.strip_suffix("/metrics")?.to_owned())
        })
        .expect("the address is told");
    // The rest goes nowhere, but the pipe must not fill.
    let drain = std::thread::spawn(move || lines.count());
    let begun = Instant::now();
    let value = |answer: &str, name: &str| -> Option<f64> {
        let line = answer.lines().find(|line| line.starts_with(&format!("{name} ")))?;
        line.rsplit(' ').next()?.parse().ok()
    };
    let answer = loop {
        let answer = scrape(&address).unwrap();
        if value(&answer, "bt_stream_step").is_some_and(|step| step >= 3.0) {
            break answer;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{answer}");
        std::thread::sleep(Duration::from_millis(20));
    };
    child.kill().unwrap();
    child.wait().unwrap();
    drain.join().unwrap();
    let step = value(&answer, "bt_stream_step").unwrap();
    assert_eq!(value(&answer, "bt_stream_images_total"), Some(16.0 * step));
    assert!(value(&answer, "bt_stream_loss").unwrap() > 0.0);
    assert!(value(&answer, "bt_stream_images_per_second").unwrap() > 0.0);
    assert_eq!(value(&answer, "bt_stream_bad_samples_total"), Some(0.0));
    for name in [
        "bt_stream_queue_depth{queue=\"tasks\"}",
        "bt_stream_queue_depth{queue=\"batches\"}",
        "bt_stream_stall_seconds_total{stage=\"step\"}",
        "bt_stream_stage_seconds_total{stage=\"decode\"}",
        "bt_stream_step_seconds_total{part=\"forward\"}",
    ] {
        assert!(value(&answer, name).is_some(), "{name} is not in\n{answer}");
    }
}

#[test]
fn a_trace_has_every_stage_on_its_thread_and_ends_at_its_bound() {
    let dir = tempfile::tempdir().unwrap();
    let shards = tiny_shards(dir.path());
    let traced = |run: &str, events: &str| -> Value {
        let path = dir.path().join(run).with_extension("json");
        let mut command = tiny_run(&shards, &dir.path().join(run));
        command.args(["--epochs", "2", "--trace-events", events, "--trace"]).arg(&path);
        done(&mut command);
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let trace = traced("whole", "100000");
    let events = trace["traceEvents"].as_array().unwrap();
    let tid = |name: &str| {
        let found = events.iter().find(|e| e["ph"] == "M" && e["args"]["name"] == name);
        found.unwrap_or_else(|| panic!("no thread `{name}`"))["tid"].clone()
    };
    let count = |thread: &str, stage: &str| {
        let tid = tid(thread);
        events.iter().filter(|e| e["tid"] == tid && e["ph"] == "X" && e["name"] == stage).count()
    };
    for stage in ["read", "decode", "augment"] {
        // 2 epochs of 6 batches of 16 samples, and what was read ahead for no step.
        assert_eq!(count("worker 0", stage) + count("worker 1", stage), 192, "{stage}");
    }
    for stage in ["wait for data", "copy in", "forward", "loss", "backward", "optimizer"] {
        assert!(count("training", stage) >= 12, "{stage}");
    }
    assert!(count("feeder", "wait for a buffer") >= 12);
    let cut = traced("cut", "50");
    assert!(cut["traceEvents"].as_array().unwrap().len() < 60);
    assert!(cut["otherData"]["cut"].is_string(), "{}", cut["otherData"]);
}

#[test]
fn any_run_becomes_a_page_and_several_stand_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let shards = tiny_shards(dir.path());
    let runs = ["calm", "hasty"].map(|name| dir.path().join(name));
    let rates = ["optim.lr_weights=1e-3", "optim.lr_weights=1e-2"];
    for (run, rate) in runs.iter().zip(rates) {
        done(tiny_run(&shards, run).args(["--epochs", "2", "--set", rate]));
    }
    done(bt_stream().arg("knn").arg(&runs[0]).arg("--test").arg(&shards));
    assert!(!runs[0].join("evaluation.json").exists(), "on other shards than the run's");
    done(bt_stream().arg("report").arg(&runs[0]));
    let page = std::fs::read_to_string(runs[0].join("report.html")).unwrap();
    for expected in ["<h1>calm</h1>", "Loss and its two terms", "view B", "C trained"] {
        assert!(page.contains(expected), "{expected}");
    }
    let both = dir.path().join("both.html");
    done(bt_stream().arg("report").args(&runs).arg("--out").arg(&both));
    let page = std::fs::read_to_string(&both).unwrap();
    for expected in ["calm, hasty", "last loss", "optim.lr_weights", "0.01", "C hasty, trained"] {
        assert!(page.contains(expected), "{expected}");
    }
    assert!(!page.contains("model.width"), "what is the same in both runs");
    assert!(!page.contains("http"), "an address");

    // Without the shards there is a page too, and a word about what it lacks.
    std::fs::remove_dir_all(&shards).unwrap();
    let output = bt_stream().arg("report").arg(&runs[0]).output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("without pictures"));
    assert!(done(bt_stream().arg("watch").arg(&runs[0])).contains("finished"));
}

/// A page that shows `report` as wide as a phone and writes what it measures into itself.
fn measuring(report: &str) -> String {
    let inside = report.replace('&', "&amp;").replace('"', "&quot;");
    format!(
        r#"<!doctype html><body><p id="found">nothing</p>
        <iframe id="page" width="360" height="800" style="border:0" srcdoc="{inside}"></iframe>
        <script>
        onload = () => {{
            const page = document.getElementById("page").contentDocument;
            const images = [...page.images];
            document.getElementById("found").textContent = JSON.stringify({{
                width: page.documentElement.scrollWidth,
                images: images.length,
                broken: images.filter(image => !image.complete || image.naturalWidth == 0).length,
                ground: getComputedStyle(page.body).backgroundColor,
                text: getComputedStyle(page.body).color,
            }});
        }};
        </script>"#
    )
}

/// Brightness of `rgb(r, g, b)`, 0 to 255.
fn brightness(colour: &Value) -> f64 {
    let text = colour.as_str().unwrap();
    let parts =
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<f64>().ok());
    parts.take(3).sum::<f64>() / 3.0
}

#[test]
fn a_browser_shows_the_page_on_a_phone_in_light_and_in_dark() {
    let browser = std::env::var("BT_BROWSER").unwrap_or_else(|_| "chromium".to_owned());
    if !Command::new(&browser).arg("--version").output().is_ok_and(|o| o.status.success()) {
        println!("skipped: there is no browser `{browser}` (set BT_BROWSER)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    done(tiny_run(&shards, &run).args(["--epochs", "2"]));
    done(bt_stream().arg("report").arg(&run));
    let other = dir.path().join("a-run-with-quite-a-long-name-that-nobody-would-choose");
    done(tiny_run(&shards, &other).args(["--epochs", "1", "--seed", "1"]));
    let both = dir.path().join("both.html");
    done(bt_stream().arg("report").args([&run, &other]).arg("--out").arg(&both));
    for (page, images) in [(run.join("report.html"), 12 * 3 + 2), (both, 4)] {
        let wrapper = dir.path().join("wrapper.html");
        std::fs::write(&wrapper, measuring(&std::fs::read_to_string(&page).unwrap())).unwrap();
        for (scheme, setting) in [("dark", 0), ("light", 1)] {
            let mut browse = Command::new(&browser);
            browse.args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]);
            browse.args(["--virtual-time-budget=5000", "--window-size=800,900"]);
            browse.arg(format!("--user-data-dir={}", dir.path().join("profile").display()));
            browse.arg(format!("--blink-settings=preferredColorScheme={setting}"));
            let dom = done(browse.arg(format!("file://{}", wrapper.display())));
            let found =
                dom.split("id=\"found\">").nth(1).and_then(|rest| rest.split("</p>").next());
            let found: Value = serde_json::from_str(found.unwrap()).expect("the page was loaded");
            assert!(found["width"].as_f64().unwrap() <= 360.0, "it is wider than a phone: {found}");
            assert_eq!((&found["images"], &found["broken"]), (&images.into(), &0.into()));
            let (ground, text) = (brightness(&found["ground"]), brightness(&found["text"]));
            assert!((scheme == "dark") == (ground < text), "{scheme}: {found}");
        }
    }
    println!("{browser}: both kinds of page fit a phone, in light and in dark");
}
