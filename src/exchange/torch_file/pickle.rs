//! What `torch.save` pickles (Python's `pickletools` lists the opcodes, protocols 0 to 5), as far as
//! tensors are reached through it. Nothing is run: a call makes what is known here (a dict, a
//! tensor), or something of which no more is said.
//!
//! Objects lie in one list and name each other by their number in it, so that none is copied when
//! the memo tells it again, and none is freed by recursion, however deep a file nests them.

mod machine;

use std::io::{BufRead, Read};
use std::rc::Rc;

use anyhow::Result;

use self::machine::Machine;

/// As long a pickle may be; tensors' values are not in it.
const MAX_BYTES: u64 = 1 << 28;

/// The number of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id(u32);

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
        Machine::new(reader.take(MAX_BYTES)).run()
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
