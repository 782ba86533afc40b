//! Builds of this workspace that a run makes for itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;

/// The workspace that this bench was built from.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The target directory that this bench was built in: it stands in `TARGET/release`.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    Ok(exe.parent().and_then(Path::parent).ok_or("the bench is not in a target directory")?.to_owned())
}

/// Builds the program `bin` as a release build does, and returns where it is.
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
