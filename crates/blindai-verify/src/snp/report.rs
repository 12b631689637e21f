//! The attestation report, byte by byte (AMD publication 56860, "SEV Secure Nested Paging Firmware
//! ABI Specification", table ATTESTATION_REPORT).
//!
//! Read from the raw bytes and never written again: what is verified is what the chip signed.

use super::Product;
use crate::RejectionCode;
use crate::dcap::Refused;

/// A report of a known version. Nothing in it is verified.
#[derive(Clone, Copy)]
pub(crate) struct Report<'a>(&'a [u8; REPORT_BYTES]);

/// Which key signed the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SigningKey {
    /// Of the chip, at its patch level.
    Vcek,
    /// Of the cloud provider, loaded into the chip.
    Vlek,
}

impl SigningKey {
    pub fn name(self) -> &'static str {
        match self {
            SigningKey::Vcek => "VCEK",
            SigningKey::Vlek => "VLEK",
        }
    }
}

impl<'a> Report<'a> {
    /// Reads a report.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Refused> {
        let Ok(bytes) = <&[u8; REPORT_BYTES]>::try_from(bytes) else {
            let length = bytes.len();
            return Err(malformed(format!(
                "{length} bytes are no report of SEV-SNP, which has {REPORT_BYTES}"
            )));
        };
        let report = Self(bytes);
        report.check_form()?;
        Ok(report)
    }

    fn check_form(self) -> Result<(), Refused> {
        let (version, algorithm) = (self.version(), self.number(0x34));
        if ![2, 3, 5].contains(&version) {
            return Err(unsupported(format!(
                "the report is of version {version}, and 2, 3 and 5 are known"
            )));
        }
        if algorithm != ECDSA_P384_SHA384 {
            return Err(unsupported(format!(
                "the report names the signature algorithm {algorithm}, which is not ECDSA P-384"
            )));
        }
        if self.key_info() & MASK_CHIP_KEY != 0 {
            return Err(unsupported(
                "the host masked the chip's key: the report is not signed".to_owned(),
            ));
        }
        self.signing_key()?;
        // What the signature does not cover, and what it covers without saying anything: bytes there
        // would make two reports of one.
        let zeros = [&self.0[0x4c..0x50], &self.0[0x2d0..0x2e8], &self.0[0x318..]];
        if self.key_info() >> 5 != 0 || zeros.into_iter().flatten().any(|byte| *byte != 0) {
            return Err(malformed(
                "the report has bytes where there must be zeros".to_owned(),
            ));
        }
        Ok(())
    }

    /// What the signature covers.
    pub fn signed(self) -> &'a [u8] {
        &self.0[..SIGNED_BYTES]
    }

    /// The two numbers of the signature, most significant byte first, 48 bytes each.
    pub fn signature(self) -> [u8; 96] {
        let mut signature: [u8; 96] = [0; 96];
        let (r, s) = signature.split_at_mut(48);
        r.copy_from_slice(&self.bytes::<48>(0x2a0));
        s.copy_from_slice(&self.bytes::<48>(0x2e8));
        // The report has them least significant byte first.
        r.reverse();
        s.reverse();
        signature
    }

    pub fn signing_key(self) -> Result<SigningKey, Refused> {
        match (self.key_info() >> 2) & 7 {
            0 => Ok(SigningKey::Vcek),
            1 => Ok(SigningKey::Vlek),
            7 => Err(unsupported("the report is not signed".to_owned())),
            other => Err(unsupported(format!(
                "the report is signed by a key of the unknown kind {other}"
            ))),
        }
    }

    /// Whether somebody vouched for the key that signed the guest's identity.
    pub fn has_author_key(self) -> bool {
        self.key_info() & AUTHOR_KEY_EN != 0
    }

    pub fn version(self) -> u32 {
        self.number(0x00)
    }

    pub fn guest_svn(self) -> u32 {
        self.number(0x04)
    }

    pub fn guest_policy(self) -> GuestPolicy {
        GuestPolicy(u64::from_le_bytes(self.bytes(0x08)))
    }

    pub fn family_id(self) -> [u8; 16] {
        self.bytes(0x10)
    }

    pub fn image_id(self) -> [u8; 16] {
        self.bytes(0x20)
    }

    pub fn vmpl(self) -> u32 {
        self.number(0x30)
    }

    pub fn current_tcb(self) -> Tcb {
        Tcb(self.bytes(0x38))
    }

    pub fn platform_info(self) -> u64 {
        u64::from_le_bytes(self.bytes(0x40))
    }

    pub fn report_data(self) -> [u8; 64] {
        self.bytes(0x50)
    }

    pub fn measurement(self) -> [u8; 48] {
        self.bytes(0x90)
    }

    pub fn host_data(self) -> [u8; 32] {
        self.bytes(0xc0)
    }

    pub fn id_key_digest(self) -> [u8; 48] {
        self.bytes(0xe0)
    }

    pub fn author_key_digest(self) -> [u8; 48] {
        self.bytes(0x110)
    }

    /// The patch level that the chip's key is derived from, and its certificate names.
    pub fn reported_tcb(self) -> Tcb {
        Tcb(self.bytes(0x180))
    }

    /// Family, model and stepping of the CPU, which reports of version 2 do not name.
    pub fn cpu(self) -> Option<[u8; 3]> {
        (self.version() >= 3).then(|| self.bytes(0x188))
    }

    /// Zeros when the host masks it.
    pub fn chip_id(self) -> [u8; 64] {
        self.bytes(0x1a0)
    }

    /// The patch level that the machine can no longer go behind.
    pub fn committed_tcb(self) -> Tcb {
        Tcb(self.bytes(0x1e0))
    }

    /// The patch level with which the guest was started; the machine may have been updated since.
    pub fn launch_tcb(self) -> Tcb {
        Tcb(self.bytes(0x1f0))
    }

    fn key_info(self) -> u32 {
        self.number(0x48)
    }

    fn number(self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn bytes<const N: usize>(self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        // All callers name places inside the report.
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }
}

/// What the guest's owner allowed when it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GuestPolicy(pub u64);

impl GuestPolicy {
    /// The oldest interface of the firmware that the guest accepts: major, minor.
    pub fn abi(self) -> (u8, u8) {
        let [minor, major, ..] = self.0.to_le_bytes();
        (major, minor)
    }

    pub fn allows_smt(self) -> bool {
        self.0 & (1 << 16) != 0
    }

    pub fn allows_migration_agent(self) -> bool {
        self.0 & (1 << 18) != 0
    }

    pub fn allows_debug(self) -> bool {
        self.0 & (1 << 19) != 0
    }

    /// What may allow something that nobody here has heard of.
    pub fn unknown_bits(self) -> u64 {
        self.0 >> 26 << 26
    }
}

/// Security versions, one byte each; which byte is what depends on the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tcb(pub [u8; 8]);

/// A part of the platform that has a security version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Component {
    Fmc,
    Bootloader,
    Tee,
    Snp,
    Microcode,
}

impl Component {
    pub const ALL: [Component; 5] = [
        Component::Fmc,
        Component::Bootloader,
        Component::Tee,
        Component::Snp,
        Component::Microcode,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Component::Fmc => "fmc",
            Component::Bootloader => "bootloader",
            Component::Tee => "tee",
            Component::Snp => "snp",
            Component::Microcode => "microcode",
        }
    }
}

impl Tcb {
    /// The version of a component; `None` when the product has no such component.
    pub fn version(self, product: Product, component: Component) -> Option<u8> {
        let [first, second, third, fourth, _, _, seventh, last] = self.0;
        match (component, product) {
            (Component::Fmc, Product::Turin) => Some(first),
            (Component::Fmc, _) => None,
            (Component::Bootloader, Product::Turin) => Some(second),
            (Component::Bootloader, _) => Some(first),
            (Component::Tee, Product::Turin) => Some(third),
            (Component::Tee, _) => Some(second),
            (Component::Snp, Product::Turin) => Some(fourth),
            (Component::Snp, _) => Some(seventh),
            (Component::Microcode, _) => Some(last),
        }
    }

    /// `bootloader 4, tee 0, …`
    pub fn describe(self, product: Product) -> String {
        let version = |component: Component| {
            let version = self.version(product, component)?;
            Some(format!("{} {version}", component.name()))
        };
        let versions: Vec<_> = Component::ALL.into_iter().filter_map(version).collect();
        versions.join(", ")
    }
}

const REPORT_BYTES: usize = 1184;
const SIGNED_BYTES: usize = 0x2a0;
const ECDSA_P384_SHA384: u32 = 1;
const AUTHOR_KEY_EN: u32 = 1;
const MASK_CHIP_KEY: u32 = 2;

fn malformed(text: String) -> Refused {
    Refused {
        code: RejectionCode::QuoteMalformed,
        text,
    }
}

fn unsupported(text: String) -> Refused {
    Refused {
        code: RejectionCode::QuoteUnsupported,
        text,
    }
}
