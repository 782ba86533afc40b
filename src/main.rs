//! The `peerscope` binary; see the library for what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    give_back_large_allocations();
    peerscope::cli::main(std::env::args_os())
}

/// Has glibc give every allocation of this many bytes and more back to the system when it is freed. By itself it raises that
/// limit with the largest that was ever freed, up to 32 MiB, and keeps what lies between others: peers that send large
/// values made it keep 30 MiB (`tests/network/bounds.rs`). `MALLOC_MMAP_THRESHOLD_` in the environment has the last word.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "there is no safe function for it")]
fn give_back_large_allocations() {
    const LARGE: libc::c_int = 128 * 1024;
    if std::env::var_os("MALLOC_MMAP_THRESHOLD_").is_none() {
        // SAFETY: it sets a number in the allocator, and there is no other thread yet that could read it meanwhile.
        let _is_taken = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_back_large_allocations() {}
