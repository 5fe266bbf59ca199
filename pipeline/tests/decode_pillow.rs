//! `decode` against Pillow itself, on files that Pillow writes. Skips, saying so,
//! where there is no Python with Pillow (`BT_PYTHON` or `python3`).

#[path = "../../tests/common/skip.rs"]
mod skip;

use std::path::Path;
use std::process::Command;

use bt_pipeline::Image;
use bt_pipeline::decode::{DecodeOptions, Decoder, dimensions};
use bt_pipeline::shard::sniff;

/// Writes `NAME.EXT` and beside it `NAME.EXT.rgb`, what Pillow makes of it.
const SCRIPT: &str = r#"
import sys, os, math
from PIL import Image, ImageOps
folder = sys.argv[1]
w, h = 67, 45
rgb = Image.new("RGB", (w, h))
rgb.putdata([(int(127 + 120 * math.sin(x / 9)), (x * 3 + y) % 256, int(127 + 120 * math.cos(y / 7)))
             for y in range(h) for x in range(w)])
gray = rgb.convert("L")
alpha = rgb.copy(); alpha.putalpha(gray)
la = gray.copy(); la.putalpha(gray)
palette = rgb.quantize(37)
deep = Image.new("I;16", (w, h))
for y in range(h):
    for x in range(w):
        deep.putpixel((x, y), (x * 9 + y * 700) % 65536)
cmyk = rgb.convert("CMYK")
exif = Image.Exif(); exif[0x0112] = 6

def keep(name, image, **options):
    path = os.path.join(folder, name)
    image.save(path, **options)
    expect(name, path)

def keep_as(name, other, before, after):
    path = os.path.join(folder, name)
    data = open(os.path.join(folder, other), "rb").read()
    assert data.count(before) == 1
    open(path, "wb").write(data.replace(before, after))
    expect(name, path)

def expect(name, path):
    with Image.open(path) as opened:
        shown = ImageOps.exif_transpose(opened) if "exif" in name else opened
        data = shown.convert("RGB")
    with open(path + ".rgb", "wb") as out:
        out.write(b"%d %d\n" % data.size + data.tobytes())

keep("rgb.png", rgb); keep("gray.png", gray); keep("alpha.png", alpha); keep("la.png", la)
keep("palette.png", palette); keep("palette_transparent.png", palette, transparency=3)
keep("bits1.png", gray.convert("1")); keep("bits4.png", rgb.quantize(11), bits=4)
keep("deep.png", deep); keep("interlaced_exif.png", rgb, exif=exif)
keep("rgb.bmp", rgb); keep("rgb.tif", rgb); keep("deep.tif", deep); keep("rgb.webp", rgb, lossless=True)
keep("turned.tif", rgb, tiffinfo={274: 6}); keep("unmultiplied.tif", alpha)
keep_as("premultiplied.tif", "unmultiplied.tif", b"\x52\x01\x03\0\x01\0\0\0\x02", b"\x52\x01\x03\0\x01\0\0\0\x01")
keep("alpha.webp", alpha, lossless=True); keep("palette.gif", palette)
keep("q90.jpg", rgb, quality=90); keep("q90_444.jpg", rgb, quality=90, subsampling=0)
keep("q90_422.jpg", rgb, quality=90, subsampling=1); keep("gray.jpg", gray, quality=90)
keep("progressive.jpg", rgb, quality=90, progressive=True)
keep("cmyk.jpg", cmyk, quality=95); keep("exif.jpg", rgb, quality=90, exif=exif)
keep("restarts.jpg", rgb, quality=90, restart_marker_rows=1)
"#;

fn python() -> Option<String> {
    let candidates = [std::env::var("BT_PYTHON").ok(), Some("python3".into())];
    candidates.into_iter().flatten().find(|python| {
        let import = Command::new(python).args(["-c", "import PIL.Image"]).output();
        import.is_ok_and(|output| output.status.success())
    })
}

fn expected(path: &Path) -> Image {
    let bytes = std::fs::read(path).unwrap();
    let end = bytes.iter().position(|b| *b == b'\n').unwrap();
    let sizes = std::str::from_utf8(&bytes[..end]).unwrap();
    let (width, height) = sizes.split_once(' ').unwrap();
    Image {
        width: width.parse().unwrap(),
        height: height.parse().unwrap(),
        pixels_hwc: bytes[end + 1..].to_vec(),
    }
}

#[test]
fn decoded_files_are_those_of_pillow() {
    let Some(python) = python() else {
        skip::skip("pillow", "no Python with Pillow (set BT_PYTHON)");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let run = Command::new(python).args(["-c", SCRIPT]).arg(folder.path()).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let mut files = 0;
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ext| ext == "rgb") {
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).unwrap();
        let want = expected(Path::new(&format!("{}.rgb", path.display())));
        let exif = name.contains("exif");
        let mut decoder = Decoder::new(DecodeOptions { exif, ..DecodeOptions::default() });
        let mut got = Image::default();
        let format = sniff(&bytes);
        decoder.decode_into(format, &bytes, &mut got).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((got.width, got.height), (want.width, want.height), "{name}");
        let shown = decoder.dimensions(format, &bytes).unwrap();
        assert_eq!(shown, (want.width as u32, want.height as u32), "{name}");
        if !exif {
            assert_eq!(dimensions(&bytes).unwrap(), shown, "{name}");
        }
        // Decoders of JPEG may round differently, once in the inverse transform
        // and once in the colours; CMYK adds a product.
        let allowed = if name.ends_with(".jpg") { 3 } else { 0 };
        let each = || got.pixels_hwc.iter().zip(&want.pixels_hwc).map(|(a, b)| a.abs_diff(*b));
        let (max, sum) = (each().max().unwrap(), each().map(u64::from).sum::<u64>());
        println!("{name}: max {max}, mean {:.4}", sum as f64 / got.pixels_hwc.len() as f64);
        assert!(max <= allowed, "{name}: {max} levels from Pillow");
        files += 1;
    }
    assert_eq!(files, 27);
}
