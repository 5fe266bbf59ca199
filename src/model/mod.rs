//! The twin network: backbone and projector.
