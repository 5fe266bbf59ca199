//! Studies: a matrix of configurations, trained and evaluated cell by cell, as one table.
//!
//! ```text
//! STUDY.toml --plan--> cells (row x seed), each a whole run configuration
//!            --run---> DIR/cells/CELL/{cell.toml, config.toml, metrics.jsonl, checkpoints, result.json}
//!            --table, page--> DIR/{table.md, table.csv, study.html, accuracy.svg}
//! ```
//!
//! A cell is finished when its `result.json` is there, which is written last and atomically, with
//! every figure that the study asks for; a finished cell is never run again, a cut-off one goes on
//! from its newest checkpoint.
//!
//! - [`plan`]: the file's form, and the cells it stands for.
//! - [`run()`]: one cell after another, or several at a time.
//! - [`table`]: mean and spread over seeds, as Markdown and CSV.
//! - `page`: the same with curves, as HTML.

mod page;
pub mod plan;
pub mod run;
pub mod table;
#[cfg(test)]
mod tests;

pub use plan::{Cell, Row, Study};
pub use run::{CellResult, Options, first_step, result_of, run};
