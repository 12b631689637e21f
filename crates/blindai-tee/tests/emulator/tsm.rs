//! Linux's configfs-tsm (`drivers/virt/coco/guest/report.c`), as a TDX or SEV-SNP guest sees it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use blindai_core::{SnpCollateral, Tee};
use blindai_tee::{Attester as _, Simulation};
use fuser::{Errno, FileType};

use super::files::{Mounted, Tree};

/// A guest's report interface.
pub struct Tsm {
    provider: &'static str,
    platform: Simulation,
    auxblob: Vec<u8>,
    entries: Mutex<BTreeMap<String, Entry>>,
    earlier: Mutex<Vec<u8>>,
    fault: Mutex<Fault>,
    busy: AtomicU32,
    made: AtomicU32,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Fault {
    #[default]
    None,
    /// There is a directory, but no driver of a guest.
    NoDriver,
    /// The driver is not one that is known.
    OtherProvider,
    /// The host answers with nothing.
    EmptyOutblob,
    /// The host answers with this many bytes of it.
    TruncatedOutblob(usize),
    /// The host answers without end.
    EndlessOutblob,
    /// The answer is to the request before.
    StaleOutblob,
    /// Somebody else writes his question to our entry while we wait for the answer.
    Intruder,
    /// Somebody else's question stands there, and the count of writes is as it would be for ours.
    Swapped,
    /// The write is not counted, which the kernel tells nobody: it acts when the file is closed.
    LostWrite,
    /// The kernel takes half of the bytes.
    ShortWrite,
    /// The report below VMPL 2 is refused, as for a guest under a paravisor.
    Floor,
    /// The generation is not a number.
    NoGeneration,
}

#[derive(Default)]
struct Entry {
    inblob: Vec<u8>,
    privlevel: u32,
    generation: u64,
}

impl Tsm {
    pub fn mount(platform: Simulation) -> Mounted<Self> {
        Self::mount_with(platform, Vec::new())
    }

    /// With what the host gives beside each report.
    pub fn mount_with(platform: Simulation, auxblob: Vec<u8>) -> Mounted<Self> {
        let provider = match platform.tee() {
            Tee::Tdx => "tdx_guest",
            Tee::SevSnp => "sev_guest",
            Tee::Sgx => panic!("enclaves have no configfs-tsm"),
        };
        Mounted::new(Self {
            provider,
            platform,
            auxblob,
            entries: Mutex::default(),
            earlier: Mutex::default(),
            fault: Mutex::default(),
            busy: AtomicU32::new(0),
            made: AtomicU32::new(0),
        })
    }

    pub fn platform(&self) -> &Simulation {
        &self.platform
    }

    pub fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    /// The next `times` reports are refused because the firmware is busy.
    pub fn be_busy(&self, times: u32) {
        self.busy.store(times, Ordering::SeqCst);
    }

    /// Entries that somebody forgot to remove.
    pub fn entries_left(&self) -> usize {
        self.entries.lock().unwrap().len()
    }

    pub fn entries_made(&self) -> u32 {
        self.made.load(Ordering::SeqCst)
    }

    fn fault(&self) -> Fault {
        *self.fault.lock().unwrap()
    }

    fn outblob(&self, entry: &mut Entry) -> Result<Vec<u8>, Errno> {
        let asked: &[u8; 64] = entry
            .inblob
            .as_slice()
            .try_into()
            .map_err(|_| Errno::EINVAL)?;
        let busy = |left: u32| left.checked_sub(1);
        if self
            .busy
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, busy)
            .is_ok()
        {
            return Err(Errno::EBUSY);
        }
        let mut report = self.platform.sign(asked).unwrap();
        match self.fault() {
            Fault::Floor if entry.privlevel < FLOOR => return Err(Errno::EINVAL),
            Fault::EmptyOutblob => report.clear(),
            Fault::TruncatedOutblob(length) => report.truncate(length),
            Fault::EndlessOutblob => report.resize(1 << 24, 0),
            Fault::Intruder => {
                entry.generation += 1;
                report = self.platform.sign(&[0xee; 64]).unwrap();
            }
            Fault::Swapped => report = self.platform.sign(&[0xee; 64]).unwrap(),
            Fault::StaleOutblob => report.clone_from(&self.earlier.lock().unwrap()),
            Fault::None => self.earlier.lock().unwrap().clone_from(&report),
            _ => {}
        }
        Ok(report)
    }
}

impl Tree for Tsm {
    fn kind(&self, path: &str) -> Option<FileType> {
        let entries = self.entries.lock().unwrap();
        match path.split_once('/') {
            None => (path.is_empty() || entries.contains_key(path)).then_some(FileType::Directory),
            Some((entry, file)) => {
                let of_snp = ["auxblob", "privlevel", "privlevel_floor"].contains(&file);
                let known = ["inblob", "outblob", "provider", "generation"].contains(&file)
                    || (of_snp && self.platform.tee() == Tee::SevSnp);
                (entries.contains_key(entry) && known).then_some(FileType::RegularFile)
            }
        }
    }

    fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let (entry, file) = path.split_once('/').ok_or(Errno::EISDIR)?;
        let mut entries = self.entries.lock().unwrap();
        let entry = entries.get_mut(entry).ok_or(Errno::ENOENT)?;
        let fault = self.fault();
        match file {
            "provider" if fault == Fault::OtherProvider => Ok(b"arm_cca_guest\n".to_vec()),
            "provider" => Ok(format!("{}\n", self.provider).into_bytes()),
            "generation" if fault == Fault::NoGeneration => Ok(b"\n".to_vec()),
            "generation" => Ok(format!("{}\n", entry.generation).into_bytes()),
            "privlevel_floor" if fault == Fault::Floor => Ok(format!("{FLOOR}\n").into_bytes()),
            "privlevel_floor" => Ok(b"0\n".to_vec()),
            "outblob" => self.outblob(entry),
            "auxblob" => Ok(self.auxblob.clone()),
            _ => Err(Errno::EACCES),
        }
    }

    fn take(&self, path: &str, piece: &[u8]) -> Result<usize, Errno> {
        match piece.len() {
            _ if !path.ends_with("/inblob") => Ok(piece.len()),
            length if length > 64 => Err(Errno::EFBIG),
            length if self.fault() == Fault::ShortWrite => Ok(length / 2),
            length => Ok(length),
        }
    }

    fn written(&self, path: &str, bytes: &[u8]) {
        let Some((entry, file)) = path.split_once('/') else {
            return;
        };
        let mut entries = self.entries.lock().unwrap();
        let Some(entry) = entries.get_mut(entry) else {
            return;
        };
        match file {
            "inblob" => entry.inblob = bytes.to_vec(),
            "privlevel" => {
                let text = String::from_utf8_lossy(bytes);
                entry.privlevel = text.trim().parse().unwrap();
            }
            _ => return,
        }
        if self.fault() != Fault::LostWrite {
            entry.generation += 1;
        }
    }

    fn make_folder(&self, path: &str) -> Result<(), Errno> {
        if self.fault() == Fault::NoDriver {
            return Err(Errno::ENXIO);
        }
        let mut entries = self.entries.lock().unwrap();
        if entries.contains_key(path) {
            return Err(Errno::EEXIST);
        }
        entries.insert(path.to_owned(), Entry::default());
        self.made.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn remove_folder(&self, path: &str) -> Result<(), Errno> {
        let removed = self.entries.lock().unwrap().remove(path);
        removed.map(drop).ok_or(Errno::ENOENT)
    }
}

/// What a host that was given these certificates hands over (`snphost import`).
pub fn host_table(collateral: &SnpCollateral) -> Vec<u8> {
    let issuers = collateral.issuer_chain.as_deref().unwrap();
    let [ask, ark] = &pem::parse_many(issuers).unwrap()[..] else {
        panic!("an intermediate and a root");
    };
    certificate_table(&[
        (VCEK, pem::parse(&collateral.signer).unwrap().contents()),
        (ASK, ask.contents()),
        // Hosts load PEM, too.
        (ARK, pem::encode(ark).as_bytes()),
        (CRL, collateral.crl.as_deref().unwrap()),
    ])
}

/// A certificate table as in AMD's GHCB specification.
pub fn certificate_table(contents: &[([u8; 16], &[u8])]) -> Vec<u8> {
    let mut offset = 24 * (contents.len() + 1);
    let mut table = Vec::new();
    for (guid, content) in contents {
        table.extend_from_slice(guid);
        table.extend_from_slice(&(offset as u32).to_le_bytes());
        table.extend_from_slice(&(content.len() as u32).to_le_bytes());
        offset += content.len();
    }
    table.extend_from_slice(&[0; 24]);
    table.extend(contents.iter().flat_map(|(_, content)| *content));
    table
}

// In the order in which their text is written.
pub const VCEK: [u8; 16] = 0x63da758d_e664_4564_adc5_f4b93be8accd_u128.to_be_bytes();
pub const VLEK: [u8; 16] = 0xa8074bc2_a25a_483e_aae6_39c045a0b8a1_u128.to_be_bytes();
pub const ASK: [u8; 16] = 0x4ab7b379_bbac_4fe4_a02f_05aef327c782_u128.to_be_bytes();
pub const ARK: [u8; 16] = 0xc0b406a4_a803_4952_9743_3fb6014cd0ae_u128.to_be_bytes();
pub const CRL: [u8; 16] = 0x92f81bc3_5811_4d3d_97ff_d19f88dc67ea_u128.to_be_bytes();

/// The least privilege that a guest under a paravisor may name.
const FLOOR: u32 = 2;
