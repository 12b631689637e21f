"""Run a program with no system calls but those of Gramine.

    like_gramine.py [--with CALL]... PROGRAM [ARGUMENT]...

The kernel answers ENOSYS for every system call that is not in deploy/gramine/syscalls.txt. Of those
that are, it refuses what the page `devel/features.md` of Gramine's documentation says is not
supported, as far as that shows in the numbers that are passed: pointers are not followed. Stricter
than Gramine:

- No process can be made and no other program started, as with `sys.disallow_subprocesses` in a
  manifest.
- No `sendmsg`: that it would hand over descriptors stands behind a pointer.

Not emulated, among others: that Gramine ignores O_APPEND and takes every clock from the host's time
of day; which files it shows; memory, threads and speed of an enclave.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

SYSCALLS = Path(__file__).resolve().parent.parent / "deploy" / "gramine" / "syscalls.txt"
# The kernel itself has interrupted calls go on with it; programs do not make it.
RESTART_SYSCALL = 219
# What `--with` gives all the same, to see what the next failure is.
LACKING = {"prctl": 157, "memfd_create": 319}
# Each of these is a way to another process, or may be one.
DENIED = {"fork", "vfork", "sendmsg"}

# What a call may be given in an argument: (its number, the bits that count, allowed values, error).
CLONE_THREAD = 0x10000
MAP_SHARED_OF_A_FILE = 0x23  # MAP_SHARED | MAP_PRIVATE | MAP_ANONYMOUS
ALLOWED_ARGUMENTS: dict[str, list[tuple[int, int, set[int], int]]] = {
    "clone": [(0, CLONE_THREAD, {CLONE_THREAD}, errno.ENOSYS)],
    # AF_UNIX, AF_INET, AF_INET6; SOCK_STREAM, SOCK_DGRAM, without the flags.
    "socket": [
        (0, 0xFFFFFFFF, {1, 2, 10}, errno.EAFNOSUPPORT),
        (1, 0xF, {1, 2}, errno.EPROTONOSUPPORT),
    ],
    "socketpair": [
        (0, 0xFFFFFFFF, {1}, errno.EAFNOSUPPORT),
        (1, 0xF, {1}, errno.EPROTONOSUPPORT),
    ],
    # Private, or of no file.
    "mmap": [(3, MAP_SHARED_OF_A_FILE, {0x02, 0x03, 0x21, 0x22, 0x23}, errno.EACCES)],
    "madvise": [(2, 0xFFFFFFFF, {0, 1, 2, 3, 4, 8, 12, 13, 14, 15, 101}, errno.EINVAL)],
    "fallocate": [(1, 0xFFFFFFFF, {0}, errno.EOPNOTSUPP)],
    # Those that wait and wake, without inheritance of priorities.
    "futex": [(1, 0x7F, {0, 1, 3, 4, 5, 9, 10}, errno.ENOSYS)],
    "fcntl": [(1, 0xFFFFFFFF, {0, 1, 2, 3, 4, 5, 6, 7, 1030}, errno.EINVAL)],
    # TIOCGPGRP, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, FIOASYNC.
    "ioctl": [(1, 0xFFFFFFFF, {0x540F, 0x541B, 0x5421, 0x5450, 0x5451, 0x5452}, errno.ENOSYS)],
}

AUDIT_ARCH_X86_64 = 0xC000003E
LOAD, EQUALS, AND, RETURN = 0x20, 0x15, 0x54, 0x06
ALLOW, ERROR = 0x7FFF0000, 0x00050000
NUMBER, ARCH, ARGUMENTS = 0, 4, 16
Instruction = tuple[int, int, int, int]


class Filter(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_ushort),
        ("true", ctypes.c_ubyte),
        ("false", ctypes.c_ubyte),
        ("value", ctypes.c_uint32),
    ]


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Filter))]


def implemented() -> dict[str, int]:
    """The system calls of the list, by name."""
    lines = SYSCALLS.read_text().splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#")]
    return {name: int(number) for number, name in pairs}


def compile_filter(calls: dict[str, int], path_of_program: int) -> list[Instruction]:
    """The filter in the kernel's language; `execve` is allowed with one address of a path only."""
    refuse = returns(ERROR | errno.ENOSYS)
    program = [(LOAD, 0, 0, ARCH), (EQUALS, 1, 0, AUDIT_ARCH_X86_64), refuse, (LOAD, 0, 0, NUMBER)]
    for name, number in calls.items():
        if name == "execve":
            low, high = path_of_program & 0xFFFFFFFF, path_of_program >> 32
            body = only(0, 0xFFFFFFFF, {low}, errno.ENOSYS)
            body += only(0, 0xFFFFFFFF, {high}, errno.ENOSYS, upper=True)
        else:
            checks = ALLOWED_ARGUMENTS.get(name, [])
            body = [instruction for check in checks for instruction in only(*check)]
        body.append(returns(ALLOW))
        program += [(EQUALS, 0, len(body), number), *body]
    return [*program, refuse]


def only(
    argument: int, mask: int, values: set[int], error: int, *, upper: bool = False
) -> list[Instruction]:
    """Instructions that return an error unless the masked argument is one of the values."""
    found = [(EQUALS, len(values) - place, 0, value) for place, value in enumerate(sorted(values))]
    half = 4 if upper else 0
    load = [(LOAD, 0, 0, ARGUMENTS + 8 * argument + half), (AND, 0, 0, mask)]
    return [*load, *found, returns(ERROR | error)]


def returns(value: int) -> Instruction:
    return (RETURN, 0, 0, value)


def start(calls: dict[str, int], command: list[str]) -> None:
    """Become the program, under the filter. Returns only when that fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    path = ctypes.create_string_buffer(os.fsencode(shutil.which(command[0]) or command[0]))
    arguments = (ctypes.c_char_p * (len(command) + 1))(*map(os.fsencode, command), None)
    variables = [os.fsencode(f"{name}={value}") for name, value in os.environ.items()]
    environment = (ctypes.c_char_p * (len(variables) + 1))(*variables, None)
    compiled = compile_filter(calls, ctypes.addressof(path))
    filters = (Filter * len(compiled))(*compiled)
    program = Program(len(compiled), filters)
    no_new_rights, seccomp, set_filter = 38, 317, 1
    if libc.prctl(no_new_rights, 1, 0, 0, 0) or libc.syscall(
        seccomp, set_filter, 0, ctypes.byref(program)
    ):
        raise OSError(ctypes.get_errno(), "the system calls cannot be filtered")
    libc.execve(path, arguments, environment)


def main() -> None:
    command = sys.argv[1:]
    calls = {name: number for name, number in implemented().items() if name not in DENIED}
    calls["restart_syscall"] = RESTART_SYSCALL
    while command[:1] == ["--with"]:
        calls[command[1]] = LACKING[command[1]]
        command = command[2:]
    start(calls, command)
    sys.exit(f"{command[0]} cannot be started")


if __name__ == "__main__":
    main()
