//! A run that is killed and resumed ends with the weights of one that never was.

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{newest_weights, tiny_run, tiny_shards};

fn start(shards: &Path, dir: &Path, resume: bool) -> Child {
    let mut command = tiny_run(shards, dir);
    if resume && dir.join("config.toml").exists() {
        command.arg("--resume");
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn run_to_end(shards: &Path, dir: &Path, resume: bool) -> Duration {
    let begun = Instant::now();
    let output = start(shards, dir, resume).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    begun.elapsed()
}

/// `BT_KILLS` sets how many (default 10).
#[test]
fn sigkills_at_arbitrary_moments_change_nothing() {
    let wanted = std::env::var("BT_KILLS").map_or(10u32, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let shards = tiny_shards(folder.path());
    let (calm, killed) = (folder.path().join("calm"), folder.path().join("killed"));
    let whole = run_to_end(&shards, &calm, false);
    let mut kills = 0;
    for attempt in 0..20 * wanted {
        if kills == wanted {
            break;
        }
        // Moments spread over the run by the golden ratio, from start-up on.
        let part = f64::from(attempt) * 0.618_034 % 1.0;
        let mut child = start(&shards, &killed, true);
        std::thread::sleep(whole.mul_f64(0.05 + 0.5 * part));
        if child.try_wait().unwrap().is_some() {
            // It was faster this time; the next one is resumed from scratch.
            std::fs::remove_dir_all(&killed).unwrap();
            continue;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        bt_stream::checkpoint::latest(&killed, |damage| panic!("{damage}")).unwrap();
    }
    assert_eq!(kills, wanted, "the runs ended before they could be killed");
    run_to_end(&shards, &killed, true);
    assert_eq!(newest_weights(&calm), newest_weights(&killed));
}

#[test]
fn sigterm_writes_a_checkpoint_and_exits_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let shards = tiny_shards(folder.path());
    let (calm, stopped) = (folder.path().join("calm"), folder.path().join("stopped"));
    run_to_end(&shards, &calm, false);
    let child = start(&shards, &stopped, false);
    let metrics = stopped.join("metrics.jsonl");
    while std::fs::metadata(&metrics).map_or(0, |m| m.len()) == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    run_to_end(&shards, &stopped, true);
    assert_eq!(newest_weights(&calm), newest_weights(&stopped));
    let losses = |dir: &Path| -> Vec<_> {
        let lines = bt_stream::metrics::read(dir).unwrap();
        lines.iter().filter_map(|line| Some((line.step, line.loss?.to_bits()))).collect()
    };
    assert_eq!(losses(&calm), losses(&stopped));
}
