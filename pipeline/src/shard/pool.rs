//! Jobs on scoped threads with results in order: packing, indexing, verifying
//! and saving. The loader's threads are elsewhere, in `run`; these end before
//! the function returns.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::Builder;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::{Error, Result};

/// How far a job over a set has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is counted: `samples` or `shards`. A job of several parts may count one, then the
    /// other.
    pub unit: &'static str,
    /// Those that are done or were left out.
    pub done: u64,
    /// All of them.
    pub total: u64,
    /// Bytes written, or read where nothing is written; 0 where nobody counts them.
    pub bytes: u64,
}

/// The threads that are meant by a number of them: 0 is one for each core.
pub(crate) fn thread_count(wanted: usize) -> usize {
    match wanted {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get()),
        wanted => wanted,
    }
}

/// Runs jobs `0..jobs` on `threads` threads, 0 for one per core, and hands each result to `sink`, on
/// this thread, in the order of the jobs. No job starts more than four per
/// thread ahead of the last one handed over, which bounds what is in memory.
/// `state` makes what a thread keeps between jobs.
///
/// # Errors
/// The first error of `sink`, after which no job is started;
/// [`Error::Panic`] when a job panics; [`Error::System`] when not one thread can be had.
pub(crate) fn in_order<S, T: Send>(
    threads: usize,
    jobs: usize,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> T + Sync,
    mut sink: impl FnMut(usize, T) -> Result<()>,
) -> Result<()> {
    let threads = thread_count(threads).clamp(1, jobs.max(1));
    let ahead = threads * 4;
    let (job_sender, job_receiver) = bounded::<usize>(ahead);
    let (result_sender, result_receiver) = bounded(ahead);
    std::thread::scope(|scope| {
        for nth in 0..threads {
            let (jobs, results) = (job_receiver.clone(), result_sender.clone());
            let (state, work) = (&state, &work);
            let serve = move || serve(state(), work, &jobs, &results);
            match Builder::new().spawn_scoped(scope, serve) {
                Err(error) if nth == 0 => return Err(Error::system("thread", error)),
                // Those that are there do it all.
                Err(_) => break,
                Ok(_) => {}
            }
        }
        drop((job_receiver, result_sender));
        // Both ends on this side close when it returns, so that the threads end.
        hand_over(jobs, ahead, job_sender, result_receiver, &mut sink)
    })
}

/// A job's number, and its result or its panic.
type Done<T> = (usize, Result<T>);

fn serve<S, T>(
    mut state: S,
    work: &impl Fn(&mut S, usize) -> T,
    jobs: &Receiver<usize>,
    results: &Sender<Done<T>>,
) {
    for job in jobs {
        // A panic is the job's result: the others wait for it otherwise. The
        // state it leaves is not used again, since the run ends.
        let result = catch_unwind(AssertUnwindSafe(|| work(&mut state, job)));
        let result = result.map_err(|cause| Error::panicked(cause.as_ref()));
        if results.send((job, result)).is_err() {
            return;
        }
    }
}

fn hand_over<T>(
    jobs: usize,
    ahead: usize,
    sender: Sender<usize>,
    receiver: Receiver<Done<T>>,
    sink: &mut impl FnMut(usize, T) -> Result<()>,
) -> Result<()> {
    let gone = || Error::Panic("a thread ended without a result".to_owned());
    let (mut sent, mut done) = (0, 0);
    let mut early = BTreeMap::new();
    while done < jobs {
        while sent < jobs && sent < done + ahead {
            // Never blocks: at most `ahead` jobs are on their way.
            sender.send(sent).map_err(|_| gone())?;
            sent += 1;
        }
        let (job, result) = receiver.recv().map_err(|_| gone())?;
        early.insert(job, result?);
        while let Some(result) = early.remove(&done) {
            sink(done, result)?;
            done += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whatever_the_threads() {
        for threads in [1, 2, 5] {
            let mut seen = Vec::new();
            let work = |calls: &mut usize, job: usize| {
                *calls += 1;
                std::thread::sleep(std::time::Duration::from_micros((job as u64 * 7919) % 300));
                job * job
            };
            in_order(
                threads,
                100,
                || 0,
                work,
                |job, square| {
                    assert_eq!(square, job * job);
                    seen.push(job);
                    Ok(())
                },
            )
            .unwrap();
            assert_eq!(seen, (0..100).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_error_of_the_sink_and_a_panic_of_a_job_end_the_run() {
        let stop = |job, ()| if job == 3 { Err(Error::Usage("three".to_owned())) } else { Ok(()) };
        let error = in_order(4, 1000, || (), |(), _| (), stop).unwrap_err();
        assert_eq!(error.to_string(), "three");
        let work = |(): &mut (), job: usize| assert!(job != 5, "job five");
        let error = in_order(2, 1000, || (), work, |_, ()| Ok(())).unwrap_err();
        assert!(matches!(&error, Error::Panic(cause) if cause.contains("job five")), "{error}");
    }
}
