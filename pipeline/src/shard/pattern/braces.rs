//! Brace lists in names of shards.

use crate::{Error, Result};

/// More names than this are a slip of the pen.
const MAX_NAMES: usize = 1_000_000;

/// Expands brace lists as `webdataset` does: `{a,b}`, `{000..009}` (zeros
/// kept), `{0..9..3}`, `{a..c}`, nested and several. Braces without a comma or range stay.
///
/// # Errors
/// [`Error::Usage`] for more than a million names.
pub fn expand_braces(pattern: &str) -> Result<Vec<String>> {
    let too_many = || Error::Usage(format!("`{pattern}` stands for more than {MAX_NAMES} names"));
    let mut out = Vec::new();
    let mut open = vec![(String::new(), pattern.to_owned())];
    // Depth first, so that the order is that of writing it out by hand.
    while let Some((done, rest)) = open.pop() {
        let Some((before, choices, after)) = first_brace(&rest, MAX_NAMES).ok_or_else(too_many)?
        else {
            out.push(done + &rest);
            continue;
        };
        if choices.len() + open.len() + out.len() > MAX_NAMES {
            return Err(too_many());
        }
        for choice in choices.into_iter().rev() {
            open.push((format!("{done}{before}"), format!("{choice}{after}")));
        }
    }
    Ok(out)
}

type Brace<'a> = (&'a str, Vec<String>, &'a str);

/// What stands before, in and after the first brace list; the outer `None` for too many.
fn first_brace(text: &str, limit: usize) -> Option<Option<Brace<'_>>> {
    for (start, _) in text.match_indices('{') {
        let Some(end) = closing(&text[start..]).map(|end| start + end) else { continue };
        let inner = &text[start + 1..end];
        let list = split_commas(inner);
        let choices = if list.len() > 1 {
            Some(list)
        } else {
            match range(inner, limit) {
                Some(Err(())) => return None,
                Some(Ok(choices)) => Some(choices),
                None => None,
            }
        };
        if let Some(choices) = choices {
            return Some(Some((&text[..start], choices, &text[end + 1..])));
        }
    }
    Some(None)
}

/// Where the brace that opens `text` closes.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// The choices between commas that stand in no inner brace.
fn split_commas(inner: &str) -> Vec<String> {
    let (mut depth, mut from, mut list) = (0, 0, Vec::new());
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                list.push(inner[from..at].to_owned());
                from = at + 1;
            }
            _ => {}
        }
    }
    list.push(inner[from..].to_owned());
    list
}

/// `low..high` or `low..high..step`, numbers or single letters; `Err` for too many.
fn range(inner: &str, limit: usize) -> Option<Result<Vec<String>, ()>> {
    let ends: Vec<&str> = inner.split("..").collect();
    let (low, high, step) = match ends[..] {
        [low, high] => (low, high, 1),
        [low, high, step] => (low, high, step.parse::<i64>().ok()?.unsigned_abs().max(1)),
        _ => return None,
    };
    let letter = |text: &str| match text.as_bytes() {
        [byte] if byte.is_ascii_alphabetic() => Some(i64::from(*byte)),
        _ => None,
    };
    if let (Some(first), Some(last)) = (letter(low), letter(high)) {
        return Some(Ok(steps(first, last, step)
            .map(|n| char::from(n as u8).to_string())
            .collect()));
    }
    let (first, last) = (low.parse::<i64>().ok()?, high.parse::<i64>().ok()?);
    let padded = |text: &str| {
        text.trim_start_matches('-').starts_with('0') && text.trim_start_matches('-').len() > 1
    };
    let width = if padded(low) || padded(high) { low.len().max(high.len()) } else { 0 };
    if first.abs_diff(last) / step >= limit as u64 {
        return Some(Err(()));
    }
    Some(Ok(steps(first, last, step).map(|n| format!("{n:0width$}")).collect()))
}

fn steps(first: i64, last: i64, step: u64) -> impl Iterator<Item = i64> {
    let up = first <= last;
    (0..=first.abs_diff(last) / step).map(move |i| {
        let by = (i * step) as i64;
        if up { first.wrapping_add(by) } else { first.wrapping_sub(by) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brace_lists_expand_as_in_a_shell() {
        for (pattern, expected) in [
            ("a.tar", vec!["a.tar"]),
            ("t-{000..002}.tar", vec!["t-000.tar", "t-001.tar", "t-002.tar"]),
            ("t-{8..10}", vec!["t-8", "t-9", "t-10"]),
            ("t-{08..10}", vec!["t-08", "t-09", "t-10"]),
            ("t-{9..010}", vec!["t-009", "t-010"]),
            ("{2..0}", vec!["2", "1", "0"]),
            ("{0..10..5}", vec!["0", "5", "10"]),
            ("{0..2..0}", vec!["0", "1", "2"]),
            ("{0..9..4}", vec!["0", "4", "8"]),
            ("{a,b{1..2},}x", vec!["ax", "b1x", "b2x", "x"]),
            ("{a,b}{0..1}", vec!["a0", "a1", "b0", "b1"]),
            ("{a..c}", vec!["a", "b", "c"]),
            ("{a}-{0..1}", vec!["{a}-0", "{a}-1"]),
            ("{a", vec!["{a"]),
            ("a}{", vec!["a}{"]),
        ] {
            assert_eq!(expand_braces(pattern).unwrap(), expected, "{pattern}");
        }
        assert!(expand_braces("{0..9999999}").is_err());
        assert!(expand_braces("{0..999}{0..999}{0..999}").is_err());
        assert!(expand_braces("{-9223372036854775808..9223372036854775807}").is_err());
    }
}
