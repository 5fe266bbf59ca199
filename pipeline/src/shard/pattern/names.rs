//! The names of a set's classes, where the manifests of all its shards agree on them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::shard::manifest::Manifest;
use crate::shard::union::difference;

/// The names of a shard's classes, empty where they have none; `None` where no sample has a label,
/// so that there is nothing to name. Shared: a set has thousands of shards, and thousands of
/// classes.
pub(crate) type NamesOf = Option<Arc<[String]>>;

/// What a manifest calls the classes of its shards.
pub(crate) fn names_of(manifest: &Manifest) -> NamesOf {
    (!manifest.classes.is_empty()).then(|| manifest.class_names().into())
}

/// What the shards seen so far call their classes.
#[derive(Clone, Debug, Default)]
pub(super) struct ClassNames {
    /// The first names, and whose they are.
    named: Option<(Arc<[String]>, PathBuf)>,
    /// How others call a class.
    differing: Option<String>,
    /// The first without names.
    unnamed: Option<PathBuf>,
}

impl ClassNames {
    /// Takes the [`NamesOf`] that `from` has.
    pub fn agree(&mut self, names: &NamesOf, from: &Path) {
        let Some(names) = names else { return };
        if names.is_empty() {
            self.unnamed.get_or_insert_with(|| from.to_owned());
            return;
        }
        let Some((first, whose)) = &self.named else {
            self.named = Some((Arc::clone(names), from.to_owned()));
            return;
        };
        // Shards of one manifest share its names.
        if self.differing.is_none() && !Arc::ptr_eq(first, names) {
            self.differing = difference((first, whose), (names, from));
        }
    }

    /// The names on which all agree, or why there are none though some have names.
    pub fn finish(self) -> (Vec<String>, Option<String>) {
        let Some((names, whose)) = self.named else { return (Vec::new(), None) };
        let without = |path: PathBuf| {
            let (path, whose) = (path.display(), whose.display());
            format!("the classes have names in {whose} and none in {path}")
        };
        match self.differing.or(self.unnamed.map(without)) {
            None => (names.to_vec(), None),
            differing => (Vec::new(), differing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of `A` and `B` with these names.
    fn merged(a: Option<&[&str]>, b: Option<&[&str]>) -> (Vec<String>, Option<String>) {
        let mut all = ClassNames::default();
        for (names, from) in [(a, "A"), (b, "B"), (b, "C")] {
            let names = names.map(|names| names.iter().map(|&name| name.to_owned()).collect());
            all.agree(&names, Path::new(from));
        }
        all.finish()
    }

    #[test]
    fn shards_of_one_manifest_share_its_names() {
        let names: Arc<[String]> = ["ant".to_owned(), "bee".to_owned()].into();
        let mut all = ClassNames::default();
        for shard in ["A", "B", "C"] {
            all.agree(&Some(Arc::clone(&names)), Path::new(shard));
        }
        assert_eq!(Arc::strong_count(&names), 2);
        assert_eq!(all.finish(), (names.to_vec(), None));
    }

    #[test]
    fn names_are_kept_where_all_agree_and_else_it_is_told_why_not() {
        let names = ["ant".to_owned(), "bee".to_owned()];
        let (some, none) = (Some(&["ant", "bee"][..]), Some(&[][..]));
        assert_eq!(merged(some, some), (names.to_vec(), None));
        // Samples without labels contradict nobody.
        assert_eq!(merged(some, None), (names.to_vec(), None));
        assert_eq!(merged(None, some), (names.to_vec(), None));
        assert_eq!(merged(none, none), (vec![], None));
        assert_eq!(merged(None, None), (vec![], None));
        for (a, b, text) in [
            (some, none, "have names in A and none in B"),
            (none, some, "have names in B and none in A"),
            (some, Some(&["ant", "cat"][..]), "class 1 is \"bee\" in A and is \"cat\" in B"),
        ] {
            let (names, why) = merged(a, b);
            assert!(
                names.is_empty() && why.as_ref().is_some_and(|why| why.contains(text)),
                "{why:?}"
            );
        }
    }
}
