//! `bt-stream config`

use anyhow::{Result, bail};
use clap::Args;

use super::ConfigSource;
use crate::config::Misconfigured;
use crate::reference::{Entry, entries, markdown, methods_with, nearest};

/// Arguments of `bt-stream config`.
#[derive(Args, Debug)]
pub struct ConfigArgs {
    #[command(flatten)]
    source: ConfigSource,
    /// Explain KEY (`train.seed`), all keys under it (`train`), or, without one, every key
    #[arg(long, value_name = "KEY", num_args = 0..=1, default_missing_value = "")]
    explain: Option<String>,
    /// Print the reference of all keys as Markdown (docs/configuration.md)
    #[arg(long, conflicts_with = "explain")]
    reference: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the effective configuration as TOML, or explains its keys.
///
/// # Errors
/// What is wrong with the configuration; a key that does not exist.
pub fn run(args: ConfigArgs) -> Result<()> {
    if args.reference {
        print!("{}", markdown());
        return Ok(());
    }
    let given = args.source.load(&[])?;
    let config = given.in_full()?;
    let Some(asked) = args.explain else {
        for said in given.idle()? {
            eprintln!("warning: {said}");
        }
        match args.json {
            true => println!("{}", serde_json::to_string_pretty(&config)?),
            false => print!("{}", config.to_toml()?),
        }
        return Ok(());
    };
    let all = entries(&config)?;
    let found: Vec<&Entry> = all.iter().filter(|entry| entry.is_under(&asked)).collect();
    if found.is_empty() {
        let near = match methods_with(&asked) {
            methods if methods.is_empty() => {
                nearest(&all, &asked).map(|near| format!("; did you mean `{near}`?"))
            }
            methods => Some(format!(
                " of method = \"{}\"; with `--set method=...` there is: {}",
                config.method.0,
                methods.join(", ")
            )),
        };
        let near = near.unwrap_or_default();
        bail!(Misconfigured(format!("there is no key `{asked}`{near}")));
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
        return Ok(());
    }
    for entry in found {
        println!("{}", entry.text());
    }
    Ok(())
}
