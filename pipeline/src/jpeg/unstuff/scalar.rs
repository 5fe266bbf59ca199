//! The specification of unstuffing.

/// See [`super::unstuff`].
pub(super) fn unstuff(coded: &[u8], out: &mut [u8]) -> (usize, usize) {
    let (mut read, mut written) = (0, 0);
    while let Some(&byte) = coded.get(read) {
        if byte != 0xFF {
            read += 1;
        } else {
            match coded.get(read + 1) {
                Some(0) => read += 2,
                // A fill byte.
                Some(0xFF) => {
                    read += 1;
                    continue;
                }
                _ => break,
            }
        }
        out[written] = byte;
        written += 1;
    }
    (read, written)
}
