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
    use SeccompCmpOp::{Eq, MaskedEq};
    let pid = u64::from(std::process::id());
    // Signals to the group are addressed to its number with a minus, 32 bits wide.
    let group = u64::from((pid as u32).wrapping_neg());
    let executable = libc::PROT_EXEC as u64;
    let not_executable = || rule(2, MaskedEq(executable), 0);
    let threads_only = libc::CLONE_THREAD as u64;
    Ok(vec![
        (libc::SYS_mmap, vec![not_executable()?]),
        (libc::SYS_mprotect, vec![not_executable()?]),
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
    let length = match argument {
        ADDRESS => SeccompCmpArgLen::Qword,
        // Integers and flags, of which the kernel looks at the lower half only.
        _ => SeccompCmpArgLen::Dword,
    };
    let condition = SeccompCondition::new(argument, length, operator, value)?;
    SeccompRule::new(vec![condition])
}

/// The argument of `sendto` that is a pointer.
const ADDRESS: u8 = 4;

/// Allowed whatever the arguments.
const ALLOWED: &[libc::c_long] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads.
    libc::SYS_exit,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd as _;
    use std::process::Command;

    use super::*;

    /// Its name, and whether it succeeds.
    type Attempt = (&'static str, fn() -> bool);

    /// What a worker taken over would try.
    const FORBIDDEN: &[Attempt] = &[
        ("read a file", || File::open("/proc/self/status").is_ok()),
        ("write a file", || File::create("/tmp/x").is_ok()),
        ("list a folder", || fs::read_dir("/").is_ok()),
        ("look at a file", || fs::metadata("/etc/passwd").is_ok()),
        ("remove a file", || fs::remove_file("/tmp/x").is_ok()),
        ("make memory executable", || {
            map(libc::PROT_READ | libc::PROT_EXEC)
        }),
        ("open a socket", || {
            call(libc::SYS_socket, [libc::AF_INET, libc::SOCK_STREAM, 0])
        }),
        ("open a pair", || {
            std::os::unix::net::UnixStream::pair().is_ok()
        }),
        ("run a program", || {
            Command::new("/bin/true").status().is_ok()
        }),
        ("fork", || call(libc::SYS_fork, [0, 0, 0])),
        ("clone a process", || {
            call(libc::SYS_clone, [libc::SIGCHLD, 0, 0])
        }),
        ("clone3", || call(libc::SYS_clone3, [0, 0, 0])),
        ("signal the parent", || {
            call(
                libc::SYS_kill,
                [std::os::unix::process::parent_id() as i32, 0, 0],
            )
        }),
        ("signal everybody", || call(libc::SYS_kill, [-1, 0, 0])),
        ("trace", || {
            call(libc::SYS_ptrace, [libc::PTRACE_TRACEME as i32, 0, 0])
        }),
        ("read the parent's memory", || {
            call(
                libc::SYS_process_vm_readv,
                [std::os::unix::process::parent_id() as i32, 0, 0],
            )
        }),
        ("write to another descriptor", || {
            call(libc::SYS_write, [1, 0, 0])
        }),
        ("make a memory file", || {
            call(libc::SYS_memfd_create, [0, 0, 0])
        }),
        ("become dumpable", || {
            call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE, 1, 0])
        }),
        ("set up a ring", || {
            call(libc::SYS_io_uring_setup, [1, 0, 0])
        }),
        ("load a program into the kernel", || {
            call(libc::SYS_bpf, [0, 0, 0])
        }),
        ("make a namespace", || {
            call(libc::SYS_unshare, [libc::CLONE_NEWUSER, 0, 0])
        }),
    ];

    /// Whether the kernel looked at the call at all.
    fn call(number: libc::c_long, arguments: [i32; 3]) -> bool {
        let [a, b, c] = arguments.map(libc::c_long::from);
        // SAFETY: no pointer is passed that is not null, and what succeeds changes nothing that this
        // process relies on: it ends soon after.
        let result = unsafe { libc::syscall(number, a, b, c, 0, 0, 0) };
        result != -1 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
    }

    fn map(protection: i32) -> bool {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
        address != libc::MAP_FAILED
    }

    /// Runs in a process of its own, which the filter makes unfit for anything else; the exit code
    /// is the only way left to speak.
    #[test]
    #[ignore = "the next test runs it"]
    fn probe() {
        let outputs = File::create("/dev/null").unwrap();
        install(outputs.as_fd()).unwrap();
        let allowed = map(libc::PROT_READ | libc::PROT_WRITE)
            && std::thread::spawn(|| true).join().unwrap_or(false);
        let stopped = FORBIDDEN.iter().position(|(_, succeeds)| succeeds());
        let code = match (allowed, stopped) {
            (false, _) => 1,
            (true, None) => PROBE_STOPPED,
            (true, Some(index)) => PROBE_STOPPED + 1 + index as i32,
        };
        // SAFETY: ends the process at once; `exit` would run handlers that may write.
        unsafe { libc::_exit(code) }
    }

    const PROBE_STOPPED: i32 = 100;

    #[test]
    fn what_a_worker_must_not_do_fails() {
        // All of these work where there is no filter, or the probe would prove nothing.
        for name in [
            "read a file",
            "list a folder",
            "open a socket",
            "make memory executable",
        ] {
            let (_, succeeds) = FORBIDDEN.iter().find(|(n, _)| *n == name).unwrap();
            assert!(succeeds(), "{name}");
        }
        let probe = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "worker::filter::tests::probe", "--ignored"])
            .output()
            .unwrap();
        let code = probe
            .status
            .code()
            .unwrap_or_else(|| panic!("{:?}", probe.status));
        let through = FORBIDDEN.get((code - PROBE_STOPPED - 1).max(0) as usize);
        assert_eq!(
            code,
            PROBE_STOPPED,
            "{:?} {probe:?}",
            through.map(|(name, _)| name)
        );
    }
}
