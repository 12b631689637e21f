//! Linux's `/dev/sev-guest` (`drivers/virt/coco/sev-guest`): the call that derives a key.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;

use fuser::{Errno, FileType};

use super::files::{Mounted, Tree};

/// The device, and the firmware behind it.
pub struct SevGuest {
    answer: Mutex<Answer>,
    asked: Mutex<Vec<Vec<u8>>>,
}

/// What the firmware says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answer {
    /// A key of this byte.
    Key(u8),
    /// A VLEK is loaded: keys of these bytes, from it and from the VCEK.
    Loaded { vlek: u8, vcek: u8 },
    /// A key of this byte, from firmware that knows no VLEK.
    Old(u8),
    /// The call fails with this error of the firmware.
    Error(u64),
    /// The call works, and the response holds this status beside a key.
    Status(u32),
    /// The call works, and nothing is written.
    Nothing,
}

impl SevGuest {
    pub const DEVICE: &str = "sev-guest";

    pub fn mount(answer: Answer) -> Mounted<Self> {
        Mounted::new(Self {
            answer: Mutex::new(answer),
            asked: Mutex::default(),
        })
    }

    /// Each `struct snp_derived_key_req` that came.
    pub fn asked(&self) -> Vec<Vec<u8>> {
        self.asked.lock().unwrap().clone()
    }
}

impl Tree for SevGuest {
    fn kind(&self, path: &str) -> Option<FileType> {
        match path {
            "" => Some(FileType::Directory),
            Self::DEVICE => Some(FileType::RegularFile),
            _ => None,
        }
    }

    fn read(&self, _path: &str) -> Result<Vec<u8>, Errno> {
        Err(Errno::EINVAL)
    }

    fn written(&self, _path: &str, _bytes: &[u8]) {}

    /// Follows the addresses in the message, as the kernel does: the caller is in this process.
    fn control(&self, call: u32, message: &[u8]) -> Result<Vec<u8>, Errno> {
        let number = |at: usize| u64::from_le_bytes(message[at..at + 8].try_into().unwrap());
        if call != GET_DERIVED_KEY || message[0] == 0 {
            return Err(Errno::EINVAL);
        }
        let memory = File::options()
            .read(true)
            .write(true)
            .open("/proc/self/mem")?;
        let mut request = vec![0; 32];
        memory.read_exact_at(&mut request, number(8))?;
        let select = u32::from_le_bytes(request[..4].try_into().unwrap());
        self.asked.lock().unwrap().push(request);
        let (status, byte, error) = match *self.answer.lock().unwrap() {
            // Reserved bits, and the reserved choice.
            Answer::Key(_) | Answer::Loaded { .. } if select >= 0b110 => (INVALID_PARAM, 0x77, 0),
            Answer::Old(_) if select > 1 => (INVALID_PARAM, 0x77, 0),
            Answer::Loaded { vlek, .. } if matches!(select, 0 | 0b100) => (0, vlek, 0),
            Answer::Loaded { vcek: byte, .. } | Answer::Key(byte) | Answer::Old(byte) => {
                (0, byte, 0)
            }
            Answer::Status(status) => (status, 0x77, 0),
            Answer::Error(error) => (0, 0x77, error),
            Answer::Nothing => return Ok(message.to_vec()),
        };
        let response = [&u32::to_le_bytes(status)[..], &[0; 28], &[byte; 32]].concat();
        memory.write_all_at(&response, number(16))?;
        Ok([&message[..24], &error.to_le_bytes()].concat())
    }
}

/// `SNP_GET_DERIVED_KEY` on x86-64.
const GET_DERIVED_KEY: u32 = 0xc020_5301;
/// The firmware's status for what it does not know.
const INVALID_PARAM: u32 = 0x16;
