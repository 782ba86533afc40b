//! `peerscope check`: validate and print the resolved configuration.

use super::{Failure, print, print_json};
use crate::config::Config;

pub(super) fn run(config: &Config, json: bool) -> Result<(), Failure> {
    if json { print_json(config) } else { print(config.to_yaml_masked().as_bytes()) }
}
