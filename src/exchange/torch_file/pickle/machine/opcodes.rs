//! What each opcode does.

use std::io::BufRead;

use anyhow::{Context, Result, ensure};

use super::{MAX_NAME, Machine, OTHER, extended, pairs};
use crate::exchange::torch_file::pickle::Object;

impl<R: BufRead> Machine<R> {
    pub(super) fn step(&mut self, op: u8) -> Result<()> {
        let known = self.rearrange(op)?
            || self.number(op)?
            || self.string(op)?
            || self.container(op)?
            || self.recall(op)?
            || self.refer(op)?;
        ensure!(known, "no pickle of `torch.save` has the opcode {op:#04x}");
        Ok(())
    }

    // Each of these does what one kind of opcode says, and tells whether `op` is one.

    /// The stack's, and those that do nothing here.
    fn rearrange(&mut self, op: u8) -> Result<bool> {
        match op {
            // PROTO, FRAME
            0x80 => self.bytes::<1>().map(drop),
            0x95 => self.bytes::<8>().map(drop),
            // MARK, POP, POP_MARK, DUP
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => match self.marks.last() {
                Some(&height) if height == self.stack.len() => self.marked().map(drop),
                _ => self.pop().map(drop),
            },
            b'1' => self.marked().map(drop),
            b'2' => {
                let top = self.top()?;
                self.push(top)
            }
            _ => return Ok(false),
        }
        .map(|()| true)
    }

    /// Numbers, truths, and what is not looked into.
    fn number(&mut self, op: u8) -> Result<bool> {
        match op {
            // NONE, FLOAT, BINFLOAT, EMPTY_SET
            b'N' | 0x8f => self.push(OTHER),
            b'F' => self.line().map(drop).and_then(|()| self.push(OTHER)),
            b'G' => self.bytes::<8>().map(drop).and_then(|()| self.push(OTHER)),
            // NEWTRUE, NEWFALSE
            0x88 => self.make(Object::Bool(true)),
            0x89 => self.make(Object::Bool(false)),
            // INT, LONG, LONG1, LONG4, BININT, BININT1, BININT2
            b'I' | b'L' => {
                let line = self.line()?;
                match (op, &line[..]) {
                    (b'I', "00") => self.make(Object::Bool(false)),
                    (b'I', "01") => self.make(Object::Bool(true)),
                    _ => match line.trim_end_matches('L').parse() {
                        Ok(value) => self.make(Object::Int(value)),
                        Err(_) => self.push(OTHER),
                    },
                }
            }
            0x8a | 0x8b => {
                let length = if op == 0x8a { self.length::<1>() } else { self.length::<4>() }?;
                let bytes = self.blob(length)?;
                match <[u8; 8]>::try_from(&extended(&bytes)[..]) {
                    Ok(bytes) => self.make(Object::Int(i64::from_le_bytes(bytes))),
                    Err(_) => self.push(OTHER),
                }
            }
            b'J' => {
                let value = i32::from_le_bytes(self.bytes()?);
                self.make(Object::Int(value.into()))
            }
            b'K' | b'M' => {
                let value = if op == b'K' { self.length::<1>() } else { self.length::<2>() }?;
                self.make(Object::Int(value as i64))
            }
            _ => return Ok(false),
        }
        .map(|()| true)
    }

    /// Texts; bytes, which are passed over.
    fn string(&mut self, op: u8) -> Result<bool> {
        match op {
            // STRING (quoted), UNICODE, BINSTRING, SHORT_BINSTRING, BINUNICODE, SHORT_BINUNICODE,
            // BINUNICODE8
            b'S' => {
                let line = self.line()?;
                let quoted = line.trim();
                let text = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
                self.make(Object::Text(text.into()))
            }
            b'V' => {
                let text = self.line()?;
                self.make(Object::Text(text.into()))
            }
            b'U' | 0x8c => self.length::<1>().and_then(|length| self.text(length)),
            b'T' | b'X' => self.length::<4>().and_then(|length| self.text(length)),
            0x8d => self.length::<8>().and_then(|length| self.text(length)),
            // SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8
            b'C' => self.length::<1>().and_then(|length| self.pass_over(length)),
            b'B' => self.length::<4>().and_then(|length| self.pass_over(length)),
            0x8e | 0x96 => self.length::<8>().and_then(|length| self.pass_over(length)),
            _ => return Ok(false),
        }
        .map(|()| true)
    }

    /// Tuples, lists, dicts, sets.
    fn container(&mut self, op: u8) -> Result<bool> {
        match op {
            // EMPTY_TUPLE, EMPTY_LIST, TUPLE, LIST, TUPLE1 to TUPLE3
            b')' | b']' => self.make(Object::Items(Vec::new())),
            b't' | b'l' => {
                let items = self.marked()?;
                self.make(Object::Items(items))
            }
            0x85 => self.tuple::<1>(),
            0x86 => self.tuple::<2>(),
            0x87 => self.tuple::<3>(),
            // APPEND, APPENDS
            b'a' => {
                let items = self.popped::<1>()?;
                self.append(&items)
            }
            b'e' => {
                let items = self.marked()?;
                self.append(&items)
            }
            // EMPTY_DICT, DICT, SETITEM, SETITEMS
            b'}' => self.make(Object::Dict(Vec::new())),
            b'd' => {
                let items = self.marked()?;
                self.make(Object::Dict(pairs(&items)?))
            }
            b's' => {
                let items = self.popped::<2>()?;
                self.set(&items)
            }
            b'u' => {
                let items = self.marked()?;
                self.set(&items)
            }
            // ADDITEMS; FROZENSET
            0x90 => self.marked().map(drop),
            0x91 => self.marked().map(drop).and_then(|()| self.push(OTHER)),
            _ => return Ok(false),
        }
        .map(|()| true)
    }

    /// What was put aside under a number.
    fn recall(&mut self, op: u8) -> Result<bool> {
        match op {
            // GET, BINGET, LONG_BINGET; PUT, BINPUT, LONG_BINPUT, MEMOIZE
            b'g' | b'h' | b'j' => {
                let at = self.memo_index(op == b'g', op == b'h')?;
                let id = *self.memo.get(&at).with_context(|| format!("the memo has no {at}"))?;
                self.push(id)
            }
            b'p' | b'q' | b'r' => {
                let at = self.memo_index(op == b'p', op == b'q')?;
                self.memorize(at)
            }
            0x94 => self.memorize(self.memo.len() as u32),
            _ => return Ok(false),
        }
        .map(|()| true)
    }

    /// Names of classes, what is made by them, and storages.
    fn refer(&mut self, op: u8) -> Result<bool> {
        match op {
            // GLOBAL, STACK_GLOBAL, EXT1, EXT2, EXT4
            b'c' => {
                let name = format!("{}.{}", self.line()?, self.line()?);
                self.make(Object::Global(name.into()))
            }
            0x93 => {
                let [module, name] = self.popped()?;
                match (self.get(module), self.get(name)) {
                    (Object::Text(module), Object::Text(name))
                        if module.len().max(name.len()) <= MAX_NAME =>
                    {
                        let name = format!("{module}.{name}");
                        self.copied += name.len() / 8;
                        self.make(Object::Global(name.into()))
                    }
                    _ => self.push(OTHER),
                }
            }
            0x82 => self.bytes::<1>().map(drop).and_then(|()| self.push(OTHER)),
            0x83 => self.bytes::<2>().map(drop).and_then(|()| self.push(OTHER)),
            0x84 => self.bytes::<4>().map(drop).and_then(|()| self.push(OTHER)),
            // REDUCE, NEWOBJ, NEWOBJ_EX, INST, OBJ, BUILD
            b'R' | 0x81 => {
                let [callable, arguments] = self.popped()?;
                self.call(callable, arguments)
            }
            0x92 => self.popped::<3>().map(drop).and_then(|()| self.push(OTHER)),
            b'i' => {
                self.line()?;
                self.line()?;
                self.marked()?;
                self.push(OTHER)
            }
            b'o' => self.marked().map(drop).and_then(|()| self.push(OTHER)),
            // The state of a dict is that of its class: `_metadata` of a state dict.
            b'b' => self.pop().map(drop),
            // BINPERSID
            b'Q' => {
                let id = self.pop()?;
                match self.storage(id) {
                    Some(storage) => self.make(Object::Storage(storage)),
                    None => self.push(OTHER),
                }
            }
            // PERSID
            b'P' => self.line().map(drop).and_then(|()| self.push(OTHER)),
            _ => return Ok(false),
        }
        .map(|()| true)
    }
}
