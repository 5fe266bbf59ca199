//! One file per subcommand.

pub mod index;
pub mod ls;
pub mod pack;
pub mod synth;
pub mod unpack;
pub mod verify;
