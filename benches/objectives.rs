//! Time of each objective, value and gradient, beside Barlow Twins written the plain way (C and
//! two products with it, through candle). Prints a Markdown table.
//!
//!     cargo bench --bench objectives -- [batch] [dim ...]

use std::time::Instant;

use bt_stream::loss::{self, Embeddings, OBJECTIVES};
use candle_core::{Device, Result, Tensor};

fn main() -> anyhow::Result<()> {
    let mut sizes = std::env::args().skip(1).filter_map(|arg| arg.parse::<usize>().ok());
    let batch = sizes.next().unwrap_or(256);
    let mut dims: Vec<usize> = sizes.collect();
    if dims.is_empty() {
        dims = vec![512, 2048, 8192];
    }
    println!("batch {batch}, {} threads, milliseconds (median)\n", rayon::current_num_threads());
    let heads: Vec<_> = dims.iter().map(|d| format!("dim {d}")).collect();
    println!("| objective | {} |\n|---|{}", heads.join(" | "), "---|".repeat(dims.len()));
    let row = |name: &str, made: &dyn Fn() -> anyhow::Result<Box<Call>>| {
        let mut line = format!("| {name} |");
        for &dim in &dims {
            let z_a = Tensor::randn(0f32, 1.0, (batch, dim), &Device::Cpu)?;
            let noise = Tensor::randn(0f32, 0.5, (batch, dim), &Device::Cpu)?;
            let z_b = ((&z_a * 0.8)? + noise)?;
            let mut call = made()?;
            line += &format!(" {:.2} |", median_ms(|| call(&z_a, &z_b))?);
        }
        println!("{line}");
        anyhow::Ok(())
    };
    row("barlow, plain", &|| Ok(Box::new(|a, b| Ok(plain(a, b)?))))?;
    for objective in OBJECTIVES {
        row(objective.name, &|| registered(objective.name, toml::Table::new()))?;
    }
    let options = toml::toml! { loss = "cross_entropy" };
    row("barlow, cross-entropy", &|| registered("barlow", options.clone()))
}

/// What is timed, of the embeddings of two views.
type Call = dyn FnMut(&Tensor, &Tensor) -> anyhow::Result<()>;

/// The evaluation of one objective, which has a queue from the first call on, as in training.
fn registered(name: &str, options: toml::Table) -> anyhow::Result<Box<Call>> {
    let mut objective = loss::build(name, options)?;
    Ok(Box::new(move |a, b| {
        // Other embeddings stand for the predictor's and the teacher's.
        let seen = Embeddings {
            predicted: Some((b.clone(), Some(a.clone()))),
            teacher: Some([a.clone(), b.clone()]),
            ..Embeddings::of(a, b)
        };
        objective.evaluate(&seen)?;
        Ok(())
    }))
}

/// The median of as many calls as fit into about two seconds, at least three, after one that makes
/// what is kept.
fn median_ms(mut call: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    call()?;
    let begun = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || (begun.elapsed().as_secs_f64() < 2.0 && times.len() < 200) {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Equation 1 and the gradient with respect to the normalised embeddings, with C in memory.
fn plain(z_a: &Tensor, z_b: &Tensor) -> Result<()> {
    let (n, dim) = z_a.dims2()?;
    let normalize = |z: &Tensor| {
        let z = z.broadcast_sub(&z.mean_keepdim(0)?)?;
        let std = (z.sqr()?.mean_keepdim(0)? + 1e-5)?.sqrt()?;
        z.broadcast_div(&std)
    };
    let (a, b) = (normalize(z_a)?, normalize(z_b)?);
    let c = (a.t()?.matmul(&b)? / n as f64)?;
    let eye = Tensor::eye(dim, c.dtype(), c.device())?;
    let on = ((&c * &eye)? - &eye)?;
    let off = (&c - (&c * &eye)?)?;
    let loss = (on.sqr()?.sum_all()? + (off.sqr()?.sum_all()? * 0.0051)?)?;
    let g = ((on * 2.0)? + (off * 0.0102)?)?;
    std::hint::black_box((loss, b.matmul(&g.t()?)?, a.matmul(&g)?));
    Ok(())
}
