//! Transforms with torchvision's names: parameters are drawn first, then applied.
