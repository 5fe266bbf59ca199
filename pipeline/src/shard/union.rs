//! Unions of patterns, `a::b`, whose members may be URLs, and how the classes of two of them
//! differ. In every build: one without the feature `remote` has to know a URL to say that it cannot
//! read it.

use std::path::Path;

/// Whether `text` begins with one of the schemes that shards can be read from.
pub(crate) fn is_url(text: &str) -> bool {
    let Some((scheme, _)) = text.split_once("://") else { return false };
    ["s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "http", "https"]
        .iter()
        .any(|known| scheme.eq_ignore_ascii_case(known))
}

/// Whether any member of the union `pattern` is behind a URL.
pub fn names_urls(pattern: &str) -> bool {
    split_union(pattern).into_iter().any(is_url)
}

/// Divides a union at `::`, except within the brackets of an IPv6 address.
pub(crate) fn split_union(pattern: &str) -> Vec<&str> {
    let (mut parts, mut from, mut at) = (Vec::new(), 0, 0);
    while let Some(found) = pattern[at..].find("::").map(|found| at + found) {
        let address = pattern[from..found].rfind("://[").map(|start| from + start);
        let within = address.filter(|&start| !pattern[start..found].contains(']'));
        match within.and_then(|_| pattern[found..].find(']')) {
            Some(end) => at = found + end,
            None => {
                parts.push(&pattern[from..found]);
                (from, at) = (found + 2, found + 2);
            }
        }
    }
    parts.push(&pattern[from..]);
    parts
}

/// The first class that two sources call by different names, or that only one of them has; each
/// with its names by number. `None` where they agree.
pub(crate) fn difference(a: (&[String], &Path), b: (&[String], &Path)) -> Option<String> {
    let longest = a.0.len().max(b.0.len());
    let class = (0..longest).find(|&class| a.0.get(class) != b.0.get(class))?;
    let called = |(names, whose): (&[String], &Path)| match names.get(class) {
        Some(name) => format!("is {name:?} in {}", whose.display()),
        None => format!("has no name in {}", whose.display()),
    };
    Some(format!("class {class} {} and {}", called(a), called(b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls_are_told_from_paths_by_their_scheme() {
        for url in ["s3://b/a.tar", "gs://b/", "az://c/x", "HTTPS://h/a.tar", "http://h:80/a.tar"] {
            assert!(is_url(url), "{url}");
        }
        for path in ["a.tar", "/s3/a.tar", "s3:/b/a.tar", "ftp://h/a.tar", "c:\\a.tar", "://", ""] {
            assert!(!is_url(path), "{path}");
        }
    }

    #[test]
    fn the_first_class_that_is_called_otherwise_is_told() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let told = |a: &[&str], b: &[&str]| {
            difference((&names(a), Path::new("A")), (&names(b), Path::new("B")))
        };
        assert_eq!(told(&["ant", "bee"], &["ant", "bee"]), None);
        for (b, text) in [
            (&["ant", "cat", "dog"][..], "class 1 is \"bee\" in A and is \"cat\" in B"),
            (&["ant"], "class 1 is \"bee\" in A and has no name in B"),
            (&["ant", "bee", "cat"], "class 2 has no name in A and is \"cat\" in B"),
        ] {
            assert_eq!(told(&["ant", "bee"], b).as_deref(), Some(text));
        }
    }

    #[test]
    fn unions_divide_at_double_colons_but_addresses_do_not() {
        let split = split_union;
        assert_eq!(split("a::b"), ["a", "b"]);
        assert_eq!(split("http://h:80/a.tar::s3://b/c.tar"), ["http://h:80/a.tar", "s3://b/c.tar"]);
        assert_eq!(
            split("http://[::1]:80/a.tar::http://[fe80::2]/b.tar::c"),
            ["http://[::1]:80/a.tar", "http://[fe80::2]/b.tar", "c"]
        );
        // No address: a bracket that never closes.
        assert_eq!(split("http://[::1"), ["http://[", "1"]);
    }

    proptest! {
        #[test]
        fn dividing_a_union_loses_nothing(text in "[a-c:/\\[\\]]{0,24}") {
            prop_assert_eq!(split_union(&text).join("::"), text);
        }
    }
}
