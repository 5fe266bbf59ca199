//! What can be wrong with a JPEG, split by what the caller can do about it.

/// Why a JPEG, a region or a side index was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JpegError {
    /// A valid kind of JPEG that this decoder leaves to a general one
    /// (CMYK, 12 bit, arithmetic coding, lossless, ...).
    #[error("unsupported JPEG: {0}")]
    Unsupported(&'static str),
    /// The bytes end before the picture does.
    #[error("truncated JPEG: {0}")]
    Truncated(&'static str),
    /// Bytes that no encoder writes.
    #[error("corrupt JPEG: {0}")]
    Corrupt(&'static str),
    /// More pixels than [`super::JpegDecoder::max_pixels`] allows, or whoever else has a limit.
    #[error("JPEG of {pixels} pixels, above the limit of {limit}")]
    TooLarge {
        /// Pixels to be decoded.
        pixels: u64,
        /// The limit in force.
        limit: u64,
    },
    /// The region is empty or not inside the picture.
    #[error("region {width} x {height} at ({left}, {top}) is not inside the JPEG")]
    Region {
        /// First column.
        left: usize,
        /// First row.
        top: usize,
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// A side index that cannot be read, or belongs to other bytes.
    #[error("side index: {0}")]
    Index(&'static str),
}

impl JpegError {
    /// True when a general decoder may succeed where this one gave up.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, JpegError::Unsupported(_))
    }
}

/// Checks the limit of pixels; to be called before anything of that size exists.
pub(crate) fn check_pixels(width: usize, height: usize, limit: u64) -> Result<(), JpegError> {
    let pixels = (width as u64).saturating_mul(height as u64);
    if pixels > limit {
        return Err(JpegError::TooLarge { pixels, limit });
    }
    Ok(())
}

impl From<JpegError> for crate::Error {
    fn from(error: JpegError) -> Self {
        match error {
            JpegError::TooLarge { .. } => crate::Error::TooLarge(error.to_string()),
            _ => crate::Error::Decode(error.to_string()),
        }
    }
}
