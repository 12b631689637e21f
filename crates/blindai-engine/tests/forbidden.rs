//! Tries everything that a worker which was taken over would try, each in a process that was confined
//! as a worker is.
//!
//! A program without a harness: a process with threads cannot leave its namespaces.

use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::parent_id;
use std::process::{Command, Stdio, exit};

use blindai_engine::confine_for_test;

/// Its name, what must stop it, and whether it succeeds.
type Attempt = (&'static str, By, fn() -> bool);

/// What stops an attempt, beside everything else.
#[derive(Clone, Copy, PartialEq, Debug)]
enum By {
    /// The filter of system calls.
    Filter,
    /// Already what it has left: its user, its namespaces, its rights.
    Leaving,
}

#[rustfmt::skip]
const FORBIDDEN: &[Attempt] = &[
    ("read a file", By::Filter, || File::open("/proc/self/status").is_ok()),
    ("list a folder", By::Filter, || fs::read_dir("/").is_ok()),
    ("look at a file", By::Filter, || fs::metadata("/etc/passwd").is_ok()),
    ("make memory executable", By::Filter, || map(libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE)),
    ("map shared memory", By::Filter, || map(libc::PROT_WRITE, libc::MAP_SHARED)),
    ("map a stack that grows", By::Filter, || map(libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_GROWSDOWN)),
    ("stretch a mapping", By::Filter, || call(libc::SYS_mremap, [0, 0, 0])),
    ("remove pages of a file that is mapped", By::Filter, || call(libc::SYS_madvise, [0, 0, libc::MADV_REMOVE])),
    ("punch a hole into a file", By::Filter, || call(libc::SYS_fallocate, [1, 0, 0])),
    ("choose cores for a thread", By::Filter, || call(libc::SYS_sched_setaffinity, [0, 0, 0])),
    ("open a socket", By::Filter, || call(libc::SYS_socket, [libc::AF_INET, libc::SOCK_STREAM, 0])),
    ("open a pair", By::Filter, || std::os::unix::net::UnixStream::pair().is_ok()),
    ("run a program", By::Filter, || Command::new("/bin/true").status().is_ok()),
    ("fork", By::Filter, || call(libc::SYS_fork, [0, 0, 0])),
    ("clone a process", By::Filter, || call(libc::SYS_clone, [libc::SIGCHLD, 0, 0])),
    ("clone3", By::Filter, || call(libc::SYS_clone3, [0, 0, 0])),
    ("trace", By::Filter, || call(libc::SYS_ptrace, [libc::PTRACE_TRACEME as i32, 0, 0])),
    ("write to another descriptor", By::Filter, || call(libc::SYS_write, [1, 0, 0])),
    ("make a memory file", By::Filter, || call(libc::SYS_memfd_create, [0, 0, 0])),
    ("become dumpable", By::Filter, || call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE, 1, 0])),
    ("set up a ring", By::Filter, || call(libc::SYS_io_uring_setup, [1, 0, 0])),
    ("load a program into the kernel", By::Filter, || call(libc::SYS_bpf, [0, 0, 0])),
    ("make a namespace", By::Filter, || call(libc::SYS_unshare, [libc::CLONE_NEWUSER, 0, 0])),
    ("signal everybody", By::Filter, || call(libc::SYS_kill, [-1, 0, 0])),
    ("write a file", By::Leaving, || File::create(own_file()).is_ok()),
    ("remove a file", By::Leaving, || fs::remove_file(own_file()).is_ok()),
    ("read what belongs to the server's user", By::Leaving, || fs::read(own_file()).is_ok()),
    ("reach a port of the machine", By::Leaving, || connect()),
    ("signal the parent", By::Leaving, || done(libc::SYS_kill, [parent_id() as i32, 0, 0])),
    ("read the parent's memory", By::Leaving, || {
        fs::read(format!("/proc/{}/environ", parent_id())).is_ok()
    }),
    ("become root", By::Leaving, || done(libc::SYS_setuid, [0, 0, 0])),
    ("change the host's name", By::Leaving, || done(libc::SYS_sethostname, [0, 0, 0])),
    ("mount", By::Leaving, || {
        let mount = Command::new("mount").args(["-t", "tmpfs", "x", "/mnt"]).stderr(Stdio::null()).status();
        mount.is_ok_and(|status| status.success())
    }),
    ("start many threads", By::Leaving, || {
        let threads: Vec<_> = (0..64).map(|_| std::thread::Builder::new().spawn(nap)).collect();
        threads.iter().all(Result::is_ok)
    }),
];

fn main() {
    let mut arguments = std::env::args().skip(1);
    match (
        arguments.next().as_deref(),
        arguments.next(),
        arguments.next(),
    ) {
        (Some("try"), Some(number), Some(filter)) => attempt(&number, filter == "true"),
        (Some("allowed"), ..) => allowed(),
        _ => all(),
    }
}

/// The exit code is the only way left to speak.
fn attempt(number: &str, filter: bool) {
    let (_, _, succeeds) = FORBIDDEN[number.parse::<usize>().unwrap()];
    let Ok(_) = confine_for_test(filter) else {
        exit(NOT_CONFINED)
    };
    let code = if succeeds() { SUCCEEDED } else { STOPPED };
    // SAFETY: ends the process at once; `exit` would run handlers that may write.
    unsafe { libc::_exit(code) }
}

/// What computing needs goes on.
fn allowed() {
    confine_for_test(true).unwrap();
    let works = map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)
        && done(libc::SYS_madvise, [0, 0, libc::MADV_DONTNEED])
        && std::thread::spawn(|| true).join().unwrap_or(false);
    // SAFETY: as above.
    unsafe { libc::_exit(if works { STOPPED } else { SUCCEEDED }) }
}

fn all() {
    fs::write(own_file(), "secret").unwrap();
    // Only its owner's: the user that every worker leaves.
    rustix::fs::chmod(own_file(), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(arguments).env("PORT", &port);
        command.status().unwrap().code()
    };
    assert_eq!(run(&["allowed"]), Some(STOPPED), "computing must go on");
    // They work where nothing is in the way, or being stopped would prove nothing.
    for name in [
        "read a file",
        "map shared memory",
        "map a stack that grows",
        "stretch a mapping",
        "remove pages of a file that is mapped",
        "choose cores for a thread",
        "open a socket",
        "reach a port of the machine",
        "write a file",
    ] {
        let (_, _, succeeds) = FORBIDDEN.iter().find(|(n, ..)| *n == name).unwrap();
        assert!(with_port(&port, *succeeds), "{name}");
    }
    fs::write(own_file(), "secret").unwrap();
    let mut through = Vec::new();
    for (number, (name, by, _)) in FORBIDDEN.iter().enumerate() {
        let number = number.to_string();
        let mut tries = vec!["true"];
        // A user of its own takes root to get, so without it the file is not out of reach.
        let own_files =
            name.ends_with("a file") || name.contains("server's user") || name.contains("parent");
        if *by == By::Leaving && (rustix::process::geteuid().is_root() || !own_files) {
            tries.push("false");
        }
        for filter in tries {
            let code = run(&["try", &number, filter]);
            if code != Some(STOPPED) {
                through.push(format!("{name} (filter: {filter}): {code:?}"));
            }
        }
    }
    let _ = fs::remove_file(own_file());
    assert!(through.is_empty(), "{through:#?}");
}

const SUCCEEDED: i32 = 1;
const STOPPED: i32 = 42;
const NOT_CONFINED: i32 = 3;

fn own_file() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("forbidden-file")
}

fn connect() -> bool {
    let port = std::env::var("PORT")
        .ok()
        .and_then(|port| port.parse::<u16>().ok());
    port.is_some_and(|port| TcpStream::connect(("127.0.0.1", port)).is_ok())
}

/// In this process, which has no such variable.
fn with_port(port: &str, succeeds: fn() -> bool) -> bool {
    // SAFETY: no other thread runs that could read the environment.
    unsafe { std::env::set_var("PORT", port) };
    succeeds()
}

fn nap() {
    std::thread::sleep(std::time::Duration::from_millis(200));
}

/// Whether the kernel looked at the call at all.
fn call(number: libc::c_long, arguments: [i32; 3]) -> bool {
    result(number, arguments) != Err(libc::ENOSYS)
}

fn done(number: libc::c_long, arguments: [i32; 3]) -> bool {
    result(number, arguments).is_ok()
}

fn result(number: libc::c_long, arguments: [i32; 3]) -> Result<(), i32> {
    let [a, b, c] = arguments.map(libc::c_long::from);
    // SAFETY: no pointer is passed that is not null, and what succeeds changes nothing that this
    // process relies on: it ends soon after.
    match unsafe { libc::syscall(number, a, b, c, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        _ => Ok(()),
    }
}

fn map(protection: i32, flags: i32) -> bool {
    let flags = flags | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    address != libc::MAP_FAILED
}
