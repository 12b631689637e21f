//! The system call SNP_GET_DERIVED_KEY on `/dev/sev-guest` (Linux's `uapi/linux/sev-guest.h`).
//!
//! It passes structures that hold addresses of others, which no safe interface can express. This is
//! the only unsafe code of the crate.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::ptr;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use zeroize::Zeroize as _;

use super::{DerivedKey, DerivedKeyRequest};

/// The firmware of the chip that this SEV-SNP guest runs on.
#[derive(Clone, Debug)]
pub struct SevGuest {
    device: PathBuf,
}

impl SevGuest {
    /// Where Linux shows the device.
    pub const DEVICE: &str = "/dev/sev-guest";

    /// The guest that this process runs in.
    pub fn open() -> Self {
        Self::at(Self::DEVICE)
    }

    /// The same, with the device elsewhere.
    pub fn at(device: impl Into<PathBuf>) -> Self {
        let device = device.into();
        Self { device }
    }
}

impl DerivedKey for SevGuest {
    fn derive(&self, request: &DerivedKeyRequest, key: &mut [u8; 32]) -> io::Result<()> {
        let device = File::options().read(true).write(true).open(&self.device)?;
        let mut response = Response {
            status: STATUS_UNSET,
            reserved: [0; 28],
            key: [0; 32],
        };
        let called = call(&device, request, &mut response);
        if response.status == 0 {
            key.copy_from_slice(&response.key);
        }
        response.key.zeroize();
        called?;
        match response.status {
            0 => Ok(()),
            status => Err(io::Error::other(format!("firmware status {status:#x}"))),
        }
    }
}

fn call(device: &File, asked: &DerivedKeyRequest, response: &mut Response) -> io::Result<()> {
    let request = Request {
        root_key_select: asked.root_key_select,
        reserved: 0,
        guest_field_select: asked.guest_field_select,
        vmpl: asked.vmpl,
        guest_svn: 0,
        tcb_version: 0,
    };
    let mut message = Message {
        version: 1,
        padding: [0; 7],
        request: (&raw const request).expose_provenance() as u64,
        response: ptr::from_mut(response).expose_provenance() as u64,
        firmware_error: 0,
    };
    // SAFETY: the opcode is the kernel's for a structure of this layout, which it reads and writes.
    let updater = unsafe { Updater::<GET_DERIVED_KEY, Message>::new(&mut message) };
    // SAFETY: the kernel reads `size_of::<Request>()` bytes at `message.request` and writes
    // `size_of::<Response>()` bytes at `message.response`; both structures have the kernel's layout
    // (asserted below), live until the call returns, and any bytes are valid in them. `response` is
    // borrowed mutably and not used until then. Another device that knows this opcode in another
    // meaning would have to be put in place of the path by root, who may write to our memory anyway.
    let called = unsafe { ioctl(device, updater) };
    match message.firmware_error {
        0 => Ok(called?),
        error => Err(io::Error::other(format!("firmware error {error:#x}"))),
    }
}

/// `struct snp_guest_request_ioctl`
#[repr(C)]
struct Message {
    version: u8,
    padding: [u8; 7],
    request: u64,
    response: u64,
    firmware_error: u64,
}

/// `struct snp_derived_key_req`
#[repr(C)]
struct Request {
    root_key_select: u32,
    reserved: u32,
    guest_field_select: u64,
    vmpl: u32,
    guest_svn: u32,
    tcb_version: u64,
}

/// `struct snp_derived_key_resp`, which holds the firmware's MSG_KEY_RSP.
#[repr(C)]
struct Response {
    status: u32,
    reserved: [u8; 28],
    key: [u8; 32],
}

const GET_DERIVED_KEY: Opcode = opcode::read_write::<Message>(b'S', 1);
/// No status of the firmware's: a call that wrote nothing is no success.
const STATUS_UNSET: u32 = u32::MAX;

const _: () = assert!(size_of::<Message>() == 32 && size_of::<Request>() == 32);
const _: () = assert!(size_of::<Response>() == 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_opcode_is_the_kernels() {
        // _IOWR('S', 1, 32 bytes), as the C header gives it on x86-64.
        assert_eq!(GET_DERIVED_KEY, 0xc020_5301);
    }

    #[test]
    fn a_device_that_does_not_know_the_call_gives_no_key() {
        let mut key = [0xaa; 32];
        let derive = |path: &str, key: &mut [u8; 32]| {
            SevGuest::at(path).derive(&DerivedKeyRequest::SEALING, key)
        };
        let error = derive("/dev/null", &mut key).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(25), "not ENOTTY: {error}");
        let error = derive("/nonexistent", &mut key).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(key, [0xaa; 32]);
    }
}
