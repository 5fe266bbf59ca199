//! Pixel operations, one folder each, scalar first.
