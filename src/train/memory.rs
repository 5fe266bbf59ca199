//! What a step will want of the host's memory, said before it is asked for: who asks for more than there is, is ended by the
//! system without a word.

use crate::config::RunConfig;

/// Values that an optimizer step keeps for each parameter: value, gradient, and one or two moments.
const PER_PARAMETER: u64 = 4;

/// A warning where a step on the CPU will not fit the memory that is free; `parameters` are the network's.
pub(super) fn warning(config: &RunConfig, view: (usize, usize), parameters: u64) -> Option<String> {
    let wanted = step_bytes(config, view, parameters);
    let free = free_bytes()?;
    let gb = |bytes: u64| bytes as f64 / 1e9;
    (wanted > free).then(|| {
        format!(
            "warning: a step will want some {:.0} GB of memory and {:.0} GB are free: a smaller train.batch_size, model or \
             view (views.both.random_resized_crop.size) wants less",
            gb(wanted),
            gb(free)
        )
    })
}

/// Bytes of both views' activations, which wait for the backward pass, and of all that belongs to parameters. Within a
/// quarter of what `bench step` measures.
fn step_bytes(config: &RunConfig, view: (usize, usize), parameters: u64) -> u64 {
    let images = 2 * config.train.batch_size as u64;
    let activations = images.saturating_mul(config.model.activations(view));
    activations.saturating_add(PER_PARAMETER.saturating_mul(parameters)).saturating_mul(4)
}

/// What the system says is free, and no more than its group may have.
fn free_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let free = line.split_whitespace().next()?.parse::<u64>().ok()? * 1024;
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
    Some(limit.map_or(free, |limit| free.min(limit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_run_wants_more_than_a_small_machine_has() {
        // `bench step` at batches of 2 and 4: 2842 and 3256 MB, so that an image takes 207 MB.
        let config = RunConfig::default();
        let of = |batch_size: usize| {
            let mut config = config.clone();
            config.train.batch_size = batch_size;
            step_bytes(&config, (224, 224), 174_000_000) as f64 / 1e6
        };
        let each = (of(4) - of(2)) / 2.0;
        assert!((170.0..230.0).contains(&each), "{each}");
        assert!((2270.0..3400.0).contains(&of(2)), "{}", of(2));
        assert!(warning(&config, (224, 224), u64::MAX / 64).is_some());
        let mut small = config.clone();
        small.train.batch_size = 2;
        small.model.width = 8;
        assert_eq!(warning(&small, (32, 32), 1000), None);
    }
}
