//! The JPEG header inside a re-coded image: what the JPEG had before its first
//! scan, without what belongs to its entropy coding.

use super::error::DctError;
use crate::jpeg::{Component, next_segment};

/// The header of a JPEG: SOI; all segments up to the first scan but DHT, DAC, DRI
/// and others that only matter to the entropy coding, in their order; a scan header
/// of all components in the order of the frame. A progressive frame becomes a
/// sequential one.
///
/// # Errors
/// Those of the JPEG's structure.
pub(super) fn header_of(bytes: &[u8], components: &[Component]) -> Result<Vec<u8>, DctError> {
    let mut header = vec![0xFF, 0xD8];
    let mut at = 2;
    loop {
        let (marker, body, next) = next_segment(bytes, at)?;
        at = next;
        let marker = match marker {
            0xC0 | 0xC1 | 0xDB | 0xE0..=0xEF | 0xFE => marker,
            0xC2 => 0xC1,
            0xDA => break,
            _ => continue,
        };
        segment(&mut header, marker, body);
    }
    let mut scan = vec![components.len() as u8];
    for (number, component) in components.iter().enumerate() {
        let tables = if number == 0 { 0x00 } else { 0x11 };
        scan.extend([component.id, tables]);
    }
    scan.extend([0, 63, 0]);
    segment(&mut header, 0xDA, &scan);
    Ok(header)
}

/// Appends a marker segment; its body has at most 65533 bytes.
pub(super) fn segment(out: &mut Vec<u8>, marker: u8, body: &[u8]) {
    out.extend([0xFF, marker]);
    out.extend((body.len() as u16 + 2).to_be_bytes());
    out.extend(body);
}
