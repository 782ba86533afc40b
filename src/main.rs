//! The `peerscope` binary; see the library for what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    peerscope::cli::main(std::env::args_os())
}
