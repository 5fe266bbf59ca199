//! Servers that fail: the run goes on with the same bytes, or stops with a clear error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bt_pipeline::{Error, Loader, OnBad, Position, Shuffle};

use crate::server::{Fault, Request, Server};
use crate::{Data, ORDERS, impatient, open, packed, run};

/// Faults that pass when the request is made again.
const PASSING: [Fault; 7] = [
    Fault::Status(503),
    Fault::Status(429),
    Fault::Cut(0),
    Fault::Cut(700),
    Fault::Short(100),
    Fault::Boasts,
    Fault::Drip,
];

fn shard(request: &Request) -> bool {
    request.path.contains(".tar") && !request.path.ends_with(".idx")
}

#[test]
fn a_run_goes_through_faults_with_the_same_bytes() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let mut options = impatient();
    options.remote.timeout = Duration::from_millis(300);
    for fault in PASSING {
        server.misbehave(move |_, before| if before == 0 { fault } else { Fault::None });
        let set = open(&server.url(&packed("zst")), &options).unwrap();
        let expected = data.local("zst", Shuffle::Global);
        assert_eq!(run(&set, Shuffle::Global, 3).unwrap(), expected, "{fault:?}");
    }
    // A server that hangs for longer than it may.
    server.misbehave(|request, before| match before {
        0 if shard(request) => Fault::Hang(Duration::from_millis(600)),
        _ => Fault::None,
    });
    let set = open(&server.url(&packed("tar")), &options).unwrap();
    assert_eq!(run(&set, Shuffle::None, 1).unwrap(), data.local("tar", Shuffle::None));
}

#[test]
fn a_stream_that_is_cut_goes_on_at_the_byte_where_it_stopped() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let pattern = server.url("stream/part-{000000..000002}.tar.zst");
    // Every connection breaks after 5000 bytes, and sometimes before.
    server.misbehave(|request, before| match request.range {
        Some((first, last)) if shard(request) && last - first > 5000 => {
            if before == 0 {
                Fault::Status(500)
            } else {
                Fault::Cut(5000)
            }
        }
        _ => Fault::None,
    });
    let mut options = impatient();
    options.remote.retries = 40;
    options.remote.backoff = Duration::from_millis(1);
    let set = open(&pattern, &options).unwrap();
    for shuffle in [Shuffle::None, ORDERS[2]] {
        assert_eq!(run(&set, shuffle, 2).unwrap(), data.local("stream", shuffle));
    }
    let starts: Vec<u64> = server.take_seen().iter().filter_map(|r| Some(r.range?.0)).collect();
    assert!(starts.contains(&5000) && starts.contains(&10_000), "{starts:?}");
}

#[test]
fn faults_that_stay_end_the_run_with_url_offset_and_cause() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    for (fault, cause) in [
        (Fault::Status(500), "status code: 500"),
        (Fault::Cut(10), "failed 4 times"),
        (Fault::Short(5), "failed 4 times"),
        (Fault::Status(403), "403"),
        (Fault::Status(404), "404"),
        (Fault::Status(501), "failed: "),
        (Fault::Drip, "the server sent less than 64 KiB in"),
        (Fault::Hang(Duration::from_secs(4)), "the server sent less than 64 KiB in"),
    ] {
        let mut options = impatient();
        options.remote.timeout = Duration::from_millis(100);
        server.misbehave(|_, _| Fault::None);
        let set = open(&server.url(&packed("tar")), &options).unwrap();
        for shard in 0..3 {
            set.meta(set.shards()[shard].first_sample).unwrap();
        }
        server.misbehave(move |_, _| fault);
        let start = Instant::now();
        let error = run(&set, Shuffle::None, 2).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
        let text = error.to_string();
        // What came before the cut is kept.
        let at = if matches!(fault, Fault::Cut(_) | Fault::Short(_) | Fault::Drip) {
            "at byte "
        } else {
            "at byte 512"
        };
        for part in [&server.url("tar/shard-000000.tar"), at, cause] {
            assert!(text.contains(part), "{fault:?}: {part}: {text}");
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{fault:?}");
        let tries = server.take_seen().iter().filter(|r| r.path.ends_with("0.tar")).count();
        let once = matches!(fault, Fault::Status(403 | 404 | 501));
        // A try may be given up before a busy server has looked at it.
        assert!(if once { tries <= 4 } else { tries >= 2 }, "{fault:?}: {tries}");
    }
    server.misbehave(|_, _| Fault::Status(502));
    let error = open(&server.url(&packed("tar")), &impatient()).unwrap_err().to_string();
    assert!(error.contains("502") && error.contains("failed 4 times, at last: "), "{error}");
}

#[test]
fn a_shard_that_cannot_be_read_is_passed_over_where_that_was_asked_for() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    for name in ["tar", "stream"] {
        let pattern = match name {
            "tar" => packed(name),
            _ => "stream/part-{000000..000002}.tar.zst".into(),
        };
        server.misbehave(|_, _| Fault::None);
        let set = open(&server.url(&pattern), &impatient()).unwrap();
        for shard in 0..3 {
            set.meta(set.shards()[shard].first_sample).unwrap();
        }
        server.misbehave(|request, _| match request.path.contains("-000001.tar") {
            true => Fault::Status(500),
            false => Fault::None,
        });
        let mut config = crate::common::config(8);
        (config.shuffle, config.on_bad_shard, config.max_bad) = (Shuffle::None, OnBad::Skip, 1.0);
        let loader = Loader::new(Arc::clone(&set), config).unwrap();
        let mut stream = loader.start(Position::default(), 1).unwrap();
        let mut samples = Vec::new();
        for batch in &mut stream {
            samples.extend(batch.unwrap().samples.clone());
        }
        let bad = stream.stats().take_bad();
        let url = server.url(&format!("{name}/"));
        assert!(
            !bad.is_empty()
                && bad.iter().all(|bad| {
                    bad.shard.to_string_lossy().starts_with(&url)
                        && bad.cause.contains("failed 4 times")
                }),
            "{name}: {bad:?}"
        );
        let lost = set.shards()[1].first_sample as u64..set.shards()[2].first_sample as u64;
        assert!(samples.iter().all(|sample| !lost.contains(sample)), "{name}");
    }
}

#[test]
fn a_changed_object_is_an_error_and_never_mixed_in() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let set = open(&server.url(&packed("tar")), &impatient()).unwrap();
    run(&set, Shuffle::None, 1).unwrap();
    // The same length, other bytes, another ETag: the server says 412.
    let path = data.folder.path().join("tar/shard-000001.tar");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[600] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let error = run(&set, Shuffle::None, 1).unwrap_err();
    assert!(
        matches!(&error, Error::Shard { cause, .. } if cause.contains("has changed")),
        "{error}"
    );
    assert!(error.to_string().contains("shard-000001.tar"), "{error}");
    // A server that does not look at If-Match.
    let set = open(&server.url("tar/shard-000000.tar"), &impatient()).unwrap();
    set.meta(0).unwrap();
    server.misbehave(|_, _| Fault::OtherEtag);
    let error = run(&set, Shuffle::None, 1).unwrap_err().to_string();
    assert!(error.contains("has changed since it was opened: its ETag"), "{error}");
}

#[test]
fn an_image_without_bytes_is_a_bad_sample_and_not_a_failed_request() {
    let folder = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let pixel = b"P6\n1 1 255\nabc";
    for n in 0..40 {
        let image = if n == 13 { &[][..] } else { &pixel[..] };
        let mut header = tar::Header::new_gnu();
        header.set_size(image.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("{n:03}.ppm"), image).unwrap();
    }
    std::fs::write(folder.path().join("a.tar"), tar.into_inner().unwrap()).unwrap();
    let server = Server::of_folder(folder.path());
    let set = open(&server.url("a.tar"), &impatient()).unwrap();
    assert!(set.read(13, &mut bt_pipeline::shard::ReadScratch::new()).unwrap().image.is_empty());
    let epoch = |shuffle, on_bad| -> Result<Vec<u64>, Error> {
        let mut config = crate::common::config(8);
        (config.shuffle, config.threads, config.on_bad) = (shuffle, 2, on_bad);
        let loader = Loader::new(Arc::clone(&set), config)?;
        let mut samples = Vec::new();
        for batch in loader.start(Position::default(), 1)? {
            samples.extend(&batch?.samples);
        }
        Ok(samples)
    };
    for shuffle in ORDERS {
        assert_eq!(epoch(shuffle, OnBad::Skip).unwrap().len(), 40, "{shuffle:?}");
        let error = epoch(shuffle, OnBad::Stop).unwrap_err();
        assert!(
            matches!(&error, Error::Sample { key, .. } if key == "013"),
            "{shuffle:?}: {error}"
        );
    }
}

#[test]
fn an_index_that_may_not_be_read_is_taken_for_one_that_is_not_there() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let expected = data.local("tar", Shuffle::Global);
    let check = |how: &str| {
        for pattern in [packed("tar"), "tar/shard.manifest.json".to_owned()] {
            let set = open(&server.url(&pattern), &impatient()).unwrap();
            assert_eq!(run(&set, Shuffle::Global, 2).unwrap(), expected, "{how} {pattern}");
        }
    };
    let faults = [Fault::Status(403), Fault::Status(401), Fault::Status(410), Fault::IgnoresRange];
    for fault in faults {
        server.misbehave(move |request, _| match request.path.ends_with(".idx") {
            true => fault,
            false => Fault::None,
        });
        check(&format!("{fault:?}"));
    }
    // A page in its place, as some servers answer for whatever they do not have.
    server.misbehave(|_, _| Fault::None);
    for shard in 0..3 {
        let index = data.folder.path().join(format!("tar/shard-00000{shard}.tar.idx"));
        std::fs::write(index, format!("\n<!doctype html>{:200}", "<p>not found</p>")).unwrap();
    }
    check("a page");
    // The shard itself has to be.
    server.misbehave(|_, _| Fault::Status(403));
    let error = open(&server.url(&packed("tar")), &impatient()).unwrap_err().to_string();
    assert!(error.contains("403"), "{error}");
}
