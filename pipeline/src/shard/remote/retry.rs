//! What failed, whether it is worth another try, and how long to wait before it.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::store::Target;
use crate::Error;
use crate::shard::damaged;

/// The longest wait between two tries.
const LONGEST: Duration = Duration::from_secs(20);

/// How many times longer the waits are for a server that says it has too much to do: of the
/// default backoff the first is a second at least. How long it asks for (`Retry-After`)
/// `object_store` keeps to itself.
const BUSY: u32 = 7;

/// Progress that makes up for failed tries: a stream that is cut now and then is read to its end.
const PROGRESS: u64 = 64 << 10;

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may succeed later.
    Passing(String),
    /// There is no such object.
    Missing(String),
    /// The server does not let this client read it.
    Denied(String),
    /// The server sends whole objects alone.
    Whole(String),
    /// It will fail again.
    Final(String),
    /// The object is not the one that was opened, or the server does not keep to HTTP.
    Wrong(String),
}

impl Failure {
    /// Of what `object_store` says.
    pub fn of(error: &object_store::Error) -> Failure {
        use object_store::Error as E;
        let words = words(error);
        match error {
            E::NotFound { .. } => Failure::Missing(words),
            E::Precondition { .. } => Failure::Wrong(changed("its ETag is another")),
            E::NotSupported { .. } => Failure::Whole(
                "the server does not answer requests for a part of an object (no 206 Partial Content)"
                    .into(),
            ),
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => Failure::Denied(words),
            E::Generic { .. } if status(&words) == Some("410") => Failure::Missing(words),
            E::Generic { .. } if answer_is_wrong(&words) => {
                let cause = "no answer that can be used to a request for a part of an object";
                Failure::Final(format!("{cause}: {words}"))
            }
            E::Generic { .. }
                if status_is_final(&words)
                    || range_is_wrong(&words)
                    || words.contains(super::capped::OVER) =>
            {
                Failure::Final(words)
            }
            E::Generic { .. } | E::JoinError { .. } => Failure::Passing(words),
            _ => Failure::Final(words),
        }
    }

    /// The crate's error, about byte `offset` of `target`, after so many tries.
    pub fn into_error(self, target: &Target, offset: u64, tries: u32) -> Error {
        let (kind, cause) = match self {
            Failure::Wrong(cause) => return damaged(&target.path, offset, cause),
            Failure::Missing(cause) => (std::io::ErrorKind::NotFound, cause),
            Failure::Denied(cause) => (std::io::ErrorKind::PermissionDenied, cause),
            Failure::Whole(cause) => (std::io::ErrorKind::Unsupported, cause),
            Failure::Final(cause) => (std::io::ErrorKind::InvalidInput, cause),
            Failure::Passing(cause) => (std::io::ErrorKind::ConnectionAborted, cause),
        };
        let times = if tries > 1 { format!(" {tries} times, at last") } else { String::new() };
        let text = format!("cannot be read at byte {offset}: failed{times}: {cause}");
        Error::io(&target.path, std::io::Error::new(kind, text))
    }
}

/// The cause of an object that is another one now.
pub(super) fn changed(how: &str) -> String {
    format!("the object has changed since it was opened: {how}")
}

/// The status of an answer that is an error. `object_store` keeps it in the error's text alone.
fn status(words: &str) -> Option<&str> {
    words.split("status code: ").nth(1).and_then(|rest| rest.get(..3))
}

/// Statuses from 400 to 499, but for those that say "later", and those of a server that does not
/// know the request.
fn status_is_final(words: &str) -> bool {
    status(words).is_some_and(|status| match status {
        "408" | "425" | "429" => false,
        // Not Implemented, as servers answer that do not list; HTTP Version Not Supported.
        "501" | "505" => true,
        _ => status.starts_with('4'),
    })
}

/// Too Many Requests; Service Unavailable, as S3 says `SlowDown`.
fn is_busy(words: &str) -> bool {
    matches!(status(words), Some("429" | "503"))
}

/// A range that cannot be asked for, or lies behind the object's end. The type of `object_store`
/// that says so has no name outside.
fn range_is_wrong(words: &str) -> bool {
    words.contains("Range started at") || words.contains("Wanted range starting at")
}

/// An answer whose headers lack what has to be known of a part of an object, or tell of another
/// part: the server would give it again.
fn answer_is_wrong(words: &str) -> bool {
    [
        "CONTENT_RANGE header",
        "Content-Range header",
        "Content-Length Header missing",
        "Invalid content length",
    ]
    .iter()
    .any(|text| words.contains(text))
        || words.contains("Requested ") && words.contains(", got ")
}

/// An error with its sources, each said once, on one line of moderate length.
pub(super) fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    // The request, and how long it took, would make each text another one.
    if let Some((_, cause)) =
        text.split_once("Error performing ").and_then(|(_, t)| t.split_once(" - "))
    {
        text = cause.to_owned();
    }
    let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.truncate(text.trim_end_matches([':', ' ']).len());
    if let Some((end, _)) = text.char_indices().nth(400) {
        text.truncate(end);
        text.push_str(" ...");
    }
    text
}

/// The tries of one request.
pub(super) struct Tries {
    failed: u32,
    progress: u64,
    limit: u32,
    first: Duration,
}

impl Tries {
    pub fn new(target: &Target) -> Self {
        let options = &target.options;
        Tries { failed: 0, progress: 0, limit: options.retries, first: options.backoff }
    }

    /// So many bytes arrived.
    pub fn progress(&mut self, bytes: u64) {
        self.progress += bytes;
        if self.progress >= PROGRESS {
            (self.failed, self.progress) = (0, 0);
        }
    }

    /// Tries that failed, the last one included.
    pub fn failed(&self) -> u32 {
        self.failed
    }

    /// Waits after a failure that may pass.
    ///
    /// # Errors
    /// The failure, where it will not pass, or did not often enough.
    pub async fn again(&mut self, target: &Target, failure: Failure) -> Result<(), Failure> {
        self.failed += 1;
        let Failure::Passing(cause) = &failure else { return Err(failure) };
        if self.failed > self.limit {
            return Err(failure);
        }
        let first = if is_busy(cause) { self.first.saturating_mul(BUSY) } else { self.first };
        let wait = delay(first, self.failed);
        tracing::info!("{}: {cause}; once more in {wait:?}", target.path.display());
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// The wait after the `failed`-th failure: doubled each time, and up to a quarter less at random,
/// so that many clients do not come back at once.
fn delay(first: Duration, failed: u32) -> Duration {
    let whole = first.saturating_mul(1 << failed.saturating_sub(1).min(16)).min(LONGEST);
    let random = RandomState::new().hash_one(failed) % 256;
    whole.mul_f64(1.0 - random as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::RemoteOptions;

    #[test]
    fn waits_double_up_to_a_bound() {
        let ms = Duration::from_millis;
        for (failed, most) in [(1, ms(200)), (2, ms(400)), (4, ms(1600)), (40, LONGEST)] {
            let wait = delay(ms(200), failed);
            assert!(wait <= most && wait >= most.mul_f64(0.75), "{failed}: {wait:?}");
        }
    }

    #[test]
    fn a_server_with_too_much_to_do_is_left_alone_for_a_second() {
        let backoff = RemoteOptions::default().backoff;
        for (text, busy) in
            [("429 Too Many Requests", true), ("503 SlowDown", true), ("500", false)]
        {
            let words = format!("Server returned non-2xx status code: {text}");
            assert_eq!(is_busy(&words), busy, "{text}");
        }
        assert!(delay(backoff * BUSY, 1) >= Duration::from_secs(1));
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let generic = |text: &str| object_store::Error::Generic {
            store: "HTTP",
            source: text.to_owned().into(),
        };
        for (text, passing) in [
            ("Server returned non-2xx status code: 503 Service Unavailable", true),
            ("Server returned non-2xx status code: 429 Too Many Requests", true),
            ("Server returned non-2xx status code: 501 Unsupported method ('PROPFIND')", false),
            ("Server returned non-2xx status code: 505 HTTP Version Not Supported", false),
            ("Server returned non-2xx status code: 500 Internal Server Error", true),
            ("Server returned non-2xx status code: 416 Range Not Satisfiable", false),
            ("Server returned non-2xx status code: 400 Bad Request", false),
            ("connection reset by peer", true),
            ("Requested 0..4096, got 0..512", false),
            ("Failed to parse value for CONTENT_RANGE header: \"bytes 0-511/*\"", false),
            ("Content-Range header not present in partial response", false),
            ("Content-Length Header missing from response", false),
            ("Range started at 9 and ended at 9", false),
            ("Wanted range starting at 9, but object was only 8 bytes long", false),
        ] {
            let failure = Failure::of(&generic(text));
            assert_eq!(matches!(failure, Failure::Passing(_)), passing, "{text}: {failure:?}");
        }
        let gone = Failure::of(&generic("Server returned non-2xx status code: 410 Gone"));
        assert!(matches!(gone, Failure::Missing(_)), "{gone:?}");
    }
}
