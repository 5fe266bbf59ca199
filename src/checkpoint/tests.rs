use bt_pipeline::Position;

use super::*;
use crate::config::RunConfig;

fn saved(run: &Path, step: u64, keep: usize) -> PathBuf {
    let tensor = |v: f64| {
        let values = Tensor::full(v, (2, 3), &Device::Cpu).unwrap();
        vec![("t".to_owned(), values)]
    };
    let state = State::new(step, Position { epoch: 1, batch: 2 }, 10, &RunConfig::default());
    let weights = tensor(step as f64);
    let (optimizer, method) = (tensor(0.5), tensor(0.1));
    let tensors = Tensors { weights, optimizer, method, probe: Vec::new() };
    save(run, state, tensors, keep).unwrap()
}

#[test]
fn the_last_ones_are_kept_and_the_newest_is_found() {
    let run = tempfile::tempdir().unwrap();
    assert!(latest(run.path(), |_| ()).unwrap().is_none());
    for step in [1, 2, 30] {
        saved(run.path(), step, 2);
    }
    assert_eq!(list(&run.path().join(FOLDER)).unwrap().len(), 2);
    let found = find(run.path()).unwrap();
    assert_eq!((found.state.step, found.state.position.batch), (30, 2));
    assert_eq!(found.weights().unwrap()["t"].to_vec2::<f64>().unwrap()[1][2], 30.0);
}

#[test]
fn a_later_checkpoint_that_was_passed_over_takes_nobodys_place() {
    let run = tempfile::tempdir().unwrap();
    saved(run.path(), 900, 1);
    let damaged = saved(run.path(), 1000, 9);
    fs::write(damaged.join(STATE), "{").unwrap();
    // Resumed from 900.
    let own = saved(run.path(), 950, 1);
    assert_eq!(list(&run.path().join(FOLDER)).unwrap(), [own, damaged]);
    assert_eq!(latest(run.path(), |_| ()).unwrap().unwrap().state.step, 950);
}

#[test]
fn what_is_set_aside_is_read_when_it_is_asked_for_and_never_by_itself() {
    let run = tempfile::tempdir().unwrap();
    for step in [1, 2, 30] {
        saved(run.path(), step, 9);
    }
    set_aside_after(run.path(), 1).unwrap();
    // One of an earlier attempt stands there already.
    saved(run.path(), 2, 9);
    set_aside_after(run.path(), 1).unwrap();
    assert_eq!(latest(run.path(), |_| ()).unwrap().unwrap().state.step, 1);
    let aside = run.path().join(FOLDER).join("aside-0000000030");
    assert_eq!(find(&aside).unwrap().state.step, 30);
    // The attempt's own has a name of its own.
    assert!(find(&run.path().join(FOLDER).join("aside-0000000002.2")).is_ok());
    // They take nobody's place, and nobody takes theirs.
    saved(run.path(), 5, 1);
    assert_eq!(list(&run.path().join(FOLDER)).unwrap().len(), 1);
    assert!(aside.exists());
}

#[test]
fn a_state_that_cannot_be_read_back_is_not_saved() {
    let run = tempfile::tempdir().unwrap();
    saved(run.path(), 1, 1);
    let mut config = RunConfig::default();
    config.eval.temperature = f64::INFINITY;
    let state = State::new(2, Position::default(), 10, &config);
    assert!(save(run.path(), state, Tensors::default(), 1).is_err());
    assert_eq!(latest(run.path(), |_| ()).unwrap().unwrap().state.step, 1);
}

#[test]
fn a_damaged_checkpoint_gives_way_to_the_one_before_it() {
    let run = tempfile::tempdir().unwrap();
    saved(run.path(), 1, 5);
    let newest = saved(run.path(), 2, 5);
    for (name, cut) in [(WEIGHTS, 0), (OPTIMIZER, 9), (METHOD, 1), (STATE, 40)] {
        let path = newest.join(name);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        if cut == 0 {
            *bytes.last_mut().unwrap() ^= 1;
        } else {
            bytes.truncate(bytes.len() - cut);
        }
        fs::write(&path, bytes).unwrap();
        let said = std::cell::RefCell::new(String::new());
        let found = latest(run.path(), |text| said.borrow_mut().push_str(text)).unwrap();
        assert_eq!(found.unwrap().state.step, 1);
        assert!(said.borrow().contains("step-0000000002"), "{}", said.borrow());
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn a_checkpoint_that_a_run_removes_while_it_is_read_gives_way_to_the_later_one() {
    let run = tempfile::tempdir().unwrap();
    saved(run.path(), 1, 1);
    let removed = std::cell::Cell::new(false);
    let (found, step) = find_with(run.path(), |found| {
        if !removed.replace(true) {
            saved(run.path(), 2, 1);
        }
        found.weights()?;
        Ok(found.state.step)
    })
    .unwrap();
    assert_eq!((found.state.step, step), (2, 2));
    // What fails by itself is not tried for ever.
    let tries = std::cell::Cell::new(0);
    let failed = find_with(run.path(), |_| -> Result<()> {
        tries.set(tries.get() + 1);
        bail!("no")
    });
    assert!(failed.is_err_and(|error| error.to_string() == "no") && tries.get() == 1);
}

#[test]
fn a_checkpoint_that_a_run_removes_while_it_is_found_gives_way_to_the_later_one() {
    let run = tempfile::tempdir().unwrap();
    let state = saved(run.path(), 1, 1).join(STATE);
    // Who reads it waits for what is written.
    fs::remove_file(&state).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&state).status().unwrap().success());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let reader = fs::File::create(&state).unwrap();
            saved(run.path(), 2, 1);
            drop(reader);
        });
        let found = latest(run.path(), |text| panic!("{text}")).unwrap();
        assert_eq!(found.unwrap().state.step, 2);
    });
}

#[test]
fn what_a_killed_process_left_is_cleaned_and_never_found() {
    let run = tempfile::tempdir().unwrap();
    let left = run.path().join(FOLDER).join(".tmp-abc");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join(STATE), "{}").unwrap();
    assert!(latest(run.path(), |_| ()).unwrap().is_none());
    clean(run.path()).unwrap();
    assert!(!left.exists());
}

#[test]
fn copies_and_archives_of_checkpoints_are_nobodys() {
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join(FOLDER);
    saved(run.path(), 1, 9);
    let others = ["step-0000000001.bak", "step-9", "step-00000000x1"].map(|name| folder.join(name));
    others.iter().for_each(|path| fs::create_dir(path).unwrap());
    let archive = folder.join("step-0000000002");
    fs::write(&archive, "no folder").unwrap();
    let newest = saved(run.path(), 3, 1);
    assert_eq!(list(&folder).unwrap(), [newest]);
    assert!(others.iter().all(|path| path.is_dir()) && archive.is_file());
    assert_eq!(latest(run.path(), |_| ()).unwrap().unwrap().state.step, 3);
}

#[test]
fn a_folder_of_checkpoints_that_is_out_of_reach_is_not_an_empty_one() {
    let run = tempfile::tempdir().unwrap();
    let elsewhere = run.path().join("unmounted");
    std::os::unix::fs::symlink(&elsewhere, run.path().join(FOLDER)).unwrap();
    assert!(latest(run.path(), |_| ()).is_err() && any(run.path()).is_err());
    fs::create_dir(&elsewhere).unwrap();
    assert!(latest(run.path(), |_| ()).unwrap().is_none());
    fs::remove_dir(&elsewhere).unwrap();
    fs::write(&elsewhere, "a file").unwrap();
    assert!(latest(run.path(), |_| ()).is_err());
}

#[test]
fn an_older_checkpoint_takes_the_place_of_a_damaged_one_alone() {
    let damage = |code| {
        let error = anyhow::Error::from(std::io::Error::from_raw_os_error(code));
        is_damage(&error.context("checkpoint"))
    };
    assert!(damage(libc::EIO) && damage(libc::ENOENT) && is_damage(&anyhow::anyhow!("a checksum")));
    assert!(!damage(libc::EMFILE) && !damage(libc::EACCES));
}

#[test]
fn a_checkpoint_that_cannot_be_looked_at_is_not_one_less() {
    let run = tempfile::tempdir().unwrap();
    let first = saved(run.path(), 1, 9);
    // A link to itself: an error of the system, as of a disk that fails.
    let newest = first.with_file_name("step-0000000002");
    std::os::unix::fs::symlink(&newest, &newest).unwrap();
    let error = latest(run.path(), |_| ()).err().unwrap();
    assert!(format!("{error:#}").contains("step-0000000002"), "{error:#}");
    fs::remove_file(&newest).unwrap();
    assert_eq!(latest(run.path(), |_| ()).unwrap().unwrap().state.step, 1);
}

#[test]
fn what_a_checkpoint_that_was_being_removed_left_takes_nobodys_place() {
    let run = tempfile::tempdir().unwrap();
    let path = saved(run.path(), 1, 9);
    let left = path.with_file_name(".tmp-step-0000000001");
    fs::create_dir(&left).unwrap();
    fs::write(left.join(WEIGHTS), "half").unwrap();
    discard(&path).unwrap();
    assert!(!path.exists() && !left.exists());
}
