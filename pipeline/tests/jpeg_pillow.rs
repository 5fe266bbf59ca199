//! Optional: every JPEG of a folder against Pillow itself. Runs where
//! `../shared/data` (or `BT_DATA_DIR`) is there and `BT_PYTHON` or `python3` has
//! Pillow; says why where it does not.

#[path = "../../tests/common/skip.rs"]
mod skip;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bt_pipeline::Image;
use bt_pipeline::jpeg::{Jpeg, JpegDecoder, Region, SideIndex};
use bt_pipeline::rng::Rng;
use bt_pipeline::shard::{Format, OpenOptions, OwnedSample, ShardSet};
use skip::skip;

/// Reads lengths and JPEGs, writes widths, heights and pixels.
const SERVER: &str = "
import io, struct, sys
from PIL import Image
while head := sys.stdin.buffer.read(4):
    data = sys.stdin.buffer.read(struct.unpack('<I', head)[0])
    image = Image.open(io.BytesIO(data)).convert('RGB')
    sys.stdout.buffer.write(struct.pack('<II', *image.size) + image.tobytes())
    sys.stdout.buffer.flush()
";

struct Pillow(Child);

impl Pillow {
    fn start() -> Option<Pillow> {
        let python = std::env::var("BT_PYTHON").unwrap_or_else(|_| "python3".into());
        let probe = Command::new(&python).args(["-c", "import PIL"]).output();
        if !probe.is_ok_and(|output| output.status.success()) {
            skip("pillow", &format!("{python} has no Pillow"));
            return None;
        }
        let mut command = Command::new(python);
        command.args(["-c", SERVER]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().ok().map(Pillow)
    }

    fn decode(&mut self, jpeg: &[u8]) -> Image {
        let input = self.0.stdin.as_mut().unwrap();
        input.write_all(&(jpeg.len() as u32).to_le_bytes()).unwrap();
        input.write_all(jpeg).unwrap();
        input.flush().unwrap();
        let output = self.0.stdout.as_mut().unwrap();
        let mut number = || {
            let mut bytes = [0; 4];
            output.read_exact(&mut bytes).unwrap();
            u32::from_le_bytes(bytes) as usize
        };
        let (width, height) = (number(), number());
        let mut image = Image::new(width, height);
        output.read_exact(&mut image.pixels_hwc).unwrap();
        image
    }
}

impl Drop for Pillow {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn data_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("BT_DATA_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"),
        PathBuf::from,
    );
    if !folder.is_dir() {
        skip("data", &format!("no {}", folder.display()));
        return None;
    }
    Some(folder)
}

/// Compares whole images with Pillow's and regions with the whole; returns
/// whether the decoder took the JPEG.
fn compare(name: &str, bytes: &[u8], pillow: &mut Pillow, decoder: &mut JpegDecoder) -> bool {
    let jpeg = match Jpeg::parse(bytes) {
        Ok(jpeg) => jpeg,
        Err(error) if error.is_unsupported() => return false,
        Err(error) => panic!("{name}: {error}"),
    };
    let (mut whole, mut part) = (Image::default(), Image::default());
    decoder.decode_into(&jpeg, &mut whole).unwrap();
    let expected = pillow.decode(bytes);
    assert_eq!((whole.width, whole.height), (expected.width, expected.height), "{name}");
    let pairs = whole.pixels_hwc.iter().zip(&expected.pixels_hwc);
    let worst = pairs.map(|(a, b)| a.abs_diff(*b)).max();
    assert_eq!(worst, Some(0), "{name}");
    let index = SideIndex::build(bytes).unwrap();
    let mut rng = Rng::keyed(11, 0, bytes.len() as u64, 0);
    for _ in 0..4 {
        let mut span = |length: usize| {
            let size = 1 + rng.below(length as u64) as usize;
            (rng.below((length - size + 1) as u64) as usize, size)
        };
        let ((left, width), (top, height)) = (span(whole.width), span(whole.height));
        let region = Region { left, top, width, height };
        decoder.decode_region_into(&jpeg, region, index.as_ref(), &mut part).unwrap();
        assert_eq!(decoder.used_index(), index.is_some(), "{name}");
        for y in 0..height {
            let expected = &whole.row(top + y)[left * 3..(left + width) * 3];
            assert!(part.row(y) == expected, "{name}, {region:?}, row {y}");
        }
    }
    true
}

#[test]
fn imagenet_samples_decode_to_pillows_pixels() {
    let (Some(folder), Some(mut pillow)) = (data_folder(), Pillow::start()) else { return };
    let mut decoder = JpegDecoder::new();
    let pattern = folder.join("imagenet-sample/*/*.JPEG");
    let mut count = 0;
    for path in glob::glob(pattern.to_str().unwrap()).unwrap() {
        let path = path.unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let name = path.display().to_string();
        count += usize::from(compare(&name, &bytes, &mut pillow, &mut decoder));
    }
    println!("{count} JPEGs equal");
    match glob::glob(pattern.to_str().unwrap()).unwrap().next() {
        Some(_) => assert!(count > 0, "no JPEG was compared"),
        None => skip("data", &format!("no {}", pattern.display())),
    }
}

#[test]
fn cifar_shards_decode_to_pillows_pixels() {
    let (Some(folder), Some(mut pillow)) = (data_folder(), Pillow::start()) else { return };
    let pattern = folder.join("cifar10/*.tar.zst");
    let Ok(set) = ShardSet::open(pattern.to_str().unwrap(), &OpenOptions::default()) else {
        skip("data", &format!("no {}", pattern.display()));
        return;
    };
    let mut decoder = JpegDecoder::new();
    let mut count = 0;
    for shard in 0..set.shards().len() {
        let mut stream = set.stream(shard).unwrap();
        let mut sample = OwnedSample::default();
        while stream.next_into(&mut sample).unwrap() {
            if sample.format == Format::Jpeg {
                let same = compare(&sample.key, &sample.image, &mut pillow, &mut decoder);
                count += usize::from(same);
            }
        }
    }
    println!("{count} JPEGs equal");
    assert!(count > 0, "no JPEG was compared");
}
