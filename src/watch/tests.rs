//! What the dashboard shows of a folder that other processes write to.

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::train::SUMMARY_FILE;

fn shown(folder: &RunFolder, now: SystemTime) -> String {
    let mut terminal = Terminal::new(TestBackend::new(100, 30)).unwrap();
    terminal.draw(|frame| folder.draw(frame, now)).unwrap();
    terminal.backend().to_string()
}

fn append(dir: &Path, text: &str) {
    use std::io::Write;
    let path = dir.join(METRICS_FILE);
    let mut file = File::options().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn line(step: u64, loss: f64) -> String {
    let line = Line {
        step,
        epoch: step as f64 / 10.0,
        seconds: step as f64,
        loss: Some(loss),
        images_per_s: Some(640.0),
        wait: Some(0.25),
        limit: Some("decode".into()),
        bad: Some(2),
        ..Line::default()
    };
    serde_json::to_string(&line).unwrap() + "\n"
}

/// The configuration of a run of so many epochs.
fn configured(dir: &Path, epochs: u64) {
    let train = crate::config::TrainConfig { epochs, ..Default::default() };
    let text = RunConfig { train, ..Default::default() }.to_toml().unwrap();
    crate::files::write_atomically(&dir.join(CONFIG_FILE), text.as_bytes()).unwrap();
}

fn begun(dir: &Path, epochs: u64) -> RunFolder {
    configured(dir, epochs);
    RunFolder::open(dir).unwrap()
}

/// The end of the run's process.
fn ended(dir: &Path, summary: &Summary) {
    std::fs::write(dir.join(SUMMARY_FILE), serde_json::to_string(summary).unwrap()).unwrap();
}

#[test]
fn knn_and_the_online_probe_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = begun(dir.path(), 100);
    let now = SystemTime::now();
    assert!(folder.json(now)["evaluation"].is_null());
    let line = |step: u64, knn: Option<f64>, online: Option<f64>| {
        let line = Line { step, epoch: step as f64, knn, online, ..Line::default() };
        serde_json::to_string(&line).unwrap() + "\n"
    };
    append(dir.path(), &line(1, None, Some(0.125)));
    append(dir.path(), &line(2, Some(0.5), None));
    append(dir.path(), &line(3, Some(0.625), None));
    append(dir.path(), &line(4, None, Some(0.25)));
    folder.poll().unwrap();
    let found = &folder.json(now)["evaluation"];
    assert_eq!((&found["knn"], &found["knn_step"]), (&0.625.into(), &3.into()));
    assert_eq!((&found["online"], &found["online_step"]), (&0.25.into(), &4.into()));
    assert_eq!(found["step"], 4);
    let page = shown(&folder, now);
    assert!(page.contains("kNN • 0.6250, online probe 0.2500"), "{page}");
}

#[test]
fn advice_has_the_rows_that_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = begun(dir.path(), 100);
    append(dir.path(), &line(40, 50.0));
    let advice = format!("{}the end of it", "faster disks, more threads ".repeat(18));
    let summary = Summary { steps: 40, advice, ..Summary::default() };
    ended(dir.path(), &summary);
    folder.poll().unwrap();
    let page = shown(&folder, SystemTime::now());
    assert!(page.contains("the end of it"), "{page}");
    assert_eq!([rows("", 9), rows("ab cd ef", 5), rows("a\nabcdefghijk", 5)], [0, 2, 4]);
}

#[test]
fn a_folder_without_a_configuration_is_no_run_and_one_without_lines_is_one() {
    let dir = tempfile::tempdir().unwrap();
    assert!(RunFolder::open(dir.path()).is_err());
    let page = shown(&begun(dir.path(), 4), SystemTime::now());
    assert!(page.contains("no line of metrics yet"), "{page}");
}

#[test]
fn lines_are_shown_when_they_are_whole_and_a_run_without_new_ones_is_silent() {
    let dir = tempfile::tempdir().unwrap();
    let (mut folder, now) = (begun(dir.path(), 4), SystemTime::now());
    append(dir.path(), &line(5, 90.0));
    let half = line(10, 70.5);
    append(dir.path(), &half[..20]);
    folder.poll().unwrap();
    let page = shown(&folder, now);
    assert!(page.contains("running") && page.contains("epoch 0.50 of 4, step 5"), "{page}");
    append(dir.path(), &half[20..]);
    folder.poll().unwrap();
    let page = shown(&folder, now);
    for expected in [
        "epoch 1.00 of 4, step 10, ",
        "left",
        "loss 70.5000",
        "images/s 640",
        "limited by decode; the step waits 25.0% of the time",
        "2 samples left out",
    ] {
        assert!(page.contains(expected), "{expected} is not in\n{page}");
    }
    assert!(shown(&folder, now + Duration::from_secs(1000)).contains("silent for 16 min"));
}

#[test]
fn a_summary_ends_the_run_until_a_process_goes_on_from_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut folder, now) = (begun(dir.path(), 4), SystemTime::now());
    let summary = Summary { steps: 40, advice: "buy disks".into(), ..Summary::default() };
    ended(dir.path(), &summary);
    append(dir.path(), &line(40, 50.0));
    folder.poll().unwrap();
    let page = shown(&folder, now);
    assert!(page.contains("finished") && page.contains("buy disks"), "{page}");
    // It went on: the summary is of the past.
    append(dir.path(), &line(45, 49.0));
    folder.poll().unwrap();
    let page = shown(&folder, now);
    assert!(page.contains("running") && !page.contains("buy disks"), "{page}");
}

#[test]
fn a_run_that_goes_on_with_another_configuration_is_shown_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut folder, now) = (begun(dir.path(), 4), SystemTime::now());
    append(dir.path(), &line(40, 50.0));
    let mut epochs = || {
        folder.poll().unwrap();
        let page = shown(&folder, now);
        page.split("epoch 4.00 of ").nth(1).unwrap().split(',').next().unwrap().to_owned()
    };
    assert_eq!(epochs(), "4");
    configured(dir.path(), 8);
    assert_eq!(epochs(), "8");
    // While somebody edits it.
    std::fs::write(dir.path().join(CONFIG_FILE), "[train").unwrap();
    assert_eq!(epochs(), "8");
    configured(dir.path(), 6);
    assert_eq!(epochs(), "6");
}

#[test]
fn speed_is_that_of_the_process_that_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut folder, now) = (begun(dir.path(), 4), SystemTime::now());
    let slow = |step: u64, seconds: f64| {
        let line = Line { step, epoch: step as f64 / 10.0, seconds, ..Line::default() };
        serde_json::to_string(&line).unwrap() + "\n"
    };
    append(dir.path(), &(slow(10, 1000.0) + &slow(20, 2000.0) + &slow(21, 90.0)));
    folder.poll().unwrap();
    assert!(shown(&folder, now + Duration::from_secs(400)).contains("running"));
    append(dir.path(), &slow(22, 190.0));
    folder.poll().unwrap();
    let page = shown(&folder, now);
    assert!(page.contains("step 22, 30 min 00 s left"), "{page}");
}

#[test]
fn lines_that_a_resumed_run_took_out_leave_the_dashboard() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = begun(dir.path(), 4);
    append(dir.path(), &(line(5, 90.0) + &line(10, 70.5)));
    let mut steps = || {
        folder.poll().unwrap();
        folder.lines.iter().map(|line| line.step).collect::<Vec<_>>()
    };
    assert_eq!(steps(), [5, 10]);
    std::fs::write(dir.path().join(METRICS_FILE), line(5, 90.0)).unwrap();
    assert_eq!(steps(), [5]);
    // Taken out, and grown beyond what was read, between two looks: another file.
    let fresh = dir.path().join("fresh");
    std::fs::write(&fresh, line(6, 88.0) + &line(7, 87.0)).unwrap();
    std::fs::rename(&fresh, dir.path().join(METRICS_FILE)).unwrap();
    assert_eq!(steps(), [6, 7]);
}
