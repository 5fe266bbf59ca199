//! Huffman codes made for one picture (T.81, annexes K.2 and C.2).

/// A code by symbol: bits and length; length 0 for symbols without one.
pub(super) struct Code {
    /// Codes of length 1..=16, as in a DHT segment.
    pub counts: [u8; 16],
    /// Symbols in the order of their codes.
    pub symbols: Vec<u8>,
    pub codes: [(u16, u8); 256],
}

impl Code {
    /// A code for symbols with these frequencies; lengths are at most 16 and no
    /// code is of ones alone.
    pub fn new(frequencies: &[u64; 256]) -> Code {
        let lengths = lengths(frequencies);
        let counts: [u8; 16] = std::array::from_fn(|at| {
            lengths.iter().filter(|&&l| usize::from(l) == at + 1).count() as u8
        });
        let mut symbols: Vec<u8> =
            (0..=255).filter(|&s: &u8| lengths[usize::from(s)] > 0).collect();
        symbols.sort_by_key(|&s| lengths[usize::from(s)]);
        let mut codes = [(0, 0); 256];
        let (mut code, mut before) = (0u32, 0);
        for &symbol in &symbols {
            let length = lengths[usize::from(symbol)];
            code <<= length - before;
            before = length;
            codes[usize::from(symbol)] = (code as u16, length);
            code += 1;
        }
        Code { counts, symbols, codes }
    }
}

/// Code lengths by package-merge: least total length under a limit (L. Larmore,
/// D. Hirschberg, "A fast algorithm for optimal length-limited Huffman codes",
/// 1990). A symbol that never occurs takes the code of ones.
fn lengths(frequencies: &[u64; 256]) -> [u8; 256] {
    const RESERVED: usize = 256;
    let mut leaves: Vec<(u64, Vec<usize>)> = frequencies
        .iter()
        .enumerate()
        .filter(|&(_, &count)| count > 0)
        .map(|(symbol, &count)| (count, vec![symbol]))
        .collect();
    leaves.push((0, vec![RESERVED]));
    leaves.sort();
    let mut lengths = [0u8; 257];
    let mut merged: Vec<(u64, Vec<usize>)> = Vec::new();
    for _ in 0..16 {
        let mut packages: Vec<(u64, Vec<usize>)> = merged
            .chunks_exact(2)
            .map(|pair| (pair[0].0 + pair[1].0, [&pair[0].1[..], &pair[1].1].concat()))
            .collect();
        packages.extend(leaves.iter().cloned());
        packages.sort();
        merged = packages;
    }
    for (_, symbols) in merged.iter().take(2 * leaves.len() - 2) {
        symbols.iter().for_each(|&symbol| lengths[symbol] += 1);
    }
    // The reserved symbol is among the longest; it must be the last of them, which
    // it is as it is not written at all.
    let mut kept = [0; 256];
    kept.copy_from_slice(&lengths[..256]);
    if leaves.len() == 2 {
        kept.iter_mut().filter(|length| **length > 0).for_each(|length| *length = 1);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn codes_are_prefix_free_within_16_bits_and_leave_the_ones_out() {
        let mut rng = Rng::keyed(41, 0, 0, 0);
        for case in 0..200 {
            let mut frequencies = [0u64; 256];
            for _ in 0..1 + rng.below(if case % 2 == 0 { 256 } else { 4 }) {
                frequencies[rng.below(256) as usize] = 1 + (1 << rng.below(40));
            }
            let code = Code::new(&frequencies);
            let (mut kraft, mut used) = (0u64, 0);
            for (symbol, &(bits, length)) in code.codes.iter().enumerate() {
                assert_eq!(length > 0, frequencies[symbol] > 0);
                if length > 0 {
                    assert!(length <= 16 && u32::from(bits) < (1 << length) - 1);
                    kraft += 1 << (16 - length);
                    used += 1;
                }
            }
            assert!(kraft < 1 << 16);
            assert_eq!(used, code.symbols.len());
        }
    }
}
