//! One thread's share of the work: sample -> image -> views, into a batch's slot.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::augment::{Augmenter, Crop, ViewParams};
use crate::batch::{Item, Task};
use crate::decode::Decoder;
use crate::error::is_shortage;
use crate::loader::{Finish, LoaderConfig, OnBad};
use crate::rng::Rng;
use crate::shard::remote::Ahead;
use crate::shard::{Format, OwnedSample, ReadScratch, Sample, ShardSet};
use crate::stats::{BadSample, Queue, Recorder, Stage};
use crate::streaming::short_shard;
use crate::sync::AtomicBool;
use crate::{Error, Image, Result};

/// First view number of the draws that replace a bad sample; views count from 0.
const REPLACEMENT_KEY: u64 = 1 << 32;

/// Replacements that are tried for one position before the run is given up.
const MAX_REPLACEMENTS: u64 = 64;

/// What became of a slot that was to be filled.
pub(crate) enum Filled {
    Done,
    /// The stream was dropped: nobody waits for it.
    Stopped,
}

/// The reusable state of one worker thread.
pub(crate) struct Worker {
    set: Arc<ShardSet>,
    config: Arc<LoaderConfig>,
    recorder: Recorder,
    maker: ViewMaker,
    scratch: ReadScratch,
    /// The stream was dropped.
    stop: Arc<AtomicBool>,
}

/// Decodes and augments; what is left of [`Worker`] while a sample is borrowed.
struct ViewMaker {
    decoder: Decoder,
    augmenter: Augmenter,
    image: Image,
    /// What was drawn for each view.
    params: Vec<ViewParams>,
    crops: Vec<Crop>,
}

impl Worker {
    pub(crate) fn new(
        set: Arc<ShardSet>,
        config: Arc<LoaderConfig>,
        recorder: Recorder,
        ahead: Option<Arc<Ahead>>,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let maker = ViewMaker {
            decoder: Decoder::new(config.decode),
            augmenter: Augmenter::new(),
            image: Image::default(),
            params: Vec::new(),
            crops: Vec::new(),
        };
        Worker { set, config, recorder, maker, scratch: ReadScratch::reading_ahead(ahead), stop }
    }

    /// The worker has waited for a task since `start`, and has one.
    pub(crate) fn took_task(&mut self, start: Instant) {
        self.recorder.lap(Stage::WorkWait, start);
        self.recorder.stats.queue(Queue::Tasks, -1);
    }

    /// Fills item `nth` of the task, with another sample if its own is bad and
    /// the configuration says so. Replacements may take long to find: it stops between them.
    ///
    /// # Errors
    /// The sample's own error, or that of a shard.
    pub(crate) fn fill(&mut self, task: &mut Task, nth: usize, item: Item) -> Result<Filled> {
        let position = item.position;
        let mut sample = item.sample;
        let mut outcome = match item.owned {
            Some(Ok(owned)) => self.fill_owned(task, nth, sample, &owned.sample),
            Some(Err(error)) => Err(error),
            None => self.read_and_fill(task, nth, sample),
        };
        for attempt in 0.. {
            let error = match outcome {
                Ok(()) => {
                    self.recorder.stats.count_sample();
                    break;
                }
                Err(error) => error,
            };
            let last = (attempt == MAX_REPLACEMENTS).then(|| too_many_bad(&error));
            self.note_bad(sample, error)?;
            task.note_bad();
            if let Some(error) = last {
                return Err(error);
            }
            if self.is_stopped() {
                return Ok(Filled::Stopped);
            }
            let key = REPLACEMENT_KEY + attempt;
            let mut rng = Rng::keyed(self.config.seed, task.epoch(), position, key);
            sample = rng.below(self.set.len() as u64);
            outcome = if self.set.seekable() {
                self.read_and_fill(task, nth, sample)
            } else {
                match self.find(sample) {
                    Ok(Some(owned)) => self.fill_owned(task, nth, sample, &owned),
                    Ok(None) => return Ok(Filled::Stopped),
                    Err(error) => Err(error),
                }
            };
        }
        Ok(Filled::Done)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Puts a bad sample on record, or gives its error back.
    fn note_bad(&self, sample: u64, error: Error) -> Result<()> {
        let bad = match error {
            Error::Sample { path, key, offset, cause } if self.config.on_bad == OnBad::Skip => {
                BadSample { shard: path, key, offset, cause }
            }
            Error::Shard { path, offset, cause } if self.config.on_bad_shard == OnBad::Skip => {
                self.of_bad_shard(sample, path, offset, cause)
            }
            Error::Io { path, source }
                if self.config.on_bad_shard == OnBad::Skip && !is_shortage(&source) =>
            {
                self.of_bad_shard(sample, path, 0, source.to_string())
            }
            other => return Err(other),
        };
        self.recorder.stats.count_bad(sample, || bad);
        Ok(())
    }

    /// The record of a sample whose shard or index is what is damaged. Its key may
    /// be out of reach.
    fn of_bad_shard(&self, sample: u64, shard: PathBuf, offset: u64, cause: String) -> BadSample {
        let number = self.set.shard_of(sample as usize);
        let place = sample - self.set.shards()[number].first_sample as u64;
        let key = self.set.meta(sample as usize).map_or_else(|_| format!("#{place}"), |m| m.key);
        BadSample { shard, key, offset, cause }
    }

    fn read_and_fill(&mut self, task: &mut Task, nth: usize, sample: u64) -> Result<()> {
        let start = Instant::now();
        let read = self.set.read(sample as usize, &mut self.scratch);
        self.recorder.lap_read(start);
        let read = read?;
        let made = self.maker.fill(&self.config, &mut self.recorder, task, nth, sample, read);
        // Even after an error: a file that became shorter reads as zeros, which may be the real
        // cause.
        let was_there = self.set.check_read(self.set.shard_of(sample as usize), read.image);
        self.maker.trim();
        self.scratch.trim();
        was_there?;
        made
    }

    fn fill_owned(
        &mut self,
        task: &mut Task,
        nth: usize,
        sample: u64,
        owned: &OwnedSample,
    ) -> Result<()> {
        let shard = &self.set.shards()[self.set.shard_of(sample as usize)];
        let read = owned.borrowed(&shard.path);
        let made = self.maker.fill(&self.config, &mut self.recorder, task, nth, sample, read);
        self.maker.trim();
        made
    }

    /// Reads a sample of a shard that can only be streamed, from its front: as
    /// slow as it is rare. `None` when the stream was dropped on the way.
    fn find(&self, sample: u64) -> Result<Option<OwnedSample>> {
        let shard = self.set.shard_of(sample as usize);
        let info = &self.set.shards()[shard];
        let mut stream = self.set.stream(shard)?;
        let mut owned = OwnedSample::default();
        for place in info.first_sample as u64..=sample {
            if self.is_stopped() {
                return Ok(None);
            }
            match stream.next_into(&mut owned) {
                Ok(true) => {}
                Ok(false) => return Err(short_shard(info)),
                Err(Error::Sample { .. }) if place < sample => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(owned))
    }
}

/// No position can be filled: `last` is of the last sample that was tried.
fn too_many_bad(last: &Error) -> Error {
    Error::TooManyBad(format!(
        "{MAX_REPLACEMENTS} samples drawn in place of a bad one were bad too; \
         `shard verify` lists them. The last one: {last}"
    ))
}

impl ViewMaker {
    /// Gives back what an image far larger than others took; to be called after each.
    fn trim(&mut self) {
        self.image.trim();
        self.augmenter.trim();
    }

    fn fill(
        &mut self,
        config: &LoaderConfig,
        recorder: &mut Recorder,
        task: &mut Task,
        nth: usize,
        sample: u64,
        read: Sample<'_>,
    ) -> Result<()> {
        let start = Instant::now();
        let in_sample = |error: Error| match error {
            Error::Decode(cause) | Error::TooLarge(cause) => Error::Sample {
                path: read.shard.to_path_buf(),
                key: read.key.to_owned(),
                offset: read.offset,
                cause,
            },
            other => other,
        };
        self.draw_and_decode(config, task.epoch(), sample, &read).map_err(in_sample)?;
        let decoded = recorder.lap(Stage::Decode, start);
        for (view, (transforms, params)) in config.views.iter().zip(&self.params).enumerate() {
            let out = task.view(nth, view);
            let here = match config.finish {
                Finish::Loader => *params,
                Finish::Consumer => params.geometry(),
            };
            self.augmenter
                .apply_into(&self.image, transforms, &here, config.layout, out)
                .map_err(in_sample)?;
        }
        recorder.lap(Stage::Augment, decoded);
        task.note(nth, sample, read.label);
        if config.finish == Finish::Consumer {
            task.leave(nth, &self.params);
        }
        Ok(())
    }

    /// Draws the sample's views and decodes what of its image they need.
    fn draw_and_decode(
        &mut self,
        config: &LoaderConfig,
        epoch: u64,
        sample: u64,
        read: &Sample<'_>,
    ) -> Result<()> {
        let (params, decoder, image) = (&mut self.params, &mut self.decoder, &mut self.image);
        let draw = |params: &mut Vec<ViewParams>, (width, height): (usize, usize)| {
            params.clear();
            params.extend(config.draw(epoch, sample, width, height));
        };
        if matches!(read.format, Format::Jpeg | Format::Dct) {
            // The views are drawn before the image is decoded, so that no more is
            // decoded than they need.
            let (width, height) = decoder.dimensions(read.format, read.image)?;
            draw(params, (width as usize, height as usize));
            self.crops.clear();
            self.crops.extend(params.iter().map(|params| params.crop));
            if !self.crops.is_empty() {
                let (crops, index) = (&self.crops, read.side_index);
                let part =
                    decoder.decode_regions_into(read.format, read.image, crops, index, image)?;
                params.iter_mut().for_each(|params| *params = params.within(part));
                return Ok(());
            }
        }
        decoder.decode_into(read.format, read.image, image)?;
        draw(params, (image.width, image.height));
        Ok(())
    }
}
