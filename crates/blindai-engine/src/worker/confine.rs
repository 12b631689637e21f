//! What the worker gives up before it touches a stranger's model.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use rustix::process::{DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use serde::{Deserialize, Serialize};

/// Moves the control socket away from standard input and closes every descriptor that is not known:
/// whoever started the parent may have left some open.
pub(super) fn take_control_socket() -> io::Result<OwnedFd> {
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    // The directory's own descriptor was in the list, and went away with the iterator.
    let still = |fd: &RawFd| std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok();
    for fd in open.into_iter().filter(still) {
        // SAFETY: this is the first thing the process does: no thread runs, and nothing in it owns
        // a descriptor above 2.
        unsafe { rustix::io::close(fd) };
    }
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(rustix::stdio::stdout())?;
    Ok(control)
}

/// Leaves it to the parent when to end: whoever stops the server may tell every process of it, while
/// requests are still to be answered.
pub(super) fn ignore_requests_to_end() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: no handler is installed that could run anywhere, and no thread runs yet that could
        // change the same disposition.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Leaves everything that can be left: the server's user, and the network, the mounts, the host name
/// and the message queues of the machine. The kernel decides what of it there is.
pub(super) fn leave_machine() -> io::Result<Left> {
    // Best effort, and nobody else may write it later.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let user = become_nobody();
    let apart = UnshareFlags::NEWUSER
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    // SAFETY: no thread runs yet with which anything could be shared, and descriptors stay as they
    // are. No identity is mapped into the new namespace, so there it is nobody.
    let namespaces = unsafe { rustix::thread::unshare_unsafe(apart) }.is_ok();
    drop_capabilities()?;
    Ok(Left { user, namespaces })
}

/// What a worker has left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// The server's user, for one that owns nothing and that no other worker has.
    pub user: bool,
    /// The machine's network, mounts and users, for namespaces of its own.
    pub namespaces: bool,
}

/// Only root can change its user.
fn become_nobody() -> bool {
    if !rustix::process::geteuid().is_root() {
        return false;
    }
    let number = FIRST_NOBODY + std::process::id();
    let (user, group) = (Uid::from_raw(number), Gid::from_raw(number));
    let left = rustix::thread::set_thread_groups(&[])
        .and_then(|()| rustix::thread::set_thread_res_gid(group, group, group))
        .and_then(|()| rustix::thread::set_thread_res_uid(user, user, user));
    left.is_ok()
}

/// Beyond what systems give to people, services and containers. Process ids go up to 2²².
const FIRST_NOBODY: u32 = 0x6000_0000;

/// Gives root's rights up, and with them the right to look into the parent.
fn drop_capabilities() -> io::Result<()> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    // The ambient ones go with the permitted ones.
    Ok(rustix::thread::set_capabilities(None, none)?)
}

/// No new rights, no core dump, nobody looks inside, dead with the parent. To be called once the
/// user is the last one: the kernel forgets the parent when it changes.
pub(super) fn tie_to_parent() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    limit(Resource::Core, 0)?;
    limit(Resource::Nofile, OPEN_FILES)
}

/// Bounds the threads, where the kernel counts those of this worker alone.
pub(super) fn limit_threads(left: Left, threads: usize) -> io::Result<()> {
    match left.user || left.namespaces {
        true => limit(Resource::Nproc, threads as u64 + SPARE_THREADS),
        false => Ok(()),
    }
}

/// The first one, and the one that hears of cancellations; twice, to be on the safe side.
const SPARE_THREADS: u64 = 4;

/// Bounds every file, so that no region and no other memory file outgrows the shared memory.
pub(super) fn limit_files(bytes: u64) -> io::Result<()> {
    limit(Resource::Fsize, bytes)
}

/// Allows so much more private memory than there is by now: allocations beyond it fail here, instead
/// of on the machine. The stacks of compute threads count by their whole reserved length, of which
/// they use next to nothing, so they come on top.
pub(super) fn limit_memory(bytes: u64, threads: usize) -> io::Result<()> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm
        .split(' ')
        .nth(5)
        .and_then(|pages| pages.parse::<u64>().ok());
    let pages = pages.ok_or(io::ErrorKind::InvalidData)?;
    let used = pages * rustix::param::page_size() as u64;
    let stacks = STACK_BYTES.saturating_mul(threads as u64);
    let allowed = used.saturating_add(stacks).saturating_add(bytes);
    limit(Resource::Data, allowed)
}

/// What glibc reserves for a thread, unless the system says otherwise.
const STACK_BYTES: u64 = 8 << 20;

const OPEN_FILES: u64 = 64;

fn limit(resource: Resource, value: u64) -> io::Result<()> {
    let value = Some(value);
    let limit = Rlimit {
        current: value,
        maximum: value,
    };
    Ok(rustix::process::setrlimit(resource, limit)?)
}
