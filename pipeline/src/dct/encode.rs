//! A JPEG to a re-coded image.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use super::book::{CLASSES, MAX_INDEX_BITS};
use super::choose::{Outline, choose};
use super::container::{MAGIC, VERSION};
use super::decode::PAD;
use super::error::DctError;
use super::header::header_of;
use super::pack::{Member, pack};
use super::segment::Segments;
use crate::jpeg::{Coefficients, Jpeg, MAX_PIXELS, check_pixels};
use crate::rng::mix;

/// One block in so many is looked at to choose the number of index bits, ...
const SAMPLE: usize = 64;
/// ... but no fewer of a class than these, where it has them.
const LEAST_SAMPLED: usize = 64;
/// The largest difference between DC coefficients that baseline Huffman codes hold (T.81, table
/// F.1).
const MAX_DIFFERENCE: u32 = 2047;
/// The fewest index bits that are considered: the first two profiles suffice for any
/// block.
const MIN_INDEX_BITS: u32 = 1;

/// Re-codes a JPEG of at most 2^28 pixels.
///
/// # Errors
/// [`DctError::is_unsupported`] errors for a JPEG that is fine but stays as it is;
/// others for damage and for more pixels.
pub fn encode(bytes: &[u8]) -> Result<Vec<u8>, DctError> {
    encode_within(bytes, MAX_PIXELS)
}

/// As [`encode`], of a JPEG of at most `max_pixels`. All its coefficients are in memory at once,
/// and a few bytes can promise very many.
pub(crate) fn encode_within(bytes: &[u8], max_pixels: u64) -> Result<Vec<u8>, DctError> {
    let jpeg = Jpeg::parse(bytes)?;
    check_pixels(jpeg.width(), jpeg.height(), max_pixels)?;
    let coefficients = Coefficients::decode(&jpeg)?;
    if !in_range(&coefficients) {
        return Err(DctError::Unsupported("coefficients that no encoder of 8-bit samples writes"));
    }
    if !header_has_tables(&jpeg, &coefficients) {
        return Err(DctError::Unsupported("quantisation tables between scans"));
    }
    let header = header_of(bytes, jpeg.components())?;
    let segments = Segments::new(&jpeg, Segments::suitable(&jpeg))?;
    if !differences_in_range(&coefficients, &segments) {
        return Err(DctError::Unsupported("DC differences that need restart markers"));
    }
    let outlines: Vec<Outline> = coefficients
        .blocks
        .iter()
        .zip(&coefficients.spans)
        .map(|(block, &span)| Outline::of(block, span))
        .collect();
    let picture = Picture { segments, coefficients, outlines };
    let index_bits = std::array::from_fn(|class| picture.suitable_index_bits(class));
    let (mut payload, mut lengths) = (Vec::with_capacity(bytes.len()), Vec::new());
    for row in 0..segments.grid.rows {
        for at in 0..segments.per_row {
            let before = payload.len();
            picture.segment(row, at, index_bits, &mut payload);
            let length = u16::try_from(payload.len() - before);
            lengths.push(length.map_err(|_| DctError::Unsupported("segment too long"))?);
        }
    }
    assemble(&header, &segments, index_bits, &lengths, &payload)
}

/// Whether all values are ones that the format can hold.
fn in_range(coefficients: &Coefficients) -> bool {
    coefficients.blocks.iter().all(|block| {
        let [dc, ac @ ..] = &block.0;
        (-2048..2048).contains(dc) && ac.iter().all(|v| (-1023..=1023).contains(v))
    })
}

/// Whether the JPEG that comes back, which has no restart markers, can hold all DC coefficients:
/// each is coded as its difference from the one before it in the order of the scan, the first as
/// that from 0.
fn differences_in_range(coefficients: &Coefficients, segments: &Segments) -> bool {
    let unit = segments.shape(1);
    coefficients.planes().iter().zip(unit.parts()).all(|(plane, part)| {
        let mut before = 0;
        let mut in_range = |column: usize, row: usize| {
            let dc = i32::from(coefficients.blocks[plane.at(column, row)].0[0]);
            dc.abs_diff(std::mem::replace(&mut before, dc)) <= MAX_DIFFERENCE
        };
        (0..segments.grid.rows * segments.grid.columns).all(|mcu| {
            let (row, column) = (mcu / segments.grid.columns, mcu % segments.grid.columns);
            (0..part.blocks()).all(|at| {
                let (y, x) = (at / part.columns, at % part.columns);
                in_range(column * part.columns + x, row * part.rows + y)
            })
        })
    })
}

/// Some blocks of `range`, one of each `step`: at a place that a hash chooses, as with one at equal
/// distances a picture of a matching width would be judged by a few of its columns.
fn sampled(range: Range<usize>, step: usize) -> impl Iterator<Item = usize> {
    range.clone().step_by(step).map(move |first| {
        let most = step.min(range.end - first) as u64;
        first + (mix(first as u64) % most) as usize
    })
}

/// Whether the header, which is all that is kept of the markers, has the quantisation table of each
/// component.
fn header_has_tables(jpeg: &Jpeg<'_>, coefficients: &Coefficients) -> bool {
    jpeg.components().iter().zip(&coefficients.quant).all(|(component, latched)| {
        let table = jpeg.quant_of(component);
        table.is_some() && (latched.is_none() || latched.as_ref() == table)
    })
}

fn assemble(
    header: &[u8],
    segments: &Segments,
    index_bits: [u32; CLASSES],
    lengths: &[u16],
    payload: &[u8],
) -> Result<Vec<u8>, DctError> {
    let narrow = |n: usize| u32::try_from(n).map_err(|_| DctError::Unsupported("4 GiB or more"));
    let mut out = Vec::with_capacity(header.len() + 2 * lengths.len() + payload.len() + 256);
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend(index_bits.map(|bits| bits as u8));
    out.extend((segments.mcus as u16).to_le_bytes());
    out.extend([0; 2]);
    out.extend(narrow(header.len())?.to_le_bytes());
    out.extend(narrow(payload.len())?.to_le_bytes());
    out.extend(xxh3_64(payload).to_le_bytes());
    out.extend(header);
    out.extend(lengths.iter().flat_map(|length| length.to_le_bytes()));
    out.extend(xxh3_64(&out).to_le_bytes());
    out.extend(payload);
    out.extend([0; PAD]);
    Ok(out)
}

/// A picture on its way.
struct Picture {
    segments: Segments,
    coefficients: Coefficients,
    /// Of each block.
    outlines: Vec<Outline>,
}

impl Picture {
    /// The number of index bits with which a class's blocks take fewest bits, as a sample has it.
    fn suitable_index_bits(&self, class: usize) -> u32 {
        let shape = self.segments.shape(1);
        let parts = self.coefficients.planes().iter().zip(shape.parts());
        let of_class =
            parts.filter(|(_, part)| part.class == class).map(|(plane, _)| plane.range());
        let blocks: usize = of_class.clone().map(|range| range.len()).sum();
        let step = (blocks / LEAST_SAMPLED).clamp(1, SAMPLE);
        let sample: Vec<&Outline> = of_class
            .flat_map(|range| sampled(range, step))
            .map(|number| &self.outlines[number])
            .collect();
        let total = |bits: u32| -> u64 {
            sample.iter().map(|o| u64::from(choose(class, o, bits).1) + u64::from(bits)).sum()
        };
        // The total falls to its least and rises again.
        let (mut best, mut least) = (MAX_INDEX_BITS, total(MAX_INDEX_BITS));
        for bits in (MIN_INDEX_BITS..MAX_INDEX_BITS).rev() {
            let total = total(bits);
            if total > least {
                break;
            }
            (best, least) = (bits, total);
        }
        best
    }

    /// Appends a segment's bytes.
    fn segment(&self, row: usize, at: usize, index_bits: [u32; CLASSES], out: &mut Vec<u8>) {
        let (column, mcus) = self.segments.span(at);
        let unit = self.segments.shape(1);
        let mut members = Vec::with_capacity(super::segment::MAX_BLOCKS);
        for (component, part) in unit.parts().iter().enumerate() {
            let plane = &self.coefficients.planes()[component];
            for y in row * part.rows..(row + 1) * part.rows {
                let first = plane.at(column * part.columns, y);
                members.extend((first..first + part.columns * mcus).map(|number| Member {
                    component,
                    class: part.class,
                    block: &self.coefficients.blocks[number],
                    outline: &self.outlines[number],
                }));
            }
        }
        pack(&members, unit.parts().len(), index_bits, out);
    }
}
