//! The command line: flags, their defaults, units and help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Image shards: WebDataset tars with an index, plain or compressed.
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// One subcommand.
#[derive(Subcommand)]
pub enum Command {
    /// Pack images into shards
    Pack(Pack),
    /// Write the indexes of shards made elsewhere
    Index(Index),
    /// List samples, or sum them up
    Ls(Ls),
    /// Check every byte; exit code 1 and a list when something is damaged
    Verify(Verify),
    /// Write the samples of shards as files; packed coefficients become JPEGs again
    Unpack(Unpack),
    /// Pack the embedded data set, images drawn by this program
    Synth(Synth),
}

/// How samples are divided over shards.
#[derive(Args)]
pub struct Division {
    /// Samples in a shard, at most [default: no limit]
    #[arg(long, value_name = "N")]
    pub samples_per_shard: Option<u64>,
    /// Bytes of a shard's file, at most; K, M, G are powers of 1024
    /// [default: 256M, or no limit with --samples-per-shard]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub bytes_per_shard: Option<u64>,
    /// Write .tar.zst that can be read at random, with this level of zstd (1 to 22) [default level: 3]
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, default_missing_value = "3", allow_negative_numbers = true)]
    pub zstd: Option<i32>,
    /// Replace a set of the same prefix, which may be the source. It stays until the new one is
    /// whole, so that the disk has to hold both
    #[arg(long)]
    pub overwrite: bool,
    /// Threads; 0 for one per core. The files have the same bytes for any number
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// `shard pack`.
#[derive(Args)]
pub struct Pack {
    /// An ImageFolder tree (CLASS/NAME.jpg), a .csv or .tsv list of path and label, or
    /// shards: a folder, glob, brace list or manifest
    #[arg(required = true, value_name = "SRC")]
    pub sources: Vec<String>,
    /// The folder for the shards; made if need be
    #[arg(required = true, value_name = "OUT")]
    pub out: PathBuf,
    /// Shards are called PREFIX-000000.tar and so on
    #[arg(long, default_value = "shard")]
    pub prefix: String,
    #[command(flatten)]
    pub division: Division,
    /// Put the samples into a random order drawn from this seed
    #[arg(long, value_name = "SEED")]
    pub shuffle: Option<u64>,
    /// Only the first N samples of each class; with --shuffle, N random ones
    #[arg(long, value_name = "N")]
    pub per_class: Option<u64>,
    /// Only this share of each class, above 0 and up to 1
    #[arg(long, value_name = "F")]
    pub fraction: Option<f64>,
    /// Only the first N samples of what the other options leave
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Reduce larger images until the longer side has this many pixels
    #[arg(long, value_name = "PIXELS", conflicts_with = "short_side", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_side: Option<u32>,
    /// Reduce larger images until the shorter side has this many pixels
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..))]
    pub short_side: Option<u32>,
    /// JPEG quality of reduced images, 1 to 100; others stay byte for byte
    #[arg(long, value_name = "Q", default_value_t = 90, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub quality: u8,
    /// Store decoded RGB (binary PPM) instead of coded images: pixels as they are stored. EXIF
    /// orientation is lost, so that `data.exif` does not turn such images
    #[arg(long)]
    pub raw: bool,
    /// Store JPEGs as packed coefficients (.dct): the same pixels, decoded several times faster, in
    /// about 1.1 times the bytes. Images that cannot be (CMYK JPEGs, PNG, ...) stay as they are
    #[arg(long, conflicts_with = "raw")]
    pub recode: bool,
    /// Leave out images that cannot be used, and list them, instead of stopping
    #[arg(long)]
    pub skip_bad: bool,
}

/// What to read.
#[derive(Args)]
pub struct Shards {
    /// Shards: folders, globs, brace lists such as 'train-{000000..000009}.tar', manifests
    #[arg(required = true, value_name = "SHARDS")]
    pub patterns: Vec<String>,
}

impl Shards {
    /// All of them as one pattern.
    pub fn pattern(&self) -> String {
        self.patterns.join("::")
    }
}

/// `shard index`.
#[derive(Args)]
pub struct Index {
    #[command(flatten)]
    pub shards: Shards,
    /// Also write a manifest of the set; it must lie beside the shards and end in manifest.json
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    /// Class names for the manifest, one a line, in the order of the class numbers
    #[arg(long, value_name = "FILE", requires = "manifest")]
    pub classes: Option<PathBuf>,
    /// Threads; 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Print a JSON line per shard
    #[arg(long)]
    pub json: bool,
}

/// `shard ls`.
#[derive(Args)]
pub struct Ls {
    #[command(flatten)]
    pub shards: Shards,
    /// Sum up shards, classes, formats and sizes instead of listing samples
    #[arg(long)]
    pub summary: bool,
    /// Only the first N samples
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Print JSON: a line per sample, or one object with --summary
    #[arg(long)]
    pub json: bool,
}

/// `shard verify`.
#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    pub shards: Shards,
    /// Do not decode the images, only check headers and checksums
    #[arg(long)]
    pub no_decode: bool,
    /// Write what can be saved into this folder, as a clean set with indexes and a manifest; the
    /// damaged shards stay as they are
    #[arg(long, value_name = "OUT", conflicts_with = "no_decode")]
    pub repair: Option<PathBuf>,
    /// Threads; 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// `shard unpack`.
#[derive(Args)]
pub struct Unpack {
    /// Shards: a folder, glob, brace list or manifest
    #[arg(required = true, value_name = "SHARDS")]
    pub patterns: Vec<String>,
    /// A folder that is empty or missing
    #[arg(required = true, value_name = "OUT")]
    pub out: PathBuf,
    /// Every member of every sample as KEY.EXTENSION instead of CLASS/NAME.EXTENSION
    #[arg(long)]
    pub members: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// `shard synth`.
#[derive(Args)]
pub struct Synth {
    /// The folder for the shards; made if need be
    #[arg(value_name = "OUT")]
    pub out: PathBuf,
    /// Images
    #[arg(long, value_name = "N", default_value_t = 6000)]
    pub images: u64,
    /// Classes, 2 to 12
    #[arg(long, value_name = "N", default_value_t = 12)]
    pub classes: usize,
    /// Width and height in pixels, 16 to 1024
    #[arg(long, value_name = "PIXELS", default_value_t = 48)]
    pub side: usize,
    /// Seed of every draw
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Images of different splits are different
    #[arg(long, value_enum, default_value_t = Split::Train)]
    pub split: Split,
    /// Shards are called PREFIX-000000.tar and so on [default: the split]
    #[arg(long)]
    pub prefix: Option<String>,
    #[command(flatten)]
    pub division: Division,
}

/// A part of the embedded data set.
#[derive(Clone, Copy, ValueEnum)]
pub enum Split {
    /// For training
    Train,
    /// For testing
    Test,
}

/// Bytes from `256M`, `1.5G`, `1000`.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "K" | "KB" | "KIB" => 1024.0,
        "M" | "MB" | "MIB" => 1024.0 * 1024.0,
        "G" | "GB" | "GIB" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err("expected bytes such as 4096, 512K, 256M or 1G".to_owned()),
    };
    let number: f64 =
        digits.parse().map_err(|_| "expected bytes such as 4096, 512K, 256M or 1G".to_owned())?;
    let bytes = number * unit;
    if (1.0..1e18).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err("at least 1 byte, please".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in
            [("4096", 4096), ("512K", 524_288), ("1.5g", 1_610_612_736), ("2MiB", 2_097_152)]
        {
            assert_eq!(size(text), Ok(bytes));
        }
        for bad in ["", "K", "1X", "-1", "0", "nan"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
