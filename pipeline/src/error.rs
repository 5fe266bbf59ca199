//! One error type for the crate: a variant per cause a caller can act on. Its text may hold names
//! from archives, lists and manifests, so that it is [`printable`] altogether.

use std::path::{Path, PathBuf};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a shard on disk and a batch in memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("{}: {}", shown(path), printable(&source.to_string()))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The operating system refused what is no file: a thread, memory for batches.
    #[error("{}: {}", printable(what), printable(&source.to_string()))]
    System {
        /// What was asked for.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A shard, index or manifest whose bytes do not follow the format.
    #[error("{}: {} (at byte {offset})", shown(path), printable(cause))]
    Shard {
        /// The damaged file.
        path: PathBuf,
        /// Where in the file the damage was noticed.
        offset: u64,
        /// What was expected and what was found.
        cause: String,
    },
    /// One sample that cannot be used; the rest of its shard may be fine.
    #[error("{}: sample `{}` at byte {offset}: {}", shown(path), printable(key), printable(cause))]
    Sample {
        /// The shard.
        path: PathBuf,
        /// The sample's key in the shard.
        key: String,
        /// Where in the shard the sample's image begins.
        offset: u64,
        /// What was expected and what was found.
        cause: String,
    },
    /// Image bytes that cannot be decoded; the caller knows whose they are.
    #[error("{}", printable(.0))]
    Decode(String),
    /// An image, or what is packed with it, above a limit: it may be whole, and a higher limit may
    /// let it through. The caller knows whose it is.
    #[error("{}", printable(.0))]
    TooLarge(String),
    /// A request that cannot be met, in the words of the person who made it.
    #[error("{}", printable(.0))]
    Usage(String),
    /// More samples are bad than may be, or no sample can be saved.
    #[error("{}", printable(.0))]
    TooManyBad(String),
    /// A thread of this crate panicked; what it did cannot go on. Where panics do not unwind
    /// (`panic = "abort"`) they end the process instead, those of decoders as well.
    #[error("a thread panicked: {}", printable(.0))]
    Panic(String),
}

impl Error {
    /// Of what a panic left, as `catch_unwind` gives it.
    pub(crate) fn panicked(cause: &(dyn std::any::Any + Send)) -> Self {
        let text = cause.downcast_ref::<&str>().copied();
        let text = text.or_else(|| cause.downcast_ref::<String>().map(String::as_str));
        Error::Panic(text.unwrap_or("no message").to_owned())
    }

    /// An I/O error with the path it concerns.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Io { path: path.into(), source }
    }

    /// What the system refused that is no file.
    pub(crate) fn system(what: impl Into<String>, source: std::io::Error) -> Self {
        Error::System { what: what.into(), source }
    }

    /// Whether it tells of what is stored: as [`is_damage`] of an [`Error::Io`], not an
    /// [`Error::System`], and all others.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Error::Io { source, .. } => is_damage(source),
            Error::System { .. } => false,
            _ => true,
        }
    }

    /// Whether it tells of a shortage: as [`is_shortage`], and each [`Error::System`].
    pub(crate) fn is_shortage(&self) -> bool {
        match self {
            Error::Io { source, .. } => is_shortage(source),
            Error::System { .. } => true,
            _ => false,
        }
    }
}

/// Whether the system's answer tells of what is stored: a file that is gone, or is none, a place that
/// the disk cannot read. What would befall any file (too many are open, no memory, a stale handle),
/// and what may not be read, is no damage: to pass such a file over would leave out what is whole.
pub fn is_damage(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    let kinds = [
        ErrorKind::NotFound,
        ErrorKind::IsADirectory,
        ErrorKind::NotADirectory,
        ErrorKind::InvalidInput,
        ErrorKind::InvalidData,
        ErrorKind::InvalidFilename,
        ErrorKind::UnexpectedEof,
    ];
    // These have no kind.
    #[cfg(unix)]
    let unnamed = matches!(error.raw_os_error(), Some(libc::EIO | libc::ELOOP));
    #[cfg(not(unix))]
    let unnamed = false;
    kinds.contains(&error.kind()) || unnamed
}

/// Whether the system's answer tells that this process, or the system, has no more of something:
/// memory, maps, descriptors. No shard is bad for that, whatever else counts as a bad one.
pub(crate) fn is_shortage(error: &std::io::Error) -> bool {
    #[cfg(unix)]
    let open_files = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
    #[cfg(not(unix))]
    let open_files = false;
    error.kind() == std::io::ErrorKind::OutOfMemory || open_files
}

/// A name, or a text with names in it, on one line: what would move a terminal's cursor or change
/// its colours (a newline, an escape sequence) is written out.
pub fn printable(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_control() { text.extend(c.escape_debug()) } else { text.push(c) }
    }
    text
}

fn shown(path: &Path) -> String {
    printable(&path.display().to_string())
}

/// A path in JSON, which holds nothing but UTF-8: what is not becomes U+FFFD, as where it is shown.
pub(crate) fn path_as_text<S: serde::Serializer>(
    path: &std::path::Path,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn what_keeps_any_file_from_being_read_is_no_damage() {
        let damage = |code| is_damage(&std::io::Error::from_raw_os_error(code));
        assert!([libc::EIO, libc::ENOENT, libc::ENOTDIR].into_iter().all(damage));
        let others = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EACCES, libc::ESTALE];
        assert!(!others.into_iter().any(damage));
    }

    #[test]
    fn what_the_system_refuses_that_is_no_file_is_a_shortage_and_no_damage() {
        let refused = Error::system("thread bt-feed", std::io::ErrorKind::WouldBlock.into());
        assert!(refused.is_shortage() && !refused.is_damage());
        assert!(refused.to_string().starts_with("thread bt-feed: "), "{refused}");
    }

    #[test]
    fn no_error_sends_control_characters_to_a_terminal() {
        let text = || "a\u{1b}[31m\nü\u{9b}`".to_owned();
        let path = || PathBuf::from(text());
        for error in [
            Error::io(path(), std::io::Error::other(text())),
            Error::Shard { path: path(), offset: 1, cause: text() },
            Error::Sample { path: path(), key: text(), offset: 1, cause: text() },
            Error::system(text(), std::io::Error::other(text())),
            Error::Decode(text()),
            Error::TooLarge(text()),
            Error::Usage(text()),
            Error::TooManyBad(text()),
            Error::Panic(text()),
        ] {
            let shown = error.to_string();
            assert!(!shown.contains(char::is_control), "{shown:?}");
            assert!(shown.contains(r"a\u{1b}[31m\nü\u{9b}`"), "{shown}");
            assert_eq!(printable(&shown), shown);
        }
    }
}
