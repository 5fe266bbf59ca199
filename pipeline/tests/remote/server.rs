//! A server for the tests: it serves a folder over HTTP/1.1 with ranges and ETags, or passes on to
//! a real server, counts what is asked for, and misbehaves on request. Answers are made one thread
//! a connection; every loop ends with its connection.
#![allow(dead_code, reason = "the benchmark uses its part")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Where answers come from.
#[derive(Clone)]
pub enum Origin {
    Folder(PathBuf),
    /// As the container `shards` of an Azure store, which lists ETags without quotes.
    Azure(PathBuf),
    Server(SocketAddr),
}

/// What goes wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// This status, and nothing else.
    Status(u16),
    /// The connection is reset after so many bytes of the body.
    Cut(u64),
    /// It ends in order, so many bytes of the body short.
    Short(u64),
    /// Nothing comes for so long.
    Hang(Duration),
    /// One byte of the body in 50 ms.
    Drip,
    /// The range that the header tells is another.
    WrongRange,
    /// The whole length that the header tells is another.
    WrongSize,
    /// A range is asked for, all is sent.
    IgnoresRange,
    /// Another ETag than before.
    OtherEtag,
    /// Nothing that tells one state of an object from another.
    NoEtag,
    /// The answer claims more than there is.
    Boasts,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// First and last byte.
    pub range: Option<(u64, u64)>,
    pub if_match: Option<String>,
    text: String,
}

type Plan = dyn Fn(&Request, usize) -> Fault + Send + Sync;

struct Shared {
    origin: Origin,
    seen: Mutex<Vec<Request>>,
    plan: Mutex<Arc<Plan>>,
    limit: Option<Limit>,
}

/// So many bytes a second, for all connections together.
struct Limit {
    rate: f64,
    next: Mutex<Instant>,
}

impl Limit {
    fn wait_for(&self, bytes: usize) {
        let mut next = self.next.lock().unwrap();
        // What was not used for 20 ms is lost.
        *next = (*next).max(Instant::now() - Duration::from_millis(20));
        *next += Duration::from_secs_f64(bytes as f64 / self.rate);
        let until = *next;
        drop(next);
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

/// The running server.
pub struct Server {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Server {
    pub fn start(origin: Origin, bytes_per_s: Option<f64>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let limit = bytes_per_s.map(|rate| Limit { rate, next: Mutex::new(Instant::now()) });
        let plan: Arc<Plan> = Arc::new(|_: &Request, _| Fault::None);
        let (seen, plan) = (Mutex::default(), Mutex::new(plan));
        let shared = Arc::new(Shared { origin, seen, plan, limit });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || {
                    let _ = serve(connection, &shared);
                });
            }
        });
        Server { address, shared }
    }

    pub fn of_folder(folder: &std::path::Path) -> Server {
        Server::start(Origin::Folder(folder.to_owned()), None)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// From now on answers go wrong as `plan` says; its number counts the requests of the same
    /// path and last byte that came before.
    pub fn misbehave(&self, plan: impl Fn(&Request, usize) -> Fault + Send + Sync + 'static) {
        *self.shared.plan.lock().unwrap() = Arc::new(plan);
        self.shared.seen.lock().unwrap().clear();
    }

    /// What was asked for since the last call.
    pub fn take_seen(&self) -> Vec<Request> {
        std::mem::take(&mut self.shared.seen.lock().unwrap())
    }
}

fn serve(connection: TcpStream, shared: &Shared) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut input = BufReader::new(connection.try_clone()?);
    let mut output = connection;
    while let Some(request) = read_request(&mut input)? {
        let before = {
            let mut seen = shared.seen.lock().unwrap();
            // Those that go on behind a fault end at the same byte.
            let end = |request: &Request| request.range.map(|(_, last)| last);
            let same = |other: &&Request| other.path == request.path && end(other) == end(&request);
            let before = seen.iter().filter(same).count();
            seen.push(request.clone());
            before
        };
        let plan = Arc::clone(&shared.plan.lock().unwrap());
        let fault = plan(&request, before);
        if let Fault::Hang(time) = fault {
            std::thread::sleep(time);
        }
        let done = match &shared.origin {
            Origin::Folder(folder) => answer(&mut output, &request, folder, fault, shared)?,
            Origin::Azure(folder) => azure(&mut output, &request, folder, fault, shared)?,
            Origin::Server(address) => pass_on(&mut output, &request, *address, fault, shared)?,
        };
        if !done {
            return Ok(());
        }
    }
    Ok(())
}

fn read_request(input: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let (mut text, mut headers) = (String::new(), HashMap::new());
    loop {
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        text.push_str(&line);
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let mut words = text.split_whitespace();
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let range = headers.get("range").or(headers.get("x-ms-range")).and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().unwrap_or(u64::MAX)))
    });
    let if_match = headers.get("if-match").cloned();
    let (method, path) = (method.to_owned(), path.to_owned());
    Ok(Some(Request { method, path, range, if_match, text: text.clone() }))
}

/// An answer before it is sent.
struct Answer<'a> {
    status: u16,
    headers: Vec<(String, String)>,
    length: u64,
    body: Box<dyn Read + 'a>,
}

fn answer(
    output: &mut TcpStream,
    request: &Request,
    folder: &std::path::Path,
    fault: Fault,
    shared: &Shared,
) -> std::io::Result<bool> {
    let object = request.path.trim_start_matches('/').replace("..", "").replace("%25", "%");
    let path = folder.join(object);
    let empty = |status| Answer { status, headers: vec![], length: 0, body: Box::new(&[][..]) };
    let opened = std::fs::File::open(&path).ok().filter(|_| path.is_file());
    let answer = match opened {
        None => empty(404),
        Some(mut file) => {
            let meta = file.metadata()?;
            let size = meta.len();
            let etag = etag(&meta)?;
            if request.if_match.as_ref().is_some_and(|asked| *asked != etag) {
                empty(412)
            } else {
                let mut headers = vec![("etag".to_owned(), etag)];
                if matches!(shared.origin, Origin::Azure(_)) {
                    headers.push(("last-modified".to_owned(), MODIFIED.to_owned()));
                    headers.push(("x-ms-blob-type".to_owned(), "BlockBlob".to_owned()));
                }
                let (status, start, end) = match request.range {
                    Some((first, _)) if first >= size => (416, 0, 0),
                    Some((first, last)) => (206, first, size.min(last.saturating_add(1))),
                    None => (200, 0, size),
                };
                if status == 206 {
                    let range = format!("bytes {start}-{}/{size}", end - 1);
                    headers.push(("content-range".to_owned(), range));
                }
                file.seek(SeekFrom::Start(start))?;
                let length = end - start;
                Answer { status, headers, length, body: Box::new(file.take(length)) }
            }
        }
    };
    send(output, request, answer, fault, shared)
}

const MODIFIED: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

/// Lists a folder, or answers for an object.
fn azure(
    output: &mut TcpStream,
    request: &Request,
    folder: &std::path::Path,
    fault: Fault,
    shared: &Shared,
) -> std::io::Result<bool> {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let values: HashMap<_, _> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    if values.get("comp") != Some(&"list") {
        let object = path.split_once("shards/").map_or("", |(_, object)| object).to_owned();
        let request = Request { path: object, ..request.clone() };
        return answer(output, &request, folder, fault, shared);
    }
    let prefix = values.get("prefix").unwrap_or(&"").replace("%2F", "/");
    let mut blobs = String::new();
    for entry in std::fs::read_dir(folder.join(&prefix))? {
        let (name, meta) = (entry.as_ref().unwrap().file_name(), entry.unwrap().metadata()?);
        let (size, etag) = (meta.len(), etag(&meta)?);
        blobs.push_str(&format!(
            "<Blob><Name>{prefix}{}</Name><Properties><Last-Modified>{MODIFIED}</Last-Modified>\
             <Etag>{}</Etag><Content-Length>{size}</Content-Length>\
             <Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType>\
             </Properties></Blob>",
            name.to_string_lossy(),
            etag.trim_matches('"'),
        ));
    }
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ServiceEndpoint=\"x\" \
         ContainerName=\"shards\"><Prefix>{prefix}</Prefix><Blobs>{blobs}</Blobs><NextMarker />\
         </EnumerationResults>"
    );
    let headers = vec![("content-type".to_owned(), "application/xml".to_owned())];
    let length = body.len() as u64;
    let listing = Answer { status: 200, headers, length, body: Box::new(body.as_bytes()) };
    send(output, request, listing, fault, shared)
}

fn etag(meta: &std::fs::Metadata) -> std::io::Result<String> {
    let modified = meta.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap();
    Ok(format!("\"{:x}-{:x}\"", meta.len(), modified.as_nanos()))
}

/// Sends an answer, well or badly; false when the connection is not to be used again.
fn send(
    output: &mut TcpStream,
    request: &Request,
    mut answer: Answer<'_>,
    fault: Fault,
    shared: &Shared,
) -> std::io::Result<bool> {
    match fault {
        Fault::Status(status) => {
            write!(
                output,
                "HTTP/1.1 {status} Fault\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            )?;
            // What the origin sends is not read.
            return Ok(false);
        }
        Fault::IgnoresRange => {
            answer.status = 200;
            answer.headers.retain(|(name, _)| name != "content-range");
        }
        Fault::OtherEtag => {
            answer.headers.retain(|(name, _)| name != "etag");
            answer.headers.push(("etag".into(), "\"another\"".into()));
        }
        Fault::NoEtag => answer.headers.retain(|(name, _)| name != "etag"),
        Fault::WrongRange | Fault::WrongSize => {
            for (_, value) in answer.headers.iter_mut().filter(|(name, _)| name == "content-range")
            {
                *value = if fault == Fault::WrongSize {
                    format!("{}999", value.trim())
                } else {
                    value.replace("bytes ", "bytes 1")
                };
            }
        }
        _ => {}
    }
    let boast = if fault == Fault::Boasts { 1 << 40 } else { 0 };
    let Answer { status, headers, length, mut body } = answer;
    write!(output, "HTTP/1.1 {status} S\r\ncontent-length: {}\r\n", length + boast)?;
    for (name, value) in headers {
        write!(output, "{name}: {value}\r\n")?;
    }
    output.write_all(b"\r\n")?;
    if request.method == "HEAD" {
        return Ok(true);
    }
    let most = match fault {
        Fault::Cut(bytes) => bytes.min(length),
        Fault::Short(bytes) => length.saturating_sub(bytes),
        _ => length,
    };
    let mut buffer = vec![0; 128 << 10];
    let mut left = most;
    while left > 0 {
        let piece = if fault == Fault::Drip { 1 } else { left.min(buffer.len() as u64) as usize };
        body.read_exact(&mut buffer[..piece])?;
        if let Some(limit) = &shared.limit {
            limit.wait_for(piece);
        }
        if fault == Fault::Drip {
            std::thread::sleep(Duration::from_millis(50));
        }
        output.write_all(&buffer[..piece])?;
        left -= piece as u64;
    }
    if matches!(fault, Fault::Cut(_)) {
        // Closing with unread input resets the connection; without, it ends it. Both are met.
        return Ok(false);
    }
    Ok(most == length && boast == 0)
}

/// Asks the real server, on a connection of its own.
fn pass_on(
    output: &mut TcpStream,
    request: &Request,
    address: SocketAddr,
    fault: Fault,
    shared: &Shared,
) -> std::io::Result<bool> {
    let mut real = TcpStream::connect(address)?;
    // The host stays as the client wrote it: signatures cover it.
    real.write_all(request.text.as_bytes())?;
    let mut input = BufReader::new(real);
    let mut line = String::new();
    input.read_line(&mut line)?;
    let status = line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(502);
    let (mut headers, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else { continue };
        let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
        match name.as_str() {
            "content-length" => length = value.parse().unwrap_or(0),
            "connection" | "keep-alive" => {}
            "transfer-encoding" => panic!("the tests' proxy passes on no chunked answers"),
            _ => headers.push((name, value)),
        }
    }
    let answer = Answer { status, headers, length, body: Box::new(input) };
    send(output, request, answer, fault, shared)
}
