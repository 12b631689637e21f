//! Gramine's `/dev/attestation` (`libos/src/fs/dev/attestation.c`), as an enclave sees it.

use std::sync::Mutex;

use blindai_tee::Simulation;
use fuser::{Errno, FileType};

use super::files::{Mounted, Tree};

/// The files of one enclave: one state for the whole process.
pub struct Gramine {
    platform: Simulation,
    attestation_type: &'static str,
    report_data: Mutex<[u8; 64]>,
    fault: Mutex<Fault>,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Fault {
    #[default]
    None,
    /// The quoting enclave does not answer.
    NoQuote,
    /// The quote is cut to this many bytes.
    Truncated(usize),
    /// The quote has no end.
    Endless,
    /// Another thread of this process, which does not know of our lock, writes between our write and
    /// our read.
    Intruder,
    /// What is written is not kept.
    LostWrite,
    /// Half of the bytes are taken.
    ShortWrite,
    /// The sealing keys are too short.
    ShortKeys,
    /// The sealing keys are too long.
    LongKeys,
    /// The sealing keys are zeros.
    ZeroKeys,
    /// There are no sealing keys.
    NoKeys,
}

impl Gramine {
    pub fn mount(platform: Simulation) -> Mounted<Self> {
        Self::mount_of_type(platform, "dcap")
    }

    pub fn mount_of_type(platform: Simulation, attestation_type: &'static str) -> Mounted<Self> {
        Mounted::new(Self {
            platform,
            attestation_type,
            report_data: Mutex::new([0; 64]),
            fault: Mutex::default(),
        })
    }

    pub fn platform(&self) -> &Simulation {
        &self.platform
    }

    pub fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    fn fault(&self) -> Fault {
        *self.fault.lock().unwrap()
    }

    fn quote(&self) -> Result<Vec<u8>, Errno> {
        let mut report_data = self.report_data.lock().unwrap();
        if self.fault() == Fault::Intruder {
            *report_data = [0xee; 64];
        }
        let mut quote = self.platform.sign(&report_data).unwrap();
        match self.fault() {
            Fault::NoQuote => return Err(Errno::EPERM),
            Fault::Truncated(length) => quote.truncate(length),
            Fault::Endless => quote.resize(1 << 24, 0),
            _ => {}
        }
        Ok(quote)
    }

    fn key(&self, byte: u8) -> Vec<u8> {
        match self.fault() {
            Fault::ShortKeys => vec![byte; 15],
            Fault::LongKeys => vec![byte; 17],
            Fault::ZeroKeys => vec![0; 16],
            _ => vec![byte; 16],
        }
    }
}

impl Tree for Gramine {
    fn kind(&self, path: &str) -> Option<FileType> {
        let attests = self.attestation_type != "none";
        match path {
            "" | "keys" => Some(FileType::Directory),
            "attestation_type" => Some(FileType::RegularFile),
            "user_report_data" | "quote" => attests.then_some(FileType::RegularFile),
            "keys/_sgx_mrenclave" | "keys/_sgx_mrsigner" => {
                (self.fault() != Fault::NoKeys).then_some(FileType::RegularFile)
            }
            _ => None,
        }
    }

    fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        match path {
            "attestation_type" => Ok(self.attestation_type.as_bytes().to_vec()),
            "user_report_data" => Ok(self.report_data.lock().unwrap().to_vec()),
            "quote" => self.quote(),
            "keys/_sgx_mrenclave" => Ok(self.key(MRENCLAVE_KEY)),
            "keys/_sgx_mrsigner" => Ok(self.key(MRSIGNER_KEY)),
            _ => Err(Errno::EACCES),
        }
    }

    fn take(&self, _path: &str, piece: &[u8]) -> Result<usize, Errno> {
        match self.fault() {
            Fault::ShortWrite => Ok(piece.len() / 2),
            _ => Ok(piece.len()),
        }
    }

    /// Fills with zeros what is short, and cuts what is long.
    fn written(&self, path: &str, bytes: &[u8]) {
        if path == "user_report_data" && self.fault() != Fault::LostWrite {
            let mut report_data = self.report_data.lock().unwrap();
            let length = bytes.len().min(64);
            *report_data = [0; 64];
            report_data[..length].copy_from_slice(&bytes[..length]);
        }
    }
}

/// The bytes of the emulated keys.
pub const MRENCLAVE_KEY: u8 = 0x5e;
pub const MRSIGNER_KEY: u8 = 0x51;
