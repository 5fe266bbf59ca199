//! Which stretches of the entropy-coded data to decode, and the data unstuffed.

use super::entropy::PAD;
use super::error::JpegError;
use super::header::Jpeg;
use super::index::SideIndex;
use super::plan::{Grid, Plan};
use super::unstuff::{SLACK, unstuff};
use crate::level::Level;

/// Consecutive MCUs that can be decoded from a known state.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Run {
    /// Number of the first MCU, row by row, and how many are decoded.
    pub first: usize,
    pub count: usize,
    /// Bits of the unstuffed data.
    pub start_bit: usize,
    pub end_bit: usize,
    /// DC predictors before the first MCU.
    pub dc: [i16; 3],
    /// Where in the JPEG the byte of the first bit lies.
    pub coded_at: usize,
}

/// The runs of one decode with their data.
#[derive(Default)]
pub(crate) struct Runs {
    /// Unstuffed data. [`PAD`] bytes follow the end of every run.
    pub data: Vec<u8>,
    pub runs: Vec<Run>,
    written: usize,
}

/// Where to start: MCU number, byte of the JPEG, bit in it, predictors.
#[derive(Clone, Copy)]
struct Start {
    mcu: usize,
    byte: usize,
    bit: usize,
    dc: [i16; 3],
}

impl Runs {
    /// Runs from the start of the scan, one for each restart interval that the
    /// plan needs.
    ///
    /// # Errors
    /// [`JpegError::Truncated`] or [`JpegError::Corrupt`] when restart markers
    /// are missing.
    pub fn set_from_start(
        &mut self,
        level: Level,
        jpeg: &Jpeg<'_>,
        grid: &Grid,
        plan: &Plan,
    ) -> Result<(), JpegError> {
        self.reset(jpeg.bytes.len() - jpeg.scan_start);
        let last = plan.lines().last().map_or(0, |line| line.columns.end);
        let end = (plan.rows.end - 1) * grid.columns + last;
        let start = Start { mcu: 0, byte: jpeg.scan_start, bit: 0, dc: [0; 3] };
        self.push(level, jpeg, grid, plan, start, end, jpeg.bytes.len())
    }

    /// A run for the needed MCUs of each row, from the index's entries.
    ///
    /// # Errors
    /// As [`Runs::set_from_start`], and [`JpegError::Index`] where an entry points
    /// outside the data.
    pub fn set_from_index(
        &mut self,
        level: Level,
        jpeg: &Jpeg<'_>,
        grid: &Grid,
        plan: &Plan,
        index: &SideIndex,
    ) -> Result<(), JpegError> {
        const OUTSIDE: JpegError = JpegError::Index("entry outside the data");
        // Pieces overlap by two bytes.
        self.reset(jpeg.bytes.len() - jpeg.scan_start + 2 * plan.rows.len());
        let mut previous_end = 0;
        let lines = plan.rows.clone().zip(plan.lines());
        for (row, line) in lines.filter(|(_, line)| !line.columns.is_empty()) {
            let columns = &line.columns;
            let (column, entry) = index.before(columns.start, row).ok_or(OUTSIDE)?;
            let byte = usize::try_from(entry.bit / 8).map_err(|_| OUTSIDE)?;
            let stop = match index.after(columns.end, row) {
                Some(bit) => usize::try_from(bit / 8).map_err(|_| OUTSIDE)?.saturating_add(2),
                None => jpeg.bytes.len(),
            };
            let stop = stop.min(jpeg.bytes.len());
            // Rows follow each other; this also bounds the unstuffed data.
            if byte < jpeg.scan_start || byte >= stop || byte + 2 < previous_end {
                return Err(OUTSIDE);
            }
            previous_end = stop;
            let mcu = row * grid.columns + column;
            let start = Start { mcu, byte, bit: (entry.bit % 8) as usize, dc: entry.dc };
            let end = row * grid.columns + columns.end;
            self.push(level, jpeg, grid, plan, start, end, stop)?;
        }
        Ok(())
    }

    fn reset(&mut self, coded: usize) {
        self.runs.clear();
        self.written = 0;
        if self.data.len() < coded + SLACK + PAD {
            self.data.resize(coded + SLACK + PAD, 0);
        }
    }

    /// Appends the runs for the MCUs from `start` to number `end`, whose data
    /// ends at byte `stop` or sooner: one run, or one for each restart interval.
    fn push(
        &mut self,
        level: Level,
        jpeg: &Jpeg<'_>,
        grid: &Grid,
        plan: &Plan,
        start: Start,
        end: usize,
        stop: usize,
    ) -> Result<(), JpegError> {
        let Start { mcu: mut first, byte: mut at, mut bit, mut dc } = start;
        loop {
            let interval_end = match jpeg.restart_interval() {
                0 => end,
                interval => (first / interval + 1).saturating_mul(interval).min(end),
            };
            let coded = &jpeg.bytes[at..stop];
            let (read, written) = unstuff(level, coded, &mut self.data[self.written..]);
            let run = Run {
                first,
                count: interval_end - first,
                start_bit: self.written * 8 + bit,
                end_bit: (self.written + written) * 8,
                dc,
                coded_at: at,
            };
            if plan.touches(run.first, run.count, grid.columns) {
                self.runs.push(run);
                self.written += written;
            }
            first = interval_end;
            if first == end {
                return Ok(());
            }
            let expected = 0xD0 + ((first / jpeg.restart_interval() - 1) % 8) as u8;
            match coded[read..] {
                [0xFF, code, ..] if code == expected => at += read + 2,
                [0xFF, 0xD0..=0xD7, ..] => return Err(JpegError::Corrupt("restart marker order")),
                _ => return Err(JpegError::Truncated("missing restart interval")),
            }
            (bit, dc) = (0, [0; 3]);
        }
    }
}

impl Plan {
    /// Whether any of `count` MCUs from `first` on is needed.
    fn touches(&self, first: usize, count: usize, columns: usize) -> bool {
        let last = first + count - 1;
        let (first_row, last_row) = (first / columns, last / columns);
        if last_row < self.rows.start || first_row >= self.rows.end {
            return false;
        }
        first_row != last_row
            || (first % columns < self.columns.end && last % columns >= self.columns.start)
    }
}
