//! Lines across interruptions, and what is in none.

use super::*;

fn length(steps: u64, steps_per_epoch: u64) -> RunLength {
    RunLength { steps, steps_per_epoch }
}

#[test]
fn resuming_takes_out_the_lines_of_steps_that_will_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (1..=4)
        .map(|step| format!("{{\"step\":{step},\"epoch\":0.0,\"seconds\":1.0}}\n"))
        .collect();
    std::fs::write(dir.path().join(METRICS_FILE), text + "{\"step\":5,\"ep").unwrap();
    drop(Metrics::open(dir.path(), 2, length(10, 5), 1).unwrap());
    let steps: Vec<u64> = read(dir.path()).unwrap().iter().map(|line| line.step).collect();
    assert_eq!(steps, [1, 2]);
}

#[test]
fn an_evaluation_between_two_lines_costs_no_images_and_the_last_step_has_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut metrics = Metrics::open(dir.path(), 0, length(3, 3), 2).unwrap();
    let pair = crate::loss::tests::pair_of(4, 3, 1);
    let seen = crate::loss::Embeddings::of(&pair.0, &pair.1);
    let mut objective = crate::loss::build("barlow", toml::Table::new()).unwrap();
    let out = objective.evaluate(&seen).unwrap();
    let stats = Stats::default();
    let step = |step: u64, metrics: &mut Metrics| {
        std::thread::sleep(Duration::from_millis(30));
        metrics.count(100, &out);
        metrics.step(step, 0, (0.1, 0.1), &stats).unwrap();
    };
    step(1, &mut metrics);
    metrics.knn(1, 0.5, Duration::ZERO).unwrap();
    step(2, &mut metrics);
    step(3, &mut metrics);
    metrics.finish().unwrap();
    let lines = read(dir.path()).unwrap();
    let rates: Vec<f64> = lines.iter().filter_map(|line| line.images_per_s).collect();
    // 200 images in 60 ms, then 100 in 30.
    assert!(rates.len() == 2 && rates.iter().all(|rate| *rate < 3400.0), "{rates:?}");
    let knn: Vec<_> =
        lines.iter().filter_map(|line| line.knn.map(|knn| (line.step, knn))).collect();
    assert_eq!(knn, [(1, 0.5)]);
    let losses: Vec<f64> = lines.iter().filter_map(|line| line.loss).collect();
    assert_eq!(losses, [out.loss, out.loss]);
    assert!(lines.windows(2).all(|two| two[0].same_process(&two[1])));
    // A process that goes on and counts more seconds at once than the one before it had in all.
    let slow = Line { seconds: 1e9, began: lines[0].began.map(|ms| ms + 1), ..Line::default() };
    assert!(!lines.last().unwrap().same_process(&slow));
}

#[test]
fn a_line_holds_the_means_since_the_one_before_it() {
    let (dir, mut begun) = (tempfile::tempdir().unwrap(), vec![Instant::now()]);
    let mut metrics = Metrics::open(dir.path(), 0, length(8, 8), 2).unwrap();
    let mut objective = crate::loss::build("barlow", toml::Table::new()).unwrap();
    let outs = [1, 2, 3, 4].map(|seed| {
        let (a, b) = crate::loss::tests::pair_of(4, 3, seed);
        objective.evaluate(&crate::loss::Embeddings::of(&a, &b)).unwrap()
    });
    std::thread::sleep(Duration::from_millis(40));
    let mut least = Vec::new();
    for (step, out) in (1..).zip(&outs) {
        metrics.count(100, out);
        metrics.online(0.25 * step as f64);
        let before = Instant::now();
        metrics.step(step, 0, (0.1 * step as f64, 0.01), &Stats::default()).unwrap();
        if step % 2 == 0 {
            least.push(200.0 / begun.pop().unwrap().elapsed().as_secs_f64());
            begun.push(before);
        }
    }
    // No step moved the weights: there is nothing to tell.
    metrics.step(6, 0, (0.1, 0.01), &Stats::default()).unwrap();
    let lines = read(dir.path()).unwrap();
    assert_eq!(lines.len(), 2);
    let pairs = [[&outs[0], &outs[1]], [&outs[2], &outs[3]]];
    for ((line, least), [one, two]) in lines.iter().zip(least).zip(pairs) {
        let mean = |of: fn(&LossOutput) -> f64| Some((of(one) + of(two)) / 2.0);
        assert_eq!(line.loss, mean(|out| out.loss));
        assert_eq!(line.invariance, mean(|out| out.invariance));
        assert_eq!(line.redundancy, mean(|out| out.redundancy));
        assert_eq!(line.on_diag, mean(|out| out.correlation.unwrap().on_diag_mean));
        assert_eq!(line.off_diag, mean(|out| out.correlation.unwrap().off_diag_rms.unwrap()));
        assert!(line.images_per_s.is_some_and(|rate| rate >= least), "{line:?}");
    }
    let of = |line: &Line| (line.step, line.epoch, line.online, line.lr_weights, line.lr_biases);
    assert_eq!(of(&lines[0]), (2, 0.25, Some(0.375), Some(0.2), Some(0.01)));
    assert_eq!(of(&lines[1]), (4, 0.5, Some(0.875), Some(0.4), Some(0.01)));
}

#[test]
fn a_bad_sample_is_listed_once_however_often_the_run_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let bad = |key: &str| BadSample {
        shard: "a.tar".into(),
        key: key.into(),
        offset: 512,
        cause: "torn".into(),
    };
    for process in [["1", "2"], ["2", "3"], ["1", "3"]] {
        let mut metrics = Metrics::open(dir.path(), 0, length(10, 5), 1).unwrap();
        metrics.record_bad(&process.map(bad));
        metrics.finish().unwrap();
    }
    let text = std::fs::read_to_string(dir.path().join(BAD_SAMPLES_FILE)).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
}

#[test]
fn bytes_that_are_no_text_hide_no_lines() {
    let dir = tempfile::tempdir().unwrap();
    let line = |step: u64| format!("{{\"step\":{step},\"epoch\":0.0,\"seconds\":1.0}}\n");
    let text = [line(1).as_bytes(), b"{\"step\":2,\"ep\xff\xfe\n", line(3).as_bytes()].concat();
    std::fs::write(dir.path().join(METRICS_FILE), text).unwrap();
    let steps = || read(dir.path()).unwrap().iter().map(|line| line.step).collect::<Vec<_>>();
    assert_eq!(steps(), [1, 3]);
    drop(Metrics::open(dir.path(), 2, length(10, 5), 1).unwrap());
    assert_eq!(steps(), [1]);
}

#[test]
fn steps_that_moved_nothing_are_in_no_mean_and_keep_no_line_from_being_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut metrics = Metrics::open(dir.path(), 0, length(4, 4), 2).unwrap();
    let pair = crate::loss::tests::pair_of(4, 3, 1);
    let mut objective = crate::loss::build("barlow", toml::Table::new()).unwrap();
    let out = objective.evaluate(&crate::loss::Embeddings::of(&pair.0, &pair.1)).unwrap();
    let stats = Stats::default();
    metrics.count(8, &out);
    metrics.step(1, 1, (0.1, 0.1), &stats).unwrap();
    metrics.step(2, 0, (0.1, 0.1), &stats).unwrap();
    // The process ends; the next one has what a checkpoint kept.
    metrics.count(8, &out);
    metrics.step(3, 2, (0.1, 0.1), &stats).unwrap();
    let kept = serde_json::to_string(metrics.tally()).unwrap();
    let mut metrics = Metrics::open(dir.path(), 3, length(4, 4), 2).unwrap();
    metrics = metrics.counting_from(serde_json::from_str(&kept).unwrap());
    metrics.step(4, 0, (0.1, 0.1), &stats).unwrap();
    let lines = read(dir.path()).unwrap();
    let told: Vec<_> = lines.iter().map(|line| (line.step, line.loss, line.bad)).collect();
    assert_eq!(told, [(2, Some(out.loss), Some(1)), (4, Some(out.loss), Some(3))]);
    // What is no number stays none.
    let tally = Tally { off_diag: f64::NAN, ..Tally::default() };
    let again: Tally = serde_json::from_str(&serde_json::to_string(&tally).unwrap()).unwrap();
    assert!(again.off_diag.is_nan());
}
