#!/bin/sh
# Runs all tests, as `make test` and CI do. Arguments go to the first `cargo test`.
#
# tests/tools.sh first fetches the programs that the tests run against (Redis, Prometheus, nftables, ...) from
# Debian packages. It installs them as root or with passwordless sudo, or else unpacks them into target/tools.
set -eu
cd "$(dirname "$0")/.."

tools=$(tests/tools.sh)
eval "$tools"

echo "tests: with the default features, documentation tests included" >&2
cargo test --locked "$@"

echo "tests: memory orderings, with a model checker" >&2
RUSTFLAGS="--cfg loom" cargo test --locked --release --manifest-path loom/Cargo.toml --target-dir target/loom

echo "tests: without metrics" >&2
cargo test --locked --no-default-features --lib --test integration_agent
