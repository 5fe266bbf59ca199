//! What cannot be packed stops packing, or is left out by name.

use bt_pipeline::shard::{
    FolderSource, Loaded, OnBadImage, PackOptions, ReadScratch, Source, open_source,
};
use bt_pipeline::{Error, Result};

use super::memory::{Memory, files, image, open, packed};

#[test]
fn an_image_that_is_none_stops_packing_or_is_left_out_by_name() {
    let mut source = Memory::some(10);
    source.samples[3].2 = b"no image".to_vec();
    let folder = tempfile::tempdir().unwrap();
    let error = packed(&source, folder.path(), &PackOptions::default()).unwrap_err().to_string();
    assert!(error.contains("d/00003"), "{error}");
    assert_eq!(files(folder.path()).len(), 0, "nothing half-done stays");
    let skip = PackOptions { on_bad: OnBadImage::Skip, ..PackOptions::default() };
    let done = packed(&source, folder.path(), &skip).unwrap();
    assert_eq!((open(folder.path()).len(), done.skipped.len()), (9, 1));
}

#[cfg(unix)]
#[test]
fn a_file_that_is_missing_stops_packing_or_is_left_out_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (root, tree) = (folder.path(), folder.path().join("tree"));
    for class in ["ant", "bee"] {
        std::fs::create_dir_all(tree.join(class)).unwrap();
        std::fs::write(tree.join(class).join("1.ppm"), image(3, 3, 1)).unwrap();
    }
    std::os::unix::fs::symlink("nowhere.png", tree.join("ant/2.png")).unwrap();
    std::os::unix::fs::symlink("3.png", tree.join("ant/3.png")).unwrap();
    let list = root.join("list.csv");
    std::fs::write(&list, "tree/ant/1.ppm,0\n\ngone.jpg,1\ntree/bee,1\ntree/bee/1.ppm,1\n")
        .unwrap();
    let skip = PackOptions { on_bad: OnBadImage::Skip, ..PackOptions::default() };
    let missing =
        ["2.png: No such file", "gone.jpg: No such file or directory (os error 2); line 3 of"];
    for (from, missing) in [&tree, &list].into_iter().zip(missing) {
        let from = from.to_string_lossy();
        let source = open_source(&from, root, &Default::default()).unwrap();
        let out = tempfile::tempdir().unwrap();
        let error = packed(source.as_ref(), out.path(), &PackOptions::default()).unwrap_err();
        assert!(
            matches!(error, Error::Io { .. }) && error.to_string().contains(missing),
            "{error}"
        );
        assert_eq!(files(out.path()).len(), 0);
        let done = packed(source.as_ref(), out.path(), &skip).unwrap();
        assert_eq!((open(out.path()).len(), done.skipped.len()), (2, 2), "{:?}", done.skipped);
        assert!(done.skipped[0].contains(missing), "{:?}", done.skipped);
    }
    // What may stand for a class keeps its number or is an error.
    std::os::unix::fs::symlink("nowhere", tree.join("ape")).unwrap();
    assert!(FolderSource::open(&tree).is_err());
}

/// Images that the system does not let one read, with this number of an error.
#[cfg(unix)]
struct Refused(Memory, i32);

#[cfg(unix)]
impl Source for Refused {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn label(&self, i: usize) -> Result<Option<u32>> {
        self.0.label(i)
    }
    fn bytes(&self, i: usize) -> Result<u64> {
        self.0.bytes(i)
    }
    fn name(&self, i: usize) -> String {
        self.0.name(i)
    }
    fn classes(&self) -> &[String] {
        self.0.classes()
    }
    fn load(&self, i: usize, scratch: &mut ReadScratch, into: &mut Loaded) -> Result<()> {
        match i {
            2 => Err(Error::io("d/00002", std::io::Error::from_raw_os_error(self.1))),
            _ => self.0.load(i, scratch, into),
        }
    }
}

#[cfg(unix)]
#[test]
fn what_would_befall_any_image_leaves_none_out() {
    let folder = tempfile::tempdir().unwrap();
    let skip = PackOptions { on_bad: OnBadImage::Skip, overwrite: true, ..PackOptions::default() };
    for (number, left_out) in [(libc::EACCES, true), (libc::EIO, true), (libc::EMFILE, false)] {
        let done = packed(&Refused(Memory::some(5), number), folder.path(), &skip);
        assert_eq!(done.ok().map(|done| done.skipped.len()), left_out.then_some(1), "{number}");
    }
}
