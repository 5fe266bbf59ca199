//! [`DctDecoder`]: a re-coded image and a region to pixels.

use super::container::DctImage;
use super::decode::{Blocks, decode};
use super::error::DctError;
use super::segment::{MAX_BLOCKS, Shape};
use crate::Image;
use crate::Level;
use crate::jpeg::{IN_ORDER, MAX_PIXELS, Plan, Raster, RasterBuffers, Region, check_pixels};

/// Places of blocks that follow each other.
const NUMBERS: [u8; MAX_BLOCKS] = {
    let mut numbers = [0; MAX_BLOCKS];
    let mut at = 0;
    while at < MAX_BLOCKS {
        numbers[at] = at as u8;
        at += 1;
    }
    numbers
};

/// A reusable decoder: the buffers of one thread.
///
/// After a few images it allocates nothing more.
pub struct DctDecoder {
    level: Level,
    max_pixels: u64,
    blocks: Blocks,
    plan: Plan,
    raster: RasterBuffers,
}

impl std::fmt::Debug for DctDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DctDecoder")
            .field("level", &self.level)
            .field("max_pixels", &self.max_pixels)
            .finish_non_exhaustive()
    }
}

impl Default for DctDecoder {
    fn default() -> Self {
        DctDecoder::new()
    }
}

impl DctDecoder {
    /// A decoder with the best instructions of this machine.
    pub fn new() -> DctDecoder {
        DctDecoder::with_level(Level::detect())
    }

    /// A decoder with given instructions, for tests and benchmarks.
    pub fn with_level(level: Level) -> DctDecoder {
        DctDecoder {
            level,
            max_pixels: MAX_PIXELS,
            blocks: Blocks::new(),
            plan: Plan::default(),
            raster: RasterBuffers::default(),
        }
    }

    /// Refuses to decode more than `limit` pixels at once; 2^28 by default.
    pub fn max_pixels(mut self, limit: u64) -> DctDecoder {
        self.max_pixels = limit;
        self
    }

    /// The limit in force.
    #[cfg(test)]
    pub(crate) fn limit(&self) -> u64 {
        self.max_pixels
    }

    /// Decodes the whole picture, and verifies the segments' checksum.
    ///
    /// # Errors
    /// [`DctError`]; `out` is then unspecified.
    pub fn decode_into(&mut self, image: &DctImage<'_>, out: &mut Image) -> Result<(), DctError> {
        image.verify()?;
        self.decode_region_into(image, Region::full(image.jpeg()), out)
    }

    /// Decodes `region`: exactly what cropping the whole picture would give. Only
    /// segments that the region needs are looked at.
    ///
    /// # Errors
    /// [`DctError`]; `out` is then unspecified.
    pub fn decode_region_into(
        &mut self,
        image: &DctImage<'_>,
        region: Region,
        out: &mut Image,
    ) -> Result<(), DctError> {
        self.decode_regions_into(image, &[region], out).map(|_| ())
    }

    /// Decodes some regions, one at least, into the place that each has in the smallest that
    /// contains all, which `out` becomes and which is returned. Its other pixels are unspecified.
    ///
    /// # Errors
    /// As [`DctDecoder::decode_region_into`].
    pub fn decode_regions_into(
        &mut self,
        image: &DctImage<'_>,
        regions: &[Region],
        out: &mut Image,
    ) -> Result<Region, DctError> {
        let union = self.plan(image, regions)?;
        let jpeg = image.jpeg();
        let mut raster = Raster::new(self.level, jpeg, union, &self.plan, &mut self.raster, out);
        let take = |place: &Place, blocks: &Blocks| place.hand_on(blocks, &mut raster);
        each_segment(self.level, image, &self.plan, &mut self.blocks, take).map(|()| union)
    }

    /// Decodes the segments that `region` needs to coefficients and drops them: one
    /// stage of [`DctDecoder::decode_region_into`] alone, for benchmarks.
    ///
    /// # Errors
    /// As [`DctDecoder::decode_region_into`].
    pub fn decode_segments(
        &mut self,
        image: &DctImage<'_>,
        region: Region,
    ) -> Result<(), DctError> {
        self.plan(image, &[region])?;
        each_segment(self.level, image, &self.plan, &mut self.blocks, |_, _| Ok(()))
    }

    /// Gives back what a picture far wider than others took.
    pub(crate) fn trim(&mut self) {
        self.raster.trim();
    }

    /// Returns the union of the regions.
    fn plan(&mut self, image: &DctImage<'_>, regions: &[Region]) -> Result<Region, DctError> {
        let union = Region::checked_union(regions, image.jpeg())?;
        check_pixels(union.width, union.height, self.max_pixels)?;
        self.plan.set(image.jpeg(), regions, IN_ORDER);
        Ok(union)
    }
}

/// Where a segment lies.
struct Place {
    shape: Shape,
    row: usize,
    /// Column of its first MCU, and how many of them are needed.
    first: usize,
    needed: usize,
}

impl Place {
    /// Gives the segment's blocks to the back end.
    fn hand_on(&self, blocks: &Blocks, raster: &mut Raster<'_>) -> Result<(), DctError> {
        let mut done = 0;
        for (component, part) in self.shape.parts().iter().enumerate() {
            let left = self.first * raster.plan.windows[component].h;
            for y in self.row * part.rows..(self.row + 1) * part.rows {
                let (blocks, spans) = (&blocks.blocks[done..], &blocks.spans[done..]);
                let numbers = &NUMBERS[..part.columns];
                raster.blocks(self.row, component, (left, y), blocks, spans, numbers);
                done += part.columns;
            }
        }
        Ok(raster.mcus_done(self.row, self.needed)?)
    }
}

/// Decodes every segment that a plan needs and hands it to `take`.
fn each_segment(
    level: Level,
    image: &DctImage<'_>,
    plan: &Plan,
    blocks: &mut Blocks,
    mut take: impl FnMut(&Place, &Blocks) -> Result<(), DctError>,
) -> Result<(), DctError> {
    let mut start = image.row_bytes(0..plan.rows.start);
    for (row, line) in plan.rows.clone().zip(plan.lines()) {
        let columns = &line.columns;
        for at in 0..image.segments.per_row {
            let length = image.length(row, at);
            let (first, mcus) = image.segments.span(at);
            let needed = (first + mcus).min(columns.end).saturating_sub(first.max(columns.start));
            if needed > 0 {
                let shape = image.segments.shape(mcus);
                decode(level, image.coded(start, length)?, &shape, image.index_bits, blocks)?;
                take(&Place { shape, row, first, needed }, blocks)?;
            }
            start += length;
        }
    }
    Ok(())
}
