//! What the kernel still does for a worker once it looks at a stranger's model: compute, wait, and
//! speak to its parent.
//!
//! A list of what is allowed. No file can be opened, no socket made, no program or process started,
//! no memory made executable. Everything else fails with `ENOSYS`, as if the kernel did not have it:
//! ONNX Runtime and the C library then do without, where an honest model makes them ask.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};

/// Filters the system calls of this process, in all its threads and for ever. `outputs` is the only
/// file that can still be written.
///
/// # Errors
/// When the kernel cannot filter. The process must not look at a model then.
pub(super) fn install(outputs: BorrowedFd<'_>) -> io::Result<()> {
    let program = compile(outputs).map_err(io::Error::other)?;
    apply_filter_all_threads(&program).map_err(io::Error::other)
}

fn compile(outputs: BorrowedFd<'_>) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<_, _> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    rules.extend(conditions(outputs)?);
    let (denied, allowed) = (
        SeccompAction::Errno(libc::ENOSYS as u32),
        SeccompAction::Allow,
    );
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, denied, allowed, arch)?.try_into()
}

type Rules = Vec<(libc::c_long, Vec<SeccompRule>)>;

/// What is allowed with some arguments only; of a call's rules, one must hold.
fn conditions(outputs: BorrowedFd<'_>) -> Result<Rules, seccompiler::BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let pid = u64::from(std::process::id());
    // Signals to the group are addressed to its number with a minus, 32 bits wide.
    let group = u64::from((pid as u32).wrapping_neg());
    let not_executable = || condition(2, MaskedEq(libc::PROT_EXEC as u64), 0);
    // The kernel counts neither what is shared nor what grows like a stack towards the limit of memory.
    // `mremap` makes any size of the first thread's stack, so it stays denied: `realloc` then copies.
    let uncounted = (libc::MAP_SHARED | libc::MAP_GROWSDOWN) as u64;
    let mapping = vec![not_executable()?, condition(3, MaskedEq(uncounted), 0)?];
    let protecting = vec![not_executable()?];
    let threads_only = libc::CLONE_THREAD as u64;
    Ok(vec![
        (libc::SYS_mmap, vec![SeccompRule::new(mapping)?]),
        (libc::SYS_mprotect, vec![SeccompRule::new(protecting)?]),
        // Pages of the inputs must stay: the parent writes to them without asking for new ones.
        (
            libc::SYS_madvise,
            vec![rule(2, Ne, libc::MADV_REMOVE as u64)?],
        ),
        // A process of its own would outlive its limits. `clone3` hides its flags from the filter,
        // so it stays denied, and the C library falls back to `clone`.
        (
            libc::SYS_clone,
            vec![rule(0, MaskedEq(threads_only), threads_only)?],
        ),
        // Without an address: to the parent, at the other end of the pair.
        (libc::SYS_sendto, vec![rule(ADDRESS, Eq, 0)?]),
        (
            libc::SYS_pwrite64,
            vec![rule(0, Eq, outputs.as_raw_fd() as u64)?],
        ),
        (
            libc::SYS_prctl,
            vec![rule(0, Eq, libc::PR_SET_NAME as u64)?],
        ),
        // To abort, and to end with the parent.
        (libc::SYS_tgkill, vec![rule(0, Eq, pid)?]),
        (libc::SYS_kill, vec![rule(0, Eq, pid)?, rule(0, Eq, group)?]),
    ])
}

fn rule(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![condition(argument, operator, value)?])
}

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    let length = match argument {
        ADDRESS => SeccompCmpArgLen::Qword,
        // Integers and flags, of which the kernel looks at the lower half only.
        _ => SeccompCmpArgLen::Dword,
    };
    SeccompCondition::new(argument, length, operator, value)
}

/// The argument of `sendto` that is a pointer.
const ADDRESS: u8 = 4;

/// Allowed whatever the arguments.
const ALLOWED: &[libc::c_long] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    // Threads.
    libc::SYS_exit,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    // Signals and the end.
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_nanosleep,
    // The parent.
    libc::SYS_close,
    libc::SYS_recvfrom,
];
