//! Tar members as bytes: ustar, with a pax header before names and sizes that
//! ustar cannot hold. The same input gives the same bytes: no times, no owners.

use super::tar::BLOCK;

/// What ends an archive.
pub(crate) const END: [u8; 1024] = [0; 1024];

/// Appends one regular file to an archive.
pub(crate) fn append_member(out: &mut Vec<u8>, name: &str, data: &[u8]) {
    let (prefix, base) = match split(name) {
        Some(parts) => parts,
        None => {
            let record = pax_record("path", name);
            append_blocks(
                out,
                &header("", "././@PaxHeader", record.len(), b'x'),
                record.as_bytes(),
            );
            // Readers without pax see the beginning of the name.
            ("", truncated(name))
        }
    };
    append_blocks(out, &header(prefix, base, data.len(), b'0'), data);
}

fn append_blocks(out: &mut Vec<u8>, header: &[u8; 512], data: &[u8]) {
    out.extend(header);
    out.extend(data);
    out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
}

/// Ustar's two fields: up to 155 bytes before a slash, up to 100 behind it.
fn split(name: &str) -> Option<(&str, &str)> {
    if !name.is_ascii() {
        return None; // POSIX leaves the encoding of ustar names open
    }
    if name.len() <= 100 {
        return Some(("", name));
    }
    let slash = name.bytes().take(156).rposition(|byte| byte == b'/').filter(|&slash| slash > 0)?;
    let base = &name[slash + 1..];
    (!base.is_empty() && base.len() <= 100).then(|| (&name[..slash], base))
}

fn truncated(name: &str) -> &str {
    let mut end = name.len().min(100);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn pax_record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n")
}

fn header(prefix: &str, name: &str, size: usize, type_flag: u8) -> [u8; 512] {
    let mut block = [0u8; 512];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    // 11 octal digits hold 8 GiB; the writer refuses larger members.
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[type_flag]);
    put(257, b"ustar\x0000");
    put(345, prefix.as_bytes());
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::super::Limits;
    use super::super::tar::{SliceSource, Tar};
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;
    use std::path::Path;

    #[test]
    fn a_name_ends_at_a_zero_byte_wherever_it_stands() {
        let mut bytes = Vec::new();
        for name in ["a.jpg\0b", "ä.jpg\0b"] {
            append_member(&mut bytes, name, &[7; 3]);
        }
        let mut tar = Tar::new(SliceSource::new(&bytes), Path::new("x"), 0, Limits::default());
        for name in ["a.jpg", "ä.jpg"] {
            assert_eq!(tar.next_member().unwrap().unwrap().name, name);
        }
    }

    proptest! {
        #[test]
        fn members_written_are_read_back_here_and_by_the_tar_crate(
            names in proptest::collection::vec("[a-zA-Zäß/ ._-]{1,300}x", 1..5),
            sizes in proptest::collection::vec(0usize..2000, 5),
        ) {
            let mut bytes = Vec::new();
            for (name, &size) in names.iter().zip(&sizes) {
                append_member(&mut bytes, name, &vec![7; size]);
            }
            bytes.extend(END);
            let mut ours = Tar::new(SliceSource::new(&bytes), Path::new("x"), 0, Limits::default());
            let mut archive = tar::Archive::new(&bytes[..]);
            let mut data = Vec::new();
            for ((name, &size), entry) in names.iter().zip(&sizes).zip(archive.entries().unwrap()) {
                let member = ours.next_member().unwrap().unwrap();
                ours.read_into(&mut data).unwrap();
                prop_assert_eq!((&member.name, member.size, data.len()), (name, size as u64, size));
                let mut entry = entry.unwrap();
                let path = entry.path_bytes().into_owned();
                prop_assert_eq!(String::from_utf8(path).unwrap(), name.clone());
                data.clear();
                entry.read_to_end(&mut data).unwrap();
                prop_assert_eq!(data.len(), size);
            }
            prop_assert!(ours.next_member().unwrap().is_none());
            prop_assert!(ours.ended);
        }
    }
}
