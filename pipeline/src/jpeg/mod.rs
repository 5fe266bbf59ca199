//! A baseline JPEG decoder made for random crops.
