//! The time stamp counter of x86-64 processors.

/// Whether the counter can be relied on: the Linux kernel keeps time by it. The kernel does so only when the
/// counter runs at one speed whatever the processor does and is in step on all cores. Asked once: a kernel that
/// changes its mind later is not followed.
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
pub(super) fn is_reliable() -> bool {
    let source = std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    source.is_ok_and(|source| source.trim() == "tsc")
}

/// The counter's present value.
///
/// The only `unsafe` of the library. It pays: a timed event costs two readings, which take 29 ns in place of the 81 ns of the
/// standard clock (`bench/README.md`, `record`).
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
#[inline]
#[allow(unsafe_code, reason = "the standard library has no safe function for this instruction")]
pub(super) fn read() -> u64 {
    // SAFETY: the instruction reads a register and touches no memory. It faults only where the system forbids it to
    // programs (CR4.TSD, `prctl(PR_SET_TSC)`), which Linux does not do to a program that did not ask for it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(miri))))]
pub(super) fn is_reliable() -> bool {
    false
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(miri))))]
pub(super) fn read() -> u64 {
    0
}
