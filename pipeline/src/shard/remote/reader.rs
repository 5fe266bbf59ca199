//! An object from front to back as a [`Read`]. A connection that breaks is taken up again at the
//! byte where it stopped; a few answers' pieces wait in memory, no more.

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::fetch::{Answer, Identity};
use super::net::{given_up, handle, wait};
use super::retry::{Failure, Tries};
use super::store::Target;
use crate::{Error, Result};

/// Pieces that wait for the reader; one is some 400 KB at most.
const AHEAD: usize = 4;

/// A stream of an object's bytes. Errors carry the crate's own ([`crate::Error`]) inside.
pub(crate) struct Reader {
    pieces: mpsc::Receiver<Result<Bytes>>,
    piece: Bytes,
    /// Bytes still to come.
    left: u64,
    path: PathBuf,
    task: tokio::task::AbortHandle,
}

impl Reader {
    /// Begins to read `target`, which has to be `identity`.
    pub fn open(target: &Target, identity: &Identity) -> Result<Reader> {
        let (sender, pieces) = mpsc::channel(AHEAD);
        let path = target.path.clone();
        let task = handle()?.spawn(produce(target.clone(), identity.clone(), sender));
        let (piece, left) = (Bytes::new(), identity.size);
        Ok(Reader { pieces, piece, left, path, task: task.abort_handle() })
    }

    /// As [`Reader::next_piece`]; `None` when nothing has come within `time`.
    pub fn next_piece_within(&mut self, time: Duration) -> Result<Option<Bytes>> {
        match wait(async { tokio::time::timeout(time, self.pieces.recv()).await })? {
            None => Err(given_up(&self.path)),
            Some(Err(_)) => Ok(None),
            Some(Ok(piece)) => self.took(piece).map(Some),
        }
    }

    /// The next piece; empty at the end.
    pub fn next_piece(&mut self) -> Result<Bytes> {
        match self.pieces.try_recv() {
            Ok(piece) => return self.took(Some(piece)),
            Err(mpsc::error::TryRecvError::Disconnected) => return self.took(None),
            Err(mpsc::error::TryRecvError::Empty) => {}
        }
        match wait(self.pieces.recv())? {
            None => Err(given_up(&self.path)),
            Some(piece) => self.took(piece),
        }
    }

    /// What came, counted; the end is one only where all bytes have come.
    fn took(&mut self, piece: Option<Result<Bytes>>) -> Result<Bytes> {
        let Some(piece) = piece.transpose()? else {
            if self.left == 0 {
                return Ok(Bytes::new());
            }
            let cause = format!("the download ended {} bytes early", self.left);
            return Err(Error::io(&self.path, io::Error::other(cause)));
        };
        self.left = self.left.saturating_sub(piece.len() as u64);
        Ok(piece)
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            self.piece = self.next_piece().map_err(io::Error::other)?;
        }
        let count = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends all pieces, or an error at the end.
async fn produce(target: Target, identity: Identity, pieces: mpsc::Sender<Result<Bytes>>) {
    let mut tries = Tries::new(&target);
    let mut at = 0;
    while at < identity.size {
        let Err(failure) = send(&target, &identity, &mut at, &mut tries, &pieces).await else {
            return;
        };
        if let Err(failure) = tries.again(&target, failure).await {
            let error = failure.into_error(&target, at, tries.failed());
            let _ = pieces.send(Err(error)).await;
            return;
        }
    }
}

/// One try from `at` on. It is over, too, when nobody reads any more.
async fn send(
    target: &Target,
    identity: &Identity,
    at: &mut u64,
    tries: &mut Tries,
    pieces: &mpsc::Sender<Result<Bytes>>,
) -> Result<(), Failure> {
    let mut answer = Answer::open(target, Some(*at..identity.size), Some(identity)).await?;
    while let Some(bytes) = answer.next().await? {
        *at += bytes.len() as u64;
        tries.progress(bytes.len() as u64);
        let full = Instant::now();
        if pieces.send(Ok(bytes)).await.is_err() {
            return Ok(());
        }
        answer.excuse(full.elapsed());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::RemoteOptions;
    use crate::shard::remote::server::{Fault, Server};
    use crate::shard::remote::store::Stores;

    #[test]
    fn a_stream_whose_task_ends_is_no_end_of_the_object() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.tar"), [7; 5000]).unwrap();
        let server = Server::of_folder(folder.path());
        let target = Stores::new(&RemoteOptions::default(), &Default::default())
            .target(&server.url("a.tar"))
            .unwrap();
        let identity = Identity { size: 5000, etag: None, modified: 0 };
        let mut all = Vec::new();
        Reader::open(&target, &identity).unwrap().read_to_end(&mut all).unwrap();
        assert_eq!(all, [7; 5000]);

        server.misbehave(|_, _| Fault::Hang(Duration::from_secs(60)));
        let mut reader = Reader::open(&target, &identity).unwrap();
        reader.task.abort();
        let error = reader.read_to_end(&mut all).unwrap_err();
        assert!(error.to_string().contains("5000 bytes early"), "{error}");
    }
}
