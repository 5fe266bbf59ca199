//! What remote shards cost the loader: the same shards from the disk, from a server on loopback
//! that sends at most so many MB/s, and from a warm cache, by turns.
//!
//! ```text
//! cargo bench -p bt-pipeline --features remote --bench remote -- --images FOLDER \
//!     [--rounds N] [--count N] [--threads N] [--mb-per-s N]
//! ```
//!
//! FOLDER is a folder of folders of JPEGs; it is packed several times over into shards of some 30
//! MB. The server is a process of its own, made of the tests' server.

#[path = "../tests/remote/server.rs"]
mod server;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bt_pipeline::augment::Preset;
use bt_pipeline::measure::{Measurement, measure};
use bt_pipeline::shard::{OpenOptions, PackOptions, open_source, pack};
use bt_pipeline::{LoaderConfig, Result, ShardSet};

struct Options {
    images: String,
    rounds: usize,
    count: u64,
    threads: usize,
    mb_per_s: f64,
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let mut options = Options {
        images: std::env::var("BT_BENCH_IMAGES").unwrap_or_default(),
        rounds: 5,
        count: 1000,
        threads: 1,
        mb_per_s: 200.0,
    };
    while let Some(key) = args.next() {
        let value = args.next().unwrap_or_else(|| panic!("{key} wants a value"));
        let number = || value.parse::<f64>().unwrap_or_else(|_| panic!("{key}: a number"));
        match key.as_str() {
            "--images" => options.images = value,
            "--rounds" => options.rounds = number() as usize,
            "--count" => options.count = number() as u64,
            "--threads" => options.threads = number() as usize,
            "--mb-per-s" => options.mb_per_s = number(),
            "--serve" => serve(Path::new(&value), &args.next().unwrap_or_default()),
            _ => panic!("unknown option {key}"),
        }
    }
    if options.images.is_empty() {
        println!("remote: no --images FOLDER (or BT_BENCH_IMAGES): nothing to measure");
        return;
    }
    if let Err(error) = run(&options) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

/// Serves `folder` until the parent's end of the pipe closes.
fn serve(folder: &Path, bytes_per_s: &str) {
    let rate = bytes_per_s.parse().ok();
    let server = server::Server::start(server::Origin::Folder(folder.to_owned()), rate);
    println!("{}", server.address);
    let _ = std::io::stdin().read_line(&mut String::new());
    std::process::exit(0);
}

fn run(options: &Options) -> Result<()> {
    let folder = tempfile::tempdir().map_err(|e| bt_pipeline::Error::io("a folder", e))?;
    let shards = folder.path().join("shards");
    pack_repeated(&options.images, &shards)?;
    let rate = options.mb_per_s * 1e6;
    let mut child = std::process::Command::new(std::env::current_exe().expect("this program"))
        .arg("--serve")
        .args([shards.as_os_str(), rate.to_string().as_ref()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .map_err(|e| bt_pipeline::Error::io("the server", e))?;
    let mut address = String::new();
    let mut out = std::io::BufReader::new(child.stdout.take().expect("it was asked for"));
    std::io::BufRead::read_line(&mut out, &mut address)
        .map_err(|e| bt_pipeline::Error::io("the server", e))?;
    let remote = format!("http://{}/shard.manifest.json", address.trim());
    let mut cached = OpenOptions::default();
    cached.remote.cache = Some(folder.path().join("cache"));
    let local = shards.join("shard.manifest.json").to_string_lossy().into_owned();
    let kinds = [
        ("disk", &local, OpenOptions::default()),
        ("server", &remote, OpenOptions::default()),
        ("warm cache", &remote, cached),
    ];
    fill_cache(&remote, &kinds[2].2, &folder.path().join("cache"), &shards)?;
    let mut found: [Vec<Measurement>; 3] = Default::default();
    for round in 0..options.rounds {
        // Each comes first in its turn.
        for nth in 0..3 {
            let kind = (round + nth) % 3;
            let (_, pattern, open) = &kinds[kind];
            let set = Arc::new(ShardSet::open(pattern, open)?);
            let mut config = LoaderConfig::training(Preset::BarlowImagenet.views(), 64, 0);
            config.threads = options.threads;
            found[kind].push(measure(&set, config, options.count)?);
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    report(options, kinds.map(|(name, ..)| name), &found);
    Ok(())
}

/// Packs `images` as often as makes 240 MB.
fn pack_repeated(images: &str, shards: &Path) -> Result<()> {
    let temporary = shards.with_extension("tmp");
    let once = open_source(images, &temporary, &Default::default())?;
    let bytes: u64 = (0..once.len()).map(|i| once.bytes(i).unwrap_or(0)).sum();
    let times = (240_000_000 / bytes.max(1)).clamp(1, 40);
    let tree = shards.with_extension("images");
    for time in 0..times {
        link(Path::new(images), &tree, time)?;
    }
    let source = open_source(&tree.to_string_lossy(), &temporary, &Default::default())?;
    let options = PackOptions { bytes_per_shard: Some(30 << 20), ..PackOptions::default() };
    pack(&*source, shards, "a benchmark", &options, &mut |_| {})?;
    Ok(())
}

/// Hard links (or copies) of a folder of folders, with other names.
fn link(from: &Path, to: &Path, time: u64) -> Result<()> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |e| bt_pipeline::Error::io(path, e)
    };
    let entries = |path: &Path| -> Result<Vec<PathBuf>> {
        let list = std::fs::read_dir(path).map_err(failed(path))?;
        Ok(list.flatten().map(|entry| entry.path()).collect())
    };
    for class in entries(from)?.into_iter().filter(|path| path.is_dir()) {
        let folder = to.join(class.file_name().unwrap_or_default());
        std::fs::create_dir_all(&folder).map_err(failed(&folder))?;
        for image in entries(&class)? {
            let name = image.file_name().unwrap_or_default().to_string_lossy();
            std::fs::copy(&image, folder.join(format!("{time}-{name}"))).map_err(failed(&image))?;
        }
    }
    Ok(())
}

fn fill_cache(remote: &str, options: &OpenOptions, cache: &Path, shards: &Path) -> Result<()> {
    let set = Arc::new(ShardSet::open(remote, options)?);
    let files = |folder: &Path| {
        let list = std::fs::read_dir(folder).into_iter().flatten().flatten();
        list.filter(|entry| entry.path().extension().is_some_and(|end| end == "tar")).count()
    };
    while files(cache) < files(shards) {
        let mut config = LoaderConfig::training(Preset::BarlowCifar.views(), 64, 0);
        config.threads = 1;
        measure(&set, config, 64)?;
    }
    Ok(())
}

fn report(options: &Options, names: [&str; 3], found: &[Vec<Measurement>; 3]) {
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let of = |kind: usize, value: fn(&Measurement) -> f64| {
        median(&mut found[kind].iter().map(value).collect())
    };
    println!(
        "{} images a round, {} threads, {} rounds by turns, server at {} MB/s; medians:",
        options.count, options.threads, options.rounds, options.mb_per_s
    );
    println!(
        "| shards from | images/s | of disk | lowest to highest | CPU us an image | waited us |"
    );
    println!("|---|--:|--:|---|--:|--:|");
    let disk = of(0, |m| m.images_per_s);
    for kind in 0..3 {
        let rates = found[kind].iter().map(|m| m.images_per_s);
        let (low, high) = rates.fold((f64::MAX, 0.0f64), |(l, h), r| (l.min(r), h.max(r)));
        let rate = of(kind, |m| m.images_per_s);
        println!(
            "| {} | {rate:.0} | {:.1}% | {low:.0} to {high:.0} | {:.0} | {:.0} |",
            names[kind],
            100.0 * rate / disk,
            of(kind, |m| m.cpu_us),
            of(kind, |m| m.network_us),
        );
    }
}
