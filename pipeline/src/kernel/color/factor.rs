//! A blending factor in fixed point.

/// `mulhi(v << 7, value) >> shift` is `v * factor`, cut to a whole number.
#[derive(Clone, Copy, Debug)]
pub struct Factor {
    /// The factor times `2^(shift + 9)`, rounded up so that a product that is
    /// whole does not fall below itself.
    pub value: i16,
    /// Fractional bits of the high half of the product.
    pub shift: u32,
}

impl Factor {
    /// The fixed-point form of `factor`.
    ///
    /// # Panics
    /// When the factor is negative or not below 8.
    pub fn new(factor: f32) -> Self {
        assert!((0.0..8.0).contains(&factor), "factor {factor} is out of range");
        let shift = match factor {
            ..1.9999 => 5,
            ..3.9998 => 4,
            _ => 3,
        };
        let scaled = f64::from(factor) * f64::from(1u32 << (shift + 9));
        Factor { value: scaled.ceil().min(32767.0) as i16, shift }
    }
}
