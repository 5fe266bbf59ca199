//! One file per subcommand.

pub mod completions;
pub mod index;
pub mod ls;
pub mod man;
pub mod pack;
pub mod synth;
pub mod unpack;
pub mod verify;
