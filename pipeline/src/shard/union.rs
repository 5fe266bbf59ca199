//! Unions of patterns, `a::b`, whose members may be URLs. In every build: one without the feature
//! `remote` has to know a URL to say that it cannot read it.

/// Whether `text` begins with one of the schemes that shards can be read from.
pub(crate) fn is_url(text: &str) -> bool {
    let Some((scheme, _)) = text.split_once("://") else { return false };
    ["s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "http", "https"]
        .iter()
        .any(|known| scheme.eq_ignore_ascii_case(known))
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
