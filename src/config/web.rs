//! Reads the web configuration, a file of its own (`metrics.web_config`).

use std::path::Path;

use super::error::{ConfigError, ConfigProblem, Origin, Source};
use super::{decode_all, layers, tree};
use crate::metrics::{self, WebConfig};

/// Reads a web configuration. Its relative paths become relative to the folder that it is in, as in exporter-toolkit.
///
/// # Errors
///
/// All problems found, each with its position.
pub fn load_web_config(path: &Path) -> Result<WebConfig, ConfigError> {
    let name = path.display().to_string();
    let text = layers::read_regular(path)
        .map_err(|problem| ConfigProblem::new(Origin::File(name.as_str().into()), "", problem))?;
    // As a copy that failed on a full disk, or is under way: it must not open what was closed.
    if layers::is_empty(&text) {
        let message = "is empty; write {} for neither TLS nor users";
        return Err(ConfigProblem::new(Origin::File(name.as_str().into()), "", message).into());
    }
    let (mut tree, mut problems) = tree::parse(&text, &Source::File(name.into()))?;
    let mut config: WebConfig = decode_all(&mut tree, &mut problems)?;
    if !problems.is_empty() {
        return Err(ConfigError::new(problems));
    }
    if let Some(folder) = path.parent() {
        config.relative_to(folder);
    }
    Ok(config)
}

/// Checks a web configuration and the files that it names.
///
/// # Errors
///
/// All problems found, each with its position where it has one.
pub fn check_web_config(path: &Path) -> Result<(), ConfigError> {
    let checked = metrics::check_web_config(load_web_config(path)?);
    let origin = || Origin::File(path.display().to_string().as_str().into());
    checked.map_err(|problem| ConfigProblem::new(origin(), "", problem).into())
}
