//! The whole loader, end to end and by stage, beside the plain path; writes `benches/RESULTS.md`.
//!
//! ```text
//! cargo bench -p bt-pipeline --bench loader -- [--images FOLDER] [--cifar SHARDS] \
//!     [--count N] [--rounds N] [--threads N] [--out FILE]
//! ```
//!
//! FOLDER is a folder of folders of JPEGs (or `BT_BENCH_IMAGES`), SHARDS are shards of 32 x 32
//! images (or `BT_BENCH_CIFAR`); what is not given is drawn by the program. Everything is packed
//! into a temporary folder first, with the code of `shard pack`.

mod plain;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bt_pipeline::augment::{Layout, Preset, ViewConfig};
use bt_pipeline::measure::{Measurement, measure};
use bt_pipeline::shard::{
    Limits, OpenOptions, PackOptions, Recode, ShardSet, Shrink, open_source, pack,
};
use bt_pipeline::{LoaderConfig, Result, synth};

struct Options {
    images: Option<String>,
    cifar: Option<String>,
    count: u64,
    rounds: usize,
    threads: usize,
    out: PathBuf,
}

impl Options {
    fn parse() -> Options {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let mut options = Options {
            images: std::env::var("BT_BENCH_IMAGES").ok(),
            cifar: std::env::var("BT_BENCH_CIFAR").ok(),
            count: 600,
            rounds: 3,
            threads: cores,
            out: Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/RESULTS.md"),
        };
        let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
        while let Some(key) = args.next() {
            let value = args.next().unwrap_or_else(|| panic!("{key} wants a value"));
            let number = || value.parse().unwrap_or_else(|_| panic!("{key}: a number"));
            match key.as_str() {
                "--images" => options.images = Some(value),
                "--cifar" => options.cifar = Some(value),
                "--count" => options.count = number(),
                "--rounds" => options.rounds = number() as usize,
                "--threads" => options.threads = number() as usize,
                "--out" => options.out = value.into(),
                _ => panic!("unknown option {key}"),
            }
        }
        options
    }
}

/// One kind of shards.
struct Case {
    name: &'static str,
    set: Arc<ShardSet>,
    preset: Preset,
    /// As many as one round takes.
    images: u64,
    /// Whether to measure without the side index, too.
    both: bool,
}

/// One line of the table: where the figures of each round go.
struct Line {
    name: String,
    threads: usize,
    found: Vec<Measurement>,
    plain: Vec<[f64; 2]>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let work = tempfile::tempdir().expect("a temporary folder");
    let cases = cases(&options, work.path())?;
    let mut lines = Vec::new();
    for case in &cases {
        for indexed in if case.both { vec![true, false] } else { vec![true] } {
            let suffix = if case.both && !indexed { ", without index" } else { "" };
            for threads in thread_counts(options.threads) {
                let name = format!("{}{suffix}", case.name);
                lines.push(Line { name, threads, found: Vec::new(), plain: Vec::new() });
            }
        }
    }
    for _ in 0..options.rounds {
        let mut line = lines.iter_mut();
        for case in &cases {
            let views = case.preset.views();
            let plain = plain::measure(&case.set, &views, (case.images / 8).max(128))?;
            for indexed in if case.both { vec![true, false] } else { vec![true] } {
                for threads in thread_counts(options.threads) {
                    let config = config(&case.set, views.clone(), threads, indexed);
                    let line = line.next().expect("a line for each");
                    line.found.push(measure(&case.set, config, case.images)?);
                    line.plain.push(plain);
                }
            }
        }
    }
    let text = table(&options, &cases, &lines);
    println!("{text}");
    std::fs::write(&options.out, text).expect("a file to write to");
    Ok(())
}

fn thread_counts(most: usize) -> Vec<usize> {
    let mut counts: Vec<usize> = [1, 2, 4, 8, 14, 16].into_iter().filter(|&n| n < most).collect();
    counts.push(most);
    counts
}

fn config(set: &ShardSet, views: Vec<ViewConfig>, threads: usize, indexed: bool) -> LoaderConfig {
    let batch_size = 64.min(set.len());
    let mut config = LoaderConfig::training(views, batch_size, 0);
    (config.threads, config.layout, config.decode.side_index) = (threads, Layout::Nchw, indexed);
    config
}

fn cases(options: &Options, work: &Path) -> Result<Vec<Case>> {
    let photos = match &options.images {
        Some(folder) => folder.clone(),
        None => draw(&work.join("photos"), 64, 448, 92),
    };
    let small = match &options.cifar {
        Some(shards) => shards.clone(),
        None => draw(&work.join("small"), 2000, 32, 95),
    };
    let keep = Recode::KEEP;
    let small_side = Recode { shrink: Some(Shrink::MaxSide(400)), quality: 90, ..keep };
    let recoded = |recode| Recode { dct: true, ..recode };
    let kinds = [
        ("original JPEGs", &photos, keep, Preset::BarlowImagenet, true),
        ("`--max-side 400 --quality 90`", &photos, small_side, Preset::BarlowImagenet, true),
        ("`--recode`", &photos, recoded(keep), Preset::BarlowImagenet, false),
        (
            "`--max-side 400 --quality 90 --recode`",
            &photos,
            recoded(small_side),
            Preset::BarlowImagenet,
            false,
        ),
        (
            "`--max-side 400 --raw`",
            &photos,
            Recode { raw: true, ..small_side },
            Preset::BarlowImagenet,
            false,
        ),
        ("32 x 32 JPEGs", &small, keep, Preset::BarlowCifar, false),
    ];
    let mut cases = Vec::new();
    for (number, (name, source, recode, preset, both)) in kinds.into_iter().enumerate() {
        let folder = work.join(format!("set-{number}"));
        let from = open_source(source, work, &Limits::default())?;
        let packing = PackOptions { recode, ..PackOptions::default() };
        pack(&*from, &folder, source, &packing, &mut |_| ())?;
        let set = Arc::new(ShardSet::open(&folder.to_string_lossy(), &OpenOptions::default())?);
        let images = if preset == Preset::BarlowCifar { options.count * 20 } else { options.count };
        cases.push(Case { name, set, preset, images, both });
    }
    Ok(cases)
}

/// Draws JPEGs into a folder of folders.
fn draw(folder: &Path, images: u64, side: usize, quality: u8) -> String {
    let spec = synth::Spec { images, side, ..synth::Spec::default() };
    for sample in spec.samples().expect("a size in range") {
        let class = folder.join(format!("{:02}", sample.label));
        std::fs::create_dir_all(&class).expect("a folder");
        let file = std::fs::File::create(class.join(format!("{}.jpg", sample.key)));
        let mut file = std::io::BufWriter::new(file.expect("a file"));
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut file, quality)
            .encode(
                &sample.image.pixels_hwc,
                side as u32,
                side as u32,
                image::ExtendedColorType::Rgb8,
            )
            .expect("an image that can be encoded");
    }
    folder.to_string_lossy().into_owned()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn table(options: &Options, cases: &[Case], lines: &[Line]) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "# The loader, measured\n\n\
         Written by `cargo bench -p bt-pipeline --bench loader` (its options: in \
         `pipeline/benches/loader/main.rs`), bt-pipeline {}, image 0.25, fast_image_resize 6, on {}. \
         Medians of {} rounds in which all lines take turns. Each source image gives two views, \
         normalised `f32` NCHW: 224 x 224 (`barlow-imagenet`), 32 x 32 (`barlow-cifar`) for the \
         32 x 32 images. CPU time is that of all threads; images/s are of wall time and mean \
         something on a quiet machine alone. The plain path decodes the whole with `image`, resizes \
         with fast_image_resize and applies straightforward loops, in one thread.\n",
        env!("CARGO_PKG_VERSION"),
        machine(),
        options.rounds
    );
    for case in cases {
        let bytes: u64 = case.set.shards().iter().map(|shard| shard.bytes).sum();
        let _ = writeln!(
            text,
            "- {}: {} images, {:.1} KB each in the shard",
            case.name,
            case.set.len(),
            bytes as f64 * 1e-3 / case.set.len() as f64
        );
    }
    text += "\n| shards | threads | images/s | CPU us an image | read | decode | augment \
             | plain: decode | augment | plain / ours |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n";
    for line in lines {
        let of = |value: fn(&Measurement) -> f64| median(line.found.iter().map(value));
        let plain = [0, 1].map(|stage| median(line.plain.iter().map(|p| p[stage])));
        let cpu = of(|m| m.cpu_us);
        let _ = writeln!(
            text,
            "| {} | {} | {:.0} | {cpu:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} x |",
            line.name,
            line.threads,
            of(|m| m.images_per_s),
            of(|m| m.read_us),
            of(|m| m.decode_us),
            of(|m| m.augment_us),
            plain[0],
            plain[1],
            (plain[0] + plain[1]) / cpu
        );
    }
    text
}

/// Model and number of the CPUs.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or(std::env::consts::ARCH, |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    format!("{model}, {cores} cores")
}
