//! Whether a number lies where it may, for configurations and for the command line: one set of
//! bounds, and one way to say that a value is outside.

use std::fmt::Display;

use anyhow::{Result, bail};

/// Where a number may lie; none of them holds what is not finite.
pub(crate) struct Range {
    holds: fn(f64) -> bool,
    words: &'static str,
}

/// Above 0.
pub(crate) const POSITIVE: Range =
    Range { holds: |value| value > 0.0, words: "must be greater than 0" };
/// From 0 on.
pub(crate) const NOT_NEGATIVE: Range =
    Range { holds: |value| value >= 0.0, words: "must be at least 0" };
/// A share of a whole, which may be nothing or all.
pub(crate) const SHARE: Range =
    Range { holds: |value| (0.0..=1.0).contains(&value), words: "must lie between 0 and 1" };
/// A share of a whole that is not nothing.
pub(crate) const SHARE_ABOVE_0: Range = Range {
    holds: |value| value > 0.0 && value <= 1.0,
    words: "must be greater than 0 and at most 1",
};
/// A part of a whole that is not all.
pub(crate) const PART: Range =
    Range { holds: |value| (0.0..1.0).contains(&value), words: "must be at least 0 and below 1" };

impl Range {
    /// # Errors
    /// A value outside, told with its key.
    pub(crate) fn check(&self, key: &str, value: f64) -> Result<()> {
        if !value.is_finite() {
            bail!("{key} must be a finite number, got {value}");
        }
        if !(self.holds)(value) {
            bail!("{key} {}, got {value}", self.words);
        }
        Ok(())
    }

    /// A number of the command line, whose parser tells the flag.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(&self, text: &str) -> Result<f64, String> {
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() && (self.holds)(value) => Ok(value),
            Ok(_) => Err(self.words.to_owned()),
            Err(_) => Err("is no number".to_owned()),
        }
    }
}

/// Checks that `value` is finite and above 0.
pub(crate) fn positive(key: &str, value: f64) -> Result<()> {
    POSITIVE.check(key, value)
}

/// Checks that `value` is finite and not negative.
pub(crate) fn not_negative(key: &str, value: f64) -> Result<()> {
    NOT_NEGATIVE.check(key, value)
}

/// Checks that `value` lies between 0 and 1, both allowed.
pub(crate) fn share(key: &str, value: f64) -> Result<()> {
    SHARE.check(key, value)
}

/// Checks that `value` is no less than `least`.
pub(crate) fn at_least<T: PartialOrd + Display>(key: &str, value: T, least: T) -> Result<()> {
    if value < least {
        bail!("{key} must be at least {least}, got {value}");
    }
    Ok(())
}

/// Checks that `value` is no more than `most`.
pub(crate) fn at_most<T: PartialOrd + Display>(key: &str, value: T, most: T) -> Result<()> {
    if value > most {
        bail!("{key} is at most {most}, got {value}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_what_they_say_and_nothing_that_is_not_finite() {
        let held = |range: &Range| [-0.1, 0.0, 0.5, 1.0, 1.1].map(|v| range.check("k", v).is_ok());
        assert_eq!(held(&POSITIVE), [false, false, true, true, true]);
        assert_eq!(held(&NOT_NEGATIVE), [false, true, true, true, true]);
        assert_eq!(held(&SHARE), [false, true, true, true, false]);
        assert_eq!(held(&SHARE_ABOVE_0), [false, false, true, true, false]);
        assert_eq!(held(&PART), [false, true, true, false, false]);
        for range in [&POSITIVE, &NOT_NEGATIVE, &SHARE, &SHARE_ABOVE_0, &PART] {
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                assert!(
                    range.check("k", value).is_err() && range.parse(&value.to_string()).is_err()
                );
            }
            assert_eq!(range.parse("0.5"), Ok(0.5));
        }
        let said = POSITIVE.check("`a.b`", -1.0).unwrap_err().to_string();
        assert_eq!(said, "`a.b` must be greater than 0, got -1");
        assert!(at_least("k", 2, 2).is_ok() && at_least("k", 1, 2).is_err());
        assert!(at_most("k", 2, 2).is_ok() && at_most("k", 3, 2).is_err());
    }
}
