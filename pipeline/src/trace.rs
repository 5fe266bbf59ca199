//! What each thread did when, for the viewers of Chrome (`chrome://tracing`) and Perfetto
//! (<https://ui.perfetto.dev>): a [`Trace`] with a [`Lane`] for each thread.
//!
//! Recording takes no lock: a lane belongs to one thread and fetches room from the trace for many
//! spans at a time. A lane is handed in when it is dropped.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use crate::sync::unpoisoned;

/// Spans for which a lane asks at a time, at most.
const ROOM: usize = 1024;

/// Into how many parts a small trace is divided: what a lane holds and does not use is lost to the
/// others.
const PARTS: usize = 256;

/// The lanes of one process, with an end to their size.
#[derive(Debug)]
pub struct Trace {
    begun: Instant,
    most: usize,
    left: AtomicUsize,
    left_out: AtomicU64,
    done: Mutex<Vec<(String, Vec<Span>)>>,
}

/// Something that took time.
#[derive(Clone, Copy, Debug)]
struct Span {
    name: &'static str,
    /// Nanoseconds since the trace began.
    start: u64,
    nanos: u64,
}

impl Trace {
    /// A trace of at most `most` spans (32 bytes of memory each), from now on. Of a longer run it
    /// holds the first ones.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Trace {
            begun: Instant::now(),
            most,
            left: AtomicUsize::new(most),
            left_out: AtomicU64::new(0),
            done: Mutex::new(Vec::new()),
        })
    }

    /// A lane for the present thread.
    pub fn lane(self: &Arc<Self>, name: impl Into<String>) -> Lane {
        Lane { trace: Arc::clone(self), name: name.into(), spans: Vec::new(), room: 0, left_out: 0 }
    }

    /// Spans that found no room, of the lanes handed in so far.
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Relaxed)
    }

    /// Spans of the lanes handed in so far.
    pub fn held(&self) -> usize {
        self.done().iter().map(|(_, spans)| spans.len()).sum()
    }

    fn done(&self) -> MutexGuard<'_, Vec<(String, Vec<Span>)>> {
        unpoisoned(self.done.lock())
    }

    /// Writes the lanes handed in so far in the Trace Event Format, times in microseconds. A trace
    /// that was cut says so under `otherData`.
    ///
    /// # Errors
    /// What `out` says.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        let mut lanes: Vec<_> =
            self.done().iter().map(|lane| (lane.0.clone(), lane.1.clone())).collect();
        lanes.sort_by(|a, b| a.0.cmp(&b.0));
        write!(out, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{{\"most_events\":{}", self.most)?;
        match self.left_out() {
            0 => {}
            n => write!(out, ",\"cut\":\"the last {n} events of the run found no room\"")?,
        }
        write!(out, "}},\"traceEvents\":[")?;
        let mut comma = "";
        // From 1: to Perfetto thread 0 is the kernel's, whatever the process.
        for (thread, (name, spans)) in (1..).zip(&lanes) {
            let name = serde_json::to_string(name).map_err(io::Error::other)?;
            write!(
                out,
                "{comma}\n{{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":1,\"tid\":{thread},\
                 \"args\":{{\"name\":{name}}}}}"
            )?;
            comma = ",";
            for Span { name, start, nanos } in spans {
                write!(
                    out,
                    ",\n{{\"ph\":\"X\",\"name\":\"{name}\",\"pid\":1,\"tid\":{thread},\
                     \"ts\":{}.{:03},\"dur\":{}.{:03}}}",
                    start / 1000,
                    start % 1000,
                    nanos / 1000,
                    nanos % 1000
                )?;
            }
        }
        writeln!(out, "\n]}}")
    }
}

/// One thread's part of a [`Trace`].
#[derive(Debug)]
pub struct Lane {
    trace: Arc<Trace>,
    name: String,
    spans: Vec<Span>,
    /// Spans that may still be pushed.
    room: usize,
    left_out: u64,
}

impl Lane {
    /// Records that `name`, a plain word or two, took from `start` to `end`.
    pub fn span(&mut self, name: &'static str, start: Instant, end: Instant) {
        if self.room == 0 && !self.fetch_room() {
            self.left_out += 1;
            return;
        }
        self.room -= 1;
        let nanos = |time: std::time::Duration| time.as_nanos() as u64;
        self.spans.push(Span {
            name,
            start: nanos(start.saturating_duration_since(self.trace.begun)),
            nanos: nanos(end.saturating_duration_since(start)),
        });
    }

    #[cold]
    fn fetch_room(&mut self) -> bool {
        let room = (self.trace.most / PARTS).clamp(1, ROOM);
        let taken = self
            .trace
            .left
            .fetch_update(Relaxed, Relaxed, |left| (left > 0).then(|| left.saturating_sub(room)));
        self.room = taken.map_or(0, |left| left.min(room));
        self.spans.reserve(self.room);
        self.room > 0
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.trace.left_out.fetch_add(self.left_out, Relaxed);
        self.trace.left.fetch_add(self.room, Relaxed);
        let lane = (std::mem::take(&mut self.name), std::mem::take(&mut self.spans));
        self.trace.done().push(lane);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn json(trace: &Trace) -> serde_json::Value {
        let mut text = Vec::new();
        trace.write(&mut text).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn spans_of_all_threads_are_written_with_their_times() {
        let trace = Trace::new(10_000);
        let start = trace.begun + Duration::from_nanos(1_002_003);
        std::thread::scope(|scope| {
            for name in ["b \"quoted\"", "a"] {
                let mut lane = trace.lane(name);
                scope.spawn(move || {
                    (0..1500)
                        .for_each(|_| lane.span("read", start, start + Duration::from_micros(7)));
                });
            }
        });
        let found = json(&trace);
        let events = found["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 2 * 1501);
        assert_eq!(events[0]["args"]["name"], "a");
        assert_eq!(events[1501]["args"]["name"], "b \"quoted\"");
        assert_eq!((&events[1]["ts"], &events[1]["dur"]), (&1002.003.into(), &7.0.into()));
        assert_eq!((&events[1]["tid"], &events[1502]["tid"]), (&1.into(), &2.into()));
        assert!(found["otherData"].get("cut").is_none());
    }

    #[test]
    fn a_small_trace_is_shared_by_all_lanes() {
        let trace = Trace::new(1000);
        let mut lanes: Vec<Lane> = (0..8).map(|i| trace.lane(i.to_string())).collect();
        let now = Instant::now();
        // The last one is seldom at work.
        for turn in 0..500 {
            let busy = if turn % 100 == 0 { 8 } else { 7 };
            lanes[..busy].iter_mut().for_each(|lane| lane.span("read", now, now));
        }
        drop(lanes);
        assert!((980..=1000).contains(&trace.held()), "{}", trace.held());
        assert_eq!(trace.held() as u64 + trace.left_out(), 7 * 500 + 5);
    }

    #[test]
    fn a_trace_that_is_full_keeps_the_first_spans_and_says_so() {
        let trace = Trace::new(1500);
        let (now, mut lane) = (Instant::now(), trace.lane("a"));
        (0..1000).for_each(|_| lane.span("early", now, now));
        (0..1000).for_each(|_| lane.span("late", now, now));
        drop(lane);
        let found = json(&trace);
        assert_eq!(found["traceEvents"].as_array().unwrap().len(), 1501);
        assert!(found["otherData"]["cut"].as_str().unwrap().contains("500 events"), "{found}");
        assert_eq!(trace.left_out(), 500);
    }
}
