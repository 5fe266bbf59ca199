//! Builds the CUDA kernels for the feature `cuda`: `src/nn/cuda/kernels/all.cu` to
//! `kernels.fatbin`.

use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: &str = "src/nn/cuda/kernels";

/// The oldest architecture that the kernels are built for where none is asked for.
const OLDEST: &str = "80";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed={KERNELS}");
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Err(message) = build() {
        println!("cargo::error={message}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let nvcc = nvcc()?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let mut command = Command::new(&nvcc);
    command.args(["-std=c++17", "-O3", "--fatbin"]).args(architectures()?);
    command.arg(Path::new(KERNELS).join("all.cu")).arg("-o").arg(out.join("kernels.fatbin"));
    let done = command.output().map_err(|error| format!("{}: {error}", nvcc.display()))?;
    let said = String::from_utf8_lossy(&done.stderr);
    for line in said.lines().filter(|line| !line.trim().is_empty()) {
        println!("cargo::warning={line}");
    }
    if done.status.success() {
        return Ok(());
    }
    Err(format!("{} could not compile the CUDA kernels ({})", nvcc.display(), done.status))
}

/// The compiler: `NVCC`, or `bin/nvcc` of `CUDA_HOME` or `CUDA_PATH`, or the one on the path.
fn nvcc() -> Result<PathBuf, String> {
    if let Some(nvcc) = std::env::var_os("NVCC") {
        return Ok(nvcc.into());
    }
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        let found = std::env::var_os(name).map(|home| Path::new(&home).join("bin/nvcc"));
        if let Some(nvcc) = found.filter(|nvcc| nvcc.exists()) {
            return Ok(nvcc);
        }
    }
    let runs = |name: &str| Command::new(name).arg("--version").output().is_ok();
    if runs("nvcc") {
        return Ok("nvcc".into());
    }
    Err("the feature `cuda` wants CUDA's compiler: there is no nvcc on the path, and none of NVCC, \
         CUDA_HOME and CUDA_PATH says where it is"
        .into())
}

/// Machine code for `CUDA_COMPUTE_CAP` (such as 90, or 8.0) or the oldest known, and PTX that newer
/// devices compile for themselves when the program starts.
fn architectures() -> Result<[String; 2], String> {
    let cap = std::env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| OLDEST.into()).replace('.', "");
    if !cap.parse::<u32>().is_ok_and(|cap| (80..1000).contains(&cap)) {
        return Err(format!("CUDA_COMPUTE_CAP is `{cap}`; known are 80 and above, for bf16"));
    }
    let code = |kind: &str| format!("-gencode=arch=compute_{cap},code={kind}_{cap}");
    Ok([code("sm"), code("compute")])
}
