//! Memory, streams and what is asked of them.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bt_stream::nn::cuda::emulate::Emulator;

use crate::say;

/// Bytes behind each allocation that nobody may change.
const FENCE: usize = 256;
const FENCE_BYTE: u8 = 0xC5;
/// Fresh and freed memory: NaN in every float type.
const NOTHING: u8 = 0xFF;
/// Allocations from here on are left as the system gives them: cuDNN's search asks for a gigabyte.
const HUGE: usize = 256 << 20;

/// Work on a stream. Recorded work is done many times.
pub type Op = Arc<dyn Fn(&mut Memory, &Emulator) -> Result<(), String> + Send + Sync>;

/// What stands in a stream.
#[derive(Clone)]
enum Step {
    Do(Op),
    /// Until the moment has passed.
    Wait(Arc<Moment>),
    Pass(Arc<Moment>),
}

/// A place in a stream.
pub struct Moment {
    stream: usize,
    passed: AtomicBool,
}

/// Device memory, and what of the host's is pinned. Addresses are the process's.
#[derive(Default)]
pub struct Memory {
    blocks: BTreeMap<u64, usize>,
    pinned: BTreeMap<u64, usize>,
    used: usize,
    peak: usize,
}

impl Memory {
    pub fn allocate(&mut self, bytes: usize) -> u64 {
        let address = fenced(bytes);
        self.blocks.insert(address, bytes);
        self.used += bytes;
        self.peak = self.peak.max(self.used);
        address
    }

    fn free(&mut self, address: u64) -> Result<(), String> {
        let Some(bytes) = self.blocks.remove(&address) else {
            return Err(format!("{address:#x} is freed, but was not allocated"));
        };
        self.used -= bytes;
        release(address, bytes)
    }

    pub fn pin(&mut self, bytes: usize) -> u64 {
        let address = fenced(bytes);
        self.pinned.insert(address, bytes);
        address
    }

    pub fn unpin(&mut self, address: u64) -> Result<(), String> {
        match self.pinned.remove(&address) {
            Some(bytes) => release(address, bytes),
            None => Err(format!("{address:#x} is not pinned")),
        }
    }

    pub fn is_pinned(&self, address: u64, bytes: usize) -> bool {
        within(&self.pinned, address, bytes)
    }

    /// That `bytes` from `address` on are allocated now.
    pub fn check(&self, what: &str, address: u64, bytes: usize) -> Result<(), String> {
        if within(&self.blocks, address, bytes) {
            return Ok(());
        }
        Err(format!("{what}: {bytes} bytes at {address:#x} are not allocated"))
    }

    /// The bytes, for work that is done now.
    pub fn bytes(&mut self, what: &str, address: u64, bytes: usize) -> Result<&mut [u8], String> {
        self.check(what, address, bytes)?;
        // SAFETY: they lie in an allocation of ours; all work is done under the device's lock.
        Ok(unsafe { std::slice::from_raw_parts_mut(address as *mut u8, bytes) })
    }

    pub fn used(&self) -> usize {
        self.used
    }

    pub fn peak(&self) -> usize {
        self.peak
    }

    pub fn forget_peak(&mut self) {
        self.peak = self.used;
    }
}

fn within(blocks: &BTreeMap<u64, usize>, address: u64, bytes: usize) -> bool {
    blocks
        .range(..=address)
        .next_back()
        .is_some_and(|(start, len)| address + bytes as u64 <= start + *len as u64)
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes + FENCE, 256).expect("a size that was asked for")
}

fn fenced(bytes: usize) -> u64 {
    // SAFETY: the layout is not empty; what is written is inside it.
    unsafe {
        let at = alloc(layout(bytes));
        assert!(!at.is_null(), "no memory for {bytes} bytes");
        if bytes < HUGE {
            at.write_bytes(NOTHING, bytes);
        }
        at.add(bytes).write_bytes(FENCE_BYTE, FENCE);
        at as u64
    }
}

fn release(address: u64, bytes: usize) -> Result<(), String> {
    let at = address as *mut u8;
    // SAFETY: `fenced` gave it with this many bytes, and it has left the list of what is allocated.
    unsafe {
        let fence = std::slice::from_raw_parts(at.add(bytes), FENCE);
        let whole = fence.iter().all(|byte| *byte == FENCE_BYTE);
        if bytes < HUGE {
            at.write_bytes(NOTHING, bytes);
        }
        dealloc(at, layout(bytes));
        if whole { Ok(()) } else { Err(format!("written behind the end of {bytes} bytes")) }
    }
}

#[derive(Default)]
struct Stream {
    queue: VecDeque<Step>,
    recording: Option<Vec<Op>>,
}

/// The device. One for the process, behind a lock.
pub struct Device {
    pub memory: Memory,
    emulator: Emulator,
    streams: HashMap<usize, Stream>,
    events: HashMap<usize, Option<Arc<Moment>>>,
    graphs: HashMap<usize, Arc<Vec<Op>>>,
    /// Names of the kernels that were asked for; a function is its place, from 1.
    functions: Vec<String>,
    handles: usize,
    /// Streams whose work is done as soon as it may be.
    eager: Vec<usize>,
    /// What went wrong first: from then on everything fails, as on a GPU.
    failed: bool,
}

/// Why a call does not do what it is asked for.
pub enum Refusal {
    /// No such stream, event or graph.
    Handle,
    /// Not while a stream is recorded.
    Recording,
    /// Work has failed before.
    Failed,
}

/// The device, which opens when it is first asked for.
pub fn device() -> MutexGuard<'static, Device> {
    static DEVICE: OnceLock<Mutex<Device>> = OnceLock::new();
    let device = DEVICE.get_or_init(|| {
        Mutex::new(Device {
            memory: Memory::default(),
            emulator: Emulator::open().expect("a C++ compiler"),
            streams: HashMap::from([(0, Stream::default())]),
            events: HashMap::new(),
            graphs: HashMap::new(),
            functions: Vec::new(),
            handles: 0,
            eager: eager(),
            failed: false,
        })
    });
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `STAND_IN_EAGER`: numbers of streams, in the order in which they were made and from 1, whose
/// work is done as soon as it may be; that of others when somebody waits for it.
pub fn eager() -> Vec<usize> {
    let text = std::env::var("STAND_IN_EAGER").unwrap_or_default();
    text.split(',').filter_map(|number| number.trim().parse().ok()).collect()
}

impl Device {
    fn handle(&mut self) -> usize {
        self.handles += 1;
        self.handles
    }

    pub fn multiprocessors(&self) -> i32 {
        use bt_stream::nn::cuda::Backend;
        self.emulator.multiprocessors() as i32
    }

    pub fn new_stream(&mut self) -> usize {
        // 0 is the stream that is always there.
        let number = self.streams.len();
        self.streams.insert(number, Stream::default());
        number
    }

    pub fn new_event(&mut self) -> usize {
        let handle = self.handle();
        self.events.insert(handle, None);
        handle
    }

    pub fn drop_event(&mut self, event: usize) -> Result<(), Refusal> {
        self.events.remove(&event).map(|_| ()).ok_or(Refusal::Handle)
    }

    pub fn function(&mut self, name: &str) -> Option<usize> {
        self.emulator.signature(name)?;
        self.functions.push(name.to_owned());
        Some(self.functions.len())
    }

    /// Name and the letters of its arguments.
    pub fn kernel(&self, function: usize) -> Option<(String, String)> {
        let name = self.functions.get(function.checked_sub(1)?)?;
        Some((name.clone(), self.emulator.signature(name)?.to_owned()))
    }

    /// Whether any stream is being recorded.
    pub fn is_recording(&self) -> bool {
        self.streams.values().any(|stream| stream.recording.is_some())
    }

    pub fn is_recorded(&self, stream: usize) -> bool {
        self.streams.get(&stream).is_some_and(|stream| stream.recording.is_some())
    }

    /// Asks for `op` on `stream`.
    pub fn push(&mut self, stream: usize, op: Op) -> Result<(), Refusal> {
        if self.failed {
            return Err(Refusal::Failed);
        }
        let to = self.streams.get_mut(&stream).ok_or(Refusal::Handle)?;
        match &mut to.recording {
            Some(ops) => ops.push(op),
            None => self.add(stream, Step::Do(op)),
        }
        if self.failed { Err(Refusal::Failed) } else { Ok(()) }
    }

    fn add(&mut self, stream: usize, step: Step) {
        if let Some(to) = self.streams.get_mut(&stream) {
            to.queue.push_back(step);
        }
        for stream in self.eager.clone() {
            self.advance(stream, false);
        }
    }

    pub fn free(&mut self, stream: usize, address: u64) -> Result<(), Refusal> {
        self.push(stream, Arc::new(move |memory, _| memory.free(address)))
    }

    pub fn record_event(&mut self, event: usize, stream: usize) -> Result<(), Refusal> {
        if self.is_recorded(stream) {
            return Err(Refusal::Recording);
        }
        let moment = Arc::new(Moment { stream, passed: AtomicBool::new(false) });
        *self.events.get_mut(&event).ok_or(Refusal::Handle)? = Some(Arc::clone(&moment));
        self.add(stream, Step::Pass(moment));
        Ok(())
    }

    pub fn wait_event(&mut self, stream: usize, event: usize) -> Result<(), Refusal> {
        if self.is_recorded(stream) {
            return Err(Refusal::Recording);
        }
        if let Some(moment) = self.events.get(&event).ok_or(Refusal::Handle)?.clone() {
            self.add(stream, Step::Wait(moment));
        }
        Ok(())
    }

    /// Waits for an event: for all of its stream, which is more.
    pub fn synchronize_event(&mut self, event: usize) -> Result<(), Refusal> {
        let moment = self.events.get(&event).ok_or(Refusal::Handle)?.clone();
        match moment {
            Some(moment) if !moment.passed.load(Ordering::Relaxed) => {
                self.synchronize(moment.stream)
            }
            _ => Ok(()),
        }
    }

    /// Does what stands in a stream; `to_the_end` does for it what it waits for in others.
    fn advance(&mut self, stream: usize, to_the_end: bool) {
        while let Some(step) = self.streams.get(&stream).and_then(|s| s.queue.front().cloned()) {
            match step {
                Step::Do(op) => {
                    if let Err(message) = op(&mut self.memory, &self.emulator) {
                        say(&message);
                        self.failed = true;
                    }
                }
                Step::Pass(moment) => moment.passed.store(true, Ordering::Relaxed),
                Step::Wait(moment) if moment.passed.load(Ordering::Relaxed) => {}
                Step::Wait(_) if !to_the_end => return,
                Step::Wait(moment) => {
                    self.advance(moment.stream, true);
                    continue;
                }
            }
            if let Some(stream) = self.streams.get_mut(&stream) {
                stream.queue.pop_front();
            }
        }
    }

    /// Waits for a stream.
    pub fn synchronize(&mut self, stream: usize) -> Result<(), Refusal> {
        // What waits for any other stream may come first: a recording of any forbids it.
        if self.is_recording() {
            return Err(Refusal::Recording);
        }
        if !self.streams.contains_key(&stream) {
            return Err(Refusal::Handle);
        }
        self.advance(stream, true);
        if self.failed { Err(Refusal::Failed) } else { Ok(()) }
    }

    pub fn synchronize_all(&mut self) -> Result<(), Refusal> {
        let all: Vec<usize> = self.streams.keys().copied().collect();
        all.into_iter().try_for_each(|stream| self.synchronize(stream))
    }

    pub fn record(&mut self, stream: usize) -> Result<(), Refusal> {
        let stream = self.streams.get_mut(&stream).ok_or(Refusal::Handle)?;
        if stream.recording.is_some() {
            return Err(Refusal::Recording);
        }
        stream.recording = Some(Vec::new());
        Ok(())
    }

    pub fn end_recording(&mut self, stream: usize) -> Result<usize, Refusal> {
        let stream = self.streams.get_mut(&stream).ok_or(Refusal::Handle)?;
        let ops = stream.recording.take().ok_or(Refusal::Recording)?;
        let handle = self.handle();
        self.graphs.insert(handle, Arc::new(ops));
        Ok(handle)
    }

    /// Another handle for what was recorded.
    pub fn instantiate(&mut self, graph: usize) -> Result<usize, Refusal> {
        let ops = Arc::clone(self.graphs.get(&graph).ok_or(Refusal::Handle)?);
        let handle = self.handle();
        self.graphs.insert(handle, ops);
        Ok(handle)
    }

    pub fn drop_graph(&mut self, graph: usize) -> Result<(), Refusal> {
        self.graphs.remove(&graph).map(|_| ()).ok_or(Refusal::Handle)
    }

    pub fn replay(&mut self, graph: usize, stream: usize) -> Result<(), Refusal> {
        let ops = Arc::clone(self.graphs.get(&graph).ok_or(Refusal::Handle)?);
        ops.iter().try_for_each(|op| self.push(stream, Arc::clone(op)))
    }
}
