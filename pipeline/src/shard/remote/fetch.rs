//! Bytes of an object: a range, or all of a small one. Every answer is checked against what was
//! asked for and against the object that was opened; nothing is believed before it is counted.

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};
use object_store::{GetOptions, GetRange, ObjectMeta};
use tokio::time::{Instant, timeout_at};

use super::retry::{Failure, Tries, changed};
use super::store::Target;
use crate::shard::damaged;
use crate::{Error, Result};

/// Bytes that have to come within [`crate::shard::RemoteOptions::timeout`].
const PACE: u64 = 64 << 10;

/// What tells one state of an object from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub size: u64,
    pub etag: Option<String>,
    /// Seconds since 1970; 0 where the server does not say.
    pub modified: i64,
}

impl Identity {
    pub(super) fn of(meta: &ObjectMeta) -> Identity {
        let etag = meta.e_tag.as_deref().filter(|etag| !etag.is_empty()).map(quoted);
        Identity { size: meta.size, etag, modified: meta.last_modified.timestamp() }
    }

    /// How `now` is another object than this one, if it is.
    fn differs(&self, now: &Identity) -> Option<String> {
        let bare = |etag: &str| etag.trim_start_matches("W/").to_owned();
        if self.size != now.size {
            return Some(format!("it had {} bytes and has {}", self.size, now.size));
        }
        match (&self.etag, &now.etag) {
            (Some(was), Some(is)) if bare(was) != bare(is) => {
                Some(format!("its ETag was {was} and is {is}"))
            }
            (Some(_), Some(_)) => None,
            _ if self.modified != 0 && now.modified != 0 && self.modified != now.modified => {
                Some("its time of modification is another".to_owned())
            }
            _ => None,
        }
    }

    /// What `If-Match` can ask for: a weak ETag never matches there.
    fn strong_etag(&self) -> Option<String> {
        self.etag.clone().filter(|etag| !etag.starts_with("W/"))
    }
}

/// An ETag with its quotes, without which it never matches: Azure's listings leave them away.
fn quoted(etag: &str) -> String {
    let opaque = etag.strip_prefix("W/").unwrap_or(etag);
    if opaque.len() >= 2 && opaque.starts_with('"') && opaque.ends_with('"') {
        etag.to_owned()
    } else {
        format!("\"{etag}\"")
    }
}

/// An answer that is being read.
pub(super) struct Answer {
    stream: std::pin::Pin<Box<dyn Stream<Item = object_store::Result<Bytes>> + Send>>,
    /// Bytes still to come.
    left: u64,
    limit: Duration,
    deadline: Instant,
    since: u64,
    pub identity: Identity,
}

impl Answer {
    /// Asks for `range`, or for everything. With `identity` the object has to be that one.
    pub async fn open(
        target: &Target,
        range: Option<Range<u64>>,
        identity: Option<&Identity>,
    ) -> Result<Answer, Failure> {
        let limit = target.options.timeout;
        if range.as_ref().is_some_and(Range::is_empty) {
            return Err(Failure::Final("no bytes were asked for".to_owned()));
        }
        let options = GetOptions {
            range: range.clone().map(GetRange::Bounded),
            if_match: identity.and_then(Identity::strong_etag),
            ..GetOptions::default()
        };
        // The look-up of a name panics where the system has no thread for it.
        let asked = AssertUnwindSafe(target.store.get_opts(&target.location, options));
        let answer = tokio::time::timeout(limit, asked.catch_unwind())
            .await
            .map_err(|_| slow(limit))?
            .map_err(|_| Failure::Passing("the request panicked".to_owned()))?
            .map_err(|e| Failure::of(&e))?;
        let is = Identity::of(&answer.meta);
        if let Some(how) = identity.and_then(|was| was.differs(&is)) {
            return Err(Failure::Wrong(changed(&how)));
        }
        let expected = match range {
            Some(range) => range.start..range.end.min(is.size),
            None => 0..is.size,
        };
        if answer.range != expected {
            let cause = format!(
                "bytes {} to {} were asked for, the server sent {} to {}",
                expected.start, expected.end, answer.range.start, answer.range.end
            );
            return Err(Failure::Wrong(cause));
        }
        let stream = answer.into_stream();
        let (left, deadline) = (expected.end - expected.start, Instant::now() + limit);
        Ok(Answer { stream, left, limit, deadline, since: 0, identity: is })
    }

    /// The next bytes; `None` when all have come.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if self.left == 0 {
            return Ok(None);
        }
        let item =
            timeout_at(self.deadline, self.stream.next()).await.map_err(|_| slow(self.limit))?;
        let bytes = match item {
            Some(Ok(bytes)) => bytes,
            Some(Err(e)) => return Err(Failure::of(&e)),
            None => {
                let cause = format!("the answer ended {} bytes early", self.left);
                return Err(Failure::Passing(cause));
            }
        };
        let count = bytes.len() as u64;
        let over = || Failure::Wrong("the server sent more bytes than were asked for".to_owned());
        self.left = self.left.checked_sub(count).ok_or_else(over)?;
        self.since += count;
        if self.since >= PACE {
            (self.since, self.deadline) = (0, Instant::now() + self.limit);
        }
        Ok(Some(bytes))
    }

    /// So much of the time was not the server's: whoever reads the bytes was busy.
    pub fn excuse(&mut self, time: Duration) {
        self.deadline += time;
    }
}

fn slow(limit: Duration) -> Failure {
    Failure::Passing(format!("the server sent less than {} KiB in {limit:?}", PACE >> 10))
}

/// Bytes `range` of `target`, as far as it reaches. The caller has checked the length against a
/// limit.
///
/// # Errors
/// [`Error::Io`] when the tries are used up, [`Error::Shard`] when the object is not `identity`
/// or the answer is not what was asked for; with URL, offset and cause.
pub(super) async fn range(
    target: &Target,
    range: Range<u64>,
    identity: Option<&Identity>,
) -> Result<(Bytes, Identity)> {
    let mut got = Vec::new();
    let mut tries = Tries::new(target);
    let mut found = identity.cloned();
    loop {
        let at = range.start + got.len() as u64;
        let outcome = part(target, at..range.end, &mut found, &mut got, &mut tries).await;
        let Err(failure) = outcome else { break };
        let at = range.start + got.len() as u64;
        if let Err(failure) = tries.again(target, failure).await {
            return Err(failure.into_error(target, at, tries.failed()));
        }
    }
    let nothing = || damaged(&target.path, range.start, "nothing was asked for");
    found.map(|identity| (Bytes::from(got), identity)).ok_or_else(nothing)
}

/// One try; what arrives stays in `got`, and later tries go on behind it.
async fn part(
    target: &Target,
    range: Range<u64>,
    identity: &mut Option<Identity>,
    got: &mut Vec<u8>,
    tries: &mut Tries,
) -> Result<(), Failure> {
    let mut answer = Answer::open(target, Some(range), identity.as_ref()).await?;
    got.reserve_exact(answer.left as usize);
    identity.get_or_insert_with(|| answer.identity.clone());
    while let Some(bytes) = answer.next().await? {
        tries.progress(bytes.len() as u64);
        got.extend_from_slice(&bytes);
    }
    Ok(())
}

/// All of an object of at most `limit` bytes.
///
/// # Errors
/// As [`range`]; [`Error::Shard`] when it is larger.
pub(super) async fn whole(target: &Target, limit: u64) -> Result<Bytes> {
    let mut tries = Tries::new(target);
    loop {
        let failure = match whole_once(target, limit).await {
            Ok(bytes) => return Ok(bytes),
            Err(failure) => failure,
        };
        if let Err(failure) = tries.again(target, failure).await {
            return Err(failure.into_error(target, 0, tries.failed()));
        }
    }
}

async fn whole_once(target: &Target, limit: u64) -> Result<Bytes, Failure> {
    let mut answer = Answer::open(target, None, None).await?;
    if answer.left > limit {
        let cause = format!("{} bytes are over the limit of {limit}", answer.left);
        return Err(Failure::Wrong(cause));
    }
    let mut got = Vec::with_capacity(answer.left as usize);
    while let Some(bytes) = answer.next().await? {
        got.extend_from_slice(&bytes);
    }
    Ok(got.into())
}

/// An error once more, for another reader of what failed.
pub(super) fn copy(error: &Error) -> Error {
    match error {
        Error::Io { path, source } => {
            Error::io(path, std::io::Error::new(source.kind(), source.to_string()))
        }
        Error::System { what, source } => {
            Error::system(what, std::io::Error::new(source.kind(), source.to_string()))
        }
        Error::Shard { path, offset, cause } => {
            Error::Shard { path: path.clone(), offset: *offset, cause: cause.clone() }
        }
        other => Error::Usage(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_object_is_noticed_by_what_the_server_tells() {
        let is = |size, etag: Option<&str>, modified| Identity {
            size,
            etag: etag.map(str::to_owned),
            modified,
        };
        let was = is(10, Some("\"a\""), 5);
        assert_eq!(was.differs(&was), None);
        assert_eq!(was.differs(&is(10, Some("W/\"a\""), 6)), None, "the same ETag, compressed");
        assert!(was.differs(&is(11, Some("\"a\""), 5)).is_some());
        assert!(was.differs(&is(10, Some("\"b\""), 5)).is_some());
        assert!(was.differs(&is(10, None, 6)).is_some());
        assert_eq!(was.differs(&is(10, None, 0)), None);
        assert_eq!(is(10, Some("W/\"a\""), 0).strong_etag(), None);
    }

    #[test]
    fn etags_have_quotes_wherever_they_come_from() {
        let identity = |etag: Option<&str>| {
            Identity::of(&ObjectMeta {
                location: object_store::path::Path::from("a.tar"),
                last_modified: Default::default(),
                size: 10,
                e_tag: etag.map(str::to_owned),
                version: None,
            })
        };
        for (told, etag) in [
            ("0x8D1", "\"0x8D1\""),
            ("\"0x8D1\"", "\"0x8D1\""),
            ("W/\"0x8D1\"", "W/\"0x8D1\""),
            ("\"", "\"\"\""),
        ] {
            assert_eq!(identity(Some(told)).etag.as_deref(), Some(etag));
        }
        let (listed, answered) = (identity(Some("0x8D1")), identity(Some("\"0x8D1\"")));
        assert_eq!(listed.differs(&answered), None);
        assert_eq!(listed.strong_etag().as_deref(), Some("\"0x8D1\""));
        assert!(listed.differs(&identity(Some("0x8D2"))).is_some());
        assert_eq!(identity(Some("")).etag, None);
    }
}
