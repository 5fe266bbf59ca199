//! Wall time of the training thread by part of the step.

use std::time::{Duration, Instant};

use bt_pipeline::trace::Lane;

use crate::learner::StepPart;

/// Wall time of the training thread by part of the step.
pub(super) struct Clock {
    pub(super) begun: Instant,
    last: Instant,
    pub(super) laps: Vec<(StepPart, Duration)>,
    lane: Option<Lane>,
}

impl Clock {
    pub(super) fn start(lane: Option<Lane>) -> Self {
        Clock { begun: Instant::now(), last: Instant::now(), laps: Vec::new(), lane }
    }

    /// Adds the time since the last call to `part`.
    pub(super) fn lap(&mut self, part: StepPart) {
        let now = Instant::now();
        if let Some(lane) = &mut self.lane {
            lane.span(part.name(), self.last, now);
        }
        let time = now - std::mem::replace(&mut self.last, now);
        match self.laps.iter_mut().find(|(of, _)| *of == part) {
            Some((_, sum)) => *sum += time,
            None => self.laps.push((part, time)),
        }
    }
}
