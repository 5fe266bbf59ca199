//! What `torch.save` pickles (Python's `pickletools` lists the opcodes, protocols 0 to 5), as far as
//! tensors are reached through it. Nothing is run: a call makes what is known here (a dict, a
//! tensor), or something of which no more is said.
//!
//! Objects lie in one list and name each other by their number in it, so that none is copied when
//! the memo tells it again, and none is freed by recursion, however deep a file nests them.

use std::collections::HashMap;
use std::io::{BufRead, Read};
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};

/// As many objects, and entries of the stack, a pickle may have: some thousands are in a checkpoint.
const MAX_OBJECTS: usize = 1 << 22;

/// As many dimensions a tensor may have.
const MAX_RANK: usize = 8;

/// As long a name of a class may be: what is longer is none of PyTorch's.
const MAX_NAME: usize = 256;

/// As long a pickle may be; tensors' values are not in it.
const MAX_BYTES: u64 = 1 << 28;

/// The number of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id(u32);

/// What is neither tensor, nor on the way to one.
const OTHER: Id = Id(0);

/// An object, with the numbers of those that it holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    Other,
    Int(i64),
    Bool(bool),
    Text(Rc<str>),
    /// A tuple or a list.
    Items(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or a function: `module.name`.
    Global(Rc<str>),
    Storage(Storage),
    Tensor(View),
}

/// Values in a row, outside the pickle.
#[derive(Debug, Clone, PartialEq)]
pub struct Storage {
    pub key: Rc<str>,
    /// PyTorch's name of the elements' type: `torch.FloatStorage`.
    pub class: Rc<str>,
    pub elements: u64,
}

/// A tensor: a storage's elements, from `offset` on, `strides` apart. All in elements.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub storage: Storage,
    pub offset: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

/// A pickle's objects.
pub struct Pickle {
    objects: Vec<Object>,
    root: Id,
}

impl Pickle {
    /// Reads one pickle, and nothing behind it.
    ///
    /// # Errors
    /// Bytes that are none, or end too early; more objects or bytes than a state dict can want.
    pub fn read(reader: &mut impl BufRead) -> Result<Self> {
        let machine = Machine {
            reader: reader.take(MAX_BYTES),
            objects: vec![Object::Other],
            stack: Vec::new(),
            marks: Vec::new(),
            copied: 0,
            memo: HashMap::new(),
        };
        machine.run()
    }

    pub fn root(&self) -> &Object {
        self.get(self.root)
    }

    pub fn get(&self, id: Id) -> &Object {
        &self.objects[id.0 as usize]
    }

    /// All storages, each as often as it is named.
    pub fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.objects.iter().filter_map(|object| match object {
            Object::Storage(storage) => Some(storage),
            _ => None,
        })
    }

    /// The value of a dict's entry with this text as its key.
    pub fn entry(&self, dict: &Object, key: &str) -> Option<&Object> {
        let Object::Dict(entries) = dict else { return None };
        let is = |id: Id| matches!(self.get(id), Object::Text(text) if **text == *key);
        // As in Python, the last of equal keys is the one that stays.
        entries.iter().rev().find(|(k, _)| is(*k)).map(|(_, value)| self.get(*value))
    }
}

struct Machine<R> {
    reader: R,
    objects: Vec<Object>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    /// What was copied of other objects, or looked at, as often as these are named: entries of
    /// lists that dicts are made of, numbers of shapes, eights of bytes of names.
    copied: usize,
    memo: HashMap<u32, Id>,
}

impl<R: BufRead> Machine<R> {
    fn run(mut self) -> Result<Pickle> {
        loop {
            let [op] = self.bytes()?;
            if op == b'.' {
                let root = self.pop()?;
                return Ok(Pickle { objects: self.objects, root });
            }
            self.step(op)?;
            ensure!(
                self.objects.len() + self.copied <= MAX_OBJECTS
                    && self.stack.len() + self.marks.len() <= MAX_OBJECTS,
                "more than {MAX_OBJECTS} objects"
            );
        }
    }

    fn step(&mut self, op: u8) -> Result<()> {
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
            // EMPTY_TUPLE, EMPTY_LIST, TUPLE, LIST, TUPLE1 to TUPLE3
            b')' | b']' => self.make(Object::Items(Vec::new())),
            b't' | b'l' => {
                let items = self.marked()?;
                self.make(Object::Items(items))
            }
            0x85 => {
                let items = self.popped::<1>()?;
                self.make(Object::Items(items.into()))
            }
            0x86 => {
                let items = self.popped::<2>()?;
                self.make(Object::Items(items.into()))
            }
            0x87 => {
                let items = self.popped::<3>()?;
                self.make(Object::Items(items.into()))
            }
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
            other => bail!("no pickle of `torch.save` has the opcode {other:#04x}"),
        }
    }

    /// What `torch.save`'s tensors and dicts are made by; anything else is not looked into.
    fn call(&mut self, callable: Id, arguments: Id) -> Result<()> {
        let (Object::Global(name), Object::Items(arguments)) =
            (self.get(callable), self.get(arguments))
        else {
            return self.push(OTHER);
        };
        match &name[..] {
            "collections.OrderedDict" | "collections.defaultdict" => {
                let left = MAX_OBJECTS.saturating_sub(self.objects.len() + self.copied);
                let (mut entries, mut looked_at) = (Vec::new(), 0);
                for &list in arguments.iter().take(left + 1) {
                    looked_at += 1;
                    let Object::Items(list) = self.get(list) else { continue };
                    for &pair in list.iter().take((left + 1).saturating_sub(looked_at)) {
                        looked_at += 1;
                        if let Object::Items(pair) = self.get(pair)
                            && let [key, value, ..] = pair[..]
                        {
                            entries.push((key, value));
                        }
                    }
                }
                self.copied += looked_at;
                self.make(Object::Dict(entries))
            }
            "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2" => {
                match self.view(arguments) {
                    Some(view) => {
                        self.copied += 2 * view.shape.len();
                        self.make(Object::Tensor(view))
                    }
                    None => self.push(OTHER),
                }
            }
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                let tensor = arguments.first().copied().unwrap_or(OTHER);
                self.push(tensor)
            }
            _ => self.push(OTHER),
        }
    }

    /// (storage, offset, size, stride, ...)
    fn view(&self, arguments: &[Id]) -> Option<View> {
        let [storage, offset, shape, strides, ..] = arguments else { return None };
        let Object::Storage(storage) = self.get(*storage) else { return None };
        let numbers = |id: Id| match self.get(id) {
            Object::Items(items) if items.len() <= MAX_RANK => {
                items.iter().map(|&item| self.number(item)).collect::<Option<Vec<u64>>>()
            }
            _ => None,
        };
        let (shape, strides) = (numbers(*shape)?, numbers(*strides)?);
        let same_rank = shape.len() == strides.len();
        let (storage, offset) = (storage.clone(), self.number(*offset)?);
        same_rank.then_some(View { storage, offset, shape, strides })
    }

    /// ("storage", class, key, device, elements), and in files of before PyTorch 1.6 what part of
    /// another it is, which none has been since 0.4.
    fn storage(&self, id: Id) -> Option<Storage> {
        let Object::Items(items) = self.get(id) else { return None };
        let [kind, class, key, _, elements, rest @ ..] = &items[..] else { return None };
        let (Object::Text(kind), Object::Global(class), Object::Text(key)) =
            (self.get(*kind), self.get(*class), self.get(*key))
        else {
            return None;
        };
        let whole = match rest {
            [] => true,
            [part] => matches!(self.get(*part), Object::Other),
            _ => false,
        };
        let elements = self.number(*elements)?;
        let storage = || Storage { key: key.clone(), class: class.clone(), elements };
        (&**kind == "storage" && whole).then(storage)
    }

    fn number(&self, id: Id) -> Option<u64> {
        match self.get(id) {
            Object::Int(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    fn get(&self, id: Id) -> &Object {
        &self.objects[id.0 as usize]
    }

    fn push(&mut self, id: Id) -> Result<()> {
        self.stack.push(id);
        Ok(())
    }

    fn make(&mut self, object: Object) -> Result<()> {
        let id = Id(self.objects.len() as u32);
        self.objects.push(object);
        self.push(id)
    }

    fn top(&self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().context("an object is missing")
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// The uppermost objects, the lowest first.
    fn popped<const N: usize>(&mut self) -> Result<[Id; N]> {
        let mut popped = [OTHER; N];
        for id in popped.iter_mut().rev() {
            *id = self.pop()?;
        }
        Ok(popped)
    }

    /// All above the last mark, and the mark itself.
    fn marked(&mut self) -> Result<Vec<Id>> {
        let height = self.marks.pop().context("a mark is missing")?;
        Ok(self.stack.split_off(height))
    }

    /// To the list on top of the stack.
    fn append(&mut self, items: &[Id]) -> Result<()> {
        let top = self.top()?;
        if let Object::Items(list) = &mut self.objects[top.0 as usize] {
            list.extend(items);
        }
        Ok(())
    }

    /// Into the dict on top of the stack.
    fn set(&mut self, items: &[Id]) -> Result<()> {
        let (top, new) = (self.top()?, pairs(items)?);
        if let Object::Dict(entries) = &mut self.objects[top.0 as usize] {
            entries.extend(new);
        }
        Ok(())
    }

    fn memo_index(&mut self, line: bool, short: bool) -> Result<u32> {
        match (line, short) {
            (true, _) => self.line()?.trim().parse().context("a number of the memo"),
            (_, true) => self.bytes::<1>().map(|[at]| at.into()),
            _ => self.bytes().map(u32::from_le_bytes),
        }
    }

    fn memorize(&mut self, at: u32) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(at, top);
        ensure!(self.memo.len() <= MAX_OBJECTS, "more than {MAX_OBJECTS} objects");
        Ok(())
    }

    fn text(&mut self, length: u64) -> Result<()> {
        let text = self.blob(length)?;
        self.make(Object::Text(String::from_utf8_lossy(&text).into()))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).context("a pickle ends too early")?;
        Ok(bytes)
    }

    /// A number of `N` bytes without a sign.
    fn length<const N: usize>(&mut self) -> Result<u64> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&self.bytes::<N>()?);
        Ok(u64::from_le_bytes(wide))
    }

    /// `length` bytes: memory is taken as they come.
    fn blob(&mut self, length: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(length).read_to_end(&mut bytes)?;
        ensure!(read as u64 == length, "a pickle ends too early");
        Ok(bytes)
    }

    fn pass_over(&mut self, length: u64) -> Result<()> {
        let passed = std::io::copy(&mut self.reader.by_ref().take(length), &mut std::io::sink())?;
        ensure!(passed == length, "a pickle ends too early");
        self.push(OTHER)
    }

    /// What is before the next line feed.
    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        ensure!(line.pop() == Some(b'\n'), "a pickle ends too early");
        Ok(String::from_utf8_lossy(&line).into_owned())
    }
}

/// A whole number of up to eight bytes in little-endian order, with its sign, as eight.
fn extended(bytes: &[u8]) -> Vec<u8> {
    let sign = if bytes.last().is_some_and(|last| *last > 127) { 255 } else { 0 };
    let mut wide = bytes.to_vec();
    wide.resize(bytes.len().max(8), sign);
    wide
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>> {
    ensure!(items.len().is_multiple_of(2), "a key without a value");
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}
