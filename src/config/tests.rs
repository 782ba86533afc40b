//! Tests of the whole module, one aspect per file.

mod combinations;
mod file;
mod gateway;
mod layers;
mod output;
mod values;

use super::*;

pub(super) const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
pub(super) const EXAMPLE: &str = include_str!("../../peerscope.example.yaml");
pub(super) const DOCUMENTATION: &str = include_str!("../../docs/configuration.md");

pub(super) fn env(variables: &[(&str, &str)]) -> Sources {
    let env = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
    Sources { env, ..Sources::default() }
}

pub(super) fn problems(result: Result<Config, ConfigError>) -> Vec<String> {
    let error = result.expect_err("an invalid configuration was accepted");
    assert!(error.to_string().lines().count() == error.problems().len(), "one line per problem: {error}");
    error.problems().iter().map(ToString::to_string).collect()
}

pub(super) fn refused(yaml: &str) -> Vec<String> {
    problems(Config::from_yaml("peerscope.yaml", yaml))
}

/// Asserts that this YAML is rejected with exactly these lines.
#[track_caller]
pub(super) fn assert_refused(yaml: &str, expected: &[&str]) {
    assert_eq!(refused(yaml), expected, "{yaml}");
}

#[track_caller]
pub(super) fn assert_env_refused(variables: &[(&str, &str)], expected: &[&str]) {
    assert_eq!(problems(Config::load(&env(variables))), expected);
}

pub(super) fn file(content: impl AsRef<[u8]>) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    file
}
