//! Any bytes as weights from elsewhere: a pickle, which is put into an archive of `torch.save`
//! with a storage behind it; a whole file of `torch.save`'s; safetensors.
#![no_main]

use std::io::{Cursor, Write};

use bt_stream::exchange::import;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// An archive of PyTorch's with this pickle and a storage `0`.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in [("a/data.pkl", pickle), ("a/data/0", &[7; 256])] {
        zip.start_file(name, SimpleFileOptions::default()).expect("memory for a file");
        zip.write_all(bytes).expect("memory for a file");
    }
    zip.finish().expect("memory for a file").into_inner()
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let path = bt_fuzz::FOLDER.join("weights.pth");
    for file in [data, &archive(data)] {
        bt_fuzz::put("weights.pth", file);
        if let Ok(tensors) = import::read(&path) {
            let _ = import::backbone(tensors, None);
        }
    }
});
