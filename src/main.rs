//! The `peerscope` binary; see the library for what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    give_back_large_allocations();
    peerscope::cli::main(std::env::args_os())
}

/// Makes glibc return every allocation of at least `LARGE` bytes to the system when it is freed. By default it raises
/// this threshold to the largest size ever freed, up to 32 MiB, and keeps freed memory that lies between other
/// allocations: peers that sent large values made it keep 30 MiB (`tests/network/bounds.rs`). `MALLOC_MMAP_THRESHOLD_`
/// in the environment takes precedence.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "mallopt has no safe wrapper")]
fn give_back_large_allocations() {
    const LARGE: libc::c_int = 128 * 1024;
    if std::env::var_os("MALLOC_MMAP_THRESHOLD_").is_none() {
        // SAFETY: mallopt only sets a number in the allocator, and no other thread exists yet that could read it.
        let _is_taken = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_back_large_allocations() {}
