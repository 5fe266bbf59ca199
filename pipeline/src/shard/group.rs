//! WebDataset's grouping: consecutive members whose paths agree up to the
//! first dot of the last component are one sample. Between `tar` and those
//! who want samples: `scan`, `stream`, the writer.

use std::path::Path;

use super::tar::{Source, Tar};
use super::{Limits, damaged};
use crate::{Error, Result};

/// Extensions that name an image.
const IMAGE_EXTENSIONS: [&str; 17] = [
    "jpg", "jpeg", "png", "ppm", "pgm", "pbm", "pnm", "bmp", "dib", "gif", "tif", "tiff", "webp",
    "jfif", "jpe", "img", "dct",
];

/// Key and lower-case extension of a member's path; `None` for what WebDataset passes over:
/// names without a dot or with nothing before it, and `__meta__` entries.
pub(crate) fn split_name(path: &str) -> Option<(&str, String)> {
    let first = path.split('/').next().unwrap_or("");
    if first.len() >= 4 && first.starts_with("__") && first.ends_with("__") {
        return None;
    }
    let base = path.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + path[base..].find('.')?;
    (dot > base).then(|| (&path[..dot], path[dot + 1..].to_lowercase()))
}

/// Bytes of buffers that a [`Group`] keeps from sample to sample. More was an exception.
const HELD_BYTES: usize = 16 << 20;

/// Whether an extension names an image by itself.
fn is_plain_image(extension: &str) -> bool {
    IMAGE_EXTENSIONS.contains(&extension)
}

/// Whether an extension names an image; of `left.jpg` the last part counts.
pub(crate) fn is_image(extension: &str) -> bool {
    is_plain_image(extension.rsplit('.').next().unwrap_or(extension))
}

/// Which members' data a reader wants in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Only labels: enough for an index without checksums.
    Labels,
    /// Labels, and the image that [`Group::image`] chooses.
    Images,
    /// Everything.
    All,
}

/// One member of a sample.
#[derive(Clone, Debug, Default)]
pub(crate) struct Part {
    pub extension: String,
    pub offset: u64,
    pub length: u64,
    /// Its bytes, where [`Keep`] asked for them and the limits allow it; else empty.
    pub data: Vec<u8>,
}

/// A sample as it lies in the archive. Made to be reused.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub key: String,
    /// From the first header of the first member ...
    pub start: u64,
    /// ... to the end of the padding of the last.
    pub end: u64,
    parts: Vec<Part>,
    used: usize,
    /// Why the sample cannot be used, and where that shows.
    fault: Option<(u64, String)>,
}

impl Group {
    /// Whether the members make a sample.
    ///
    /// # Errors
    /// [`Error::Sample`] when two of them have one name: which to believe? Or when one that is
    /// wanted in memory is too large for it.
    pub fn check(&self, shard: &Path) -> Result<()> {
        let Some((offset, cause)) = self.fault.clone() else { return Ok(()) };
        Err(Error::Sample { path: shard.to_owned(), key: self.key.clone(), offset, cause })
    }

    /// The members, in the order of the archive.
    pub fn parts(&self) -> &[Part] {
        &self.parts[..self.used]
    }

    /// The image: the first member with a plain image extension, or else the first with one like
    /// `left.png`.
    pub fn image(&self) -> Option<&Part> {
        self.image_place().map(|place| &self.parts[place])
    }

    /// Where in [`Group::parts`] the image is.
    pub fn image_place(&self) -> Option<usize> {
        let parts = self.parts();
        parts
            .iter()
            .position(|part| is_plain_image(&part.extension))
            .or_else(|| parts.iter().position(|part| is_image(&part.extension)))
    }

    /// Exchanges the data of a part with `data`.
    pub fn swap_data(&mut self, part: usize, data: &mut Vec<u8>) {
        std::mem::swap(&mut self.parts[part].data, data);
    }

    /// The label in `.cls`: a number, `-1` or no member for none.
    ///
    /// # Errors
    /// [`Error::Sample`] when it is neither, or beyond the limit.
    pub fn label(&self, shard: &Path, limits: &Limits) -> Result<Option<u32>> {
        let Some(part) = self.parts().iter().find(|part| part.extension == "cls") else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(part.data.get(..part.data.len().min(64)).unwrap_or(&[]));
        let text = text.trim();
        if text == "-1" {
            return Ok(None);
        }
        text.parse()
            .ok()
            .filter(|&label: &u32| label <= limits.label && part.data.len() <= 64)
            .map(Some)
            .ok_or_else(|| {
                let cause = format!(
                    "`.cls` is {text:?}, expected a class number from 0 to {}",
                    limits.label
                );
                Error::Sample {
                    path: shard.to_owned(),
                    key: self.key.clone(),
                    offset: part.offset,
                    cause,
                }
            })
    }

    fn begin(&mut self, key: &str, start: u64) {
        self.key.clear();
        self.key.push_str(key);
        (self.start, self.used, self.fault) = (start, 0, None);
        if self.parts.iter().map(|part| part.data.capacity()).sum::<usize>() > HELD_BYTES {
            self.parts.clear();
        }
    }

    /// Whether a member that comes next would be the image; the one that it takes the place of is
    /// let go.
    fn chooses(&mut self, extension: &str) -> bool {
        match self.image_place() {
            None => is_image(extension),
            Some(old) => {
                let better =
                    is_plain_image(extension) && !is_plain_image(&self.parts[old].extension);
                if better {
                    self.parts[old].data = Vec::new();
                    // Too large or not, it is not read.
                    self.fault.take_if(|(offset, _)| *offset == self.parts[old].offset);
                }
                better
            }
        }
    }

    /// Bytes of its members that are in memory.
    fn held(&self) -> u64 {
        self.parts().iter().map(|part| part.data.len() as u64).sum()
    }

    fn push(&mut self) -> &mut Part {
        if self.used == self.parts.len() {
            self.parts.push(Part::default());
        }
        self.used += 1;
        let part = &mut self.parts[self.used - 1];
        part.data.clear();
        part
    }
}

/// Samples of an archive, from front to back.
pub(crate) struct Groups<S> {
    tar: Tar<S>,
    keep: Keep,
    /// The member that showed the last sample to be complete; its data is
    /// still unread.
    next: Option<super::tar::Member>,
    finished: bool,
}

impl<S: Source> Groups<S> {
    pub fn new(tar: Tar<S>, keep: Keep) -> Self {
        Groups { tar, keep, next: None, finished: false }
    }

    /// The tar underneath, for its position and end.
    pub fn tar(&self) -> &Tar<S> {
        &self.tar
    }

    /// Whether the end of the archive was met.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Gives the tar back, at what follows the last member read.
    pub fn into_tar(self) -> Tar<S> {
        self.tar
    }

    /// Reads the next sample; false at the end of the archive.
    pub fn next_into(&mut self, group: &mut Group) -> Result<bool> {
        group.used = 0;
        while !self.finished {
            let Some(member) = (match self.next.take() {
                Some(member) => Some(member),
                None => self.tar.next_member()?,
            }) else {
                self.finished = true;
                // Padding that is missing behind the last member is no part of its sample.
                group.end = group.end.min(self.tar.position());
                break;
            };
            let Some((key, extension)) = split_name(&member.name) else { continue };
            if group.used == 0 {
                group.begin(key, member.start);
            } else if key != group.key {
                self.next = Some(member);
                return Ok(true);
            }
            self.check(group, &extension, member.offset)?;
            let keep = match self.keep {
                Keep::Labels => extension == "cls",
                Keep::Images => extension == "cls" || group.chooses(&extension),
                Keep::All => true,
            };
            let limit = self.tar.limits().member_bytes;
            let too_large = keep && member.size > limit;
            if too_large {
                let cause =
                    format!("a member of {} bytes is over the limit of {limit}", member.size);
                group.fault.get_or_insert((member.offset, cause));
            }
            let keep = keep && !too_large;
            let limit = self.tar.limits().sample_bytes;
            if keep && group.held().saturating_add(member.size) > limit {
                let cause = format!(
                    "sample `{}` has more than {limit} bytes to be read (limit)",
                    group.key
                );
                return Err(damaged(self.tar.path(), member.offset, cause));
            }
            group.end = member.end();
            let part = group.push();
            (part.extension, part.offset, part.length) = (extension, member.offset, member.size);
            if keep {
                self.tar.read_into(&mut part.data)?;
            }
        }
        Ok(group.used > 0)
    }

    /// Refuses too many members, and notes two of one name.
    fn check(&self, group: &mut Group, extension: &str, offset: u64) -> Result<()> {
        let limit = self.tar.limits().members_per_sample;
        if group.used >= limit {
            let cause = format!("sample `{}` has more than {limit} members (limit)", group.key);
            return Err(damaged(self.tar.path(), offset, cause));
        }
        if group.parts().iter().any(|part| part.extension == extension) {
            group.fault = Some((offset, format!("two members `.{extension}`")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tar::SliceSource;
    use super::super::tar_write::append_member;
    use super::*;

    fn read(keep: Keep, limits: Limits, members: &[&str]) -> Result<Vec<usize>> {
        let mut bytes = Vec::new();
        members.iter().for_each(|name| append_member(&mut bytes, name, &[7; 1000]));
        let tar = Tar::new(SliceSource::new(&bytes), Path::new("x"), 0, limits);
        let mut group = Group::default();
        assert!(Groups::new(tar, keep).next_into(&mut group)?);
        Ok(group.parts().iter().map(|part| part.data.len()).collect())
    }

    #[test]
    fn of_several_images_the_one_that_is_used_is_kept() {
        let members = ["a.left.png", "a.right.png", "a.cls", "a.json", "a.jpg", "a.png"];
        let read = |keep, members| read(keep, Limits::default(), members).unwrap();
        assert_eq!(read(Keep::Images, &members), [0, 0, 1000, 0, 1000, 0]);
        assert_eq!(read(Keep::Images, &members[..4]), [1000, 0, 1000, 0]);
        assert_eq!(read(Keep::Labels, &members), [0, 0, 1000, 0, 0, 0]);
        assert_eq!(read(Keep::All, &members), [1000; 6]);
    }

    #[test]
    fn an_image_that_takes_the_place_of_another_makes_no_other_fault_good() {
        let mut bytes = Vec::new();
        for name in ["a.left.png", "a.json", "a.json", "a.png"] {
            append_member(&mut bytes, name, &[7; 10]);
        }
        let tar = Tar::new(SliceSource::new(&bytes), Path::new("x"), 0, Limits::default());
        let mut group = Group::default();
        assert!(Groups::new(tar, Keep::Images).next_into(&mut group).unwrap());
        let error = group.check(Path::new("x")).unwrap_err().to_string();
        assert!(error.contains("two members `.json`"), "{error}");
    }

    #[test]
    fn a_sample_is_read_only_within_its_limit() {
        let members = ["a.left.png", "a.jpg", "a.cls", "a.png", "a.json"];
        let read =
            |keep, sample_bytes| read(keep, Limits { sample_bytes, ..Limits::default() }, &members);
        for (keep, bytes) in [(Keep::Labels, 1000), (Keep::Images, 2000), (Keep::All, 5000)] {
            assert!(read(keep, bytes).is_ok(), "{keep:?}");
            let Err(Error::Shard { cause, .. }) = read(keep, bytes - 1) else {
                panic!("{keep:?}: read")
            };
            assert!(cause.contains("sample `a`") && cause.contains("limit"), "{cause}");
        }
    }

    #[test]
    fn a_member_that_is_too_large_costs_its_sample_alone() {
        let mut bytes = Vec::new();
        for (name, size) in [
            ("a.jpg", 10),
            ("b.jpg", 3000),
            ("b.cls", 1),
            // In both orders one that is not the sample's image.
            ("c.left.jpg", 3000),
            ("c.jpg", 10),
            ("d.jpg", 10),
            ("d.left.jpg", 3000),
        ] {
            append_member(&mut bytes, name, &vec![b'7'; size]);
        }
        for (keep, member_bytes, sound) in [
            (Keep::Images, 3000, [true, true, true, true]),
            (Keep::Images, 2999, [true, false, true, true]),
            (Keep::All, 2999, [true, false, false, false]),
            (Keep::Labels, 2999, [true, true, true, true]),
        ] {
            let limits = Limits { member_bytes, ..Limits::default() };
            let tar = Tar::new(SliceSource::new(&bytes), Path::new("x"), 0, limits);
            let (mut groups, mut group) = (Groups::new(tar, keep), Group::default());
            for sound in sound {
                assert!(groups.next_into(&mut group).unwrap());
                assert_eq!(group.check(Path::new("x")).is_ok(), sound, "{} {keep:?}", group.key);
            }
        }
    }

    #[test]
    fn buffers_of_large_samples_are_let_go() {
        let mut group = Group::default();
        group.begin("a", 0);
        for _ in 0..3 {
            group.push().data.resize(HELD_BYTES / 2, 1);
        }
        group.begin("b", 0);
        let held = || group.parts.iter().map(|part| part.data.capacity()).sum::<usize>();
        assert_eq!(held(), 0);
    }

    #[test]
    fn names_split_as_webdataset_splits_them() {
        let split = |name| split_name(name).map(|(key, extension)| (key.to_owned(), extension));
        let is = |key: &str, extension: &str| Some((key.to_owned(), extension.to_owned()));
        assert_eq!(split("000.jpg"), is("000", "jpg"));
        assert_eq!(split("a/b.c/000.seg.PNG"), is("a/b.c/000", "seg.png"));
        assert_eq!(split("./000.cls"), is("./000", "cls"));
        assert_eq!(split("end."), is("end", ""));
        for sample in ["___/x.jpg", "__ab/x.jpg", "ab__/x.jpg", "a/__b__/x.jpg"] {
            assert_eq!(split(sample), is(&sample[..sample.len() - 4], "jpg"));
        }
        for passed_over in [
            "README",
            "dir.d/README",
            ".hidden",
            "a/.hidden",
            "__meta__",
            "__meta__/x.jpg",
            "____/x.jpg",
            "",
        ] {
            assert_eq!(split(passed_over), None, "{passed_over}");
        }
    }
}
