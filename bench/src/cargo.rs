//! Builds programs of this workspace for a run.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;

/// The workspace of this bench.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The target directory of this bench, which is in `TARGET/release`.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    Ok(exe.parent().and_then(Path::parent).ok_or("the bench is not in a target directory")?.to_owned())
}

/// Builds the program `bin` in release mode and returns its path.
pub(crate) fn build(bin: &str, arguments: &[&str]) -> Result<PathBuf> {
    let target = target_dir()?;
    eprintln!("building {bin} {}", arguments.join(" "));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(WORKSPACE)
        .args(["build", "--quiet", "--release", "--locked", "--bin", bin])
        .args(arguments)
        .arg("--target-dir")
        .arg(&target)
        .status()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    if !status.success() {
        return Err(format!("cargo could not build {bin}").into());
    }
    Ok(target.join("release").join(bin))
}
