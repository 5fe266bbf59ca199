//! The stack machine that a pickle is a program for: what its opcodes work on. They themselves are
//! in `opcodes`.

mod opcodes;

use std::collections::HashMap;
use std::io::{BufRead, Read};

use anyhow::{Context, Result, ensure};

use super::{Id, Object, Pickle, Storage, View};

/// As many objects, and entries of the stack, a pickle may have: some thousands are in a checkpoint.
const MAX_OBJECTS: usize = 1 << 22;

/// As many dimensions a tensor may have.
const MAX_RANK: usize = 8;

/// As long a name of a class may be: what is longer is none of PyTorch's.
const MAX_NAME: usize = 256;

/// What is neither tensor, nor on the way to one.
const OTHER: Id = Id(0);

pub(super) struct Machine<R> {
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
    pub fn new(reader: R) -> Self {
        Machine {
            reader,
            objects: vec![Object::Other],
            stack: Vec::new(),
            marks: Vec::new(),
            copied: 0,
            memo: HashMap::new(),
        }
    }

    pub fn run(mut self) -> Result<Pickle> {
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
                items.iter().map(|&item| self.whole(item)).collect::<Option<Vec<u64>>>()
            }
            _ => None,
        };
        let (shape, strides) = (numbers(*shape)?, numbers(*strides)?);
        let same_rank = shape.len() == strides.len();
        let (storage, offset) = (storage.clone(), self.whole(*offset)?);
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
        let elements = self.whole(*elements)?;
        let storage = || Storage { key: key.clone(), class: class.clone(), elements };
        (&**kind == "storage" && whole).then(storage)
    }

    /// A number without a sign.
    fn whole(&self, id: Id) -> Option<u64> {
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

    fn tuple<const N: usize>(&mut self) -> Result<()> {
        let items = self.popped::<N>()?;
        self.make(Object::Items(items.into()))
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
