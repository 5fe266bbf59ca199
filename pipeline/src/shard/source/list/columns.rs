//! Which columns of a list are path and label, by the first line.

use std::path::Path;

use crate::shard::source::tree::is_image;

/// Headings of the column of paths, and of labels, in lower case without `_`, `-` and spaces.
const PATH_NAMES: [&str; 11] = [
    "path",
    "file",
    "filename",
    "filepath",
    "image",
    "imagefile",
    "imagename",
    "imagepath",
    "img",
    "imgname",
    "imgpath",
];
const LABEL_NAMES: [&str; 18] = [
    "label",
    "labels",
    "labelid",
    "labelname",
    "class",
    "classes",
    "classid",
    "classidx",
    "classname",
    "cls",
    "target",
    "targets",
    "category",
    "categoryid",
    "categoryname",
    "species",
    "breed",
    "y",
];

/// Where a list has its paths and labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Columns {
    pub path: usize,
    pub label: Option<usize>,
    /// Whether the first line tells that, and is no row.
    pub heading: bool,
    /// Columns that are not read, in words.
    pub others: Option<String>,
    /// A column that is read though its heading is not known, in words.
    pub guessed: Option<String>,
}

impl Columns {
    /// Of a list whose first line is `first`. A line with an image's name is a row, as is one whose
    /// path there is (`is_there`); other lines are headings if they have a known one.
    pub fn of(first: &csv::StringRecord, is_there: impl Fn(&str) -> bool) -> Columns {
        let position =
            |names: &[&str]| first.iter().position(|field| names.contains(&plain(field).as_str()));
        let is_row = first.iter().any(|field| is_image(Path::new(field)));
        let known = match is_row {
            true => (None, None),
            false => (position(&PATH_NAMES), position(&LABEL_NAMES)),
        };
        match known {
            (Some(path), Some(label)) => Columns::headed(first, path, Some(label), None),
            (Some(path), None) if first.len() == 2 => {
                let label = 1 - path;
                Columns::headed(first, path, Some(label), Some((label, "labels")))
            }
            (Some(path), None) => Columns::headed(first, path, None, None),
            (None, Some(label)) if first.len() > 1 => {
                let path = usize::from(label == 0);
                if is_there(&first[path]) {
                    return Columns::in_order(first);
                }
                Columns::headed(first, path, Some(label), Some((path, "paths")))
            }
            (None, _) => Columns::in_order(first),
        }
    }

    fn headed(
        first: &csv::StringRecord,
        path: usize,
        label: Option<usize>,
        guess: Option<(usize, &str)>,
    ) -> Columns {
        let others = (0..first.len()).filter(|&at| at != path && Some(at) != label);
        let others: Vec<String> = others.map(|at| quoted(&first[at])).collect();
        let unlabelled = match label {
            None => "; none of them is known to hold labels (`label`, `class`, `target`)",
            Some(_) => "",
        };
        let more = if others.len() > 5 { ", ..." } else { "" };
        let few = others[..others.len().min(5)].join(", ");
        Columns {
            path,
            label,
            heading: true,
            others: (!others.is_empty()).then(|| format!("columns {few}{more}{unlabelled}")),
            guessed: guess
                .map(|(at, what)| format!("column {} is read as the {what}", quoted(&first[at]))),
        }
    }

    /// Path and label, in this order.
    fn in_order(first: &csv::StringRecord) -> Columns {
        let others = first.len().saturating_sub(2);
        let others = (others > 0).then(|| format!("columns behind the second: {others}"));
        Columns { label: Some(1), others, ..Columns::default() }
    }
}

/// A heading, of which a list may make anything, for messages.
fn quoted(heading: &str) -> String {
    let short: String = heading.chars().take(40).collect();
    format!("{short:?}")
}

fn plain(heading: &str) -> String {
    heading.to_lowercase().replace(['_', '-', ' '], "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(first: &[&str]) -> Columns {
        Columns::of(&first.to_vec().into(), |path| path == "there")
    }

    #[test]
    fn headings_are_known_or_follow_from_the_other_of_two() {
        for (first, path, label, guessed) in [
            (&["Path", "Label"][..], 0, Some(1), None),
            (&["class_id", "File Name"], 1, Some(0), None),
            (&["filename", "variety"], 0, Some(1), Some("labels")),
            (&["variety", "filename"], 1, Some(0), Some("labels")),
            (&["image_id", "species"], 0, Some(1), Some("paths")),
            (&["y", "id"], 1, Some(0), Some("paths")),
            (&["path"], 0, None, None),
            (&["path", "width", "height"], 0, None, None),
            (&["id", "width", "labels"], 0, Some(2), Some("paths")),
        ] {
            let found = of(first);
            assert!(found.heading, "{first:?}");
            assert_eq!((found.path, found.label), (path, label), "{first:?}");
            let told = found.guessed.as_deref().and_then(|text| text.rsplit(' ').next());
            assert_eq!(told, guessed, "{first:?}");
        }
    }

    #[test]
    fn a_line_that_names_an_image_is_no_heading() {
        for first in [&["a.jpg", "y"][..], &["image", "b.PNG"], &["there", "class"], &["x", "1"]] {
            let found = of(first);
            assert_eq!(found, Columns { label: Some(1), ..Columns::default() }, "{first:?}");
        }
    }

    #[test]
    fn columns_that_are_not_read_are_named() {
        let others = |first: &[&str]| of(first).others.unwrap_or_default();
        assert_eq!(others(&["path", "label"]), "");
        assert_eq!(others(&["path", "label", "w", "h"]), "columns \"w\", \"h\"");
        assert!(others(&["path", "w", "h"]).contains("none of them is known to hold labels"));
        assert!(others(&["path", "y", "1", "2", "3", "4", "5", "6"]).ends_with("\"5\", ..."));
        assert_eq!(others(&["a.jpg", "1", "2"]), "columns behind the second: 1");
    }
}
