//! [`SideIndex`]: random access into the entropy-coded data of an unmodified
//! JPEG.
//!
//! A Huffman stream can only be entered where one knows the bit at which an
//! MCU begins and the DC predictors there. The index tells both for every n-th
//! MCU of each row of MCUs. It is made once, when a shard is packed or
//! indexed, and costs at most 2.5% of the JPEG's bytes.
//!
//! # Format, version 1 (integers little-endian)
//!
//! ```text
//! u8   version, 1
//! u8   components, 1 or 3
//! u16  n, MCUs between entries
//! u32  length of the JPEG in bytes
//! u64  xxh3-64 of the JPEG
//! u16  entries in a row of MCUs
//! u16  rows of MCUs
//! u32  bit position of the first entry
//! u32  least distance between successive entries, in bits
//! u8   bits for what a distance exceeds the least by
//! then for each component: i16 least predictor, u8 bits for the rest
//! packed entries, lowest bit first: distance to the entry before, predictors
//! u32  low half of the xxh3-64 of everything before
//! ```
//!
//! Bit positions count from the first bit of the JPEG, stuffed bytes included.

use xxhash_rust::xxh3::xxh3_64;

use super::error::JpegError;
use super::header::{Jpeg, Scans};
use super::plan::Grid;
use crate::bit_io::{BitReader, BitWriter};

mod format;

use format::{Packing, Reader, bits_for};

/// Where an MCU begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// From the first bit of the file.
    pub bit: u64,
    /// DC predictors, by component.
    pub dc: [i16; 3],
}

/// Points of entry into one JPEG's entropy-coded data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SideIndex {
    spacing: usize,
    per_row: usize,
    rows: usize,
    components: usize,
    jpeg_length: usize,
    jpeg_hash: u64,
    entries: Vec<Entry>,
}

const VERSION: u8 = 1;
const HEADER: usize = 29;
const CHECKSUM: usize = 4;

/// The share of the JPEG's bytes that an index may take: 1/40 is 2.5%.
const SHARE: usize = 40;

/// Spacings tried, the finest first.
const SPACINGS: [usize; 10] = [4, 5, 6, 8, 10, 12, 16, 24, 32, 64];

impl SideIndex {
    /// The finest index of a JPEG that takes at most 2.5% of its bytes; None
    /// where even a coarse one takes more, as for tiny pictures, and where several
    /// scans leave no place to enter.
    ///
    /// # Errors
    /// [`JpegError`] when [`super::JpegDecoder`] with its default limit could not decode all of it.
    pub fn build(bytes: &[u8]) -> Result<Option<SideIndex>, JpegError> {
        if Jpeg::parse(bytes)?.scans != Scans::One {
            return Ok(None);
        }
        let finest = SideIndex::build_with_spacing(bytes, 1)?;
        let columns = finest.per_row;
        let within = SPACINGS.iter().filter(|&&spacing| spacing < columns.max(2));
        Ok(within.map(|&spacing| finest.thin(spacing)).find(|index| {
            index.byte_length() <= bytes.len() / SHARE
                && !index.packing().has_no_bits(index.entries.len())
        }))
    }

    /// An index with an entry at every `spacing`-th MCU of each row.
    ///
    /// # Errors
    /// As [`SideIndex::build`]; [`JpegError::Index`] for a spacing of 0 and for
    /// JPEGs of 512 MiB and more, [`JpegError::Unsupported`] for several scans.
    pub fn build_with_spacing(bytes: &[u8], spacing: usize) -> Result<SideIndex, JpegError> {
        if spacing == 0 || spacing > usize::from(u16::MAX) {
            return Err(JpegError::Index("spacing out of range"));
        }
        if bytes.len() > u32::MAX as usize / 8 {
            return Err(JpegError::Index("JPEG too long"));
        }
        let jpeg = Jpeg::parse(bytes)?;
        let (entries, columns, rows) = super::decoder::entries(&jpeg)?;
        let finest = SideIndex {
            spacing: 1,
            per_row: columns,
            rows,
            components: jpeg.components().len(),
            jpeg_length: bytes.len(),
            jpeg_hash: xxh3_64(bytes),
            entries,
        };
        Ok(if spacing == 1 { finest } else { finest.thin(spacing) })
    }

    /// Keeps every `spacing`-th entry of each row of an index of every MCU.
    fn thin(&self, spacing: usize) -> SideIndex {
        let entries = self
            .entries
            .chunks_exact(self.per_row)
            .flat_map(|row| row.iter().step_by(spacing).copied())
            .collect();
        let per_row = self.per_row.div_ceil(spacing);
        SideIndex { spacing, per_row, entries, ..*self }
    }

    /// MCUs between entries.
    pub fn spacing(&self) -> usize {
        self.spacing
    }

    /// Whether this index was made of exactly these bytes.
    pub fn belongs_to(&self, bytes: &[u8]) -> bool {
        self.jpeg_length == bytes.len() && self.jpeg_hash == xxh3_64(bytes)
    }

    /// Whether `packed` is an index of `jpeg` in which every entry is right. Takes
    /// as long as making it.
    pub fn describes(packed: &[u8], jpeg: &[u8]) -> bool {
        let mut index = SideIndex::default();
        Jpeg::parse(jpeg).and_then(|jpeg| index.read(packed, &jpeg)).is_ok()
            && SideIndex::build_with_spacing(jpeg, index.spacing).is_ok_and(|right| right == index)
    }

    /// Whether it is one of a picture of `columns` x `rows` MCUs.
    pub(crate) fn fits(&self, columns: usize, rows: usize, components: usize) -> bool {
        self.has_grid(columns, rows, components) && self.entries.len() == self.per_row * rows
    }

    fn has_grid(&self, columns: usize, rows: usize, components: usize) -> bool {
        self.spacing > 0
            && self.per_row == columns.div_ceil(self.spacing)
            && (self.rows, self.components) == (rows, components)
    }

    /// The last entry at or before an MCU, with its column.
    pub(crate) fn before(&self, column: usize, row: usize) -> Option<(usize, Entry)> {
        let at = column / self.spacing;
        let entry = self.entries.get(row * self.per_row + at)?;
        Some((at * self.spacing, *entry))
    }

    /// The bit position of the first entry at or after an MCU, if there is one.
    pub(crate) fn after(&self, column: usize, row: usize) -> Option<u64> {
        let at = row * self.per_row + column.div_ceil(self.spacing);
        self.entries.get(at).map(|entry| entry.bit)
    }

    fn distances(&self) -> impl Iterator<Item = u64> {
        self.entries.windows(2).map(|pair| pair[1].bit - pair[0].bit)
    }

    fn packing(&self) -> Packing {
        let (mut least, mut most) = (u64::MAX, 0);
        for distance in self.distances() {
            (least, most) = (least.min(distance), most.max(distance));
        }
        least = least.min(most);
        let mut packing = Packing {
            least_distance: least as u32,
            distance_bits: bits_for(most - least),
            ..Packing::default()
        };
        for c in 0..self.components {
            let values = || self.entries.iter().map(|entry| entry.dc[c]);
            let (least, most) = (values().min().unwrap_or(0), values().max().unwrap_or(0));
            packing.least_dc[c] = least;
            packing.dc_bits[c] = bits_for((i64::from(most) - i64::from(least)) as u64);
        }
        packing
    }

    /// Bytes that [`SideIndex::to_bytes`] gives.
    pub fn byte_length(&self) -> usize {
        let packed = self.packing().entry_bits() * self.entries.len();
        HEADER + 3 * self.components + packed.div_ceil(8) + CHECKSUM
    }

    /// The index in the module's format.
    pub fn to_bytes(&self) -> Vec<u8> {
        let packing = self.packing();
        let mut out = Vec::with_capacity(self.byte_length());
        out.extend([VERSION, self.components as u8]);
        out.extend((self.spacing as u16).to_le_bytes());
        out.extend((self.jpeg_length as u32).to_le_bytes());
        out.extend(self.jpeg_hash.to_le_bytes());
        out.extend((self.per_row as u16).to_le_bytes());
        out.extend((self.rows as u16).to_le_bytes());
        let first = self.entries.first().map_or(0, |entry| entry.bit);
        out.extend((first as u32).to_le_bytes());
        out.extend(packing.least_distance.to_le_bytes());
        out.push(packing.distance_bits as u8);
        for c in 0..self.components {
            out.extend(packing.least_dc[c].to_le_bytes());
            out.push(packing.dc_bits[c] as u8);
        }
        let mut writer = BitWriter::new(&mut out);
        // The first entry's distance is written as the least one.
        let distances = std::iter::once(u64::from(packing.least_distance)).chain(self.distances());
        for (entry, distance) in self.entries.iter().zip(distances) {
            let beyond = distance - u64::from(packing.least_distance);
            writer.put(beyond as u32, packing.distance_bits);
            for c in 0..self.components {
                let above = i64::from(entry.dc[c]) - i64::from(packing.least_dc[c]);
                writer.put(above as u32, packing.dc_bits[c]);
            }
        }
        writer.align();
        let checksum = xxh3_64(&out) as u32;
        out.extend(checksum.to_le_bytes());
        out
    }

    /// Reads what [`SideIndex::to_bytes`] wrote, of whatever JPEG. May take 128 times the memory of
    /// the bytes; [`SideIndex::read`] has a bound of its own.
    ///
    /// # Errors
    /// [`JpegError::Index`] for anything else. What is read may still be wrong
    /// for a JPEG: the decoder checks what it uses.
    pub fn from_bytes(bytes: &[u8]) -> Result<SideIndex, JpegError> {
        let mut index = SideIndex::default();
        index.unpack(bytes, |_| true)?;
        Ok(index)
    }

    /// As [`SideIndex::from_bytes`], keeping this one's memory; what cannot be an index of `jpeg`,
    /// by its length or its grid, takes none.
    ///
    /// # Errors
    /// As [`SideIndex::from_bytes`], and for an index of another picture; the index is then empty.
    pub fn read(&mut self, bytes: &[u8], jpeg: &Jpeg<'_>) -> Result<(), JpegError> {
        let (grid, components) = (Grid::new(jpeg), jpeg.components().len());
        self.unpack(bytes, |index| {
            index.jpeg_length == jpeg.bytes.len()
                && index.has_grid(grid.columns, grid.rows, components)
        })
    }

    /// Gives back what the index of a picture far larger than others took.
    pub(crate) fn trim(&mut self) {
        crate::scratch::trim(&mut self.entries);
    }

    /// Reads an index of which all but the entries is `wanted`.
    fn unpack(
        &mut self,
        bytes: &[u8],
        wanted: impl FnOnce(&SideIndex) -> bool,
    ) -> Result<(), JpegError> {
        self.entries.clear();
        self.spacing = 0;
        let Some((body, checksum)) = bytes.split_last_chunk::<CHECKSUM>() else {
            return Err(JpegError::Index("too short"));
        };
        if xxh3_64(body) as u32 != u32::from_le_bytes(*checksum) {
            return Err(JpegError::Index("checksum differs"));
        }
        let mut reader = Reader(body);
        if reader.take()? != [VERSION] {
            return Err(JpegError::Index("unknown version"));
        }
        let [components] = reader.take()?;
        self.components = usize::from(components);
        if self.components != 1 && self.components != 3 {
            return Err(JpegError::Index("neither one nor three components"));
        }
        let spacing = usize::from(u16::from_le_bytes(reader.take()?));
        self.jpeg_length = u32::from_le_bytes(reader.take()?) as usize;
        self.jpeg_hash = u64::from_le_bytes(reader.take()?);
        self.per_row = usize::from(u16::from_le_bytes(reader.take()?));
        self.rows = usize::from(u16::from_le_bytes(reader.take()?));
        let first = u32::from_le_bytes(reader.take()?);
        let mut packing =
            Packing { least_distance: u32::from_le_bytes(reader.take()?), ..Packing::default() };
        let [distance_bits] = reader.take()?;
        packing.distance_bits = u32::from(distance_bits);
        for c in 0..self.components {
            packing.least_dc[c] = i16::from_le_bytes(reader.take()?);
            let [bits] = reader.take()?;
            packing.dc_bits[c] = u32::from(bits);
        }
        if spacing == 0 || packing.distance_bits > 32 || packing.dc_bits.iter().any(|&b| b > 16) {
            return Err(JpegError::Index("field out of range"));
        }
        self.spacing = spacing;
        let read = match wanted(self) {
            true => self.unpack_entries(reader.0, &packing, u64::from(first)),
            false => Err(JpegError::Index("of another picture")),
        };
        if read.is_err() {
            self.spacing = 0;
        }
        read
    }

    fn unpack_entries(
        &mut self,
        packed: &[u8],
        packing: &Packing,
        first: u64,
    ) -> Result<(), JpegError> {
        // At most 2^32 entries of at most 80 bits.
        let count = self.per_row * self.rows;
        let bits = count as u64 * packing.entry_bits() as u64;
        if packed.len() as u64 != bits.div_ceil(8) || packing.has_no_bits(count) {
            return Err(JpegError::Index("length of the entries"));
        }
        self.entries.reserve(count);
        let mut reader = BitReader::new(packed);
        let mut bit = first.wrapping_sub(u64::from(packing.least_distance));
        for _ in 0..count {
            bit = bit
                .wrapping_add(u64::from(packing.least_distance))
                .wrapping_add(reader.take(packing.distance_bits));
            let mut entry = Entry { bit, dc: [0; 3] };
            for c in 0..self.components {
                let above = reader.take(packing.dc_bits[c]) as i16;
                entry.dc[c] = packing.least_dc[c].wrapping_add(above);
            }
            self.entries.push(entry);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn sample(rng: &mut Rng, components: usize) -> SideIndex {
        let (per_row, rows) = (1 + rng.below(20) as usize, 1 + rng.below(20) as usize);
        let (mut bit, mut dc) = (rng.below(9000), [0i16; 3]);
        let mut entries = Vec::new();
        for _ in 0..per_row * rows {
            entries.push(Entry { bit, dc });
            bit += 6 + rng.below(5000);
            dc[..components].fill_with(|| rng.below(4096) as i16 - 2048);
        }
        let (jpeg_length, jpeg_hash) = (rng.below(1 << 29) as usize, rng.bits());
        SideIndex { spacing: 7, per_row, rows, components, jpeg_length, jpeg_hash, entries }
    }

    fn fixture() -> Vec<u8> {
        let fixture = "tests/fixtures/jpeg/420_75x49.jpg";
        std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture)).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let mut rng = Rng::keyed(8, 0, 0, 0);
        for case in 0..200 {
            let index = sample(&mut rng, [1, 3][case % 2]);
            let bytes = index.to_bytes();
            assert_eq!(bytes.len(), index.byte_length());
            assert_eq!(SideIndex::from_bytes(&bytes).unwrap(), index);
        }
    }

    #[test]
    fn every_damaged_byte_and_every_cut_is_noticed() {
        let bytes = sample(&mut Rng::keyed(9, 0, 0, 0), 3).to_bytes();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(SideIndex::from_bytes(&damaged).is_err());
            assert!(SideIndex::from_bytes(&bytes[..at]).is_err());
        }
    }

    #[test]
    fn a_picture_of_more_pixels_than_are_decoded_has_no_index() {
        let mut bytes = fixture();
        let frame = bytes.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
        // Height and width: 2^28 pixels and a row more.
        bytes[frame + 5..frame + 9].copy_from_slice(&[0x40, 1, 0x40, 0]);
        let too_large = JpegError::TooLarge { pixels: (1 << 28) + (1 << 14), limit: 1 << 28 };
        assert_eq!(SideIndex::build(&bytes), Err(too_large));
        bytes[frame + 6] = 0;
        assert!(matches!(SideIndex::build(&bytes), Err(JpegError::Truncated(_))));
    }

    #[test]
    fn an_index_of_another_picture_takes_no_memory() {
        let bytes = fixture();
        let jpeg = Jpeg::parse(&bytes).unwrap();
        let right = SideIndex::build_with_spacing(&bytes, 2).unwrap();
        let mut read = SideIndex::default();
        read.read(&right.to_bytes(), &jpeg).unwrap();
        assert_eq!(read, right);
        let SideIndex { per_row, rows, jpeg_length, .. } = right;
        for (per_row, rows, jpeg_length) in [
            (65_535, rows, jpeg_length),
            (per_row, 65_535, jpeg_length),
            (per_row, rows, jpeg_length + 1),
        ] {
            let entries = (0..per_row * rows).map(|at| Entry { bit: at as u64 * 9, dc: [0; 3] });
            let entries = entries.collect();
            let other = SideIndex { per_row, rows, jpeg_length, entries, ..right };
            let mut read = SideIndex::default();
            assert!(read.read(&other.to_bytes(), &jpeg).is_err());
            assert_eq!((read.entries.capacity(), read.spacing), (0, 0));
        }
    }

    #[test]
    fn a_picture_of_one_gray_has_an_index_that_can_be_read_or_none() {
        for size in [64, 512, 520] {
            let mut bytes = Vec::new();
            let gray = image::RgbImage::from_pixel(size, size, image::Rgb([128; 3]));
            let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 75);
            gray.write_with_encoder(encoder).unwrap();
            let Some(index) = SideIndex::build(&bytes).unwrap() else { continue };
            assert_eq!(SideIndex::from_bytes(&index.to_bytes()), Ok(index), "{size}");
        }
    }

    #[test]
    fn entries_without_bits_take_no_memory() {
        let index = SideIndex {
            spacing: 1,
            per_row: 65535,
            rows: 65535,
            components: 1,
            entries: vec![],
            ..SideIndex::default()
        };
        assert!(SideIndex::from_bytes(&index.to_bytes()).is_err());
    }
}
