//! libcurand: candle makes a generator of each device, which `bt-stream` never asks for a number.

use std::ffi::c_int;

use crate::Given;

#[unsafe(no_mangle)]
extern "C" fn curandCreateGenerator(to: Given<usize>, _kind: c_int) -> c_int {
    to.write(0, 1);
    0
}

#[unsafe(no_mangle)]
extern "C" fn curandSetStream(_generator: usize, _stream: usize) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn curandSetPseudoRandomGeneratorSeed(_generator: usize, _seed: u64) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn curandDestroyGenerator(_generator: usize) -> c_int {
    0
}
