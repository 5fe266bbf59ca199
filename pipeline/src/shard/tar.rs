//! Members of a tar archive, one after the other: ustar, GNU long names,
//! pax headers, base-256 sizes. Under `group`, which makes samples of them.
//!
//! Headers come from disk: checksums are verified, sizes are checked before
//! anything is skipped or read.

use std::io;
use std::path::{Path, PathBuf};

use super::{Limits, damaged};
use crate::{Error, Result};

mod header;
mod links;
mod source;

use header::{carries_data, checksums, number, pax_record, readable, short_name, until_zero};
pub(crate) use header::{is_header, is_zero, span};
pub use links::Links;
pub(crate) use source::{ReadSource, SliceSource, Source};

/// Bytes of a header, and the unit that data is padded to.
pub(crate) const BLOCK: u64 = 512;

/// What is said of an archive that is not [`Tar::ended`].
pub(crate) const NO_END: &str = "no end-of-archive marker: the shard may have been cut short";

/// A tar wherever its bytes come from.
pub(crate) type AnyTar = Tar<Box<dyn Source + Send>>;

/// One regular file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its path; bytes that are not UTF-8 are written as `\xNN`.
    pub name: String,
    /// Where its first header block begins (that of a long name, if it has one).
    pub start: u64,
    /// Where its data begins.
    pub offset: u64,
    /// Bytes of data, without padding.
    pub size: u64,
}

impl Member {
    /// Where the next member begins.
    pub fn end(&self) -> u64 {
        self.offset + self.size.next_multiple_of(BLOCK)
    }
}

/// Reads an archive from front to back.
pub(crate) struct Tar<S> {
    source: S,
    path: PathBuf,
    limits: Limits,
    at: u64,
    /// Data of the current member that was not read, with and without padding.
    unread: u64,
    padding: u64,
    members: u64,
    global: Extended,
    /// Whether the end-of-archive marker was met, all of it.
    pub ended: bool,
    /// Links in place of members of samples, so far.
    pub links: Links,
}

/// What headers before a member say about it.
#[derive(Clone, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<S: Source> Tar<S> {
    /// A reader whose first byte stands at offset `at` of the shard `path`.
    pub fn new(source: S, path: &Path, at: u64, limits: Limits) -> Self {
        let (path, global) = (path.to_owned(), Extended::default());
        let (unread, padding, members, ended, links) = (0, 0, 0, false, Links::default());
        Tar { source, path, limits, at, unread, padding, members, global, ended, links }
    }

    /// The path of the shard, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The limits it was opened with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Offset of the next byte.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next regular file; `None` at the end of the archive, which is the
    /// marker of two zero blocks or, as other readers have it, the end of the file.
    pub fn next_member(&mut self) -> Result<Option<Member>> {
        let mut local = Extended::default();
        let mut first = None;
        loop {
            self.skip_rest()?;
            let header_at = self.at;
            let Some(block) = self.header()? else { return Ok(None) };
            let start = *first.get_or_insert(header_at);
            let size = number(&block[124..136]).ok_or_else(|| {
                damaged(&self.path, header_at, "the size in the tar header is not a number")
            })?;
            let type_flag = block[156];
            self.expect(if carries_data(type_flag) { size } else { 0 }, header_at)?;
            match type_flag {
                b'L' => local.path = Some(self.long_name()?),
                b'K' => {}
                b'x' => self.pax(&mut local)?,
                b'g' => {
                    let mut global = std::mem::take(&mut self.global);
                    self.pax(&mut global)?;
                    self.global = global;
                }
                b'S' => {
                    return Err(damaged(
                        &self.path,
                        header_at,
                        "sparse tar members are not supported",
                    ));
                }
                _ => {
                    if let Some(member) = self.member(&block, start, size, &mut local)? {
                        return Ok(Some(member));
                    }
                    first = None;
                }
            }
        }
    }

    /// The member of an ordinary header, or `None` where it is no regular file.
    fn member(
        &mut self,
        block: &[u8; 512],
        start: u64,
        size: u64,
        local: &mut Extended,
    ) -> Result<Option<Member>> {
        let type_flag = block[156];
        let header_at = self.at - BLOCK;
        let said = std::mem::take(local);
        let size = match said.size.or(self.global.size) {
            Some(real) if carries_data(type_flag) => {
                self.expect(real, header_at)?;
                real
            }
            _ => size,
        };
        let name =
            said.path.or_else(|| self.global.path.clone()).unwrap_or_else(|| short_name(block));
        let regular = matches!(type_flag, 0 | b'0' | b'7') && !name.ends_with(b"/");
        if !regular {
            if matches!(type_flag, b'1' | b'2') {
                self.links.note(&name);
            }
            return Ok(None);
        }
        self.members += 1;
        if self.members > self.limits.members {
            let cause = format!("more than {} members (limit)", self.limits.members);
            return Err(damaged(&self.path, header_at, cause));
        }
        Ok(Some(Member { name: readable(&name), start, offset: self.at, size }))
    }

    /// Reads the current member's data into `out`, which is replaced.
    pub fn read_into(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let (size, limit) = (self.unread, self.limits.member_bytes);
        if size > limit {
            let cause = format!("a member of {size} bytes is over the limit of {limit}");
            return Err(damaged(&self.path, self.at, cause));
        }
        out.clear();
        // A header may claim more than there is: grow as bytes arrive.
        let mut left = size as usize;
        while left > 0 {
            let filled = out.len();
            out.resize(filled + left.min(1 << 20), 0);
            let count = self.source.fill(&mut out[filled..]).map_err(|e| self.failed(e))?;
            let wanted = out.len() - filled;
            (self.at, self.unread, left) =
                (self.at + count as u64, self.unread - count as u64, left - count);
            if count < wanted {
                return Err(self.cut_short(left as u64));
            }
        }
        Ok(())
    }

    /// Reads what follows the end of the archive to the end of the source, which is then the
    /// position, so that what checks itself at its end (zstd) does. Where the first byte stands
    /// that is not zero: archives are padded with zeros.
    pub fn drain(&mut self) -> Result<Option<u64>> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = self.source.fill(&mut buffer).map_err(|e| self.failed(e))?;
            let found = buffer[..count].iter().position(|&byte| byte != 0);
            let found = found.map(|place| self.at + place as u64);
            self.at += count as u64;
            if found.is_some() {
                self.at += self.source.skip(u64::MAX).map_err(|e| self.failed(e))?;
            }
            if found.is_some() || count < buffer.len() {
                return Ok(found);
            }
        }
    }

    /// Notes that `size` bytes of data and their padding follow.
    fn expect(&mut self, size: u64, header_at: u64) -> Result<()> {
        let padded = size
            .checked_next_multiple_of(BLOCK)
            .filter(|padded| self.at.checked_add(*padded).is_some())
            .ok_or_else(|| {
                damaged(&self.path, header_at, format!("a member of {size} bytes cannot be"))
            })?;
        (self.unread, self.padding) = (size, padded - size);
        Ok(())
    }

    /// Skips what is left of the current member. Missing padding after the
    /// last data of a file is forgiven, as by GNU tar; missing data is not.
    fn skip_rest(&mut self) -> Result<()> {
        let (unread, padding) =
            (std::mem::take(&mut self.unread), std::mem::take(&mut self.padding));
        for (count, forgiven) in [(unread, false), (padding, true)] {
            let skipped = self.source.skip(count).map_err(|e| self.failed(e))?;
            self.at += skipped;
            if skipped < count && !forgiven {
                return Err(self.cut_short(count - skipped));
            }
        }
        Ok(())
    }

    /// The next header block, verified; `None` at the end.
    fn header(&mut self) -> Result<Option<[u8; 512]>> {
        let mut block = [0u8; 512];
        let filled = self.source.fill(&mut block).map_err(|e| self.failed(e))?;
        if filled == 0 {
            return Ok(None);
        }
        if filled < block.len() {
            return Err(damaged(
                &self.path,
                self.at,
                format!("the tar ends inside a header, after {filled} of 512 bytes"),
            ));
        }
        if is_zero(&block) {
            self.end(&mut block)?;
            return Ok(None);
        }
        if !is_header(&block) {
            let cause = match number(&block[148..156]) {
                Some(stored) => format!(
                    "tar header checksum {stored} does not match its bytes ({}): damaged, or not a tar",
                    checksums(&block).0
                ),
                None => "no tar header where one should be: damaged, or not a tar".to_owned(),
            };
            return Err(damaged(&self.path, self.at, cause));
        }
        self.at += BLOCK;
        Ok(Some(block))
    }

    /// The rest of the end-of-archive marker, of which one block was read. One alone ends an
    /// archive only with the file: other readers (Python's) take any zero block for the end, and
    /// would pass over what follows without a word.
    fn end(&mut self, block: &mut [u8; 512]) -> Result<()> {
        let lone_at = self.at;
        let filled = self.source.fill(block).map_err(|e| self.failed(e))?;
        if !is_zero(&block[..filled]) {
            let cause = "a lone block of zeros where a tar header should be: damaged";
            return Err(damaged(&self.path, lone_at, cause));
        }
        self.at += BLOCK + filled as u64;
        self.ended = filled == block.len();
        Ok(())
    }

    /// The data of a header that describes the next member.
    fn described(&mut self) -> Result<Vec<u8>> {
        if self.unread > self.limits.name_bytes {
            let cause = format!(
                "a name or extended header of {} bytes (limit {})",
                self.unread, self.limits.name_bytes
            );
            return Err(damaged(&self.path, self.at, cause));
        }
        let mut data = Vec::new();
        self.read_into(&mut data)?;
        Ok(data)
    }

    fn long_name(&mut self) -> Result<Vec<u8>> {
        Ok(until_zero(&self.described()?).to_vec())
    }

    /// Records of a pax header, `LENGTH KEY=VALUE\n`, of which path and size matter here.
    fn pax(&mut self, into: &mut Extended) -> Result<()> {
        let at = self.at;
        let data = self.described()?;
        let mut rest = &data[..];
        while !rest.is_empty() && rest[0] != 0 {
            let (key, value, after) = pax_record(rest)
                .ok_or_else(|| damaged(&self.path, at, "a pax header that cannot be understood"))?;
            match key {
                b"path" => {
                    let name = until_zero(value);
                    into.path = (!name.is_empty()).then(|| name.to_vec());
                }
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    into.size = Some(size.ok_or_else(|| {
                        damaged(&self.path, at, "the size in a pax header is not a number")
                    })?);
                }
                _ if key.starts_with(b"GNU.sparse.") => {
                    return Err(damaged(&self.path, at, "sparse tar members are not supported"));
                }
                _ => {}
            }
            rest = after;
        }
        Ok(())
    }

    fn failed(&self, source: io::Error) -> Error {
        // A stream that knows better what went wrong, and where.
        let source = match source.downcast::<Error>() {
            Ok(error) => return error,
            Err(source) => source,
        };
        match source.kind() {
            // What a decompressor says of damaged or missing bytes.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::Other | io::ErrorKind::InvalidData => {
                damaged(&self.path, self.at, format!("cannot be decompressed further: {source}"))
            }
            _ => Error::io(&self.path, source),
        }
    }

    fn cut_short(&self, missing: u64) -> Error {
        damaged(
            &self.path,
            self.at,
            format!("the tar is cut short: {missing} more bytes of a member should follow"),
        )
    }
}
