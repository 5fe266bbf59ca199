//! Without faults: patterns, indexes, orders, resuming, bounds.

use std::sync::Arc;

use bt_pipeline::augment::DType;
use bt_pipeline::shard::{OwnedSample, ReadScratch, index_shards, unpack};
use bt_pipeline::{Error, Loader, Position, ShardSet, Shuffle};

use crate::cache::{expected, seen, start};
use crate::server::{Origin, Server};
use crate::{Data, ORDERS, common, impatient, open, packed, run};

#[test]
fn urls_give_the_bytes_of_the_files_in_every_order() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    for name in ["tar", "zst"] {
        for shuffle in ORDERS {
            let expected = data.local(name, shuffle);
            for pattern in [packed(name), format!("{name}/shard.manifest.json")] {
                for threads in [1, 3] {
                    let set = open(&server.url(&pattern), &impatient()).unwrap();
                    let seen = run(&set, shuffle, threads).unwrap();
                    assert_eq!(seen, expected, "{pattern} {shuffle:?} {threads}");
                }
            }
        }
    }
    let asked = server.take_seen();
    assert!(asked.iter().all(|request| request.method == "GET"));
    let image = |request: &&crate::server::Request| request.path.ends_with(".tar");
    let whole = asked.iter().filter(image).filter(|request| request.range.is_none());
    assert_eq!(whole.count(), 0, "packed shards are read by ranges");
}

#[test]
fn shards_without_an_index_are_read_once_to_know_their_samples() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let set = open(&server.url("raw/part-{000000..000002}.tar"), &impatient()).unwrap();
    for shuffle in ORDERS {
        assert_eq!(run(&set, shuffle, 2).unwrap(), data.local("raw", shuffle), "{shuffle:?}");
    }
    // One frame without a seek table: in order alone.
    let set = open(&server.url("stream/part-{000000..000002}.tar.zst"), &impatient()).unwrap();
    assert!(!set.seekable());
    assert!(run(&set, Shuffle::Global, 2).is_err());
    for shuffle in [Shuffle::None, ORDERS[2]] {
        assert_eq!(run(&set, shuffle, 2).unwrap(), data.local("stream", shuffle), "{shuffle:?}");
    }
}

#[test]
fn batches_longer_than_what_is_looked_ahead_are_fetched_in_blocks_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    for n in 0..20_000 {
        common::append(&mut tar, &format!("{n:06}.ppm"), b"P6 1 1 255\n\x10\x20\x30");
    }
    std::fs::write(folder.path().join("a.tar"), tar.into_inner().unwrap()).unwrap();
    let pattern = folder.path().to_string_lossy();
    index_shards(&pattern, None, &[], &Default::default(), 1, &mut |_| ()).unwrap();
    let server = Server::of_folder(folder.path());
    let set = open(&server.url("a.tar"), &impatient()).unwrap();
    let mut config = common::config(10_000);
    config.views.truncate(1);
    (config.dtype, config.shuffle, config.threads) = (DType::U8, Shuffle::None, 2);
    let loader = Loader::new(set, config).unwrap();
    server.take_seen();
    let batches = loader.start(Position::default(), 1).unwrap();
    assert_eq!(batches.map(|batch| batch.unwrap().size()).sum::<usize>(), 20_000);
    let asked = server.take_seen().len();
    assert!(asked < 500, "{asked} requests");
}

#[test]
fn unions_join_files_and_urls() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let local = data.folder.path().join("tar/shard-000000.tar");
    let union = format!("{}::{}", local.display(), server.url("tar/shard-{000001,000002}.tar"));
    let set = open(&union, &impatient()).unwrap();
    let expected = data.local("tar", Shuffle::Global);
    assert_eq!(run(&set, Shuffle::Global, 2).unwrap(), expected);
    assert_eq!(set.shards()[1].path.to_string_lossy(), server.url("tar/shard-000001.tar"));
}

#[test]
fn single_samples_streams_labels_and_unpacking_work_without_a_loader() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    for name in ["tar", "zst"] {
        let local = crate::common::open(&data.folder.path().join(name));
        let set = open(&server.url(&packed(name)), &impatient()).unwrap();
        let (mut here, mut there) = (ReadScratch::new(), ReadScratch::new());
        for sample in (0..set.len()).rev() {
            let (a, b) = (set.read(sample, &mut there).unwrap(), local.read(sample, &mut here));
            let b = b.unwrap();
            assert_eq!((a.key, a.image, a.label), (b.key, b.image, b.label));
            assert_eq!(set.meta(sample).unwrap(), local.meta(sample).unwrap());
        }
        assert_eq!(set.num_classes().unwrap(), local.num_classes().unwrap());
        let (mut stream, mut owned) = (set.stream(1).unwrap(), OwnedSample::default());
        assert!(stream.next_into(&mut owned).unwrap());
        assert_eq!(owned.key, local.meta(local.shards()[1].first_sample).unwrap().key);
    }
    let out = data.folder.path().join("unpacked");
    let pattern = server.url("stream/part-000000.tar.zst");
    unpack(&pattern, &out, bt_pipeline::shard::Tree::Members, &impatient(), &mut |_| {}).unwrap();
    assert!(out.is_dir());
}

#[test]
fn a_compressed_shard_without_a_table_is_read_from_its_front_alone() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let set = open(&server.url("stream/part-000000.tar.zst"), &impatient()).unwrap();
    assert!(!set.seekable());
    let error = set.read(0, &mut ReadScratch::new()).unwrap_err();
    assert!(matches!(error, Error::Usage(_)), "{error}");
    let (mut stream, mut owned) = (set.stream(0).unwrap(), OwnedSample::default());
    assert!(stream.next_into(&mut owned).unwrap());
}

#[test]
fn a_run_goes_on_at_any_position() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let set = open(&server.url(&packed("tar")), &impatient()).unwrap();
    let local = crate::common::open(&data.folder.path().join("tar"));
    for shuffle in ORDERS {
        let batches = |set: &Arc<bt_pipeline::ShardSet>| {
            let mut config = crate::common::config(8);
            config.shuffle = shuffle;
            let loader = Loader::new(Arc::clone(set), config).unwrap();
            let from = Position { epoch: 1, batch: 2 };
            let all = loader.start(from, 3).unwrap().map(|batch| {
                let batch = batch.unwrap();
                (batch.samples.clone(), batch.as_bytes().to_vec())
            });
            all.collect::<Vec<_>>()
        };
        assert!(batches(&set) == batches(&local), "{shuffle:?}");
    }
}

#[test]
fn what_is_fetched_ahead_stays_within_the_byte_budget() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let set = open(&server.url(&packed("tar")), &impatient()).unwrap();
    // Two batches and an eighth of the budget, some 1.2 KB more: less than one batch's images.
    let mut config = crate::common::config(8);
    config.threads = 2;
    let batch = 2 * 8 * 32 * 32 * 3 * 4;
    config.budget_bytes = (2 * batch + 600) * 8 / 7;
    let loader = Loader::new(Arc::clone(&set), config.clone()).unwrap();
    assert_eq!(loader.buffers(), 2);
    let seen: Vec<u64> = loader
        .start(Position::default(), 2)
        .unwrap()
        .flat_map(|batch| batch.unwrap().samples.clone())
        .collect();
    assert_eq!(seen.len(), 64);
    config.budget_bytes = 2 * batch;
    let error = Loader::new(set, config).err().unwrap().to_string();
    assert!(error.contains("byte budget"), "{error}");
}

#[test]
fn a_stream_that_is_dropped_does_not_wait_for_a_server_that_hangs() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let mut options = impatient();
    options.remote.timeout = std::time::Duration::from_secs(60);
    for name in ["tar", "stream"] {
        let pattern =
            if name == "tar" { packed(name) } else { "stream/part-000000.tar.zst".into() };
        server.misbehave(|_, _| crate::server::Fault::None);
        let set = open(&server.url(&pattern), &options).unwrap();
        for shard in 0..set.shards().len() {
            set.meta(set.shards()[shard].first_sample).unwrap();
        }
        server.misbehave(|_, _| crate::server::Fault::Hang(std::time::Duration::from_secs(20)));
        let mut config = crate::common::config(4);
        config.shuffle = Shuffle::None;
        let stream = Loader::new(set, config).unwrap().start(Position::default(), 1).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200));
        let start = std::time::Instant::now();
        drop(stream);
        assert!(start.elapsed().as_secs() < 5, "{name}: {:?}", start.elapsed());
    }
}

#[test]
fn opening_ends_when_the_caller_gives_up_on_a_server_that_hangs() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let mut options = impatient();
    options.remote.timeout = std::time::Duration::from_secs(60);
    for name in [packed("tar"), "raw/part-{000000..000002}.tar".into()] {
        let given_up = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let url = server.url(&name);
        server.misbehave(|_, _| crate::server::Fault::Hang(std::time::Duration::from_secs(20)));
        let start = std::time::Instant::now();
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(200));
                given_up.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            ShardSet::open_unless(&url, &options, &given_up).unwrap_err()
        });
        assert!(start.elapsed().as_secs() < 5, "{name}: {:?}", start.elapsed());
        let Error::Io { source, .. } = &error else { panic!("{name}: {error}") };
        assert_eq!(source.kind(), std::io::ErrorKind::Interrupted, "{name}");
        // This thread waits again, for whom it did before.
        server.misbehave(|_, _| crate::server::Fault::None);
        open(&url, &options).unwrap();
    }
}

#[test]
fn any_number_of_requests_at_a_time_may_be_asked_for() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    for parallel in [0, usize::MAX] {
        let mut options = impatient();
        options.remote.parallel = parallel;
        let set = open(&server.url(&packed("tar")), &options).unwrap();
        assert_eq!(run(&set, ORDERS[0], 2).unwrap(), data.local("tar", ORDERS[0]), "{parallel}");
    }
}

#[test]
fn patterns_that_cannot_be_met_say_why() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let said = |pattern: &str| open(pattern, &impatient()).err().unwrap().to_string();
    let missing = said(&server.url("tar/none-000000.tar"));
    assert!(missing.contains("none-000000.tar") && missing.contains("404"), "{missing}");
    let folder = said(&server.url("tar/"));
    assert!(folder.contains("name the shards"), "{folder}");
    let query = said(&server.url("tar/shard-000000.tar?key=1"));
    assert!(query.contains("query"), "{query}");
    let manifest = said(&server.url("tar/nothing.manifest.json"));
    assert!(manifest.contains("404"), "{manifest}");
    let local = server.url("tar/shard-000000.tar");
    let error = bt_pipeline::shard::verify(&local, &impatient(), true, 1, &mut |_| {}).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("works on files") && error.contains("`shard pack`"), "{error}");
    // Which it does.
    let temporary = data.folder.path().join("temporary");
    let source = bt_pipeline::shard::open_source(&local, &temporary, &Default::default()).unwrap();
    assert_eq!(source.len(), 12);
    // An index of another shard: what to do about it can be done.
    let folder = data.folder.path().join("tar");
    std::fs::copy(folder.join("shard-000002.tar.idx"), folder.join("shard-000000.tar.idx"))
        .unwrap();
    let foreign = said(&local);
    assert!(foreign.contains("made for a shard"), "{foreign}");
    assert!(!foreign.contains("`shard index http"), "{foreign}");
}

/// The shards of `tar` once more in `odd`, under names that look as if they were written for a URL.
fn rename_oddly(folder: &std::path::Path) {
    std::fs::create_dir(folder.join("odd")).unwrap();
    for entry in std::fs::read_dir(folder.join("tar")).unwrap() {
        let path = entry.unwrap().path();
        let odd = |text: &str| text.replace("shard-0", "shard%20-0");
        let name = odd(path.file_name().unwrap().to_str().unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        if name.ends_with(".json") {
            bytes = odd(std::str::from_utf8(&bytes).unwrap()).into_bytes();
        }
        std::fs::write(folder.join("odd").join(name), bytes).unwrap();
    }
}

#[test]
fn an_azure_store_is_read_by_folder_and_glob_whatever_it_lists() {
    let data = Data::new();
    // Names of objects are no parts of URLs, and ETags come without quotes.
    rename_oddly(data.folder.path());
    let server = Server::start(Origin::Azure(data.folder.path().to_owned()), None);
    let endpoint = format!("http://{}", server.address);
    let variables = [
        ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
        ("AZURE_STORAGE_ENDPOINT", endpoint.as_str()),
        ("AZURE_ALLOW_HTTP", "true"),
        ("AZURE_SKIP_SIGNATURE", "true"),
    ];
    for (name, pattern) in [
        ("tar", "az://shards/tar/".to_owned()),
        ("tar", "az://shards/tar/shard-*.tar".to_owned()),
        ("zst", format!("az://shards/{}", packed("zst"))),
        ("tar", "az://shards/odd/".to_owned()),
        ("tar", "az://shards/odd/shard%2520-*.tar".to_owned()),
    ] {
        let child = start(&pattern, std::path::Path::new(""), &variables);
        assert_eq!(seen(child), expected(&data, name), "{pattern}");
        let asked = server.take_seen();
        assert!(asked.iter().any(|request| request.if_match.is_some()), "{pattern}");
    }
}
