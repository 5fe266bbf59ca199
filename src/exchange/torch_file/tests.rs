use std::io::Write;
use std::path::PathBuf;

use super::*;

/// `tools/golden/torch_save.py` made these files.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden_extra/torch_save").join(name)
}

fn expected(prefix: &str) -> HashMap<String, Tensor> {
    let values = candle_core::safetensors::load(golden("values.safetensors"), &Device::Cpu);
    values.unwrap().into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect()
}

fn assert_same(got: &HashMap<String, Tensor>, want: &HashMap<String, Tensor>) {
    assert_eq!(got.len(), want.len(), "{:?}", got.keys());
    for (name, want) in want {
        let got = &got[name];
        assert_eq!((got.dtype(), got.dims()), (want.dtype(), want.dims()), "{name}");
        let values = |t: &Tensor| {
            t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()
        };
        assert_eq!(values(got), values(want), "{name}");
    }
}

#[test]
fn every_form_of_a_state_dict_has_the_same_tensors() {
    assert_same(&read(&golden("zip.pth")).unwrap().unwrap(), &expected(""));
    assert_same(&read(&golden("legacy.pth.tar")).unwrap().unwrap(), &expected(""));
    let mut both = expected("student.");
    both.extend(expected("teacher."));
    assert_same(&read(&golden("wrapped.ckpt")).unwrap().unwrap(), &both);
    // The archive's folder is called as the file was.
    assert_same(&read(&golden("a_name_of_21_letters_.pth")).unwrap().unwrap(), &expected(""));
    assert!(read(&golden("values.safetensors")).unwrap().is_none());
}

/// The outcome of reading `bytes` as a file.
fn read_bytes(bytes: &[u8]) -> Result<Option<HashMap<String, Tensor>>> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    read(file.path())
}

#[test]
fn damage_of_any_byte_is_survived_and_in_an_archive_changes_no_value_unseen() {
    let (zip, legacy) = ("zip.pth", "legacy.pth.tar");
    for name in [zip, legacy] {
        let whole = std::fs::read(golden(name)).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            let outcome = read_bytes(&damaged);
            // Archives have checksums.
            if let (true, Ok(Some(tensors))) = (name == zip, &outcome) {
                assert_same(tensors, &expected(""));
            }
        }
        for length in (0..whole.len()).step_by(7) {
            let outcome = read_bytes(&whole[..length]);
            assert!(!matches!(outcome, Ok(Some(_))), "{name}, {length} bytes");
        }
    }
}

/// An archive of PyTorch's with this pickle and a storage `0` of four bytes.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in [("a/data.pkl", pickle), ("a/data/0", &[0; 4])] {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The pickle of a state dict with one tensor, of what a pickle says for its offset, size and
/// strides.
fn one_tensor(layout: &str) -> Vec<u8> {
    let storage = "((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI1\ntQ";
    format!("(dVconv1.weight\nctorch._utils\n_rebuild_tensor_v2\n{storage}{layout}I00\nNtRs.")
        .into()
}

#[test]
fn a_tensor_that_is_larger_than_its_storage() {
    let complaint =
        |layout| format!("{:#}", read_bytes(&archive(&one_tensor(layout))).unwrap_err());
    let good = read_bytes(&archive(&one_tensor("I0\n(I1\nI1\nt(I1\nI1\nt"))).unwrap().unwrap();
    assert_eq!(good["conv1.weight"].dims(), [1, 1]);
    // Elements that lie upon each other.
    let good = read_bytes(&archive(&one_tensor("I0\n(I2\nt(I0\nt"))).unwrap().unwrap();
    assert_eq!(good["conv1.weight"].dims(), [2]);
    for (layout, words) in [
        ("I0\n(I2\nt(I1\nt", "wants 8 bytes of storage `0`, which has 4"),
        ("I1\n(I1\nt(I1\nt", "wants 8 bytes of storage `0`, which has 4"),
        ("I0\n(I0\nI4294967296\nI4294967296\nt(I1\nI1\nI1\nt", "a shape of [0, 4294967296"),
        ("I9223372036854775807\n(I2\nt(I4\nt", "a shape of"),
        ("I0\n(I2\nI2\nt(I9223372036854775807\nI9223372036854775807\nt", "a shape of"),
        ("I0\n(I4294967296\nt(I0\nt", "tensors of 17179869184 bytes in a file of"),
        ("I0\n(I4294967296\nI4294967296\nt(I1\nI1\nt", "tensors of 18446744073709551615 bytes"),
        // Not of numbers, or of too many: no tensor.
        ("I-1\n(I1\nt(I1\nt", "no state dict"),
        ("I0\n(I1\nt(I1\nI1\nt", "no state dict"),
        ("I0\n(I1\nI1\nI1\nI1\nI1\nI1\nI1\nI1\nI1\nt(t", "no state dict"),
    ] {
        let complaint = complaint(layout);
        assert!(complaint.contains(words), "{layout:?}: {complaint}");
    }
}

#[test]
fn pickles_that_want_more_than_their_bytes() {
    let complaint =
        |pickle: Vec<u8>| Pickle::read(&mut &pickle[..]).map(drop).unwrap_err().to_string();
    let of = |start: &[u8], repeated: &[u8], count| [start, &repeated.repeat(count)].concat();
    // A text of 4 GB; tuples within tuples; the same object on the stack again; a list that a dict
    // is made of, many times.
    assert!(complaint(b"X\xff\xff\xff\xff.".to_vec()).contains("ends too early"));
    assert!(complaint(of(b")", b"\x85", 5_000_000)).contains("more than"));
    assert!(complaint(of(b"N", b"2", 5_000_000)).contains("more than"));
    let list = of(b"ccollections\nOrderedDict\nq\0(](", b"NN\x86", 2_000);
    let dicts = of(&[&list[..], b"etq\x01"].concat(), b"h\0h\x01R0", 5_000);
    assert!(complaint(dicts).contains("more than"));
    // The same list of what is no pair; a storage's tuple that is too long; names.
    let none = of(b"ccollections\nOrderedDict\nq\0(](", b"N", 2_000);
    let dicts = of(&[&none[..], b"etq\x01"].concat(), b"h\0h\x01R0", 5_000);
    assert!(complaint(dicts).contains("more than"));
    let globals = of(b"\x8c\xc8", b"x", 200);
    let globals = of(&[&globals[..], b"q\0"].concat(), b"h\0h\0\x930", 500_000);
    assert!(complaint(globals).contains("more than"));
    // Nothing where something is wanted.
    for pickle in
        [&b"."[..], b"R.", b"N\x86.", b"(.", b"t.", b"N(\x85.", b"h\0.", b"(NsN.", b"\xff."]
    {
        complaint(pickle.to_vec());
    }
    // Nested deeply, and freed.
    let deep = [&of(b")", b"\x85", 1_000_000)[..], b"."].concat();
    assert!(Pickle::read(&mut &deep[..]).is_ok());
}

#[test]
fn a_pickle_that_names_one_tensor_billions_of_times() {
    let complaint = |pickle: &[u8]| format!("{:#}", read_bytes(&archive(pickle)).unwrap_err());
    let start = one_tensor("I0\n(I0\nt(I1\nt");
    // The tensor of that dict is the memo's 1, a text its 0, a dict of dicts its 2.
    let tensor = &start[b"(dVconv1.weight\n".len()..start.len() - 2];
    let key = |length: usize| [&b"V"[..], &b"x".repeat(length), b"\nq\x000"].concat();
    let inner = |length| {
        let entries = b"h\0h\x01".repeat(100_000);
        [&key(length)[..], tensor, b"q\x010}(", &entries, b"uq\x02"].concat()
    };
    let of_dicts = [&inner(1)[..], b"0}(", &b"h\0h\x02".repeat(100_000), b"u."].concat();
    assert!(complaint(&of_dicts).contains("entries of dicts"));
    let long = [&inner(10_000)[..], b"."].concat();
    assert!(complaint(&long).contains("names of more than"));
}
