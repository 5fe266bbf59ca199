//! What is packed is what the person meant: sources that could be read as less than they hold are
//! refused or told of.

use std::path::Path;

use bt_pipeline::shard::{Limits, PackOptions, Source, open_source};
use bt_pipeline::{Error, Result};

use super::pack::{Memory, image, packed};

fn opened(source: &Path) -> Result<Box<dyn Source>> {
    open_source(&source.to_string_lossy(), &std::env::temp_dir(), &Limits::default())
}

fn refusal(source: &Path) -> String {
    match opened(source).err() {
        Some(Error::Usage(text)) => text,
        other => panic!("{}: {other:?}", source.display()),
    }
}

/// A file with its folders.
fn put(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_folder_of_shards_and_images_is_refused_and_a_glob_tells_which_are_meant() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("set");
    packed(&Memory::some(5), &root, &PackOptions::default()).unwrap();
    // Neither files of other kinds nor hidden ones are images.
    put(&root.join("notes/README"), b"x");
    put(&root.join(".cache/1.ppm"), &image(3, 3, 1));
    assert_eq!(opened(&root).unwrap().len(), 5);
    for name in ["ant/deep/1.ppm", "ant/1.ppm", "1.ppm"] {
        put(&root.join(name), &image(3, 3, 1));
        for source in [root.clone(), folder.path().join("{set,set}")] {
            let text = refusal(&source);
            for part in ["shard-000000.tar", name, "by a glob", "*.tar*'"] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
    }
    assert_eq!(opened(&root.join("*.tar*")).unwrap().len(), 5);
    std::fs::remove_file(root.join("shard-000000.tar")).unwrap();
    assert_eq!(opened(&root).unwrap().len(), 2);
}
