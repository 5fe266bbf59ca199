//! What the targets share: files in a folder of memory, everything one can do with a shard, and the
//! crops of two views.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bt_pipeline::Image;
use bt_pipeline::augment::Crop;
use bt_pipeline::decode::{DecodeOptions, Decoder};
use bt_pipeline::jpeg::Region;
use bt_pipeline::shard::{
    Limits, OpenOptions, OwnedSample, ReadScratch, ShardSet, Tree, salvage, unpack, verify,
};

/// A folder of this process, empty at first: in `BT_FUZZ_DIR`, else in memory where the system has
/// a folder of that. It stays when the process ends, which may be by a crash.
pub static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let base = match std::env::var_os("BT_FUZZ_DIR") {
        Some(base) => base.into(),
        None if memory.is_dir() => memory,
        None => std::env::temp_dir(),
    };
    let folder = base.join(format!("bt-fuzz-{}", std::process::id()));
    // An earlier process of this number may have left files, which this one's input would meet.
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder for the shards");
    folder
});

/// Limits that keep an input's memory below libFuzzer's.
pub fn options() -> OpenOptions {
    let limits = Limits {
        member_bytes: 1 << 20,
        members: 10_000,
        sample_bytes: 1 << 22,
        shard_bytes: 1 << 24,
        frame_bytes: 1 << 22,
        zstd_window_log: 22,
        index_bytes: 1 << 22,
        ..Limits::default()
    };
    OpenOptions { limits, ..OpenOptions::default() }
}

/// Repairing takes a hundred times as long as reading: files, threads.
const REPAIRED: u64 = 16;

/// The hash of what was written last, the input.
static LAST: AtomicU64 = AtomicU64::new(0);

/// So many samples are read, of a set at random and of each shard in order.
const SAMPLES: usize = 8;

/// Opens what is called `name` in [`FOLDER`], reads its first samples at random and each shard's
/// in order, and decodes what is small. One input of [`REPAIRED`], by its hash, is verified and
/// unpacked, too, and what is whole in it saved, which is packing as well.
pub fn use_all(name: &str) {
    let pattern = FOLDER.join(name);
    if LAST.load(Ordering::Relaxed).is_multiple_of(REPAIRED) {
        repair(&pattern.to_string_lossy());
    }
    let Ok(set) = ShardSet::open(&pattern.to_string_lossy(), &options()) else { return };
    let limits = DecodeOptions { max_pixels: 1 << 16, ..DecodeOptions::default() };
    let (mut decoder, mut image, mut scratch) =
        (Decoder::new(limits), Image::default(), ReadScratch::new());
    for sample in 0..set.len().min(SAMPLES) {
        let _ = set.meta(sample);
        if let Ok(read) = set.read(sample, &mut scratch) {
            let region = Crop { left: 1, top: 1, height: 5, width: 5 };
            let _ = decoder.decode_region_into(
                read.format,
                read.image,
                region,
                read.side_index,
                &mut image,
            );
        }
    }
    for shard in 0..set.shards().len().min(4) {
        let Ok(mut stream) = set.stream(shard) else { continue };
        let mut owned = OwnedSample::default();
        for _ in 0..SAMPLES {
            match stream.next_into(&mut owned) {
                Ok(true) => {}
                Ok(false) | Err(_) => break,
            }
        }
    }
}

/// What `shard verify`, `shard verify --repair` and `shard unpack` do.
fn repair(pattern: &str) {
    let (options, out) = (options(), FOLDER.join("out"));
    let nothing = &mut |_| {};
    let _ = verify(pattern, &options, false, 1, nothing);
    for tree in [Tree::Folders, Tree::Members] {
        let _ = std::fs::remove_dir_all(&out);
        let _ = unpack(pattern, &out, tree, &options, nothing);
    }
    let _ = std::fs::remove_dir_all(&out);
    if salvage(pattern, &out, &options, 1, nothing).is_ok() {
        let report = verify(&out.to_string_lossy(), &options, false, 1, nothing);
        let damage = report.expect("a set that was saved").damage;
        assert!(damage.is_empty(), "{damage:?}");
    }
}

/// Writes a file of [`FOLDER`].
pub fn put(name: &str, bytes: &[u8]) {
    LAST.store(xxhash_rust::xxh3::xxh3_64(bytes), Ordering::Relaxed);
    std::fs::write(FOLDER.join(name), bytes).expect("memory for a file");
}

/// Two regions of a picture, somewhere that depends on the bytes of the input.
pub fn two_regions(data: &[u8], width: usize, height: usize) -> [Region; 2] {
    let number = data.iter().fold(7usize, |n, &b| n.wrapping_mul(31).wrapping_add(b.into()));
    [number, number.rotate_left(29)].map(|number| {
        let (left, top) = (number % width, number / 97 % height);
        Region {
            left,
            top,
            width: 1 + number / 7 % (width - left),
            height: 1 + number / 11 % (height - top),
        }
    })
}

/// Checks that `part`, which is `union` of the picture `whole`, has the pixels of `regions`.
///
/// # Panics
/// When it has others.
pub fn assert_part(regions: &[Region], part: &Image, union: Region, whole: &Image) {
    for region in regions {
        for y in region.top..region.top + region.height {
            let left = 3 * (region.left - union.left);
            let got = &part.row(y - union.top)[left..left + 3 * region.width];
            assert!(got == &whole.row(y)[3 * region.left..3 * (region.left + region.width)]);
        }
    }
}
