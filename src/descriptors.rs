//! How many files the process may have open.

/// Most that is asked for: half of it is the files of 16,384 shards, each with its index.
#[cfg(unix)]
const WANTED: libc::rlim_t = 65_536;

/// Asks for as many descriptors as the system lets this process have. Shells give 1,024, half of
/// which the loader takes to copy samples from; it maps those of other shards, which costs several
/// times as much where they are small. A refusal changes nothing else.
pub fn ask_for_more() {
    #[cfg(unix)]
    {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: both calls take a pointer to a structure of the kind that they want.
        unsafe {
            if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
                return;
            }
            limit.rlim_cur = limit.rlim_cur.max(limit.rlim_max.min(WANTED));
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_as_may_be_and_never_fewer_than_before() {
        // Of this process as a whole; other tests want no fewer.
        let limits = || {
            let text = std::fs::read_to_string("/proc/self/limits").unwrap();
            let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
            let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
            let numbers: Vec<u64> = line.split_whitespace().skip(3).take(2).map(number).collect();
            (numbers[0], numbers[1])
        };
        let before = limits();
        ask_for_more();
        assert_eq!(limits(), (before.0.max(before.1.min(WANTED)), before.1));
    }
}
