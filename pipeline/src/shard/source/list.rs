//! A CSV or TSV list of path and label. Paths are relative to the list's
//! folder; labels are class numbers, or names that are numbered in their order.

use std::path::{Path, PathBuf};

use super::tree::{is_image, read_image, read_within};
use super::{Keys, Loaded, Source, extension_of};
use crate::shard::ReadScratch;
use crate::shard::{Limits, damaged};
use crate::{Error, Result};

mod columns;

use columns::Columns;

struct Row {
    path: PathBuf,
    key: String,
    label: Option<u32>,
    line: u64,
}

/// A row as it stands in the list.
struct Found {
    path: PathBuf,
    label: String,
    line: u64,
}

/// The images of a list.
pub struct ListSource {
    list: PathBuf,
    rows: Vec<Row>,
    classes: Vec<String>,
    /// What of the list is not read.
    passed_over: Vec<String>,
}

impl std::fmt::Debug for ListSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ListSource")
            .field("list", &self.list)
            .field("images", &self.rows.len())
            .field("classes", &self.classes)
            .finish_non_exhaustive()
    }
}

impl ListSource {
    /// Reads the list at `path`: tab-separated when its name ends in `.tsv` or its
    /// first line has a tab. A first line of known headings (`path,label`)
    /// orders the columns, of two of which one has to be known; without such a line they are path
    /// and label. The label may be missing throughout.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Shard`] with the byte of a line that cannot be understood, and for a
    /// list of more than [`Limits::index_bytes`]; [`Error::Usage`] when numbers and names are
    /// mixed.
    pub fn open(path: &Path, limits: &Limits) -> Result<ListSource> {
        let limit = limits.index_bytes;
        let text = read_within(path, limit)?.ok_or_else(|| {
            damaged(path, limit, format!("a list of more than {limit} bytes (limit)"))
        })?;
        let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&text);
        let (columns, mut found) = read(text, path)?;
        if let Some(guessed) = &columns.guessed {
            tracing::warn!("{}: {guessed}", path.display());
        }
        let mut passed_over: Vec<String> = columns.others.into_iter().collect();
        if !columns.heading && is_heading(&found, path) {
            let first = found.remove(0);
            passed_over.push(format!(
                "line {} as a heading, there is no such file: {:?}",
                first.line, first.path
            ));
        }
        let (labels, classes) = number(&found, path, limits)?;
        let mut keys = Keys::default();
        let rows = found.into_iter().zip(labels).map(|(Found { path, line, .. }, label)| {
            let key = keys.make(&path);
            Row { path, key, label, line }
        });
        Ok(ListSource { list: path.to_owned(), rows: rows.collect(), classes, passed_over })
    }

    fn path(&self, i: usize) -> PathBuf {
        beside(&self.list, &self.rows[i].path)
    }

    fn place(&self, i: usize) -> String {
        format!("line {} of {}", self.rows[i].line, self.list.display())
    }
}

/// A path of a list, from its folder.
fn beside(list: &Path, path: impl AsRef<Path>) -> PathBuf {
    list.parent().unwrap_or(Path::new("")).join(path)
}

/// The rows of the list `text`, whose file is `list`, and what its columns are.
fn read(text: &[u8], list: &Path) -> Result<(Columns, Vec<Found>)> {
    let first = text.split(|&byte| byte == b'\n').next().unwrap_or(&[]);
    let tabs = extension_of(list) == "tsv" || first.contains(&b'\t');
    let delimiter = if tabs { b'\t' } else { b',' };
    // The reader would take all that follows for one field.
    if let Some((at, line)) = unclosed_quote(text, delimiter) {
        let cause = format!("line {line}: a quote is opened here and not closed");
        return Err(damaged(list, at, cause));
    }
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .delimiter(delimiter)
        .from_reader(text);
    let mut columns: Option<Columns> = None;
    let mut found: Vec<Found> = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| {
            let at = e.position().map_or(0, |position| position.byte());
            damaged(list, at, format!("the list cannot be read: {e}"))
        })?;
        let is_there = |path: &str| beside(list, path).is_file();
        let is_first = columns.is_none();
        let columns = columns.get_or_insert_with(|| Columns::of(&record, is_there));
        if !(is_first && columns.heading) {
            push(&record, columns, (list, text), &mut found)?;
        }
    }
    Ok((columns.unwrap_or_default(), found))
}

/// Whether the first row is a heading that nobody knows: it names no image, and no file as others
/// do.
fn is_heading(found: &[Found], list: &Path) -> bool {
    let is_there = |row: &Found| beside(list, &row.path).is_file();
    found.split_first().is_some_and(|(first, others)| {
        !is_image(&first.path) && !is_there(first) && others.iter().any(is_there)
    })
}

fn push(
    record: &csv::StringRecord,
    columns: &Columns,
    (list, text): (&Path, &[u8]),
    found: &mut Vec<Found>,
) -> Result<()> {
    let path = record.get(columns.path).unwrap_or("");
    let (at, line) = start(record, text);
    if path.is_empty() {
        return Err(damaged(list, at, format!("line {line} has no path")));
    }
    let label = columns.label.and_then(|at| record.get(at)).unwrap_or("");
    found.push(Found { path: PathBuf::from(path), label: label.to_owned(), line });
    Ok(())
}

/// Byte and line where a record begins. The reader counts the empty lines before it as part of it.
fn start(record: &csv::StringRecord, text: &[u8]) -> (u64, u64) {
    let (at, line) = record.position().map_or((0, 0), |found| (found.byte(), found.line()));
    let rest = usize::try_from(at).ok().and_then(|at| text.get(at..)).unwrap_or(&[]);
    let empty = rest.iter().take_while(|byte| matches!(byte, b'\n' | b'\r'));
    let (bytes, lines) =
        empty.fold((0, 0), |(bytes, lines), &byte| (bytes + 1, lines + u64::from(byte == b'\n')));
    (at + bytes, line + lines)
}

/// Byte and line of a quote that opens a field and that nothing closes: neither the end of the list
/// nor, lines later, a quote that opens another field, which has text behind it then.
fn unclosed_quote(text: &[u8], delimiter: u8) -> Option<(u64, u64)> {
    let ends_field = |byte: u8| byte == delimiter || byte == b'\n' || byte == b'\r';
    let (mut at, mut line, mut starts_field) = (0, 1, true);
    while let Some(&byte) = text.get(at) {
        if byte == b'"' && starts_field {
            let opened = (at as u64, line);
            let Some(field) = quoted(&text[at..]) else { return Some(opened) };
            let lines = text[at..at + field].iter().filter(|&&byte| byte == b'\n').count() as u64;
            at += field;
            let behind = text[at..].iter().find(|&&byte| byte != b' ');
            if lines > 0 && behind.is_some_and(|&byte| !ends_field(byte)) {
                return Some(opened);
            }
            line += lines;
            starts_field = false;
            continue;
        }
        starts_field = ends_field(byte);
        line += u64::from(byte == b'\n');
        at += 1;
    }
    None
}

/// How many bytes a field takes that begins with a quote, up to the one that closes it; two in a
/// row stand for one.
fn quoted(field: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        at += field.get(at..)?.iter().position(|&byte| byte == b'"')? + 1;
        if field.get(at) != Some(&b'"') {
            return Some(at);
        }
        at += 1;
    }
}

/// Labels as numbers, and the names of the classes where they were names.
fn number(
    found: &[Found],
    list: &Path,
    limits: &Limits,
) -> Result<(Vec<Option<u32>>, Vec<String>)> {
    let given = || found.iter().map(|row| row.label.as_str()).filter(|label| !label.is_empty());
    let is_number = |label: &str| whole(label).parse::<i64>().is_ok();
    if given().all(is_number) {
        let labels = found.iter().map(|row| match whole(&row.label) {
            "" | "-1" => Ok(None),
            text => {
                text.parse().ok().filter(|&label: &u32| label <= limits.label).map(Some).ok_or_else(
                    || {
                        let (list, path) = (list.display(), row.path.display());
                        Error::Usage(format!(
                            "{list}: line {}: {path}: label {text}, expected 0 to {}",
                            row.line, limits.label
                        ))
                    },
                )
            }
        });
        return Ok((labels.collect::<Result<_>>()?, Vec::new()));
    }
    if let (Some(name), Some(number)) =
        (given().find(|l| !is_number(l)), given().find(|l| is_number(l)))
    {
        return Err(Error::Usage(format!(
            "{}: labels are class numbers or class names, not both: {number:?} and {name:?}",
            list.display()
        )));
    }
    let names: std::collections::BTreeSet<&str> = given().collect();
    let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    let label = |label: &String| names.binary_search(label).ok().map(|at| at as u32);
    Ok((found.iter().map(|row| label(&row.label)).collect(), names))
}

/// A label without `.0`: pandas writes numbers like that when one of them is missing.
fn whole(label: &str) -> &str {
    match label.split_once('.') {
        Some((whole, zeros)) if zeros.bytes().all(|byte| byte == b'0') => whole,
        _ => label,
    }
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
        format!("{} ({})", self.path(i).display(), self.place(i))
    }

    fn listed(&self, i: usize) -> Option<String> {
        Some(self.place(i))
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn passed_over(&self) -> Vec<String> {
        self.passed_over.iter().map(|what| format!("of {}: {what}", self.list.display())).collect()
    }

    fn load(&self, i: usize, _: &mut ReadScratch, into: &mut Loaded) -> Result<()> {
        let (row, path) = (&self.rows[i], self.path(i));
        into.key.clone_from(&row.key);
        (into.label, into.extension) = (row.label, extension_of(&path));
        into.extras.clear();
        into.image = read_image(&path)?;
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
        std::fs::write(folder.path().join("there"), "x").unwrap();
        let list = ListSource::open(&path, &Limits::default())?;
        let rows = list.rows.iter().map(|row| (row.path.display().to_string(), row.label));
        Ok((rows.collect(), list.classes.clone()))
    }

    #[test]
    fn a_quote_that_is_not_closed_is_told_with_its_line() {
        for (text, at, line) in [
            ("a,\"cat\nb,dog\nc,dog\n", 2, 1),
            ("a,cat\n\n\"b,dog\n", 7, 3),
            ("a,\"c\"\"\nb\"\n\"c,dog", 10, 3),
            // The quote of another field closes it, lines later.
            ("\"a\",1\nb,\"cat\nc,\"dog\"\nd,cat\n", 8, 2),
        ] {
            let Err(Error::Shard { path, offset, cause }) = read("l.csv", text) else {
                panic!("{text}: read")
            };
            assert!(path.ends_with("l.csv") && offset == at, "{text}: {offset}");
            assert!(cause.starts_with(&format!("line {line}: a quote")), "{text}: {cause}");
        }
        for (text, path) in [
            ("\"a\nb\" ,1\n", "a\nb"),
            ("a\"b,1\n", "a\"b"),
            ("\"a\"\"b\",1", "a\"b"),
            ("\"a\"\r\n", "a"),
        ] {
            assert_eq!(read("l.csv", text).unwrap().0[0].0, path, "{text}");
        }
        assert_eq!(unclosed_quote(b"a\t\"c,\"\n", b'\t'), None);
    }

    #[test]
    fn what_is_too_large_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let (list, image) = (folder.path().join("l.csv"), folder.path().join("a.jpg"));
        std::fs::write(&list, "a.jpg,1\n").unwrap();
        // One hole, larger than a decoder takes.
        std::fs::File::create(&image).unwrap().set_len((1 << 30) + 1).unwrap();
        let source = ListSource::open(&list, &Limits::default()).unwrap();
        let error = source.load(0, &mut ReadScratch::new(), &mut Loaded::default()).unwrap_err();
        assert!(matches!(&error, Error::TooLarge(text) if text.contains("limit")), "{error}");
        let limits = Limits { index_bytes: 7, ..Limits::default() };
        let error = ListSource::open(&list, &limits).err().unwrap();
        assert!(matches!(&error, Error::Shard { .. }), "{error}");
    }

    #[test]
    fn rows_know_their_lines() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("l.csv");
        std::fs::write(&list, "path,label\n\n\r\na,1\n\"b\nb\",1\n\n\nc,2").unwrap();
        let source = ListSource::open(&list, &Limits::default()).unwrap();
        let lines: Vec<u64> = source.rows.iter().map(|row| row.line).collect();
        assert_eq!(lines, [4, 5, 9]);
        let place = format!("line 9 of {}", list.display());
        assert!(source.name(2).contains(&place) && source.listed(2) == Some(place));
        let Err(Error::Shard { offset, cause, .. }) = read("l.csv", "a,1\n\n\n,2\n") else {
            panic!("read")
        };
        assert!(offset == 6 && cause.contains("line 4"), "{offset}: {cause}");
    }

    #[test]
    fn a_first_line_that_names_no_file_as_the_others_do_is_a_heading() {
        let paths = |text: &str| -> Vec<String> {
            let (rows, classes) = read("l.csv", text).unwrap();
            assert!(
                !classes.iter().any(|class| class == "variety") || rows[0].0.starts_with("photo")
            );
            rows.into_iter().map(|(path, _)| path).collect()
        };
        assert_eq!(paths("photo,variety\nb.jpg,cat\nthere,dog\n"), ["b.jpg", "there"]);
        assert_eq!(paths("photo,variety\nb.jpg,cat\nc.jpg,dog\n").len(), 3);
        assert_eq!(paths("photo.jpg,variety\nthere,cat\n").len(), 2);
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
            ("l.txt", "Image\tid\nx/a.jpg\t1\nb, c.png\t2", (ab(Some(1), Some(2)), vec![])),
            ("l.tsv", "Image\tw\th\nx/a.jpg\t1\t1\nb, c.png\t2\t2", (ab(None, None), vec![])),
            ("l.csv", "x/a.jpg,10.0\n\"b, c.png\",2.0\n", (ab(Some(10), Some(2)), vec![])),
            ("l.csv", "x/a.jpg,-1.0\n\"b, c.png\",7\n", (ab(None, Some(7)), vec![])),
        ] {
            assert_eq!(read(name, text).unwrap(), expected, "{text}");
        }
        for bad in [
            "a,1\nb,cat\n",
            "a,1.0\nb,1.5\nc,2\n",
            "a,10.0\nb,2.0\nc,nan\n",
            "a,-2\n",
            "a,-2.0\n",
            "a,99999999999\n",
            ",1\n",
        ] {
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
