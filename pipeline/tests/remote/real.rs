//! The same, against servers that people use: nginx (`BT_NGINX`, else `nginx`), and moto's S3
//! server in Python (`BT_PYTHON`, else `python3`). Where they are not, the tests say so;
//! `tools/interop/remote.sh` installs them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bt_pipeline::Shuffle;

use crate::cache::{expected, seen, start};
use crate::server::{Fault, Origin, Request, Server};
use crate::skip::skip;
use crate::{Data, ORDERS, cached, impatient, open, packed, run};

/// A server that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Waits until somebody listens.
fn wait_for(address: SocketAddr) {
    let begun = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody listens at {address}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn nginx(folder: &Path) -> Option<(Running, SocketAddr)> {
    let program = std::env::var("BT_NGINX").unwrap_or_else(|_| "nginx".to_owned());
    if Command::new(&program).arg("-v").output().is_err() {
        skip("nginx", &format!("no `{program}` (set BT_NGINX)"));
        return None;
    }
    let address = free_address();
    let own = folder.join("nginx");
    std::fs::create_dir(&own).unwrap();
    let (at, root) = (own.display(), folder.display());
    let configuration = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\n\
         events {{ }}\n\
         http {{ access_log off; client_body_temp_path {at}/a; proxy_temp_path {at}/b;\n\
         fastcgi_temp_path {at}/c; uwsgi_temp_path {at}/d; scgi_temp_path {at}/e;\n\
         server {{ listen {address}; root {root}; }} }}\n"
    );
    let file = own.join("nginx.conf");
    std::fs::write(&file, configuration).unwrap();
    let mut command = Command::new(&program);
    command.arg("-c").arg(&file).arg("-e").arg(own.join("error.log")).stderr(Stdio::null());
    let running = Running(command.spawn().unwrap());
    wait_for(address);
    Some((running, address))
}

/// Faults of every kind, each for the first request of a path and range.
fn everything(request: &Request, before: usize) -> Fault {
    if before > 0 {
        return Fault::None;
    }
    match request.range.map_or(0, |(first, _)| first / 512) % 4 {
        0 => Fault::Status(503),
        1 => Fault::Cut(300),
        2 => Fault::Short(20),
        _ => Fault::None,
    }
}

#[test]
fn nginx_serves_the_same_bytes_through_faults_and_into_the_cache() {
    let data = Data::new();
    let Some((_nginx, address)) = nginx(data.folder.path()) else { return };
    let server = Server::start(Origin::Server(address), None);
    for name in ["tar", "zst"] {
        for shuffle in ORDERS {
            server.misbehave(|_, _| Fault::None);
            let set = open(&server.url(&packed(name)), &impatient()).unwrap();
            for threads in [1, 3] {
                assert_eq!(run(&set, shuffle, threads).unwrap(), data.local(name, shuffle));
            }
            server.misbehave(everything);
            assert_eq!(run(&set, shuffle, 3).unwrap(), data.local(name, shuffle), "{shuffle:?}");
        }
    }
    let cache = tempfile::tempdir().unwrap();
    let options = cached(cache.path(), 1 << 30);
    let pattern = server.url("stream/part-{000000..000002}.tar.zst");
    server.misbehave(everything);
    let set = open(&pattern, &options).unwrap();
    assert_eq!(run(&set, Shuffle::None, 2).unwrap(), data.local("stream", Shuffle::None));
    server.misbehave(|_, _| Fault::None);
    assert_eq!(run(&set, ORDERS[2], 2).unwrap(), data.local("stream", ORDERS[2]));
    assert_eq!(server.take_seen().len(), 0);
    // nginx itself refuses what has changed.
    let set = open(&server.url("raw/part-000000.tar"), &impatient()).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    let path = data.folder.path().join("raw/part-000000.tar");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[600] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = run(&set, Shuffle::None, 1).unwrap_err().to_string();
    assert!(error.contains("has changed"), "{error}");
}

/// One request without credentials, which this server takes.
fn put(address: SocketAddr, path: &str, body: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\nconnection: close\r\n\
         authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, \
         SignedHeaders=host, Signature=0\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
}

#[test]
fn an_s3_server_serves_the_same_bytes_by_brace_list_folder_glob_and_manifest() {
    let python = std::env::var("BT_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_moto = Command::new(&python).args(["-c", "import moto.server"]).output();
    if !has_moto.is_ok_and(|output| output.status.success()) {
        skip("moto", &format!("`{python}` has no moto[server] (set BT_PYTHON)"));
        return;
    }
    let address = free_address();
    let mut command = Command::new(&python);
    command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &address.port().to_string()]);
    let _moto = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    wait_for(address);
    let data = Data::new();
    put(address, "/shards", b"");
    for name in ["tar", "zst"] {
        for entry in std::fs::read_dir(data.folder.path().join(name)).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_string_lossy().into_owned();
            put(address, &format!("/shards/{name}/{file}"), &std::fs::read(&path).unwrap());
        }
    }
    let server = Server::start(Origin::Server(address), None);
    let endpoint = format!("http://{}", server.address);
    let variables = [
        ("AWS_ENDPOINT", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
    ];
    for faulty in [false, true] {
        for (name, pattern) in [
            ("tar", format!("s3://shards/{}", packed("tar"))),
            ("tar", "s3://shards/tar/".to_owned()),
            ("tar", "s3://shards/tar/shard-*.tar".to_owned()),
            ("zst", "s3://shards/zst/shard.manifest.json".to_owned()),
        ] {
            match faulty {
                true => server.misbehave(everything),
                false => server.misbehave(|_, _| Fault::None),
            }
            let child = start(&pattern, Path::new(""), &variables);
            assert_eq!(seen(child), expected(&data, name), "{pattern}, faults: {faulty}");
            assert!(server.take_seen().len() > 10);
        }
    }
    let cache = tempfile::tempdir().unwrap();
    let pattern = "s3://shards/tar/";
    let child = start(pattern, cache.path(), &variables);
    assert_eq!(seen(child), expected(&data, "tar"));
}
