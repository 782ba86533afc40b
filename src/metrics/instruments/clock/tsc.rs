//! The time stamp counter of x86-64 processors.

/// Whether the counter is reliable: whether the Linux kernel keeps time by it. The kernel does so only if the
/// counter runs at a constant speed whatever the processor does and is in step on all cores. This is checked once:
/// a kernel that changes its clock source later is not followed.
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
pub(super) fn is_reliable() -> bool {
    let source = std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    source.is_ok_and(|source| source.trim() == "tsc")
}

/// The counter's current value.
///
/// The only `unsafe` in the library. It pays off: a timed event takes two readings, which cost 29 ns instead of the
/// standard clock's 81 ns (`bench/README.md`, `record`).
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
#[inline]
#[allow(unsafe_code, reason = "the standard library has no safe function for this instruction")]
pub(super) fn read() -> u64 {
    // SAFETY: the instruction reads a register and touches no memory. It faults only if the system forbids it to
    // programs (CR4.TSD, `prctl(PR_SET_TSC)`), which Linux does only to a program that asks for it.
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
