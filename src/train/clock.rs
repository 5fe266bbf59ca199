//! Wall time by stage of the training thread.

use std::time::{Duration, Instant};

use bt_pipeline::trace::Lane;

/// Wall time by stage of the training thread.
pub(super) struct Clock {
    pub(super) begun: Instant,
    last: Instant,
    pub(super) laps: Vec<(&'static str, Duration)>,
    lane: Option<Lane>,
}

impl Clock {
    pub(super) fn start(lane: Option<Lane>) -> Self {
        Clock { begun: Instant::now(), last: Instant::now(), laps: Vec::new(), lane }
    }

    /// Adds the time since the last call to `stage`.
    pub(super) fn lap(&mut self, stage: &'static str) {
        let now = Instant::now();
        if let Some(lane) = &mut self.lane {
            lane.span(stage, self.last, now);
        }
        let time = now - std::mem::replace(&mut self.last, now);
        match self.laps.iter_mut().find(|(name, _)| *name == stage) {
            Some((_, sum)) => *sum += time,
            None => self.laps.push((stage, time)),
        }
    }
}
