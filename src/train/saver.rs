//! Checkpoints written beside the steps: a disk takes seconds, in which a GPU does many steps.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use bt_pipeline::trace::Lane;

use crate::checkpoint::{self, State, Tensors};
use crate::print::one_line;

/// Writes one checkpoint at a time, on a thread of its own.
pub(super) struct Saver {
    /// To the thread; it ends when there is none any more.
    states: Option<Sender<(State, Tensors)>>,
    written: Receiver<Written>,
    thread: Option<JoinHandle<()>>,
    /// Steps in the one that is being written.
    writing: Option<u64>,
}

/// What became of a checkpoint.
pub(super) struct Written {
    /// Steps in it.
    pub(super) step: u64,
    /// Its folder.
    pub(super) path: Result<PathBuf>,
}

impl Saver {
    /// One for the run in `run`, of which the newest `keep` checkpoints stay; `lane` notes when it
    /// writes.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn start(run: &Path, keep: usize, mut lane: Option<Lane>) -> Result<Self> {
        let (states, taken) = channel::<(State, Tensors)>();
        let (tell, written) = channel();
        let run = run.to_owned();
        let write = move || {
            for (state, tensors) in taken {
                let (step, begun) = (state.step, Instant::now());
                let path = checkpoint::save(&run, state, tensors, keep);
                lane.iter_mut().for_each(|lane| lane.span("write", begun, Instant::now()));
                if tell.send(Written { step, path }).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("bt-checkpoint".into()).spawn(write);
        let thread = thread.context("no thread for checkpoints")?;
        Ok(Saver { states: Some(states), written, thread: Some(thread), writing: None })
    }

    /// Begins to write a state that nothing changes meanwhile. The one before was taken up, by
    /// [`Saver::wait`]: two of them would be in memory.
    pub(super) fn begin(&mut self, state: State, tensors: Tensors) {
        assert!(self.writing.is_none(), "the checkpoint before is still being written");
        self.writing = Some(state.step);
        if let Some(states) = &self.states {
            // That the thread is gone is told by whoever waits.
            let _ = states.send((state, tensors));
        }
    }

    /// What was begun and not taken up yet, if it has been written.
    pub(super) fn poll(&mut self) -> Option<Written> {
        self.writing?;
        let written = self.written.try_recv().ok()?;
        self.writing = None;
        Some(written)
    }

    /// What was begun and not taken up yet, once it has been written.
    pub(super) fn wait(&mut self) -> Option<Written> {
        let step = self.writing.take()?;
        let gone = |_| Written { step, path: Err(anyhow!("the thread for checkpoints has ended")) };
        Some(self.written.recv().unwrap_or_else(gone))
    }
}

impl Drop for Saver {
    /// Waits for what is being written.
    fn drop(&mut self) {
        if let Some(Written { path: Err(error), .. }) = self.wait() {
            tracing::warn!("{}", one_line(&error));
        }
        self.states = None;
        self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;

    fn state(step: u64) -> State {
        State::new(step, Default::default(), 10, &RunConfig::default())
    }

    #[test]
    fn what_was_begun_is_told_of_once_and_is_there_when_the_saver_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut saver = Saver::start(dir.path(), 2, None).unwrap();
        assert!(saver.wait().is_none() && saver.poll().is_none());
        for step in 1..=3 {
            saver.begin(state(step), Tensors::default());
            let written = saver.wait().unwrap();
            assert_eq!((written.step, written.path.unwrap().exists()), (step, true));
            assert!(saver.wait().is_none() && saver.poll().is_none());
        }
        saver.begin(state(4), Tensors::default());
        let mut polled = None;
        while polled.is_none() {
            polled = saver.poll();
        }
        assert_eq!(polled.unwrap().step, 4);
        saver.begin(state(5), Tensors::default());
        drop(saver);
        assert_eq!(checkpoint::newest_step(dir.path()), Some(5));
        assert_eq!(checkpoint::list(&dir.path().join(checkpoint::FOLDER)).unwrap().len(), 2);
    }

    #[test]
    fn one_that_cannot_be_written_is_told_of_and_the_next_one_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(checkpoint::FOLDER);
        std::fs::write(&folder, "in the way").unwrap();
        let mut saver = Saver::start(dir.path(), 2, None).unwrap();
        saver.begin(state(1), Tensors::default());
        let error = saver.wait().unwrap().path.unwrap_err();
        assert!(format!("{error:#}").contains("step-0000000001"), "{error:#}");
        std::fs::remove_file(&folder).unwrap();
        saver.begin(state(2), Tensors::default());
        assert!(saver.wait().unwrap().path.unwrap().exists());
    }
}
