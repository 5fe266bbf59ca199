//! Streamed samples between the feeder, which reads them, and the workers, which use them: how many
//! bytes they take, so that the feeder can wait where they would take more than the budget leaves.

use std::sync::{Arc, PoisonError};

use crate::shard::OwnedSample;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// The bytes of all samples that were handed on and are still there, and who uses them.
#[derive(Default)]
pub(crate) struct Lent {
    state: Mutex<State>,
    less: Condvar,
}

#[derive(Default)]
struct State {
    bytes: u64,
    users: usize,
}

/// A worker. Samples that are on their way when the last one leaves stay where they are: nobody
/// waits for them.
pub(crate) struct User(Arc<Lent>);

/// A sample whose bytes count until it is dropped.
pub(crate) struct LentSample {
    pub sample: OwnedSample,
    // Behind the sample: the bytes are gone when they no longer count.
    _counted: Counted,
}

struct Counted {
    bytes: u64,
    lent: Arc<Lent>,
}

impl Lent {
    /// Counts `sample` from now on.
    pub fn hand_on(self: &Arc<Self>, sample: OwnedSample) -> LentSample {
        let bytes = sample.image.len() as u64;
        self.lock().bytes += bytes;
        LentSample { sample, _counted: Counted { bytes, lent: Arc::clone(self) } }
    }

    /// One more who uses samples.
    pub fn user(self: &Arc<Self>) -> User {
        self.lock().users += 1;
        User(Arc::clone(self))
    }

    /// Waits until at most `most` bytes are there, of which the caller's own must not be more, or
    /// until nobody is left to use them. Whether it had to wait.
    pub fn wait_for(&self, most: u64) -> bool {
        let is_over = |state: &State| state.users > 0 && state.bytes > most;
        let mut state = self.lock();
        let waits = is_over(&state);
        while is_over(&state) {
            state = self.less.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        waits
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.lent.lock().bytes -= self.bytes;
        self.lent.less.notify_all();
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.0.lock().users -= 1;
        self.0.less.notify_all();
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_waits_goes_on_when_enough_samples_or_all_users_are_gone() {
        let lent = Arc::new(Lent::default());
        let users = [lent.user(), lent.user()];
        let sample = |bytes| OwnedSample { image: vec![0; bytes], ..OwnedSample::default() };
        let samples = [30, 20, 10].map(|bytes| lent.hand_on(sample(bytes)));
        assert!(!lent.wait_for(60));
        let (sender, waited) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(lent.wait_for(10));
                sender.send(()).unwrap();
            });
            let [first, second, third] = samples;
            drop(first);
            assert!(waited.recv_timeout(Duration::from_millis(50)).is_err(), "30 bytes are left");
            drop(second);
            waited.recv_timeout(Duration::from_secs(20)).unwrap();
            scope.spawn(|| {
                lent.wait_for(0);
                sender.send(()).unwrap();
            });
            let [one, other] = users;
            drop(one);
            assert!(waited.recv_timeout(Duration::from_millis(50)).is_err(), "one is left");
            drop(other);
            waited.recv_timeout(Duration::from_secs(20)).unwrap();
            drop(third);
        });
        assert_eq!(lent.lock().bytes, 0);
    }
}
