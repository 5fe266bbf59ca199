//! URLs as people write them: what they name, and what lies beside it.

use crate::{Error, Result};

/// What a URL names, by how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    Shard,
    Manifest,
    /// Objects whose names match, to be listed.
    Glob,
    /// All that lies below, to be listed.
    Folder,
}

/// What `url` names.
///
/// # Errors
/// [`Error::Usage`] for queries and fragments, which object stores have no use for.
pub(super) fn names(url: &str) -> Result<Names> {
    let http = url.get(..4).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http"));
    if let Some(mark) = url.find(if http { ['?', '#'] } else { ['#', '#'] }) {
        return Err(Error::Usage(format!(
            "{url}: URLs with a query or fragment (`{}`) are not supported",
            &url[mark..]
        )));
    }
    let path = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = path.split_once('/').map_or("", |(_, path)| path);
    Ok(if path.contains(['*', '?', '[']) {
        Names::Glob
    } else if path.ends_with(".tar") || path.ends_with(".tar.zst") {
        Names::Shard
    } else if path.ends_with(".json") {
        Names::Manifest
    } else {
        Names::Folder
    })
}

/// The URL of the object called `name` in the folder of the object `url`.
pub(super) fn beside(url: &str, name: &str) -> String {
    let folder = url.rfind('/').map_or(url, |slash| &url[..slash]);
    format!("{folder}/{}", escaped(name))
}

/// An object's name as URLs have it, in which `%20` is a space: what looks like that in the name is
/// none.
pub(super) fn escaped(name: &str) -> String {
    name.replace('%', "%25")
}

/// The last component.
pub(super) fn file_name(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_what_its_end_says() {
        for (url, expected) in [
            ("s3://b/x/a.tar", Names::Shard),
            ("s3://b/x/a.tar.zst", Names::Shard),
            ("gs://b/train.manifest.json", Names::Manifest),
            ("s3://b/x/", Names::Folder),
            ("s3://b", Names::Folder),
            ("s3://b/train", Names::Folder),
            ("s3://b/train-*.tar", Names::Glob),
            ("s3://b/train-?.tar", Names::Glob),
            ("http://[::1]:9/a.tar", Names::Shard),
        ] {
            assert_eq!(names(url).unwrap(), expected, "{url}");
        }
        assert!(names("https://h/a.tar?signature=1").is_err());
        assert!(names("s3://b/a.tar#2").is_err());
        assert_eq!(beside("s3://b/x/a.tar", "c.tar"), "s3://b/x/c.tar");
        assert_eq!(beside("s3://b/x%20y/a.tar", "c%20d.tar"), "s3://b/x%20y/c%2520d.tar");
    }
}
