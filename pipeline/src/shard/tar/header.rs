//! The fields of a header block, and the records of a pax header.

use super::BLOCK;

/// Key, value and what follows the first record.
pub(super) fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &bytes[length..]))
}

/// A number of a header field: octal text, or base 256 when the top bit is set.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        if field[0] != 0x80 {
            return None; // negative, or beyond 88 bits
        }
        // Fields have 8 or 12 bytes.
        return field[1..]
            .iter()
            .try_fold(0u64, |value, &byte| Some(value.checked_mul(256)? | u64::from(byte)));
    }
    let text = field.split(|&byte| byte == 0).next()?.trim_ascii();
    if text.is_empty() {
        return Some(0);
    }
    text.iter().try_fold(0u64, |value, &byte| match byte {
        b'0'..=b'7' => Some(value.checked_mul(8)? + u64::from(byte - b'0')),
        _ => None,
    })
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

/// Whether a block is a header, by its checksum, which is not that of zeros where all are.
pub(crate) fn is_header(block: &[u8; 512]) -> bool {
    let (unsigned, signed) = checksums(block);
    number(&block[148..156]).is_some_and(|stored| stored == unsigned || stored as i64 == signed)
}

/// From a header to the next, by its own size field.
pub(crate) fn span(block: &[u8; 512]) -> Option<u64> {
    let size = number(&block[124..136])?;
    let size = if carries_data(block[156]) { size } else { 0 };
    size.checked_next_multiple_of(BLOCK)?.checked_add(BLOCK)
}

/// Whether data follow a header of this type, as they do not for links, devices and folders.
pub(super) fn carries_data(type_flag: u8) -> bool {
    !matches!(type_flag, b'1'..=b'6')
}

/// The sum of a header's bytes, its checksum field counted as spaces: as
/// POSIX has it, and as some old tars wrote it with signed bytes.
pub(super) fn checksums(block: &[u8; 512]) -> (u64, i64) {
    let bytes = block
        .iter()
        .enumerate()
        .map(|(i, &byte)| if (148..156).contains(&i) { b' ' } else { byte });
    bytes.fold((0, 0), |(unsigned, signed), byte| {
        (unsigned + u64::from(byte), signed + i64::from(byte as i8))
    })
}

/// A name without what follows a zero byte. No file is called so, and a header's own field ends
/// there.
pub(super) fn until_zero(name: &[u8]) -> &[u8] {
    name.split(|&byte| byte == 0).next().unwrap_or(&[])
}

/// The name in the header itself, with ustar's prefix in front.
pub(super) fn short_name(block: &[u8; 512]) -> Vec<u8> {
    let field = |range: std::ops::Range<usize>| until_zero(&block[range]);
    let (name, prefix) = (field(0..100), field(345..500));
    // GNU's own format ("ustar  ") keeps times where ustar keeps the prefix.
    if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
        [prefix, b"/", name].concat()
    } else {
        name.to_vec()
    }
}

/// UTF-8, with other bytes as `\xNN`, so that different names stay different.
pub(super) fn readable(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02X}"));
        }
    }
    text
}
