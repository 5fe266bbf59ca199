//! What the manifests in a folder list of its shards: each once, and all of them?

use std::collections::HashSet;
use std::path::Path;

use super::Found;
use crate::{Error, Result};

/// Refuses a shard that the manifests of a folder list twice: its samples would count twice.
pub(crate) fn check_listed_once(folder: &Path, listed: &[Found]) -> Result<()> {
    let mut seen = HashSet::new();
    match listed.iter().find(|found| !seen.insert(found.path.as_path())) {
        None => Ok(()),
        Some(twice) => {
            let name = twice.path.file_name().unwrap_or_default().display();
            Err(Error::Usage(format!(
                "{}: its manifests list {name} twice, and its samples would count twice: name one \
                 manifest instead of the folder, or remove the other",
                folder.display()
            )))
        }
    }
}

/// Says how many shards of a folder are not among those that its manifests list.
pub(crate) fn warn_of_unlisted<'a>(
    folder: &Path,
    shards: impl Iterator<Item = &'a Path>,
    listed: &[Found],
) {
    let others = unlisted(shards, listed);
    if others > 0 {
        tracing::warn!("{}: {others} shards are in no manifest and are not read", folder.display());
    }
}

fn unlisted<'a>(shards: impl Iterator<Item = &'a Path>, listed: &[Found]) -> usize {
    let listed: HashSet<&Path> = listed.iter().map(|found| found.path.as_path()).collect();
    shards.filter(|path| !listed.contains(path)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> Found {
        Found::at(path.into())
    }

    #[test]
    fn shards_that_no_manifest_lists_are_counted_on_disk_and_behind_urls() {
        let listed = [at("s3://b/a.tar"), at("d/a.tar")];
        let shards = ["s3://b/a.tar", "s3://b/b.tar", "d/a.tar", "d/c.tar", "e/a.tar"];
        assert_eq!(unlisted(shards.iter().map(Path::new), &listed), 3);
        assert_eq!(unlisted(shards[..1].iter().map(Path::new), &listed), 0);
    }

    #[test]
    fn a_shard_that_is_listed_twice_is_refused_by_its_name() {
        let check = |listed: &[Found]| check_listed_once(Path::new("d"), listed);
        assert!(check(&[at("d/a.tar"), at("d/b.tar")]).is_ok());
        let error = check(&[at("d/a.tar"), at("d/b.tar"), at("d/a.tar")]).unwrap_err();
        assert!(
            matches!(&error, Error::Usage(text) if text.contains("list a.tar twice")),
            "{error}"
        );
    }
}
