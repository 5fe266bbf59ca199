//! `--metrics ADDRESS`: the run's figures for Prometheus, as text over HTTP.
//!
//! The training thread leaves its figures on a [`Board`]. One thread waits for whoever asks, and
//! each is answered in a thread of its own, so that a connection that says nothing delays no other.
//! The loader's counters are read as they stand at that moment.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bt_pipeline::stats::Stats;
use bt_pipeline::unpoisoned;

use crate::learner::StepPart;
use crate::metrics::Line;

/// What the answering thread shows.
#[derive(Default)]
pub struct Board {
    shown: Mutex<Shown>,
}

#[derive(Clone, Default)]
struct Shown {
    step: u64,
    /// Source images trained on by this process.
    images: u64,
    /// The newest line with a loss.
    line: Line,
    knn: Option<f64>,
    /// Seconds by part of the step.
    laps: Vec<(StepPart, Duration)>,
    stats: Option<Arc<Stats>>,
}

impl Board {
    /// Of a run that has done `step` steps so far.
    pub fn after(step: u64) -> Self {
        Board { shown: Mutex::new(Shown { step, ..Shown::default() }) }
    }

    /// The loader whose counters are shown.
    pub fn follow(&self, stats: &Arc<Stats>) {
        self.lock().stats = Some(Arc::clone(stats));
    }

    /// A step is done, of so many source images; `laps` is the time of each part so far.
    pub fn step(&self, step: u64, images: usize, laps: &[(StepPart, Duration)]) {
        let mut shown = self.lock();
        shown.step = step;
        shown.images += images as u64;
        shown.laps.clear();
        shown.laps.extend_from_slice(laps);
    }

    /// A line of metrics was written.
    pub fn line(&self, line: &Line) {
        let mut shown = self.lock();
        shown.knn = line.knn.or(shown.knn);
        if line.loss.is_some() {
            shown.line = line.clone();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        unpoisoned(self.shown.lock())
    }

    /// The figures in Prometheus' text format, version 0.0.4.
    pub fn text(&self) -> String {
        let shown = self.lock().clone();
        let mut out = Text::default();
        out.family(
            "bt_stream_step",
            "gauge",
            "Optimizer steps done, those before a resume included.",
        );
        out.value("bt_stream_step", "", shown.step as f64);
        out.family(
            "bt_stream_images_total",
            "counter",
            "Source images trained on by this process.",
        );
        out.value("bt_stream_images_total", "", shown.images as f64);
        let line = &shown.line;
        let gauges = [
            (
                "bt_stream_images_per_second",
                "Source images per second of the last line of metrics.",
                line.images_per_s,
            ),
            ("bt_stream_loss", "The loss, mean over the steps of the last line.", line.loss),
            ("bt_stream_loss_invariance", "Its invariance term.", line.invariance),
            ("bt_stream_loss_redundancy", "Its redundancy term, lambda included.", line.redundancy),
            ("bt_stream_learning_rate", "Learning rate of weights.", line.lr_weights),
            ("bt_stream_wait_ratio", "Share of the time that the step waited for data.", line.wait),
            (
                "bt_stream_epoch",
                "Epochs done, with the fraction of the present one.",
                line.loss.map(|_| line.epoch),
            ),
            ("bt_stream_knn_accuracy", "The latest kNN accuracy, 0 to 1.", shown.knn),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                out.family(name, "gauge", help);
                out.value(name, "", value);
            }
        }
        const STEP: &str = "bt_stream_step_seconds_total";
        out.family(STEP, "counter", "Seconds of the training thread by part of the step.");
        for (part, time) in &shown.laps {
            out.value(STEP, &format!("{{part=\"{}\"}}", part.name()), time.as_secs_f64());
        }
        if let Some(stats) = &shown.stats {
            loader(&mut out, stats);
        }
        out.0
    }
}

/// The loader's counters.
fn loader(out: &mut Text, stats: &Stats) {
    let now = stats.snapshot();
    out.family("bt_stream_bad_samples_total", "counter", "Samples left out, repetitions counted.");
    out.value("bt_stream_bad_samples_total", "", now.bad as f64);
    out.family("bt_stream_samples_total", "counter", "Samples whose views are finished.");
    out.value("bt_stream_samples_total", "", now.samples as f64);
    const BUSY: &str = "bt_stream_stage_seconds_total";
    out.family(BUSY, "counter", "Busy seconds of the loader's threads, added up.");
    for (stage, time) in [("read", now.read), ("decode", now.decode), ("augment", now.augment)] {
        out.value(BUSY, &format!("{{stage=\"{stage}\"}}"), time.as_secs_f64());
    }
    const STALL: &str = "bt_stream_stall_seconds_total";
    out.family(
        STALL,
        "counter",
        "Seconds of waiting: the feeder for a buffer, workers for a task, the step for a batch, \
         reads for a server.",
    );
    for (stage, time) in [
        ("feed", now.feed_wait),
        ("work", now.work_wait),
        ("step", now.batch_wait),
        ("network", now.network),
    ] {
        out.value(STALL, &format!("{{stage=\"{stage}\"}}"), time.as_secs_f64());
    }
    const DEPTH: &str = "bt_stream_queue_depth";
    out.family(DEPTH, "gauge", "Tasks that wait for a worker, batches that are being filled, batches that wait for the step.");
    let queues = [
        ("tasks", now.queued_tasks),
        ("filling", now.filling_batches),
        ("batches", now.ready_batches),
    ];
    for (queue, depth) in queues {
        out.value(DEPTH, &format!("{{queue=\"{queue}\"}}"), depth as f64);
    }
}

/// Lines of the text format.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}

/// Answers for a [`Board`] until it is dropped.
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Bytes of a request that are read: its first line is what counts.
const MOST_REQUEST: usize = 8192;

/// How long a client may take, for its whole request.
const PATIENCE: Duration = Duration::from_secs(2);

/// Threads that answer at a time. A connection beyond them is answered by the thread that accepts,
/// and further ones wait for that.
const MOST_AT_ONCE: usize = 16;

impl Server {
    /// Listens on `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// An address that is taken, or none of this machine.
    pub fn start(address: SocketAddr, board: Arc<Board>) -> Result<Self> {
        let listen = || -> std::io::Result<(TcpListener, SocketAddr)> {
            let listener = TcpListener::bind(address)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) =
            listen().with_context(|| format!("cannot listen on {address}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let accept = move || {
            // Each thread that answers has one of these.
            let busy = Arc::new(());
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                match stream {
                    Ok(stream) if Arc::strong_count(&busy) > MOST_AT_ONCE => {
                        drop(serve(stream, &board));
                    }
                    Ok(stream) => answer(stream, Arc::clone(&board), Arc::clone(&busy)),
                    // No file descriptor left, perhaps: it would come again at once.
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        };
        let thread = std::thread::Builder::new().name("bt-metrics".into()).spawn(accept)?;
        Ok(Server { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread, which finds the flag.
        if TcpStream::connect_timeout(&self.address, PATIENCE).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// Answers in a thread of its own, which `busy` stays with.
fn answer(stream: TcpStream, board: Arc<Board>, busy: Arc<()>) {
    let serve = move || {
        // A client that goes away, or never asks, is its own trouble.
        drop(serve(stream, &board));
        drop(busy);
    };
    // Where the system gives no thread the connection is closed: whoever asked does it again.
    drop(std::thread::Builder::new().name("bt-scrape".into()).spawn(serve));
}

/// The bytes of a request up to the blank line, as far as they come in time.
fn request_of(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let (mut request, mut chunk) = (Vec::new(), [0; 1024]);
    let begun = Instant::now();
    while request.len() < MOST_REQUEST && !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = PATIENCE.saturating_sub(begun.elapsed());
        if left.is_zero() {
            break;
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk)? {
            0 => break,
            n => request.extend_from_slice(&chunk[..n]),
        }
    }
    Ok(request)
}

fn serve(mut stream: TcpStream, board: &Board) -> std::io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = request_of(&mut stream)?;
    let mut words = request.split(|byte| byte.is_ascii_whitespace());
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    let (status, mut body) = match (method, path) {
        (b"GET" | b"HEAD", b"/metrics" | b"/") => ("200 OK", board.text()),
        (b"GET" | b"HEAD", _) => ("404 Not Found", "the figures are at /metrics\n".into()),
        _ => ("405 Method Not Allowed", "GET /metrics\n".into()),
    };
    let length = body.len();
    if method == b"HEAD" {
        // The length is that of what GET gives.
        body.clear();
    }
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn connections_that_say_nothing_delay_nobody() {
        let server = Server::start("127.0.0.1:0".parse().unwrap(), Arc::default()).unwrap();
        let idle: Vec<TcpStream> =
            (0..MOST_AT_ONCE - 1).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
        let begun = Instant::now();
        assert!(ask(server.address(), "GET /metrics HTTP/1.1\r\n\r\n").contains("200 OK"));
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
        drop(idle);
    }

    #[test]
    fn figures_are_served_and_the_thread_ends_with_the_server() {
        let board = Arc::new(Board::after(2));
        let server = Server::start("127.0.0.1:0".parse().unwrap(), Arc::clone(&board)).unwrap();
        let answer = ask(server.address(), "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.contains("bt_stream_step 2\n"), "those before a resume: {answer}");
        board.step(3, 64, &[(StepPart::Forward, Duration::from_millis(1500))]);
        board.step(4, 64, &[(StepPart::Forward, Duration::from_millis(2500))]);
        board.line(&Line { loss: Some(7.5), epoch: 0.5, ..Line::default() });
        board.line(&Line { knn: Some(0.25), ..Line::default() });
        board.follow(&Arc::new(Stats::default()));
        let answer = ask(server.address(), "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        for line in [
            "bt_stream_step 4",
            "bt_stream_images_total 128",
            "bt_stream_loss 7.5",
            "bt_stream_knn_accuracy 0.25",
            "bt_stream_step_seconds_total{part=\"forward\"} 2.5",
            "bt_stream_bad_samples_total 0",
            "bt_stream_queue_depth{queue=\"tasks\"} 0",
        ] {
            assert!(body.lines().any(|found| found == line), "{line} is not in\n{body}");
        }
        assert!(!body.contains("bt_stream_learning_rate"), "a figure that is not there yet");
        assert!(ask(server.address(), "GET /else HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(ask(server.address(), "POST / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
        let asked = ask(server.address(), "GET /metrics?name=x HTTP/1.1\r\n\r\n");
        assert!(asked.starts_with("HTTP/1.1 200 OK"), "{asked}");
        let head = ask(server.address(), "HEAD /metrics HTTP/1.1\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 OK") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(!head.contains("Content-Length: 0\r\n"), "{head}");
        let address = server.address();
        drop(server);
        assert!(TcpStream::connect(address).is_err());
    }
}
