//! Answers that no server should give, and indexes that lie: errors, without panics and without
//! taking memory for what is only claimed.

use std::io::{BufRead, Write};

use bt_pipeline::shard::{Limits, OpenOptions, ReadScratch};
use bt_pipeline::{Error, Shuffle};

use crate::server::{Fault, Server};
use crate::{Data, impatient, open, packed, run};

#[test]
fn answers_that_are_not_what_was_asked_for_are_errors() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    for fault in [Fault::WrongRange, Fault::WrongSize, Fault::IgnoresRange] {
        let mut options = impatient();
        options.remote.timeout = std::time::Duration::from_millis(200);
        // From the first request on, and from the first sample on.
        server.misbehave(move |_, _| fault);
        let error = open(&server.url(&packed("tar")), &options).map(|_| ()).err();
        if fault != Fault::WrongSize {
            let text = error.unwrap().to_string();
            assert!(text.contains("/tar/shard-00000"), "{fault:?}: {text}");
        }
        server.misbehave(|_, _| Fault::None);
        let set = open(&server.url(&packed("tar")), &options).unwrap();
        for shard in 0..3 {
            set.meta(set.shards()[shard].first_sample).unwrap();
        }
        server.misbehave(move |_, _| fault);
        let error = run(&set, Shuffle::None, 2).unwrap_err().to_string();
        assert!(error.contains("shard-000000.tar"), "{fault:?}: {error}");
    }
}

#[test]
fn an_index_of_another_shard_or_a_damaged_one_is_refused() {
    let data = Data::new();
    let folder = data.folder.path().join("tar");
    let server = Server::of_folder(data.folder.path());
    let index = |n: u32| folder.join(format!("shard-00000{n}.tar.idx"));
    let good = std::fs::read(index(0)).unwrap();
    let url = server.url("tar/shard-000000.tar");
    let said = || {
        let outcome = open(&url, &impatient()).and_then(|set| set.meta(0));
        outcome.err().map(|error| error.to_string())
    };
    assert_eq!(said(), None);
    std::fs::copy(index(1), index(0)).unwrap();
    assert!(said().unwrap().contains("the index was made for a shard"));
    // As long as the shard, and of other content: the fingerprint tells.
    let mut bytes = std::fs::read(folder.join("shard-000000.tar")).unwrap();
    bytes[700] ^= 1;
    std::fs::write(folder.join("shard-000000.tar"), &bytes).unwrap();
    std::fs::write(index(0), &good).unwrap();
    assert!(said().unwrap().contains("with other content"));
    bytes[700] ^= 1;
    std::fs::write(folder.join("shard-000000.tar"), &bytes).unwrap();
    for at in [0, 9, 40, 50, 58, 100, good.len() - 9] {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        std::fs::write(index(0), &bad).unwrap();
        assert!(said().is_some(), "byte {at}");
    }
    std::fs::write(index(0), &good[..good.len() / 2]).unwrap();
    assert!(said().is_some());
}

#[test]
fn limits_hold_before_memory_is_taken() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let with = |limits| OpenOptions { limits, ..impatient() };
    let url = server.url("tar/shard-000000.tar");
    let small = with(Limits { member_bytes: 100, ..Limits::default() });
    let set = open(&url, &small).unwrap();
    let error = set.read(0, &mut ReadScratch::new()).unwrap_err();
    // The sample's fault alone.
    assert!(matches!(&error, Error::Sample { cause, .. } if cause.contains("limit")), "{error}");
    let frames = with(Limits { frame_bytes: 100, ..Limits::default() });
    let set = open(&server.url("zst/shard-000000.tar.zst"), &frames).unwrap();
    let error = set.read(0, &mut ReadScratch::new()).unwrap_err();
    assert!(matches!(&error, Error::Sample { cause, .. } if cause.contains("frame")), "{error}");
    let small = with(Limits { index_bytes: 100, ..Limits::default() });
    let error = open(&url, &small).unwrap().meta(0).unwrap_err().to_string();
    assert!(error.contains("limit of 100"), "{error}");
    let manifest = server.url("tar/shard.manifest.json");
    let error = open(&manifest, &small).unwrap_err().to_string();
    assert!(error.contains("limit of 100"), "{error}");
}

#[test]
fn a_sample_in_very_many_compressed_bytes_is_refused_before_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(14);
    tar.append_data(&mut header, "a.ppm", &b"P6\n1 1 255\nabc"[..]).unwrap();
    let tar = tar.into_inner().unwrap();
    let mut bytes = zstd::bulk::compress(&tar, 1).unwrap();
    // What a decompressor passes over, in the frame as the seek table has it.
    bytes.extend([0x184D_2A50, 200_000].into_iter().flat_map(u32::to_le_bytes));
    bytes.resize(bytes.len() + 200_000, 0);
    let frame = [bytes.len() as u32, tar.len() as u32];
    let table = [0x184D_2A5E, 8 + 9].into_iter().chain(frame).chain([1]);
    bytes.extend(table.flat_map(u32::to_le_bytes));
    bytes.push(0);
    bytes.extend(0x8F92_EAB1_u32.to_le_bytes());
    std::fs::write(folder.path().join("a.tar.zst"), bytes).unwrap();
    let server = Server::of_folder(folder.path());
    let read = |limits| {
        let set = open(&server.url("a.tar.zst"), &OpenOptions { limits, ..impatient() }).unwrap();
        set.read(0, &mut ReadScratch::new()).map(|sample| sample.image.len())
    };
    assert_eq!(read(Limits::default()).unwrap(), 14);
    let small = Limits { member_bytes: 10_000, frame_bytes: 10_000, ..Limits::default() };
    let error = read(small).unwrap_err().to_string();
    assert!(error.contains("compressed bytes is over the limit"), "{error}");
}

#[test]
fn a_listing_without_end_is_read_up_to_a_limit() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/folder/", listener.local_addr().unwrap());
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = std::sync::Arc::clone(&asked);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let mut request = std::io::BufReader::new(&stream).lines();
            while request.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            // Until the client goes away.
            let head = "HTTP/1.1 207 Multi-Status\r\nconnection: close\r\n\r\n<?xml";
            let mut sent = stream.write_all(head.as_bytes());
            while sent.is_ok() {
                sent = stream.write_all(&[b' '; 4096]);
            }
        }
    });
    let limits = Limits { index_bytes: 1 << 20, ..Limits::default() };
    let error = open(&url, &OpenOptions { limits, ..impatient() }).unwrap_err().to_string();
    assert!(error.contains("more than 1048576 bytes"), "{error}");
    // It is not asked for again.
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn a_manifest_that_lies_about_a_shard_is_an_error() {
    let data = Data::new();
    let server = Server::of_folder(data.folder.path());
    let path = data.folder.path().join("tar/shard.manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let bytes = std::fs::metadata(data.folder.path().join("tar/shard-000000.tar")).unwrap().len();
    let (was, is) = (format!("\"bytes\": {bytes},"), format!("\"bytes\": {},", bytes + 1));
    assert!(text.contains(&was));
    std::fs::write(&path, text.replacen(&was, &is, 1)).unwrap();
    let error = open(&server.url("tar/shard.manifest.json"), &impatient()).unwrap_err().to_string();
    assert!(error.contains("in all"), "{error}");
    // A lie that is the same in both places.
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    let all = manifest["bytes"].as_u64().unwrap();
    let (sum, lie) = (format!("\"bytes\": {all}"), format!("\"bytes\": {}", all + 1));
    let text = text.replacen(&was, &is, 1);
    assert!(text.contains(&sum));
    std::fs::write(&path, text.replacen(&sum, &lie, 1)).unwrap();
    let set = open(&server.url("tar/shard.manifest.json"), &impatient()).unwrap();
    let error = run(&set, Shuffle::None, 1).unwrap_err().to_string();
    assert!(error.contains("the manifest says"), "{error}");
    std::fs::write(&path, "{}").unwrap();
    let error = open(&server.url("tar/shard.manifest.json"), &impatient()).unwrap_err().to_string();
    assert!(error.contains("not a manifest"), "{error}");
}
