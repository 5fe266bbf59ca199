//! A channel of a mutex and two conditions, with crossbeam's rules: a send fails
//! when all receivers are gone, a receive when the channel is empty and all
//! senders are gone.

use std::collections::VecDeque;
use std::sync::Arc;

use shuttle::sync::{Condvar, Mutex, MutexGuard};

use super::unpoisoned;

struct State<T> {
    queue: VecDeque<T>,
    senders: usize,
    receivers: usize,
}

struct Channel<T> {
    state: Mutex<State<T>>,
    capacity: usize,
    /// Something came in, or the last sender went.
    filled: Condvar,
    /// Something was taken out, or the last receiver went.
    emptied: Condvar,
}

impl<T> Channel<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        unpoisoned(self.state.lock())
    }
}

/// The message came back: nobody will receive it, or there is no room.
#[derive(Debug)]
pub(crate) struct Refused<T>(pub T);

/// The channel is empty and stays so.
#[derive(Debug)]
pub(crate) struct Ended;

pub(crate) struct Sender<T>(Arc<Channel<T>>);
pub(crate) struct Receiver<T>(Arc<Channel<T>>);

pub(crate) fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let state = State { queue: VecDeque::new(), senders: 1, receivers: 1 };
    let channel = Arc::new(Channel {
        state: Mutex::new(state),
        capacity,
        filled: Condvar::new(),
        emptied: Condvar::new(),
    });
    (Sender(Arc::clone(&channel)), Receiver(channel))
}

pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    bounded(usize::MAX)
}

impl<T> Sender<T> {
    pub fn send(&self, message: T) -> Result<(), Refused<T>> {
        let mut state = self.0.lock();
        while state.receivers > 0 && state.queue.len() >= self.0.capacity {
            state = unpoisoned(self.0.emptied.wait(state));
        }
        if state.receivers == 0 {
            return Err(Refused(message));
        }
        state.queue.push_back(message);
        self.0.filled.notify_one();
        Ok(())
    }

    pub fn try_send(&self, message: T) -> Result<(), Refused<T>> {
        let mut state = self.0.lock();
        if state.receivers == 0 || state.queue.len() >= self.0.capacity {
            return Err(Refused(message));
        }
        state.queue.push_back(message);
        self.0.filled.notify_one();
        Ok(())
    }
}

impl<T> Receiver<T> {
    pub fn recv(&self) -> Result<T, Ended> {
        let mut state = self.0.lock();
        loop {
            if let Some(message) = state.queue.pop_front() {
                self.0.emptied.notify_one();
                return Ok(message);
            }
            if state.senders == 0 {
                return Err(Ended);
            }
            state = unpoisoned(self.0.filled.wait(state));
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Sender(Arc::clone(&self.0))
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.0.lock().receivers += 1;
        Receiver(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.senders -= 1;
        if state.senders == 0 {
            self.0.filled.notify_all();
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.receivers -= 1;
        if state.receivers == 0 {
            // As crossbeam has it: without a bound, what nobody will receive goes now (messages may
            // hold ends of other channels); with one it stays as long as there are senders.
            let queue = match self.0.capacity {
                usize::MAX => std::mem::take(&mut state.queue),
                _ => VecDeque::new(),
            };
            self.0.emptied.notify_all();
            drop(state);
            drop(queue);
        }
    }
}
