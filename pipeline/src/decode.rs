//! Encoded bytes to an RGB [`crate::Image`].
