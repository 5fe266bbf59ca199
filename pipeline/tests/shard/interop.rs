//! Interchange with the programs that others use: GNU tar, the command-line
//! `zstd`, Python's `webdataset`. A test whose program is missing says so and
//! passes; `tools/interop/webdataset_shards.py` does the same by hand.

use std::path::{Path, PathBuf};
use std::process::Command;

use bt_pipeline::shard::{
    FolderSource, OpenOptions, OwnedSample, PackOptions, ReadScratch, Recode, ShardSet,
    index_shards, pack,
};

use super::skip::skip;

/// Runs a program; false, with a line of explanation, when it is not there.
fn run(program: impl AsRef<std::ffi::OsStr>, args: &[&str], folder: &Path) -> bool {
    match Command::new(program.as_ref()).args(args).current_dir(folder).output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            panic!("{}: {}", program.as_ref().display(), String::from_utf8_lossy(&output.stderr))
        }
        Err(_) => {
            let name = program.as_ref().to_string_lossy();
            skip(&name, &format!("no {name}"));
            false
        }
    }
}

/// A Python that has `webdataset`: `BT_PYTHON`, or `python3`.
fn python() -> Option<PathBuf> {
    let python =
        std::env::var_os("BT_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    let there = Command::new(&python).args(["-c", "import webdataset"]).output();
    if there.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    skip("webdataset", "no Python with webdataset (BT_PYTHON names one)");
    None
}

/// Six images of two classes, keys too long for ustar among them.
fn files(root: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let long = format!("{}/{}", "long folder ".repeat(9), "lång".repeat(30));
    let mut made = Vec::new();
    for (i, name) in ["a", "b/c", &long].into_iter().enumerate() {
        for (label, class) in ["cat", "dog"].into_iter().enumerate() {
            let key = format!("{class}/{name}");
            let mut bytes = std::io::Cursor::new(Vec::new());
            let picture =
                image::RgbImage::from_pixel(33, 21, image::Rgb([(i * 40) as u8, label as u8, 200]));
            picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
            let path = root.join(format!("{key}.png"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, bytes.get_ref()).unwrap();
            std::fs::write(path.with_extension("cls"), label.to_string()).unwrap();
            made.push((key, label as u32, bytes.into_inner()));
        }
    }
    made.sort();
    made
}

/// Everything in a set, by stream and, where that is possible, at random; sorted.
fn contents(pattern: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let set = ShardSet::open(
        &pattern.to_string_lossy(),
        &OpenOptions { verify: true, ..Default::default() },
    )
    .unwrap();
    let (mut all, mut sample, mut scratch) =
        (Vec::new(), OwnedSample::default(), ReadScratch::new());
    for shard in 0..set.shards().len() {
        let mut stream = set.stream(shard).unwrap();
        while stream.next_into(&mut sample).unwrap() {
            if set.seekable() {
                assert_eq!(set.read(sample.sample, &mut scratch).unwrap().image, sample.image);
            }
            all.push((sample.key.clone(), sample.label.unwrap(), sample.image.clone()));
        }
    }
    all.sort();
    all
}

#[test]
fn tars_of_gnu_tar_and_files_of_zstd_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let expected = files(&root.join("in"));
    let is_gnu = Command::new("tar")
        .arg("--version")
        .output()
        .is_ok_and(|o| o.stdout.starts_with(b"tar (GNU tar)"));
    if !is_gnu {
        skip("tar", "no GNU tar");
        return;
    }
    for format in ["gnu", "pax", "oldgnu"] {
        let name = format!("{format}.tar");
        let to = format!("../{name}");
        let args = [&format!("--format={format}"), "--sort=name", "-cf", &to, "cat", "dog"]
            .map(|arg: &str| arg.to_owned());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run("tar", &args, &root.join("in"));
        assert_eq!(contents(&root.join(&name)), expected, "{format}");
        index_shards(
            &root.join(&name).to_string_lossy(),
            None,
            &[],
            &Default::default(),
            1,
            &mut |_| {},
        )
        .unwrap();
        assert_eq!(contents(&root.join(&name)), expected, "{format}, with an index");
        for level in ["-1", "-19"] {
            if run("zstd", &["-q", "-f", level, &name], root) {
                assert_eq!(
                    contents(&root.join(format!("{name}.zst"))),
                    expected,
                    "{format}, zstd {level}"
                );
            }
        }
    }
}

#[test]
fn gnu_tar_and_zstd_read_what_is_packed() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let expected = files(&root.join("in"));
    let source = FolderSource::open(&root.join("in")).unwrap();
    for zstd in [None, Some(3)] {
        let options = PackOptions { zstd, overwrite: true, ..PackOptions::default() };
        pack(&source, &root.join("s"), "test", &options, &mut |_| {}).unwrap();
        if zstd.is_some() {
            if !run("zstd", &["-q", "-d", "-f", "s/shard-000000.tar.zst"], root) {
                return;
            }
            assert!(run("zstd", &["-q", "-t", "s/shard-000000.tar.zst"], root));
        }
        let out = root.join(format!("out{}", zstd.is_some()));
        std::fs::create_dir(&out).unwrap();
        if !run("tar", &["-xf", "../s/shard-000000.tar"], &out) {
            return;
        }
        for (key, label, image) in &expected {
            assert_eq!(&std::fs::read(out.join(format!("{key}.png"))).unwrap(), image);
            assert_eq!(
                std::fs::read(out.join(format!("{key}.cls"))).unwrap(),
                label.to_string().as_bytes()
            );
        }
    }
}

#[test]
fn python_webdataset_reads_what_is_packed() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let expected = files(&root.join("in"));
    let source = FolderSource::open(&root.join("in")).unwrap();
    for (name, zstd, raw) in [("plain", None, false), ("zst", Some(3), false), ("raw", None, true)]
    {
        let recode = Recode { raw, ..Recode::KEEP };
        let options =
            PackOptions { zstd, recode, samples_per_shard: Some(4), ..PackOptions::default() };
        pack(&source, &root.join(name), "test", &options, &mut |_| {}).unwrap();
        // tarfile knows no zstd: `webdataset` pipes it through the program.
        let (pipe, kind) =
            if zstd.is_some() { ("pipe:zstd -dcq ", "tar.zst") } else { ("", "tar") };
        if zstd.is_some() && !run("zstd", &["--version"], root) {
            continue;
        }
        let script = format!(
            "import sys, io, webdataset\n\
             from PIL import Image\n\
             for s in webdataset.WebDataset('{pipe}{name}/shard-{{000000..000001}}.{kind}', shardshuffle=False):\n\
             \x20   image = s.get('png') or s['ppm']\n\
             \x20   Image.open(io.BytesIO(image)).load()\n\
             \x20   sys.stdout.buffer.write((s['__key__'] + '\\t' + s['cls'].decode() + '\\t' + str(Image.open(io.BytesIO(image)).size) + '\\n').encode())\n"
        );
        let output =
            Command::new(&python).args(["-c", &script]).current_dir(root).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {errors}");
        let mut read: Vec<String> =
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        read.sort();
        let mut lines: Vec<String> =
            expected.iter().map(|(key, label, _)| format!("{key}\t{label}\t(33, 21)")).collect();
        lines.sort();
        assert_eq!(read, lines, "{name}");
    }
}

#[test]
fn shards_of_python_webdataset_are_read() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let script = "import webdataset as w\n\
        with w.ShardWriter('w-%06d.tar', maxcount=3, verbose=0) as out:\n\
        \x20   for i in range(8):\n\
        \x20       out.write({'__key__': 'k/%03d' % i + 'x' * 150 * (i % 2), 'jpg': bytes([i]) * 3000, 'cls': i % 5, 'json': {'i': i}})\n";
    run(&python, &["-c", script], folder.path());
    let read = contents(&folder.path().join("w-{000000..000002}.tar"));
    let expected: Vec<_> = (0..8u32)
        .map(|i| {
            (format!("k/{i:03}{}", "x".repeat(150 * (i as usize % 2))), i % 5, vec![i as u8; 3000])
        })
        .collect();
    assert_eq!(read, expected);
}
