//! `shard unpack`: samples as files.

use std::process::ExitCode;

use bt_pipeline::shard::{OpenOptions, Tree, unpack};

use crate::cli::Unpack;
use crate::output::{Bar, bytes, count, line};

pub fn run(args: &Unpack) -> anyhow::Result<ExitCode> {
    let (pattern, out) = args.paths()?;
    let bar = Bar::new();
    let (tree, named) = if args.members {
        (Tree::Members, "KEY.EXTENSION")
    } else {
        (Tree::Folders, "CLASS/NAME.EXTENSION, NAME being the key behind its last slash")
    };
    let done =
        unpack(&pattern, out, tree, &OpenOptions::default(), &mut |progress| bar.show(progress));
    drop(bar);
    let done = done?;
    if args.json {
        line(serde_json::json!({
            "folder": out, "samples": done.samples, "files": done.files, "bytes": done.bytes,
            "renamed": done.renamed,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (samples, files) = (count(done.samples, "sample"), count(done.files, "file"));
    line(format_args!("{samples} in {files}, {}, named {named}", bytes(done.bytes)))?;
    if done.renamed > 0 {
        line(format_args!(
            "{} had a name that was taken or too long and got another",
            count(done.renamed, "sample")
        ))?;
    }
    line(out.display())?;
    Ok(ExitCode::SUCCESS)
}
