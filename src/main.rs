//! `bt-stream`: parse the command line, run the command, report.

fn main() {}
