//! The command line: flags, their defaults, units and help.

use std::path::{Path, PathBuf};

use bt_pipeline::Error;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Image shards: WebDataset tars with an index, plain or compressed.
#[derive(Parser)]
#[command(version, about, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the process says when it ends: the codes of `bt-stream`, on which scripts depend.
const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 something failed, or `verify` found damage; 2 the command line is wrong, or \
nothing matches it.";

/// The exit code that belongs to an error of a command.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if matches!(error.downcast_ref(), Some(Error::Usage(_))) { 2 } else { 1 }
}

/// One subcommand.
#[derive(Subcommand)]
pub enum Command {
    /// Pack images into shards
    #[command(override_usage = "shard pack [OPTIONS] <SRC>... <OUT>")]
    Pack(Pack),
    /// Write the indexes of shards made elsewhere
    Index(Index),
    /// List samples, or sum them up
    Ls(Ls),
    /// Check every byte; exit code 1 and a list when something is damaged
    Verify(Verify),
    /// Write the samples of shards as files; packed coefficients become JPEGs again
    #[command(override_usage = "shard unpack [OPTIONS] <SHARDS>... <OUT>")]
    Unpack(Unpack),
    /// Pack the embedded data set, images drawn by this program
    Synth(Synth),
    /// Print the completions of a shell
    Completions(Completions),
    /// Write manual pages
    Man(Man),
}

/// What to read and, the last of them, where to write. One list for both, so that options may stand
/// between them.
fn split(paths: &[PathBuf]) -> Result<(String, &Path), Error> {
    let (out, sources) =
        paths.split_last().filter(|(_, sources)| !sources.is_empty()).ok_or_else(|| {
            Error::Usage("OUT is missing: what to read comes first, then where to write".to_owned())
        })?;
    let names = sources.iter().map(|source| {
        let refused = || Error::Usage(format!("{}: the name is not UTF-8", source.display()));
        source.to_str().ok_or_else(refused)
    });
    Ok((names.collect::<Result<Vec<_>, _>>()?.join("::"), out))
}

/// How samples are divided over shards.
#[derive(Args)]
pub struct Division {
    /// Samples in a shard, at most [default: no limit]
    #[arg(long, value_name = "N")]
    pub samples_per_shard: Option<u64>,
    /// Bytes of a shard's file, at most; K, M, G, also written KB or KiB and so on, are powers of
    /// 1024 [default: 256M, or no limit with --samples-per-shard]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub bytes_per_shard: Option<u64>,
    /// Write .tar.zst that can be read at random, with this level of zstd, -131072 (fastest) to 22
    /// (smallest) [default level: 3]
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, default_missing_value = "3", allow_negative_numbers = true, value_parser = level)]
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
    /// SRC: an ImageFolder tree (CLASS/NAME.jpg), a flat folder (no labels), a .csv or .tsv list of
    /// path and label, or shards: a folder, glob, brace list or manifest; of several, all have to
    /// be shards. OUT, the last: the folder for the shards; made if need be
    #[arg(required = true, value_name = "SRC|OUT")]
    pub paths: Vec<PathBuf>,
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
    #[arg(long, value_name = "PIXELS", group = "reduced", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_side: Option<u32>,
    /// Reduce larger images until the shorter side has this many pixels
    #[arg(long, value_name = "PIXELS", group = "reduced", value_parser = clap::value_parser!(u32).range(1..))]
    pub short_side: Option<u32>,
    /// JPEG quality of reduced images, 1 to 100; others stay byte for byte [default: 90]
    #[arg(long, value_name = "Q", requires = "reduced", conflicts_with = "raw", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub quality: Option<u8>,
    /// Store decoded RGB (binary PPM) instead of coded images: pixels as they are stored. EXIF
    /// orientation is lost, so that `data.exif` does not turn such images
    #[arg(long)]
    pub raw: bool,
    /// Store JPEGs as packed coefficients (.dct): the same pixels, decoded in about half the time,
    /// in about 1.1 times the bytes. Images that cannot be (CMYK JPEGs, PNG, ...) stay as they are
    #[arg(long, conflicts_with = "raw")]
    pub recode: bool,
    /// Leave out images that cannot be used, and list them, instead of stopping
    ///
    /// Such are files that are missing or may not be read, and images that cannot be decoded or
    /// have more than 178 million pixels, as far as that shows: what is stored as it is (all without
    /// --max-side, --short-side, --raw and --recode; with the first two what is small enough) is not
    /// decoded, so that a JPEG that was cut short is packed. `shard verify OUT` finds those.
    #[arg(long)]
    pub skip_bad: bool,
}

impl Pack {
    /// The sources as one, and the folder for the shards.
    ///
    /// # Errors
    /// [`Error::Usage`] when one of them is missing.
    pub fn paths(&self) -> Result<(String, &Path), Error> {
        split(&self.paths)
    }
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
    /// Also write a manifest of the set, PREFIX.manifest.json beside the shards, which no other
    /// manifest there lists
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    /// Class names for the manifest, one a line, in the order of the class numbers; all of them
    /// [default: those of the manifest that is replaced]
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
    /// SHARDS: a folder, glob, brace list or manifest. OUT, the last: a folder that is empty or
    /// missing
    #[arg(required = true, value_name = "SHARDS|OUT")]
    pub paths: Vec<PathBuf>,
    /// Every member of every sample as KEY.EXTENSION instead of CLASS/NAME.EXTENSION
    #[arg(long)]
    pub members: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl Unpack {
    /// The shards as one pattern, and the folder for the files.
    ///
    /// # Errors
    /// [`Error::Usage`] when one of them is missing.
    pub fn paths(&self) -> Result<(String, &Path), Error> {
        split(&self.paths)
    }
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

/// `shard completions`.
#[derive(Args)]
pub struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// `shard man`.
#[derive(Args)]
pub struct Man {
    /// The folder for the pages, as in /usr/local/share/man/man1; made if need be
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// A part of the embedded data set.
#[derive(Clone, Copy, ValueEnum)]
pub enum Split {
    /// For training
    Train,
    /// For testing
    Test,
}

/// A level of zstd; which there are the packer knows.
fn level(text: &str) -> Result<i32, String> {
    let other = "not a number: write --zstd=LEVEL, or --zstd behind the folders";
    text.parse().map_err(|_| other.to_owned())
}

/// Bytes from `256M`, `1.5G`, `1000`. Units are powers of 1024 with and without an `i`, where
/// `data.cache_size` tells GB from GiB.
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
        Err("must be between 1 byte and 10^18 bytes".to_owned())
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
    fn options_stand_anywhere_between_what_is_read_and_where_it_goes() {
        for line in [
            "pack a b out --recode --zstd",
            "pack a --recode b --zstd=3 out",
            "pack --recode a --zstd 3 b out",
            "pack --zstd --recode a b out",
            "pack a b --recode --zstd -- out",
        ] {
            let parsed = Cli::try_parse_from(["shard"].into_iter().chain(line.split(' ')));
            let Command::Pack(pack) = parsed.unwrap_or_else(|e| panic!("{line}: {e}")).command
            else {
                panic!("{line}")
            };
            assert_eq!(pack.paths().unwrap(), ("a::b".to_owned(), Path::new("out")), "{line}");
            assert!(pack.recode && pack.division.zstd == Some(3), "{line}");
        }
        let parsed = Cli::try_parse_from(["shard", "unpack", "a", "--members", "out"]);
        let Command::Unpack(unpack) = parsed.unwrap().command else { panic!() };
        assert_eq!(unpack.paths().unwrap(), ("a".to_owned(), Path::new("out")));
        let Err(error) = Cli::try_parse_from(["shard", "pack", "--zstd", "a", "out"]) else {
            panic!("parsed")
        };
        assert!(error.to_string().contains("--zstd=LEVEL"), "{error}");
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in
            [("4096", 4096), ("512K", 524_288), ("1.5g", 1_610_612_736), ("2MiB", 2_097_152)]
        {
            assert_eq!(size(text), Ok(bytes));
        }
        for bad in ["", "K", "1X", "nan"] {
            assert!(size(bad).unwrap_err().contains("such as"), "{bad}");
        }
        for (far, near) in [("0", "1"), ("-1", "1"), ("1000000000000G", "931000000G")] {
            assert!(size(far).unwrap_err().contains("between 1 byte and 10^18"), "{far}");
            assert!(size(near).is_ok(), "{near}");
        }
    }
}
