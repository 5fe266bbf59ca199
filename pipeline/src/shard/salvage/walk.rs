//! The samples of a damaged tar: from header to header, and over damage to the
//! next header whose checksum is right.
//!
//! Damage can take a member of a sample and leave the others, which then look like
//! a whole sample without a label, say. What stands beside damage is therefore
//! [`Beside`] it, and whole only if something tells so: [`Walked::is_complete`], or
//! an index.

use std::collections::HashSet;
use std::path::Path;

use crate::Error;
use crate::shard::group::{Group, Groups, Keep};
use crate::shard::map::slice;
use crate::shard::tar::{NO_END, SliceSource, Tar, is_header, is_zero, span};
use crate::shard::{Limits, damaged};

/// So many kinds of samples are told apart; in a shard of more nothing is concluded from them.
const MAX_SHAPES: usize = 64;

/// What was met, in order.
pub(super) enum Step {
    /// The blocks of a sample.
    Sample(Stretch),
    /// Damage.
    Fault(Error),
}

/// Blocks that hold the members of one key.
pub(super) struct Stretch {
    pub start: u64,
    pub end: u64,
    /// Where there is damage right before it or behind it.
    pub beside: Option<Beside>,
}

/// A sample beside damage, which may have taken members of it.
pub(super) struct Beside {
    /// Whether damage is before it; else it is behind it.
    pub before: bool,
    /// Whether more of it follows the damage, or bytes of its last member are missing or too many.
    pub torn: bool,
    /// The extensions of its members.
    members: Vec<String>,
}

/// A tar that was walked through.
#[derive(Default)]
pub(super) struct Walked {
    pub steps: Vec<Step>,
    /// The extensions of samples far from damage, each combination once.
    shapes: HashSet<Vec<String>>,
    /// The key of the last sample, if damage is behind it.
    cut: Option<String>,
}

impl Walked {
    /// Whether a sample beside damage has all its members, as far as the shard's other samples
    /// tell: some are like it, and none has more before or behind the same. Without its label it
    /// is complete only if no sample has one and the damage is behind it.
    pub fn is_complete(&self, beside: &Beside) -> bool {
        let members = &beside.members;
        let longer = |shape: &Vec<String>| {
            shape.len() > members.len() && shape.windows(members.len()).any(|part| part == members)
        };
        let labelled = |shape: &Vec<String>| shape.iter().any(|extension| extension == "cls");
        !beside.torn
            && self.shapes.len() <= MAX_SHAPES
            && self.shapes.contains(members)
            && !self.shapes.iter().any(longer)
            && (labelled(members) || !beside.before && !self.shapes.iter().any(labelled))
    }

    fn sample(&mut self, group: &Group, before: bool, behind: bool) {
        // The damage was within it.
        if self.cut.as_ref() == Some(&group.key) {
            self.tear();
        }
        self.cut = behind.then(|| group.key.clone());
        let members = || group.parts().iter().map(|part| part.extension.clone()).collect();
        let beside = (before || behind).then(|| Beside { before, torn: false, members: members() });
        if beside.is_none() && self.shapes.len() <= MAX_SHAPES {
            self.shapes.insert(members());
        }
        self.steps.push(Step::Sample(Stretch { start: group.start, end: group.end, beside }));
    }

    /// Marks the last sample, if it is the one that damage is behind, as torn.
    fn tear(&mut self) {
        let last = self.steps.iter_mut().rev().find_map(|step| match step {
            Step::Sample(stretch) => Some(stretch),
            Step::Fault(_) => None,
        });
        if let Some(beside) = last.and_then(|stretch| stretch.beside.as_mut()) {
            beside.torn = true;
        }
    }
}

/// Walks through `tar`, the (decompressed) bytes of `shard`.
pub(super) fn walk(shard: &Path, tar: &[u8], limits: &Limits) -> Walked {
    let mut walk = Walk { shard, tar, limits, walked: Walked::default() };
    let mut next = Some(Next { at: 0, damage: None });
    while let Some(way) = next {
        next = walk.from(way);
    }
    walk.walked
}

/// Where the walk goes on.
struct Next {
    at: u64,
    /// Where the damage began that it comes from.
    damage: Option<Gap>,
}

/// Damage that the walk goes over.
struct Gap {
    /// Where it begins.
    at: u64,
    /// Whether a sample ends there.
    behind_sample: bool,
}

struct Walk<'a> {
    shard: &'a Path,
    tar: &'a [u8],
    limits: &'a Limits,
    walked: Walked,
}

impl Walk<'_> {
    /// Walks to the next damage; where to go on behind it.
    fn from(&mut self, Next { at, damage }: Next) -> Option<Next> {
        let found = self.next_header(at, u64::MAX);
        if damage.is_none() && found != Some(at) && self.next_byte(at).is_some() {
            self.fault(at, "no tar header where one should be: damaged, or not a tar");
        }
        let from = found?;
        // Blocks that stand elsewhere: bytes are missing or too many, and the last member before
        // is where that may have begun.
        if damage.as_ref().is_some_and(|it| it.behind_sample && from % 512 != it.at % 512) {
            self.walked.tear();
        }
        let mut before = damage.is_some() || from > at;
        let tar = SliceSource::new(self.tar.get(usize::try_from(from).ok()?..)?);
        let mut groups = Groups::new(Tar::new(tar, self.shard, from, *self.limits), Keep::Labels);
        let mut group = Group::default();
        loop {
            match groups.next_into(&mut group) {
                Ok(true) if !groups.is_finished() => {
                    self.walked.sample(&group, before, false);
                    before = false;
                }
                Ok(found) => {
                    let rest = self.next_byte(groups.tar().position());
                    // Without its marker an archive may have been cut short.
                    let behind = rest.is_some() || !groups.tar().ended;
                    if found {
                        self.walked.sample(&group, before, behind);
                    }
                    if rest.is_none() && !groups.tar().ended {
                        self.fault(groups.tar().position(), NO_END);
                    }
                    let at = rest?;
                    self.fault(at, "more follows where the archive seems to end");
                    let damage = Some(Gap { at, behind_sample: found });
                    return Some(Next { at, damage });
                }
                Err(error) => return Some(self.over(from, &group, before, error)),
            }
        }
    }

    /// Notes damage that was met behind the members of `group`; where to go on.
    fn over(&mut self, from: u64, group: &Group, before: bool, error: Error) -> Next {
        let at = match &error {
            Error::Shard { offset, .. } => *offset,
            _ => from,
        };
        let last = group.parts().last();
        let mut hidden = None;
        if let Some(last) = last {
            self.walked.sample(group, before, true);
            hidden = self.hidden(last.offset, at);
            if hidden.is_some() {
                self.walked.tear();
            }
        }
        self.walked.steps.push(Step::Fault(error));
        // A header that was understood is not read again.
        let understood = self.block(at).is_some_and(is_header);
        let behind = if understood { at.saturating_add(512) } else { at };
        let on = hidden.unwrap_or(behind).max(from.saturating_add(512));
        Next { at: on, damage: Some(Gap { at, behind_sample: last.is_some() }) }
    }

    fn fault(&mut self, at: u64, cause: &str) {
        self.walked.steps.push(Step::Fault(damaged(self.shard, at, cause)));
    }

    fn block(&self, at: u64) -> Option<&[u8; 512]> {
        self.tar.get(usize::try_from(at).ok()?..)?.first_chunk()
    }

    /// The first byte from `at` on that is not zero.
    fn next_byte(&self, at: u64) -> Option<u64> {
        let rest = self.tar.get(usize::try_from(at).ok()?..)?;
        rest.iter().position(|&byte| byte != 0).map(|place| at + place as u64)
    }

    /// Where the next header stands, before `to`: at `at`, or wherever one is found after it,
    /// for bytes may be missing.
    fn next_header(&self, at: u64, to: u64) -> Option<u64> {
        if self.block(at).is_some_and(is_header) {
            return Some(at).filter(|&at| at < to);
        }
        // The magic of ustar and GNU tar, 257 bytes into a header.
        let end = to.saturating_add(261).min(self.tar.len() as u64);
        let from = at.checked_add(257)?;
        let magic = slice(self.tar, from, end.checked_sub(from)?)?.windows(5);
        let found = magic.enumerate().filter(|(_, bytes)| bytes == b"ustar");
        let mut found = found.map(|(place, _)| at + place as u64);
        found.find(|&at| self.block(at).is_some_and(is_header))
    }

    /// A header among the data of a member, `from..to`, that cannot be part of them because what it
    /// begins goes on behind them: bytes are missing, and the next members were taken for data.
    fn hidden(&self, from: u64, to: u64) -> Option<u64> {
        let mut at = from;
        loop {
            let found = self.next_header(at, to)?;
            match self.leads_beyond(found, to) {
                Ok(()) => return Some(found),
                // What follows it leads no further than it does.
                Err(broken) => at = broken.max(found + 512),
            }
        }
    }

    /// Whether headers lead from the one at `at` to one beyond `to`, or to the end; else how far
    /// they lead.
    fn leads_beyond(&self, mut at: u64, to: u64) -> Result<(), u64> {
        loop {
            let next = self.block(at).filter(|block| is_header(block)).and_then(span);
            let next = next.and_then(|span| at.checked_add(span)).ok_or(at)?;
            if next > to {
                let goes_on = |block: &[u8; 512]| is_header(block) || is_zero(block);
                let good = self.block(next).is_some_and(goes_on) || next == self.tar.len() as u64;
                return if good { Ok(()) } else { Err(at) };
            }
            at = next;
        }
    }
}
