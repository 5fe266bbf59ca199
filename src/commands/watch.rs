//! `bt-stream watch`

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::Args;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::watch::RunFolder;

/// Arguments of `bt-stream watch`.
#[derive(Args, Debug)]
pub struct WatchArgs {
    /// The run's folder
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Seconds between two looks at the folder
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    every: f64,
    /// Print what there is once, as text, and end; without a terminal that is what is done
    #[arg(long)]
    once: bool,
    /// Print what there is once, as JSON, and end
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if (0.05..=3600.0).contains(&value) => Ok(value),
        _ => Err("expected 0.05 to 3600 seconds".into()),
    }
}

/// Columns and rows of what `--once` prints.
const PRINTED: (u16, u16) = (100, 30);

/// Runs the command, until `q`, Escape or Ctrl-C.
///
/// # Errors
/// A folder that holds no run, or a terminal that cannot be drawn on.
pub fn run(args: WatchArgs) -> Result<()> {
    let mut folder = RunFolder::open(&args.run)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&folder.json(SystemTime::now()))?);
        return Ok(());
    }
    if args.once || !std::io::stdout().is_terminal() {
        let mut page = Terminal::new(TestBackend::new(PRINTED.0, PRINTED.1))?;
        page.draw(|frame| folder.draw(frame, SystemTime::now()))?;
        print!("{}", plain(&page));
        return Ok(());
    }
    let mut terminal = ratatui::try_init()?;
    let outcome = (|| loop {
        terminal.draw(|frame| folder.draw(frame, SystemTime::now()))?;
        if event::poll(Duration::from_secs_f64(args.every))?
            && let Event::Key(key) = event::read()?
            && ends(key)
        {
            return Ok(());
        }
        folder.poll()?;
    })();
    ratatui::try_restore()?;
    outcome
}

fn ends(key: KeyEvent) -> bool {
    let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && (matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) || control_c)
}

/// The page's characters, without the blanks at the ends of lines.
fn plain(page: &Terminal<TestBackend>) -> String {
    let buffer = page.backend().buffer();
    let rows = buffer.content().chunks(usize::from(buffer.area.width));
    let text =
        |row: &[ratatui::buffer::Cell]| row.iter().map(|cell| cell.symbol()).collect::<String>();
    rows.map(|row| text(row).trim_end().to_owned() + "\n").collect()
}
