//! NumPy's `.npy` format, version 1.0: what `embed` writes for those who load
//! features with `numpy.load`.

use std::io::{self, Write};

/// Writes a C-ordered array of little-endian `f32`.
///
/// # Errors
/// When `out` cannot be written.
///
/// # Panics
/// When `values` has not as many elements as `shape`.
pub fn write_f32(out: &mut impl Write, shape: &[usize], values: &[f32]) -> io::Result<()> {
    assert_eq!(shape.iter().product::<usize>(), values.len(), "shape and values differ");
    header(out, "<f4", shape)?;
    values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
}

/// Writes a one-dimensional array of little-endian `i64`.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_i64(out: &mut impl Write, values: &[i64]) -> io::Result<()> {
    header(out, "<i8", &[values.len()])?;
    values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
}

fn header(out: &mut impl Write, descr: &str, shape: &[usize]) -> io::Result<()> {
    // As Python writes tuples: `(3,)`, `(3, 2)`.
    let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
    let dims = if shape.len() == 1 { format!("{},", sizes[0]) } else { sizes.join(", ") };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
    // Magic, version and length take 10 bytes; data must start at a multiple of 64.
    let padded = (10 + text.len() + 1).next_multiple_of(64) - 10;
    text.push_str(&" ".repeat(padded - text.len() - 1));
    text.push('\n');
    out.write_all(b"\x93NUMPY\x01\x00")?;
    out.write_all(&(text.len() as u16).to_le_bytes())?;
    out.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_aligned_and_the_data_follows_it() {
        let mut bytes = Vec::new();
        write_f32(&mut bytes, &[2, 1], &[1.0, -2.0]).unwrap();
        assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
        assert_eq!(bytes.len(), 64 * 2 + 8);
        assert_eq!(&bytes[128..], [1.0f32.to_le_bytes(), (-2.0f32).to_le_bytes()].concat());
        let text = std::str::from_utf8(&bytes[10..128]).unwrap();
        assert!(text.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }"));
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn candle_reads_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("features.npy");
        let mut file = std::fs::File::create(&path).unwrap();
        write_f32(&mut file, &[3, 2], &[1., 2., 3., 4., 5., 6.]).unwrap();
        drop(file);
        let tensor = candle_core::Tensor::read_npy(&path).unwrap();
        assert_eq!(tensor.to_vec2::<f32>().unwrap(), [[1., 2.], [3., 4.], [5., 6.]]);
    }
}
