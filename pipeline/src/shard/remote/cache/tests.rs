//! Entries, locks and room, of one process.

use super::*;

fn entry(cache: &Cache, name: &str, size: u64, age: u64) -> PathBuf {
    let mut part = cache.begin(name, size, false).unwrap().unwrap();
    part.write(&vec![7; size as usize]).unwrap();
    let path = part.finish().unwrap();
    let then = SystemTime::now() - Duration::from_secs(age);
    File::options().append(true).open(&path).unwrap().set_modified(then).unwrap();
    path
}

const PATIENCE: Duration = Duration::from_millis(300);

/// The name of an entry.
fn named(shard: &str) -> String {
    let state = Identity { size: 4, etag: Some("x".into()), modified: 0 };
    entry_name(&format!("http://h/{shard}"), &state, None).unwrap()
}

#[test]
fn the_entries_used_longest_ago_make_room() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
    let old = entry(&cache, &named("old"), 40, 500);
    let new = entry(&cache, &named("new"), 40, 5);
    let more = entry(&cache, &named("more"), 50, 0);
    assert!(!old.exists() && new.exists() && more.exists());
    // What is under way counts, and what is in use stays where that was asked for.
    assert!(cache.begin(&named("gentle"), 20, true).unwrap().is_none());
    let part = cache.begin(&named("part"), 60, false).unwrap().unwrap();
    assert!(!new.exists() && !more.exists());
    assert!(cache.begin(&named("another"), 60, false).unwrap().is_none());
    drop(part);
    assert!(cache.begin(&named("another"), 60, false).unwrap().is_some());
    assert!(cache.begin(&named("huge"), 101, false).unwrap().is_none());
}

#[test]
fn nothing_goes_where_what_may_go_is_too_little() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
    let old = entry(&cache, &named("old"), 30, 500);
    let used = entry(&cache, &named("used"), 60, 0);
    assert!(cache.begin(&named("gentle"), 60, true).unwrap().is_none());
    assert!(old.exists() && used.exists());
    assert!(cache.begin(&named("gentle"), 40, true).unwrap().is_some());
    assert!(!old.exists() && used.exists());
}

#[test]
fn a_part_that_lacks_bytes_becomes_no_entry() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
    let mut part = cache.begin(&named("a"), 40, false).unwrap().unwrap();
    part.write(&[7; 39]).unwrap();
    let error = part.finish().unwrap_err().to_string();
    assert!(error.contains("1 bytes are missing"), "{error}");
    assert!(cache.find(&named("a"), None).is_none());
    let mut part = cache.begin(&named("a"), 40, false).unwrap().unwrap();
    assert!(part.write(&[7; 41]).is_err(), "more than there is room for");
}

#[test]
fn a_name_keeps_letters_digits_and_a_few_marks() {
    assert!(named("Tr_1-x.tar").ends_with("-Tr_1-x.tar"));
    let name = named("a$b\u{e9}:c.tar");
    assert!(name.ends_with("-a_b__c.tar"), "{name}");
}

#[test]
fn indexes_make_room_after_all_shards() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
    let index = entry(&cache, &format!("{}.idx", named("a.tar")), 20, 900);
    let newer = entry(&cache, &format!("{}.idx", named("b.tar")), 20, 800);
    let shard = entry(&cache, &named("a.tar"), 50, 5);
    let more = entry(&cache, &named("b.tar"), 60, 5);
    assert!(index.exists() && newer.exists() && !shard.exists() && more.exists());
    let large = entry(&cache, &named("c.tar"), 70, 0);
    assert!(!index.exists() && newer.exists() && !more.exists() && large.exists());
}

#[test]
fn files_that_are_no_entries_are_neither_counted_nor_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (hash, upper) = ("0123456789abcdef", "0123456789ABCDEF");
    let foreign = [
        "thesis.tex".to_owned(),
        "train-000000.tar".to_owned(),
        "train-000000.tar.idx".to_owned(),
        ".bashrc".to_owned(),
        ".train.tar.Ab12Cd.part".to_owned(),
        "film.part".to_owned(),
        format!("{hash}-a.tar"),
        format!("{hash}-{hash}"),
        format!("{hash}-{hash}-"),
        format!("{hash}-{hash}-.idx"),
        format!("{hash}-{upper}-a.tar"),
        format!("{hash}-{}-a.tar", &hash[1..]),
        format!("{hash}-{hash}-a b.tar"),
        format!("{hash}-{hash}-{}", "a".repeat(101)),
        format!("x{hash}-{hash}-a.tar"),
        format!(".{hash}-{hash}-a.tar"),
        format!(".{hash}-{hash}-a.tar.part"),
        format!("{hash}-{hash}-a.tar.abcDE1.part~"),
        "locks/thesis.lock".to_owned(),
        "folder/inner.tar".to_owned(),
    ];
    std::fs::create_dir(folder.path().join("locks")).unwrap();
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    // A folder whose name is an entry's.
    std::fs::create_dir(folder.path().join(named("folder"))).unwrap();
    let then = SystemTime::now() - 100 * ABANDONED;
    for name in &foreign {
        let path = folder.path().join(name);
        std::fs::write(&path, [7; 1000]).unwrap();
        File::options().append(true).open(&path).unwrap().set_modified(then).unwrap();
    }
    let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
    let entries = ["a", "b", "c"].map(|shard| entry(&cache, &named(shard), 60, 0));
    assert_eq!(entries.map(|path| path.exists()), [false, false, true]);
    cache.forget_stale(&named("a"));
    drop(Cache::open(folder.path(), 0, PATIENCE).unwrap().begin(&named("d"), 0, false).unwrap());
    for name in &foreign {
        assert_eq!(std::fs::read(folder.path().join(name)).unwrap(), [7; 1000], "{name}");
    }
    assert!(folder.path().join(named("folder")).is_dir());
}

#[cfg(unix)]
#[test]
fn entries_have_the_mode_of_any_new_file_so_that_a_cache_can_be_shared() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
    let path = entry(&cache, &named("a"), 40, 0);
    let other = folder.path().join("other");
    std::fs::write(&other, "1").unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), mode(&other));
    // A lock that another user made is taken without writing to it.
    let lock = folder.path().join(LOCKS).join(format!("{}.lock", named("b")));
    std::fs::write(&lock, "").unwrap();
    std::fs::set_permissions(&lock, PermissionsExt::from_mode(0o444)).unwrap();
    assert!(cache.lock(&named("b")).unwrap().is_some());

    // Who may write to the cache may lock in it.
    let shared = folder.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, PermissionsExt::from_mode(0o1777)).unwrap();
    Cache::open(&shared, 100, PATIENCE).unwrap();
    assert_eq!(mode(&shared.join(LOCKS)), 0o777);
}

#[test]
fn nothing_goes_for_room_that_the_files_of_others_leave_none_of() {
    let may =
        |sticky, folder, me| [7, 8, 9].map(|owner| Owners { sticky, folder, me }.may_remove(owner));
    assert_eq!(may(true, 7, 9), [false, false, true]);
    assert_eq!(may(true, 9, 9), [true; 3]);
    assert_eq!(may(true, 7, 0), [true; 3]);
    assert_eq!(may(false, 7, 9), [true; 3]);

    let folder = tempfile::tempdir().unwrap();
    let mut cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
    let kept = ["a", "b"].map(|shard| entry(&cache, &named(shard), 40, 500));
    cache.owners = |_| Ok(Owners { sticky: true, folder: u32::MAX - 1, me: u32::MAX });
    assert!(cache.begin(&named("c"), 30, false).unwrap().is_none());
    assert!(kept.iter().all(|path| path.exists()));
    assert!(cache.begin(&named("c"), 20, false).unwrap().is_some());
}

#[test]
fn a_lock_that_cannot_be_had_keeps_nobody_from_the_other_entries() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
    let whole = entry(&cache, &named("a"), 40, 0);
    let b = named("b");
    std::fs::write(folder.path().join(format!(".{b}.abcDE1.part")), "1").unwrap();
    std::fs::create_dir(folder.path().join(LOCKS).join(format!("{b}.lock"))).unwrap();
    let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
    assert_eq!(cache.find(&named("a"), Some(40)), Some(whole));
    assert!(cache.lock(&b).is_err());
}

#[test]
fn a_process_that_stands_still_while_it_counts_keeps_nobody_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
    let stopped = open_lock(&folder.path().join(LOCKS).join("room.lock")).unwrap();
    stopped.lock().unwrap();
    let (sender, done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let begun = cache.begin(&named("a"), 10, false).unwrap().is_some();
        sender.send((begun, cache)).unwrap();
    });
    let (begun, cache) = done.recv_timeout(Duration::from_secs(20)).expect("it waits");
    assert!(!begun);
    drop(stopped);
    assert!(cache.begin(&named("a"), 10, false).unwrap().is_some());
}

#[test]
fn a_lock_is_held_by_one_and_parts_of_the_dead_are_cleared_away() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
    let (a, b) = (named("a"), named("b"));
    let held = cache.lock(&a).unwrap().unwrap();
    assert!(cache.lock(&a).unwrap().is_none());
    let alive = folder.path().join(format!(".{a}.abcDE1.part"));
    let dead = folder.path().join(format!(".{b}.abcDE2.part"));
    std::fs::write(&alive, "1").unwrap();
    std::fs::write(&dead, "1").unwrap();
    Cache::open(folder.path(), 100, PATIENCE).unwrap();
    assert!(alive.exists() && !dead.exists());
    drop(held);
    assert!(cache.lock(&a).unwrap().is_some());
}

#[cfg(unix)]
#[test]
fn a_lock_that_was_unlinked_before_it_was_had_is_none() {
    static UNLINKED: std::sync::Mutex<Option<PathBuf>> = std::sync::Mutex::new(None);
    /// As one does who opened the file before the last holder let go of it.
    fn late(file: &File) -> Result<(), TryLockError> {
        if let Some(path) = UNLINKED.lock().unwrap().take() {
            std::fs::remove_file(path).unwrap();
        }
        file.try_lock()
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open_with(folder.path(), 100, PATIENCE, late).unwrap();
    let a = named("a");
    let path = folder.path().join(LOCKS).join(format!("{a}.lock"));
    *UNLINKED.lock().unwrap() = Some(path.clone());
    let held = cache.lock(&a).unwrap().unwrap();
    assert!(path.exists() && cache.lock(&a).unwrap().is_none(), "two hold it");
    // One that is another's by now stays.
    std::fs::remove_file(&path).unwrap();
    let other = cache.lock(&a).unwrap().unwrap();
    drop(held);
    assert!(path.exists() && cache.lock(&a).unwrap().is_none(), "two hold it");
    drop(other);
    assert!(!path.exists());
}

#[test]
fn without_locks_only_parts_that_nobody_writes_to_are_cleared_away() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (named("a"), named("b"));
    let [alive, dead] = [&a, &b].map(|entry| folder.path().join(format!(".{entry}.abcDE1.part")));
    for (path, age) in [(&alive, Duration::from_secs(60)), (&dead, 2 * ABANDONED)] {
        std::fs::write(path, "1").unwrap();
        let file = File::options().append(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }
    let none = |_: &File| Err(TryLockError::Error(std::io::ErrorKind::Unsupported.into()));
    let cache = Cache::open_with(folder.path(), 100, PATIENCE, none).unwrap();
    assert!(alive.exists() && !dead.exists());
    let (path, when) = cache.progress(&a).unwrap();
    assert_eq!(path, alive);
    std::fs::write(&alive, "2").unwrap();
    assert!(cache.progress(&a).unwrap().1 > when && cache.progress(&b).is_none());
}

#[test]
fn an_object_has_an_entry_only_where_something_tells_its_states_apart() {
    let state = |etag: Option<&str>, modified| Identity {
        size: 4,
        etag: etag.map(str::to_owned),
        modified,
    };
    let name = |state: &Identity, checksum| entry_name("http://h/a.tar", state, checksum);
    assert_eq!(name(&state(None, 0), None), None);
    let mut names: Vec<_> = [
        name(&state(Some("x"), 0), None),
        name(&state(None, 7), None),
        name(&state(None, 8), None),
        name(&state(None, 0), Some("xxh3:1")),
        name(&state(None, 0), Some("xxh3:2")),
    ]
    .map(Option::unwrap)
    .to_vec();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 5);
}

#[test]
fn another_state_of_an_object_is_another_entry() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
    let state = |size, etag: &str| Identity { size, etag: Some(etag.into()), modified: 0 };
    let name = |url, state: &Identity| entry_name(url, state, None).unwrap();
    let (was, is) = (name("s3://b/a.tar", &state(4, "x")), name("s3://b/a.tar", &state(4, "y")));
    let other = name("s3://c/a.tar", &state(4, "x"));
    assert!(was != is && was[17..] != other[..17] && was.ends_with("-a.tar"));
    let paths = [&was, &is, &other].map(|name| entry(&cache, name, 4, 0));
    cache.forget_stale(&is);
    assert_eq!(paths.map(|path| path.exists()), [false, true, true]);
    assert!(cache.find(&is, Some(5)).is_none(), "a wrong size");
    assert!(!cache.path(&is).exists());
}

#[test]
#[cfg(unix)]
fn a_forked_child_does_not_keep_the_lock_of_those_who_count() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 1000, Duration::from_secs(1)).unwrap();
    let counting = cache.count_alone().unwrap().unwrap();
    // SAFETY: the child calls nothing but what may be called after a fork.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above.
        unsafe {
            libc::sleep(60);
            libc::_exit(0);
        }
    }
    drop(counting);
    let begun = cache.begin(&named("a"), 10, false).unwrap().is_some();
    // SAFETY: the child is this process's own, and is waited for once.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    assert!(begun, "nothing is cached by any process for as long as the child lives");
}

#[test]
fn a_shard_that_is_larger_than_the_cache_is_told_of_once() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
    assert_eq!(cache.first_over(100), None);
    assert_eq!(cache.first_over(101), Some(100));
    assert_eq!(cache.first_over(102), None);
}
