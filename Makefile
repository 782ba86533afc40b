# Shortcuts for commands that can also be typed by hand.
.PHONY: run test lint bench doc coverage

# Runs an agent with the default configuration.
run:
	cargo run --release -- run

# Runs all tests, after fetching the programs that they run against (tests/tools.sh).
test:
	tests/run.sh

lint:
	cargo fmt --all --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --all-targets --no-default-features -- -D warnings

# Lists the benchmarks; `make bench NAME=storage` runs one.
bench:
	cargo run --release -p peerscope-bench -- $(or $(NAME),--help)

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --open

# Needs cargo-tarpaulin (`cargo install cargo-tarpaulin`).
coverage:
	eval "$$(tests/tools.sh)" && cargo tarpaulin --engine llvm --follow-exec --timeout 600 --out html --output-dir target/coverage
