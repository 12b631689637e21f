//! The launch measurement of an SEV-SNP guest: what the AMD Secure Processor computes while the
//! hypervisor loads the guest page by page (SEV Secure Nested Paging Firmware ABI, 8.17.2).
//!
//! Written here and not taken from the crate `sev`, whose known answers the tests hold: with it come
//! forty more crates, one of them under a licence and one with an advisory that this project does
//! not accept, and it panics on firmware whose offsets lie.

use std::fmt;

use sha2::{Digest as _, Sha256, Sha384};

/// What is loaded into a guest before it starts.
pub struct Guest<'a> {
    /// The firmware (OVMF), which ends at 4 GiB.
    pub firmware: &'a [u8],
    /// What the hypervisor hands to the firmware, when it starts a kernel directly.
    pub kernel: Option<Kernel<'a>>,
    pub vcpus: u32,
    /// CPUID 1, EAX: family, model, stepping.
    pub cpu_signature: u32,
    /// SEV_FEATURES of the VMSA.
    pub features: u64,
    pub hypervisor: Hypervisor,
}

pub struct Kernel<'a> {
    pub image: &'a [u8],
    /// Empty without one.
    pub initial_disk: &'a [u8],
    pub command_line: &'a str,
}

/// They start the processors in slightly different states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Hypervisor {
    Qemu,
    Ec2,
}

/// What is wrong with the firmware.
#[derive(Debug, PartialEq, Eq)]
pub struct FirmwareError(&'static str);

impl fmt::Display for FirmwareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for FirmwareError {}

/// The measurement, as it stands in an attestation report.
///
/// # Errors
/// When the firmware is none that SEV-SNP can start, or has no place for a kernel's digest.
pub fn measurement(guest: &Guest<'_>) -> Result<[u8; 48], FirmwareError> {
    let firmware = Firmware::read(guest.firmware)?;
    let mut digest = LaunchDigest([0; 48]);
    for (page, address) in guest
        .firmware
        .chunks(PAGE)
        .zip((firmware.start..).step_by(PAGE))
    {
        digest.page(PageType::Normal, address, page);
    }
    let cpuid_last = guest.hypervisor == Hypervisor::Ec2;
    let (cpuid, others): (Vec<_>, Vec<_>) = firmware
        .sections
        .iter()
        .partition(|section| cpuid_last && section.kind == SECTION_CPUID);
    for section in others.into_iter().chain(cpuid) {
        measure_section(section, &firmware, guest, &mut digest)?;
    }
    if guest.kernel.is_some() && !firmware.has(SECTION_KERNEL_HASHES) {
        return Err(FirmwareError("it does not check the digest of a kernel"));
    }
    let boot = save_area(RESET_VECTOR, guest);
    let other = save_area(firmware.other_processors_start()?, guest);
    for processor in 0..guest.vcpus {
        let page = if processor == 0 { &boot } else { &other };
        digest.page(PageType::SaveArea, SAVE_AREA_ADDRESS, page);
    }
    Ok(digest.0)
}

fn measure_section(
    section: &Section,
    firmware: &Firmware,
    guest: &Guest<'_>,
    digest: &mut LaunchDigest,
) -> Result<(), FirmwareError> {
    let kind = match section.kind {
        SECTION_MEMORY | SECTION_SVSM => PageType::Zero,
        SECTION_SECRETS => PageType::Secrets,
        SECTION_CPUID => PageType::Cpuid,
        SECTION_KERNEL_HASHES => match &guest.kernel {
            Some(kernel) => {
                let page = hashes_page(kernel, firmware.hashes_offset()?)?;
                digest.page(PageType::Normal, section.address, &page);
                return Ok(());
            }
            None => PageType::Zero,
        },
        _ => {
            return Err(FirmwareError(
                "it has a section of a kind that is not known",
            ));
        }
    };
    let size = if kind == PageType::Zero {
        section.size
    } else {
        PAGE
    };
    for address in (section.address..).step_by(PAGE).take(size / PAGE) {
        digest.unread_page(kind, address);
    }
    Ok(())
}

/// The digest so far; each page is hashed onto it.
struct LaunchDigest([u8; 48]);

#[derive(Clone, Copy, PartialEq, Eq)]
enum PageType {
    Normal = 1,
    SaveArea = 2,
    Zero = 3,
    Secrets = 5,
    Cpuid = 6,
}

impl LaunchDigest {
    fn page(&mut self, kind: PageType, address: u64, page: &[u8]) {
        self.add(kind, address, &Sha384::digest(page));
    }

    /// A page whose contents the processor fills in, or makes zero.
    fn unread_page(&mut self, kind: PageType, address: u64) {
        self.add(kind, address, &[0; 48]);
    }

    // The structure PAGE_INFO.
    fn add(&mut self, kind: PageType, address: u64, contents: &[u8]) {
        let hash = Sha384::new()
            .chain_update(self.0)
            .chain_update(contents)
            .chain_update(0x70_u16.to_le_bytes())
            // The type, no migration image, no permissions for the lower privilege levels.
            .chain_update([kind as u8, 0, 0, 0, 0, 0])
            .chain_update(address.to_le_bytes());
        self.0 = hash.finalize().into();
    }
}

/// What the end of an OVMF says of it.
struct Firmware {
    start: u64,
    sections: Vec<Section>,
    reset_block: Option<u32>,
    hashes_table: Option<u32>,
}

/// Memory that the firmware wants prepared.
struct Section {
    address: u64,
    size: usize,
    kind: u32,
}

impl Firmware {
    fn read(bytes: &[u8]) -> Result<Self, FirmwareError> {
        if bytes.is_empty() || !bytes.len().is_multiple_of(PAGE) || bytes.len() > FIRMWARE_BYTES {
            return Err(FirmwareError(
                "it is not whole pages of 4 KiB, 64 MiB at most",
            ));
        }
        let table = footer_table(bytes).ok_or(FirmwareError("it does not end as OVMF does"))?;
        let word = |guid: &[u8; 16]| {
            let (_, data) = table.iter().find(|(found, _)| found == guid)?;
            data.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
        };
        let from_end = word(&METADATA).ok_or(FirmwareError("it has no metadata for SEV"))?;
        let sections = sections(bytes, from_end as usize);
        Ok(Self {
            start: FOUR_GIB - bytes.len() as u64,
            sections: sections.ok_or(FirmwareError("its metadata for SEV cannot be read"))?,
            reset_block: word(&RESET_BLOCK),
            hashes_table: word(&HASHES_TABLE),
        })
    }

    fn has(&self, kind: u32) -> bool {
        self.sections.iter().any(|section| section.kind == kind)
    }

    fn other_processors_start(&self) -> Result<u64, FirmwareError> {
        let start = self.reset_block.map(u64::from);
        start.ok_or(FirmwareError(
            "it does not say where other processors start",
        ))
    }

    fn hashes_offset(&self) -> Result<usize, FirmwareError> {
        let address = self.hashes_table.map(|address| address as usize % PAGE);
        address.ok_or(FirmwareError("it has no place for the digest of a kernel"))
    }
}

/// The table that ends 32 bytes before the end: entries of data, size and name, read backwards.
fn footer_table(bytes: &[u8]) -> Option<Vec<([u8; 16], &[u8])>> {
    let (rest, guid, size) = split_entry(bytes.get(..bytes.len().checked_sub(32)?)?)?;
    if guid != TABLE_FOOTER {
        return None;
    }
    let mut left = rest.get(rest.len().checked_sub(size)?..)?;
    let mut entries = Vec::new();
    while left.len() >= ENTRY_HEADER {
        let (before, guid, size) = split_entry(left)?;
        let start = before.len().checked_sub(size)?;
        entries.push((guid, &before[start..]));
        left = &before[..start];
    }
    Some(entries)
}

/// What stands before the last entry's header, its name, and the length of its data.
fn split_entry(bytes: &[u8]) -> Option<(&[u8], [u8; 16], usize)> {
    let (rest, guid) = bytes.split_last_chunk::<16>()?;
    let (rest, size) = rest.split_last_chunk::<2>()?;
    let size = usize::from(u16::from_le_bytes(*size)).checked_sub(ENTRY_HEADER)?;
    Some((rest, *guid, size))
}

fn sections(bytes: &[u8], from_end: usize) -> Option<Vec<Section>> {
    let header = bytes.get(bytes.len().checked_sub(from_end)?..)?;
    let word = |at: usize| {
        let bytes = header.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    };
    if !header.starts_with(b"ASEV") || word(8)? != 1 {
        return None;
    }
    // The header says how many there are, the file how many there can be.
    let count = word(12)? as usize;
    (count <= header.len() / 12).then_some(())?;
    (0..count)
        .map(|i| {
            let at = 16 + i * 12;
            let size = word(at + 4)? as usize;
            let fits = size.is_multiple_of(PAGE) && size <= FIRMWARE_BYTES;
            fits.then_some(Section {
                address: word(at)?.into(),
                size,
                kind: word(at + 8)?,
            })
        })
        .collect()
}

/// The page in which QEMU hands over the digests of what it loads.
fn hashes_page(kernel: &Kernel<'_>, offset: usize) -> Result<[u8; PAGE], FirmwareError> {
    let command_line = [kernel.command_line.as_bytes(), &[0]].concat();
    let mut table = HASHES_HEADER.to_vec();
    table.extend(168_u16.to_le_bytes());
    for (guid, contents) in [
        (COMMAND_LINE_ENTRY, command_line.as_slice()),
        (INITIAL_DISK_ENTRY, kernel.initial_disk),
        (KERNEL_ENTRY, kernel.image),
    ] {
        table.extend(guid);
        table.extend(50_u16.to_le_bytes());
        table.extend(Sha256::digest(contents));
    }
    let mut page = [0; PAGE];
    let place = page
        .get_mut(offset..)
        .and_then(|rest| rest.get_mut(..table.len()));
    let place = place.ok_or(FirmwareError(
        "its place for digests does not fit into a page",
    ))?;
    place.copy_from_slice(&table);
    Ok(page)
}

/// The state in which a processor starts: the page VMSA (AMD64 Architecture Programmer's Manual,
/// volume 2, table B-4).
fn save_area(start: u64, guest: &Guest<'_>) -> [u8; PAGE] {
    let (code, stack, task, rdx, mxcsr, fcw) = match guest.hypervisor {
        Hypervisor::Qemu => (0x9b, 0x93, 0x8b, guest.cpu_signature, 0x1f80_u32, 0x37f_u16),
        Hypervisor::Ec2 if start == RESET_VECTOR => (0x9a, 0x92, 0x83, 0, 0, 0),
        Hypervisor::Ec2 => (0x9b, 0x92, 0x83, 0, 0, 0),
    };
    let mut page = [0; PAGE];
    // es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr
    let attributes = [0x93, code, stack, 0x93, 0x93, 0x93, 0, 0x82, 0, task];
    for (attribute, segment) in attributes.into_iter().zip(page.chunks_exact_mut(16)) {
        segment[2..8].copy_from_slice(&[attribute, 0, 0xff, 0xff, 0, 0]);
    }
    let mut put = |at: usize, value: &[u8]| page[at..at + value.len()].copy_from_slice(value);
    put(0x10, &0xf000_u16.to_le_bytes());
    put(0x18, &(start & 0xffff_0000).to_le_bytes());
    for (at, register) in [
        (0x0d0, 0x1000),                // efer
        (0x148, 0x40),                  // cr4
        (0x158, 0x10),                  // cr0
        (0x160, 0x400),                 // dr7
        (0x168, 0xffff_0ff0),           // dr6
        (0x170, 0x2),                   // rflags
        (0x178, start & 0xffff),        // rip
        (0x268, 0x0007_0406_0007_0406), // pat
        (0x310, u64::from(rdx)),
        (0x3b0, guest.features),
        (0x3e8, 0x1), // xcr0
    ] {
        put(at, &register.to_le_bytes());
    }
    put(0x408, &mxcsr.to_le_bytes());
    put(0x410, &fcw.to_le_bytes());
    page
}

/// A name as it stands in a file: the first three parts are little-endian.
const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let (a, b, c, d) = (
        a.to_le_bytes(),
        b.to_le_bytes(),
        c.to_le_bytes(),
        d.to_be_bytes(),
    );
    [
        a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6],
        d[7],
    ]
}

const PAGE: usize = 4096;
const FOUR_GIB: u64 = 1 << 32;
const FIRMWARE_BYTES: usize = 64 * 1024 * 1024;
const RESET_VECTOR: u64 = 0xffff_fff0;
/// Where save areas are said to stand, whichever processor they are of.
const SAVE_AREA_ADDRESS: u64 = 0xffff_ffff_f000;
const ENTRY_HEADER: usize = 18;

const SECTION_MEMORY: u32 = 1;
const SECTION_SECRETS: u32 = 2;
const SECTION_CPUID: u32 = 3;
const SECTION_SVSM: u32 = 4;
const SECTION_KERNEL_HASHES: u32 = 0x10;

const TABLE_FOOTER: [u8; 16] = guid(0x96b582de, 0x1fb2, 0x45f7, 0xbaea_a366_c55a_082d);
const METADATA: [u8; 16] = guid(0xdc886566, 0x984a, 0x4798, 0xa75e_5585_a7bf_67cc);
const RESET_BLOCK: [u8; 16] = guid(0x00f771de, 0x1a7e, 0x4fcb, 0x890e_68c7_7e2f_b44e);
const HASHES_TABLE: [u8; 16] = guid(0x7255371f, 0x3a3b, 0x4b04, 0x927b_1da6_efa8_d454);
const HASHES_HEADER: [u8; 16] = guid(0x9438d606, 0x4f22, 0x4cc9, 0xb479_a793_d411_fd21);
const KERNEL_ENTRY: [u8; 16] = guid(0x4de79437, 0xabd2, 0x427f, 0xb835_d5b1_72d2_045b);
const INITIAL_DISK_ENTRY: [u8; 16] = guid(0x44baf731, 0x3a2f, 0x4bd7, 0x9af1_41e2_9169_781d);
const COMMAND_LINE_ENTRY: [u8; 16] = guid(0x97d02dd8, 0xbd20, 0x4c94, 0xaa78_e771_4d36_ab2a);

#[cfg(test)]
mod tests {
    use super::*;

    const AMD_SEV: &[u8] = include_bytes!("../../../testdata/firmware/ovmf_AmdSev_suffix.bin");
    const X64: &[u8] = include_bytes!("../../../testdata/firmware/ovmf_OvmfX64_suffix.bin");

    fn guest<'a>(firmware: &'a [u8], kernel: Option<&'static str>) -> Guest<'a> {
        Guest {
            firmware,
            kernel: kernel.map(|command_line| Kernel {
                image: &[],
                initial_disk: &[],
                command_line,
            }),
            vcpus: 1,
            cpu_signature: 0x0080_0f12,
            features: 1,
            hypervisor: Hypervisor::Qemu,
        }
    }

    /// The answers of the crate `sev` 8.0.0 in its own tests, for processors of type EPYC-v4.
    #[test]
    fn known_answers_are_met() {
        let text = "console=ttyS0 loglevel=7";
        let of = |firmware, kernel, vcpus, features, hypervisor| Guest {
            vcpus,
            features,
            hypervisor,
            ..guest(firmware, kernel)
        };
        use Hypervisor::{Ec2, Qemu};
        for (guest, want) in [
            (
                of(AMD_SEV, Some(""), 1, 0x01, Qemu),
                "ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5",
            ),
            (
                of(AMD_SEV, Some(""), 1, 0x21, Qemu),
                "329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198",
            ),
            (
                of(AMD_SEV, Some(text), 1, 0x01, Qemu),
                "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa",
            ),
            (
                of(AMD_SEV, Some(text), 1, 0x21, Qemu),
                "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977",
            ),
            (
                of(AMD_SEV, Some(""), 1, 0x01, Ec2),
                "7d3756157c805bf6adf617064c8552e8c1688fa1c8756f11cbf56ba5d25c9270fb69c0505c1cbe1c5c66c0e34c6ed3be",
            ),
            (
                of(AMD_SEV, Some(""), 1, 0x21, Ec2),
                "6ae80856486b1396af8c82a40351d6ed76a20c785e9c7fa4ffa27c22d5d6313b4b3b458cd3c9968e6f89fb5d8450d7a6",
            ),
            (
                of(AMD_SEV, None, 1, 0x01, Qemu),
                "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d",
            ),
            (
                of(AMD_SEV, None, 1, 0x21, Qemu),
                "e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b",
            ),
            (
                of(AMD_SEV, Some(""), 4, 0x01, Qemu),
                "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5",
            ),
            (
                of(AMD_SEV, Some(""), 4, 0x21, Qemu),
                "4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414a631942",
            ),
            (
                of(X64, None, 1, 0x01, Qemu),
                "da0296de8193586a5512078dcd719eccecbd87e2b825ad4148c44f665dc87df21e5b49e21523a9ad993afdb6a30b4005",
            ),
            (
                of(X64, None, 1, 0x21, Qemu),
                "28797ae0afaba4005a81e629acebfb59e6687949d6be44007cd5506823b0dd66f146aaae26ff291eed7b493d8a64c385",
            ),
        ] {
            assert_eq!(measurement(&guest).map(hex::encode), Ok(want.to_owned()));
        }
    }

    #[test]
    fn firmware_that_does_not_measure_a_kernel_is_refused_with_one() {
        assert!(measurement(&guest(X64, Some(""))).is_err());
    }

    #[test]
    fn firmware_that_lies_is_refused_or_measured_as_another() {
        let whole = measurement(&guest(AMD_SEV, Some("")));
        for at in 0..AMD_SEV.len() {
            for value in [0x00, 0x7f, 0xff] {
                let mut changed = AMD_SEV.to_vec();
                if changed[at] != value {
                    changed[at] = value;
                    assert_ne!(measurement(&guest(&changed, Some(""))), whole, "byte {at}");
                }
            }
        }
        for end in (0..AMD_SEV.len()).step_by(7) {
            assert!(measurement(&guest(&AMD_SEV[..end], None)).is_err());
        }
        assert!(measurement(&guest(&[0; PAGE], None)).is_err());
    }
}
