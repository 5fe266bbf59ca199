//! Members that are links to others.

use std::fmt;

use serde::Serialize;

use super::header::readable;
use crate::shard::group::split_name;

/// Links that have the name of a sample's member and no data: hard links, as GNU tar stores a file
/// that it met before, and symbolic ones. They are not followed, and their samples lack an image or
/// a label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Links {
    /// How many.
    pub count: u64,
    /// The name of the first.
    pub first: Option<String>,
}

impl fmt::Display for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let links = if self.count == 1 { "link" } else { "links" };
        let first = self.first.as_deref().unwrap_or_default();
        write!(f, "{} {links} in place of files ({first:?}), not followed", self.count)
    }
}

impl Links {
    pub(super) fn note(&mut self, name: &[u8]) {
        let name = readable(name);
        if split_name(&name).is_some() {
            self.count = self.count.saturating_add(1);
            self.first.get_or_insert(name);
        }
    }

    /// Adds those of another archive.
    pub(crate) fn add(&mut self, other: Links) {
        self.count = self.count.saturating_add(other.count);
        self.first = self.first.take().or(other.first);
    }
}
