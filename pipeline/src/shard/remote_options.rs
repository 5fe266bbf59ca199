//! How shards behind URLs are read; part of [`super::OpenOptions`]. Here in every build, so that
//! configurations mean the same with and without the feature `remote`.

use std::path::PathBuf;
use std::time::Duration;

/// How shards behind URLs are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteOptions {
    /// The folder where whole shards are kept; `None` for no cache. Several processes may share it.
    pub cache: Option<PathBuf>,
    /// Bytes that the files in the cache may take together. Default 100 GB.
    pub cache_bytes: u64,
    /// How often a request is repeated that failed without making progress. Default 5, which with
    /// the default backoff waits for about 6 seconds in all, for a server that is busy about 40.
    pub retries: u32,
    /// The wait before the first repetition; each next one is twice as long, up to 20 seconds.
    /// After 429 (Too Many Requests) or 503 (Service Unavailable) seven times as long. Default
    /// 200 ms.
    pub backoff: Duration,
    /// How long the next 64 KiB of an answer (or all that is left of it) may take. Default 30 s.
    pub timeout: Duration,
    /// Requests under way at a time. Default 32.
    pub parallel: usize,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        RemoteOptions {
            cache: None,
            cache_bytes: 100_000_000_000,
            retries: 5,
            backoff: Duration::from_millis(200),
            timeout: Duration::from_secs(30),
            parallel: 32,
        }
    }
}

/// Bytes as a person writes them: `100GB`, `1.5 TB`, `64MiB`, `4096`. K, M, G and T, and KB and so
/// on, are powers of 1000, KiB and so on of 1024. `None` for anything else.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit);
    }
    let bytes = number.parse::<f64>().ok()? * unit as f64;
    (bytes < u64::MAX as f64).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::parse_bytes;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("4096", Some(4096)),
            ("100GB", Some(100_000_000_000)),
            ("1.5 tb", Some(1_500_000_000_000)),
            (" 64 MiB ", Some(64 << 20)),
            ("1k", Some(1000)),
            ("", None),
            ("GB", None),
            ("1.2.3", None),
            ("-1", None),
            ("10 parsecs", None),
            ("99999999999TB", None),
        ] {
            assert_eq!(parse_bytes(text), bytes, "{text:?}");
        }
    }
}
