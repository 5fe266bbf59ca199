//! What can be wrong with a re-coded image.

use crate::jpeg::JpegError;

/// Why an image was not re-coded, or a re-coded one was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DctError {
    /// A valid image that this format cannot hold.
    #[error("cannot be re-coded: {0}")]
    Unsupported(&'static str),
    /// Bytes that no encoder writes.
    #[error("corrupt re-coded image: {0}")]
    Corrupt(&'static str),
    /// A checksum differs.
    #[error("re-coded image: the checksum of {0} differs")]
    Checksum(&'static str),
    /// The JPEG that was to be re-coded, the JPEG header inside, the region or a
    /// limit.
    #[error(transparent)]
    Jpeg(#[from] JpegError),
}

impl DctError {
    /// True for an image that is fine but stays in the form it has.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, DctError::Unsupported(_) | DctError::Jpeg(JpegError::Unsupported(_)))
    }
}

impl From<DctError> for crate::Error {
    fn from(error: DctError) -> Self {
        match error {
            DctError::Jpeg(error) => error.into(),
            _ => crate::Error::Decode(error.to_string()),
        }
    }
}
