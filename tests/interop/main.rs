//! What leaves the program and what comes in, against the programs at the other end. Those tests
//! run where Python with their modules is (`BT_PYTHON`, else `python3`), and say so where not;
//! `tools/interop.sh` installs them. The files by themselves are tested everywhere.

#[path = "../common/mod.rs"]
mod common;

mod backbone;
mod command_line;
mod files;
mod pages;
mod watching;

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

/// Python with `modules`, or `None` with a line that says what is missing.
fn python(modules: &str) -> Option<String> {
    let python = std::env::var("BT_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let works = Command::new(&python).args(["-c", &format!("import {modules}")]).output();
    if works.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    common::skip::skip("python", &format!("`{python}` has not all of {modules} (set BT_PYTHON)"));
    None
}

/// What tools/interop/`name` prints; that is the error where it fails.
fn script_output(python: &str, name: &str, arguments: &[&str]) -> Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/interop").join(name);
    let output = Command::new(python).arg(script).args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text.into_owned())
}

/// Runs tools/interop/`name` and shows what it prints.
fn script(python: &str, name: &str, arguments: &[&str]) -> Result<()> {
    print!("{}", script_output(python, name, arguments)?);
    Ok(())
}

/// A path as an argument.
fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// What a command that has to succeed prints.
fn done(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// A browser that can do without a screen (`BT_BROWSER`, else `chromium`), or `None` with a line.
fn browser() -> Option<String> {
    let browser = std::env::var("BT_BROWSER").unwrap_or_else(|_| "chromium".to_owned());
    if Command::new(&browser).arg("--version").output().is_ok_and(|o| o.status.success()) {
        return Some(browser);
    }
    common::skip::skip("browser", &format!("there is no browser `{browser}` (set BT_BROWSER)"));
    None
}
