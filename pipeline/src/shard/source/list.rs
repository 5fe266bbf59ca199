//! A CSV or TSV list of path and label. Paths are relative to the list's
//! folder; labels are class numbers, or names that are numbered in their order.

use std::path::{Path, PathBuf};

use super::{Keys, Loaded, Source, extension_of};
use crate::shard::ReadScratch;
use crate::shard::{Limits, damaged};
use crate::{Error, Result};

/// Headings of the column of paths, and of labels.
const PATH_NAMES: [&str; 9] = [
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image",
    "image_path",
    "img",
];
const LABEL_NAMES: [&str; 6] = ["label", "class", "target", "cls", "class_name", "category"];

struct Row {
    path: PathBuf,
    key: String,
    label: Option<u32>,
}

/// The images of a list.
pub struct ListSource {
    folder: PathBuf,
    rows: Vec<Row>,
    classes: Vec<String>,
}

impl ListSource {
    /// Reads the list at `path`: tab-separated when its name ends in `.tsv` or its
    /// first line has a tab. A first line of known headings (`path,label`)
    /// orders the columns; without one they are path and label. The label may be missing throughout.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Shard`] with the byte of a line that cannot be
    /// understood; [`Error::Usage`] when numbers and names are mixed.
    pub fn open(path: &Path, limits: &Limits) -> Result<ListSource> {
        let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&text);
        let first = text.split(|&byte| byte == b'\n').next().unwrap_or(&[]);
        let tabs = extension_of(path) == "tsv" || first.contains(&b'\t');
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .trim(csv::Trim::All)
            .delimiter(if tabs { b'\t' } else { b',' })
            .from_reader(text);
        let mut columns = None;
        let mut found: Vec<(PathBuf, String)> = Vec::new();
        for record in reader.records() {
            let record = record.map_err(|e| {
                let at = e.position().map_or(0, |position| position.byte());
                damaged(path, at, format!("the list cannot be read: {e}"))
            })?;
            let Some((path_at, label_at)) = columns else {
                let (place, heading) = header(&record);
                columns = Some(place);
                if !heading {
                    push(&record, place, path, &mut found)?;
                }
                continue;
            };
            push(&record, (path_at, label_at), path, &mut found)?;
        }
        let (labels, classes) = number(&found, path, limits)?;
        let mut keys = Keys::default();
        let rows = found.into_iter().zip(labels).map(|((path, _), label)| {
            let key = keys.make(&path);
            Row { path, key, label }
        });
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        Ok(ListSource { folder, rows: rows.collect(), classes })
    }

    fn path(&self, i: usize) -> PathBuf {
        self.folder.join(&self.rows[i].path)
    }
}

/// Columns of path and label, and whether the record is a heading.
fn header(record: &csv::StringRecord) -> ((usize, Option<usize>), bool) {
    let position = |names: &[&str]| {
        record.iter().position(|field| names.contains(&field.to_lowercase().as_str()))
    };
    match (position(&PATH_NAMES), position(&LABEL_NAMES)) {
        (Some(path), label) => ((path, label), true),
        (None, _) => ((0, Some(1)), false),
    }
}

fn push(
    record: &csv::StringRecord,
    (path_at, label_at): (usize, Option<usize>),
    list: &Path,
    found: &mut Vec<(PathBuf, String)>,
) -> Result<()> {
    let path = record.get(path_at).unwrap_or("");
    if path.is_empty() {
        let at = record.position().map_or(0, |position| position.byte());
        let line = record.position().map_or(0, |position| position.line());
        return Err(damaged(list, at, format!("line {line} has no path")));
    }
    let label = label_at.and_then(|at| record.get(at)).unwrap_or("");
    found.push((PathBuf::from(path), label.to_owned()));
    Ok(())
}

/// Labels as numbers, and the names of the classes where they were names.
fn number(
    found: &[(PathBuf, String)],
    list: &Path,
    limits: &Limits,
) -> Result<(Vec<Option<u32>>, Vec<String>)> {
    let given = || found.iter().map(|(_, label)| label.as_str()).filter(|label| !label.is_empty());
    let is_number = |label: &str| label.parse::<i64>().is_ok();
    if let (Some(name), Some(number)) =
        (given().find(|l| !is_number(l)), given().find(|l| is_number(l)))
    {
        return Err(Error::Usage(format!(
            "{}: labels are class numbers or class names, not both: {number:?} and {name:?}",
            list.display()
        )));
    }
    if given().next().is_none_or(is_number) {
        let labels = found.iter().map(|(path, label)| match label.as_str() {
            "" | "-1" => Ok(None),
            text => {
                text.parse().ok().filter(|&label: &u32| label <= limits.label).map(Some).ok_or_else(
                    || {
                        let (list, path) = (list.display(), path.display());
                        Error::Usage(format!(
                            "{list}: {path}: label {text}, expected 0 to {}",
                            limits.label
                        ))
                    },
                )
            }
        });
        return Ok((labels.collect::<Result<_>>()?, Vec::new()));
    }
    let names: std::collections::BTreeSet<&str> = given().collect();
    let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    let label = |label: &String| names.binary_search(label).ok().map(|at| at as u32);
    Ok((found.iter().map(|(_, name)| label(name)).collect(), names))
}

impl Source for ListSource {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn label(&self, i: usize) -> Result<Option<u32>> {
        Ok(self.rows[i].label)
    }

    fn bytes(&self, i: usize) -> Result<u64> {
        let path = self.path(i);
        Ok(std::fs::metadata(&path).map_err(|e| Error::io(path, e))?.len())
    }

    fn name(&self, i: usize) -> String {
        self.path(i).display().to_string()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn load(&self, i: usize, _: &mut ReadScratch, into: &mut Loaded) -> Result<()> {
        let (row, path) = (&self.rows[i], self.path(i));
        into.key.clone_from(&row.key);
        (into.label, into.extension) = (row.label, extension_of(&path));
        into.extras.clear();
        into.image = std::fs::read(&path).map_err(|e| Error::io(path, e))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rows = Vec<(String, Option<u32>)>;

    fn read(name: &str, text: impl AsRef<[u8]>) -> Result<(Rows, Vec<String>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let list = ListSource::open(&path, &Limits::default())?;
        let rows = list.rows.iter().map(|row| (row.path.display().to_string(), row.label));
        Ok((rows.collect(), list.classes.clone()))
    }

    #[test]
    fn lists_are_read_with_and_without_a_heading() {
        let ab = |a, b| vec![("x/a.jpg".to_owned(), a), ("b, c.png".to_owned(), b)];
        let names = vec!["cat".to_owned(), "dog".to_owned()];
        for (name, text, expected) in [
            ("l.csv", "x/a.jpg,3\n\"b, c.png\",0\n", (ab(Some(3), Some(0)), vec![])),
            (
                "l.csv",
                "label,path\r\ndog,x/a.jpg\r\ncat,\"b, c.png\"",
                (ab(Some(1), Some(0)), names),
            ),
            ("l.tsv", "x/a.jpg\t\nb, c.png\t-1", (ab(None, None), vec![])),
            ("l.txt", "Image\tid\nx/a.jpg\t1\nb, c.png\t2", (ab(None, None), vec![])),
        ] {
            assert_eq!(read(name, text).unwrap(), expected, "{text}");
        }
        for bad in ["a,1\nb,cat\n", "a,-2\n", "a,99999999999\n", ",1\n"] {
            assert!(
                matches!(read("l.csv", bad), Err(Error::Shard { .. } | Error::Usage(_))),
                "{bad}"
            );
        }
        // Names that are not UTF-8 are refused with the line's place; those that are, whatever they
        // look like, are read.
        let Err(Error::Shard { offset, cause, .. }) = read("l.csv", b"a,1\nb\xFF,2\n") else {
            panic!("read")
        };
        assert!(offset == 4 && cause.contains("UTF-8"), "{offset}: {cause}");
        let strange = ("b\u{fffd}".to_owned(), Some(2));
        assert_eq!(read("l.csv", "b\u{fffd},2\n").unwrap().0, [strange]);
    }
}
