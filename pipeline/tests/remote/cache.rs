//! The cache on disk: what it saves, what it may take, who shares it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bt_pipeline::{ShardSet, Shuffle};

use crate::server::{Fault, Origin, Server};
use crate::{Data, ORDERS, cached, open, packed, run};

/// The shards in a cache.
fn entries(cache: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
    let shard = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        !name.starts_with('.') && (name.ends_with(".tar") || name.ends_with(".zst"))
    };
    let mut files: Vec<_> = files.filter(shard).collect();
    files.sort();
    files
}

fn bytes(cache: &Path) -> u64 {
    let files = std::fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
    files.filter(|meta| meta.is_file()).map(|meta| meta.len()).sum()
}

/// Runs until all shards are in the cache.
fn warm(set: &Arc<ShardSet>, cache: &Path, shards: usize) {
    let start = Instant::now();
    while entries(cache).len() < shards {
        run(set, Shuffle::Global, 2).unwrap();
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", entries(cache));
    }
}

#[test]
fn a_warm_cache_gives_the_same_bytes_without_a_request() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let cache = tempfile::tempdir().unwrap();
    for name in ["tar", "zst", "raw", "stream"] {
        let pattern = match name {
            "tar" => packed(name),
            "zst" => "zst/shard.manifest.json".to_owned(),
            "raw" => "raw/part-{000000..000002}.tar".to_owned(),
            _ => "stream/part-{000000..000002}.tar.zst".to_owned(),
        };
        let options = cached(cache.path(), 1 << 30);
        let orders = if name == "stream" { &ORDERS[1..] } else { &ORDERS[..] };
        let before = entries(cache.path()).len();
        let set = open(&server.url(&pattern), &options).unwrap();
        for &shuffle in orders {
            assert_eq!(run(&set, shuffle, 2).unwrap(), data.local(name, shuffle), "{name}, cold");
        }
        let start = Instant::now();
        while entries(cache.path()).len() < before + 3 {
            assert!(start.elapsed() < Duration::from_secs(30), "{name} is not cached");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(set);
        // Another time: a request a shard tells whether it is still the same, no more.
        let set = open(&server.url(&pattern), &options).unwrap();
        for shard in 0..3 {
            set.meta(set.shards()[shard].first_sample).unwrap();
        }
        server.misbehave(|_, _| Fault::Status(500));
        for &shuffle in orders {
            for threads in [1, 3] {
                let seen = run(&set, shuffle, threads).unwrap();
                assert_eq!(seen, data.local(name, shuffle), "{name} {shuffle:?}, warm");
            }
        }
        assert_eq!(server.take_seen().len(), 0, "{name}: warm reads ask for nothing");
        server.misbehave(|_, _| Fault::None);
        open(&server.url(&pattern), &options).unwrap().meta(0).unwrap();
        assert!(server.take_seen().len() <= 4, "{name}: opening asks once a shard");
    }
}

#[test]
fn indexes_that_cannot_be_put_into_the_cache_are_used_all_the_same() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let [known, full] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let open = |name: &str, cache: &Path| {
        let pattern = if name == "raw" { "raw/part-{000000..000002}.tar" } else { &packed(name) };
        open(&server.url(pattern), &cached(cache, 1 << 30)).unwrap()
    };
    for name in ["tar", "raw"] {
        run(&open(name, known.path()), Shuffle::Global, 2).unwrap();
    }
    // As on a full disk, or in a folder that another user does not share.
    for entry in std::fs::read_dir(known.path()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".idx") {
            std::fs::create_dir_all(full.path().join(format!("locks/{name}.lock"))).unwrap();
        }
    }
    for name in ["tar", "raw"] {
        server.take_seen();
        let seen = run(&open(name, full.path()), Shuffle::Global, 2).unwrap();
        assert_eq!(seen, data.local(name, Shuffle::Global), "{name}");
        let asked = server.take_seen();
        let of_indexes = asked.iter().filter(|request| request.path.ends_with(".idx")).count();
        assert!(
            of_indexes <= 3 * 3,
            "{name}: each index is asked for once, not {of_indexes} times"
        );
    }
    let kept = std::fs::read_dir(full.path()).unwrap();
    let kept = kept.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!kept.into_iter().any(|name| name.ends_with(".idx")));
}

#[test]
fn a_changed_object_replaces_its_entry() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let cache = tempfile::tempdir().unwrap();
    let url = server.url("raw/part-000000.tar");
    let options = cached(cache.path(), 1 << 30);
    warm(&open(&url, &options).unwrap(), cache.path(), 1);
    let old = entries(cache.path());
    let path = data.folder.path().join("raw/part-000000.tar");
    std::fs::copy(data.folder.path().join("raw/part-000001.tar"), &path).unwrap();
    let set = open(&url, &options).unwrap();
    let start = Instant::now();
    while entries(cache.path()) == old || entries(cache.path()).len() != 1 {
        let local = run(&crate::common::open(&data.folder.path().join("raw")), Shuffle::None, 1);
        assert!(local.is_ok() && run(&set, Shuffle::None, 1).is_ok());
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", entries(cache.path()));
    }
    let new = std::fs::read(&entries(cache.path())[0]).unwrap();
    assert!(new == std::fs::read(&path).unwrap());
    // An entry of another length is not believed.
    std::fs::write(&entries(cache.path())[0], b"short").unwrap();
    let set = open(&url, &options).unwrap();
    run(&set, Shuffle::None, 1).unwrap();
}

#[test]
fn the_cache_stays_within_its_size_in_every_order() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let largest = (0..3).map(|n| {
        let path = data.folder.path().join(format!("tar/shard-00000{n}.tar"));
        std::fs::metadata(path).unwrap().len()
    });
    // Room for one shard and the indexes, and for none.
    let one = largest.max().unwrap() + 20_000;
    for limit in [one, 1000] {
        for shuffle in ORDERS {
            let cache = tempfile::tempdir().unwrap();
            let set = open(&server.url(&packed("tar")), &cached(cache.path(), limit)).unwrap();
            for _ in 0..3 {
                let seen = run(&set, shuffle, 2).unwrap();
                assert_eq!(seen, data.local("tar", shuffle), "{limit} {shuffle:?}");
                std::thread::sleep(Duration::from_millis(30));
                assert!(bytes(cache.path()) <= limit, "{limit} {shuffle:?}");
            }
        }
    }
}

#[test]
fn a_set_larger_than_the_cache_is_read_to_know_its_samples_once_alone() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let size = |n| std::fs::metadata(data.folder.path().join(part(n))).unwrap().len();
    fn part(n: usize) -> String {
        format!("raw/part-00000{n}.tar")
    }
    // Room for the largest shard and the indexes.
    let limit = (0..3).map(size).max().unwrap() + 10_000;
    let url = server.url("raw/part-{000000..000002}.tar");
    for shuffle in ORDERS {
        let cache = tempfile::tempdir().unwrap();
        let options = cached(cache.path(), limit);
        let set = open(&url, &options).unwrap();
        for _ in 0..2 {
            assert_eq!(run(&set, shuffle, 2).unwrap(), data.local("raw", shuffle));
        }
        drop(set);
        // Its downloads end with it, at the next piece.
        while !server.take_seen().is_empty() {
            std::thread::sleep(Duration::from_millis(300));
        }
        let set = open(&url, &options).unwrap();
        for shard in 0..3 {
            set.meta(set.shards()[shard].first_sample).unwrap();
        }
        for request in server.take_seen() {
            let whole = (0..3).any(|n| {
                let last = request.range.map_or(u64::MAX, |(_, last)| last);
                request.path == format!("/{}", part(n))
                    && last >= size(n) - 1
                    && request.range.is_none_or(|(first, _)| first == 0)
            });
            assert!(!whole, "{shuffle:?}: {request:?}");
        }
    }
}

#[test]
fn what_is_read_stays_in_use_while_other_shards_are_downloaded() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let cache = tempfile::tempdir().unwrap();
    let options = cached(cache.path(), 1 << 30);
    warm(&open(&server.url("tar/shard-000000.tar"), &options).unwrap(), cache.path(), 1);
    // The downloads of the other two keep both threads busy for longer than the test.
    server.misbehave(|request, _| match request.range {
        // Ranges that are read begin behind the first header.
        Some((0, last)) if last > 5000 && request.path.ends_with(".tar") => Fault::Drip,
        _ => Fault::None,
    });
    let set = open(&server.url(&packed("tar")), &options).unwrap();
    let entry = entries(cache.path()).remove(0);
    let start = Instant::now();
    let touched = || std::fs::metadata(&entry).unwrap().modified().unwrap();
    for n in 1..=2 {
        run(&set, Shuffle::Global, 2).unwrap();
        let then = std::time::SystemTime::now() - Duration::from_secs(3600);
        std::fs::File::options().append(true).open(&entry).unwrap().set_modified(then).unwrap();
        while touched() == then {
            run(&set, Shuffle::Global, 2).unwrap();
            assert!(start.elapsed() < Duration::from_secs(n * 10), "it looks unused");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    assert_eq!(entries(cache.path()).len(), 1, "the downloads are over");
}

/// What a child process runs: `BT_REMOTE_CHILD` is a pattern, `BT_REMOTE_CACHE` a folder.
#[test]
#[ignore = "run by other tests"]
fn child() {
    let (Ok(pattern), Ok(cache)) =
        (std::env::var("BT_REMOTE_CHILD"), std::env::var("BT_REMOTE_CACHE"))
    else {
        return;
    };
    let options =
        if cache.is_empty() { crate::impatient() } else { cached(Path::new(&cache), 1 << 30) };
    let set = open(&pattern, &options).unwrap();
    for shuffle in ORDERS {
        println!("seen {:?}", run(&set, shuffle, 2).unwrap());
    }
    if !cache.is_empty() {
        warm(&set, Path::new(&cache), 3);
    }
}

/// A process that runs `child`.
pub fn start(pattern: &str, cache: &Path, variables: &[(&str, &str)]) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cache::child", "--ignored", "--nocapture"])
        .env("BT_REMOTE_CHILD", pattern)
        .env("BT_REMOTE_CACHE", cache)
        .envs(variables.iter().copied())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The lines of what it saw.
pub fn seen(child: std::process::Child) -> Vec<String> {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().filter_map(|line| Some(line.split_once("seen ")?.1.to_owned()));
    lines.collect()
}

/// What it should have seen.
pub fn expected(data: &Data, name: &str) -> Vec<String> {
    ORDERS.iter().map(|&shuffle| format!("{:?}", data.local(name, shuffle))).collect()
}

#[test]
fn two_processes_share_a_cache_and_load_each_shard_once() {
    let data = Data::new();
    // Slow enough for both to want the same shards at once.
    let server = Server::start(Origin::Folder(data.folder.path().to_owned()), Some(200e3));
    let cache = tempfile::tempdir().unwrap();
    let pattern = server.url(&packed("tar"));
    let both = [0, 1].map(|_| start(&pattern, cache.path(), &[]));
    for child in both {
        assert_eq!(seen(child), expected(&data, "tar"));
    }
    assert_eq!(entries(cache.path()).len(), 3);
    let whole = server.take_seen().into_iter().filter(|request| {
        let size = std::fs::metadata(data.folder.path().join(&request.path[1..])).unwrap().len();
        request.path.ends_with(".tar") && request.range == Some((0, size - 1))
    });
    assert_eq!(whole.count(), 3, "each shard is downloaded by one of them");
}

#[test]
fn a_killed_download_leaves_nothing_that_is_read_and_no_lock() {
    let data = Data::new();
    let server = Server::start(Origin::Folder(data.folder.path().to_owned()), Some(5e3));
    let cache = tempfile::tempdir().unwrap();
    let pattern = server.url(&packed("tar"));
    let mut child = start(&pattern, cache.path(), &[]);
    let parts = || {
        let files = std::fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.to_string_lossy().ends_with(".part")).count()
    };
    let begun = Instant::now();
    while parts() == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no download began");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(parts() > 0, "it was killed too late");
    let fast = Server::of_folder(data.folder.path());
    let set = open(&fast.url(&packed("tar")), &cached(cache.path(), 1 << 30)).unwrap();
    assert_eq!(parts(), 0, "what the dead left is cleared away");
    assert_eq!(run(&set, Shuffle::Global, 2).unwrap(), data.local("tar", Shuffle::Global));
    warm(&set, cache.path(), 3);
    assert_eq!(run(&set, Shuffle::Global, 2).unwrap(), data.local("tar", Shuffle::Global));
}

#[test]
fn an_object_that_nothing_tells_from_another_is_not_cached_but_with_a_manifest() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    server.misbehave(|_, _| Fault::NoEtag);
    let cache = tempfile::tempdir().unwrap();
    let options = cached(cache.path(), 1 << 30);
    let url = server.url(&packed("tar"));
    for &shuffle in &ORDERS {
        let set = open(&url, &options).unwrap();
        assert_eq!(run(&set, shuffle, 2).unwrap(), data.local("tar", shuffle), "{shuffle:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(bytes(cache.path()), 0);
    let path = data.folder.path().join("tar/shard-000000.tar");
    let manifest = server.url("tar/shard.manifest.json");
    // A manifest's checksums tell.
    let set = open(&manifest, &options).unwrap();
    warm(&set, cache.path(), 3);
    assert_eq!(run(&set, Shuffle::None, 1).unwrap(), data.local("tar", Shuffle::None));
    drop(set);
    // An object that is not the manifest's is read, but not kept.
    for entry in std::fs::read_dir(cache.path()).unwrap() {
        let _ = std::fs::remove_file(entry.unwrap().path());
    }
    let mut shard = std::fs::read(&path).unwrap();
    *shard.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &shard).unwrap();
    let set = open(&manifest, &options).unwrap();
    let start = Instant::now();
    while entries(cache.path()).len() < 2 || start.elapsed() < Duration::from_millis(500) {
        let _ = run(&set, Shuffle::None, 1);
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", entries(cache.path()));
    }
    assert_eq!(entries(cache.path()).len(), 2, "all but the one that is another");
}

#[test]
fn an_entry_that_is_damaged_is_read_past_and_replaced() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let cache = tempfile::tempdir().unwrap();
    let url = server.url(&packed("zst"));
    let options = cached(cache.path(), 1 << 30);
    warm(&open(&url, &options).unwrap(), cache.path(), 3);
    let entry = entries(cache.path()).remove(1);
    let good = std::fs::read(&entry).unwrap();
    // The number of frames in the seek table's footer.
    let mut bad = good.clone();
    let footer = bad.len() - 9;
    bad[footer] ^= 0x55;
    std::fs::write(&entry, &bad).unwrap();
    let set = open(&url, &options).unwrap();
    let want = data.local("zst", Shuffle::Global);
    assert_eq!(run(&set, Shuffle::Global, 2).unwrap(), want);
    warm(&set, cache.path(), 3);
    assert!(std::fs::read(&entry).unwrap() == good);
}

#[test]
fn a_process_that_stands_still_with_its_lock_keeps_nobody_waiting() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let cache = tempfile::tempdir().unwrap();
    let url = server.url("stream/part-{000000..000002}.tar.zst");
    let mut options = cached(cache.path(), 1 << 30);
    warm_streams(&open(&url, &options).unwrap(), cache.path());
    let entry = entries(cache.path()).remove(0);
    std::fs::remove_file(&entry).unwrap();
    let name = entry.file_name().unwrap().to_string_lossy().into_owned();
    let lock = std::fs::File::create(cache.path().join(format!("locks/{name}.lock"))).unwrap();
    lock.lock().unwrap();
    std::fs::write(cache.path().join(format!(".{name}.abcdef.part")), "some").unwrap();
    options.remote.timeout = Duration::from_millis(1500);
    let (sender, done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let set = open(&url, &options).unwrap();
        let _ = sender.send(run(&set, Shuffle::None, 2));
    });
    let seen = done.recv_timeout(Duration::from_secs(40)).expect("it waits for the lock");
    assert_eq!(seen.unwrap(), data.local("stream", Shuffle::None));
    assert!(!entry.exists());
    drop(lock);
}

/// As `warm`, of shards that can only be streamed.
fn warm_streams(set: &Arc<ShardSet>, cache: &Path) {
    let start = Instant::now();
    while entries(cache).len() < 3 {
        run(set, Shuffle::None, 2).unwrap();
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", entries(cache));
    }
}
