//! Of which platform a quote or report is. Read from unverified bytes: whoever lies here gets
//! collateral that does not fit his quote.

use blindai_core::{Evidence, Tee};
use der::asn1::{ObjectIdentifier, OctetString};
use der::{Any, Decode as _, Sequence};
use x509_cert::Certificate;

use crate::{CollateralError, CollateralErrorKind};

/// What names a platform at the vendor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Platform {
    Dcap(Dcap),
    Snp(Snp),
}

/// SGX and TDX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dcap {
    pub tee: Tee,
    /// Family, model, platform type and stepping.
    pub fmspc: [u8; 6],
    /// Intel's authority that certified the platform: `platform` or `processor`.
    pub ca: &'static str,
}

/// SEV-SNP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snp {
    /// The products it can be of; reports before version 3 do not say.
    pub products: &'static [Product],
    pub chip_id: [u8; 64],
    /// The patch level that the signing key was derived for.
    pub tcb: [u8; 8],
    pub signer: Signer,
}

/// How AMD's key service calls its generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Product {
    Milan,
    Genoa,
    Turin,
}

/// The key that signs reports: the chip's, or one that the cloud provider loaded into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signer {
    Vcek,
    Vlek,
}

impl Platform {
    pub fn of(quote: &[u8]) -> Result<Self, CollateralError> {
        match Evidence::is_snp_report(quote) {
            true => snp(quote).map(Self::Snp),
            false => dcap(quote).map(Self::Dcap),
        }
    }

    /// The name of its file in a folder of collateral.
    pub fn file_name(&self) -> String {
        match self {
            Self::Dcap(Dcap { tee, fmspc, ca }) => {
                format!("{tee}-{}-{ca}.json", hex::encode(fmspc))
            }
            Self::Snp(snp) => {
                let (chip, tcb) = (hex::encode(snp.chip_id), hex::encode(snp.tcb));
                format!("sev-snp-{}-{chip}-{tcb}.json", snp.signer.as_str())
            }
        }
    }
}

impl Product {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
        }
    }
}

impl Signer {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vcek => "vcek",
            Self::Vlek => "vlek",
        }
    }
}

fn snp(report: &[u8]) -> Result<Snp, CollateralError> {
    let read = || {
        let version = u32::from_le_bytes(array(report, 0)?);
        let [family, model] = array(report, CPUID)?;
        let products: &[_] = match (version, family, model) {
            (..=2, _, _) => &[Product::Milan, Product::Genoa],
            (_, 0x19, 0x00..=0x0f) => &[Product::Milan],
            (_, 0x19, 0x10..=0x1f | 0xa0..=0xaf) => &[Product::Genoa],
            (_, 0x1a, 0x00..=0x11) => &[Product::Turin],
            _ => return None,
        };
        let [flags] = array(report, FLAGS)?;
        let signer = match flags >> 2 & 0b111 {
            0 => Signer::Vcek,
            1 => Signer::Vlek,
            _ => return None,
        };
        Some(Snp {
            products,
            chip_id: array(report, CHIP_ID)?,
            tcb: array(report, REPORTED_TCB)?,
            signer,
        })
    };
    read().ok_or_else(|| {
        unknown("the report is of no processor, or signed by no key, that is known")
            .with_remedy("use a newer version of this program")
    })
}

fn dcap(quote: &[u8]) -> Result<Dcap, CollateralError> {
    let (tee, chain) = pck_chain(quote)?;
    // Some quoting enclaves end the chain with a NUL, as C does.
    let end = chain.iter().rposition(|byte| *byte != 0);
    let chain = Certificate::load_pem_chain(&chain[..end.map_or(0, |last| last + 1)]);
    let chain = chain.map_err(|_| unknown("the certificates in the quote cannot be read"))?;
    let pck = chain.first();
    let read = || Some((fmspc(pck?)?, ca(pck?)?));
    let (fmspc, ca) = read()
        .ok_or_else(|| unknown("the first certificate in the quote is not that of a platform"))?;
    Ok(Dcap { tee, fmspc, ca })
}

/// The kind of TEE, and the PEM texts in the certification data of a quote.
fn pck_chain(quote: &[u8]) -> Result<(Tee, &[u8]), CollateralError> {
    let cut = || unknown("the quote ends before its certificates");
    let mut rest = Reader(quote);
    let version = rest.u16().ok_or_else(cut)?;
    rest.skip(2).ok_or_else(cut)?;
    let kind = rest.u32().ok_or_else(cut)?;
    rest.skip(HEADER_BYTES - 8).ok_or_else(cut)?;
    let tee = match (version, kind) {
        (3, _) | (4 | 5, 0) => Tee::Sgx,
        (4 | 5, 0x81) => Tee::Tdx,
        _ => {
            return Err(unknown(
                "the bytes are not an SGX or TDX quote of version 3 to 5",
            ));
        }
    };
    let body = match (version, tee) {
        (5, _) => {
            rest.skip(2).ok_or_else(cut)?;
            rest.u32().ok_or_else(cut)? as usize
        }
        (_, Tee::Tdx) => TD_REPORT_BYTES,
        _ => ENCLAVE_REPORT_BYTES,
    };
    rest.skip(body).ok_or_else(cut)?;
    let (kind, chain) = rest.certification(version).ok_or_else(cut)?;
    match kind {
        PCK_CHAIN => Ok((tee, chain)),
        other => {
            let fact = format!(
                "the quote carries certification data of type {other}, not the chain of its platform (5)"
            );
            Err(unknown(fact))
        }
    }
}

/// Reads from the front; `None` at the end of the bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.take(bytes).map(drop)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(array(self.take(2)?, 0)?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(array(self.take(4)?, 0)?))
    }

    /// From the length of the signature data on: the type of the certification data, and them.
    fn certification(&mut self, version: u16) -> Option<(u16, &'a [u8])> {
        self.skip(4 + SIGNATURE_BYTES + KEY_BYTES)?;
        if version > 3 {
            // From version 4 on the report of the quoting enclave is itself certification data.
            let kind = self.u16()?;
            if kind != QE_REPORT {
                return Some((kind, &[]));
            }
            self.skip(4)?;
        }
        self.skip(ENCLAVE_REPORT_BYTES + SIGNATURE_BYTES)?;
        let auth = self.u16()?;
        self.skip(auth.into())?;
        let kind = self.u16()?;
        let length = self.u32()?;
        Some((kind, self.take(usize::try_from(length).ok()?)?))
    }
}

#[derive(Sequence)]
struct Entry {
    id: ObjectIdentifier,
    value: Any,
}

fn fmspc(pck: &Certificate) -> Option<[u8; 6]> {
    let extensions = pck.tbs_certificate().extensions()?;
    let sgx = extensions.iter().find(|e| e.extn_id == SGX_EXTENSION)?;
    let entries = Vec::<Entry>::from_der(sgx.extn_value.as_bytes()).ok()?;
    let fmspc = entries.iter().find(|entry| entry.id == FMSPC)?;
    let fmspc: OctetString = fmspc.value.decode_as().ok()?;
    fmspc.as_bytes().try_into().ok()
}

fn ca(pck: &Certificate) -> Option<&'static str> {
    let issuer = pck.tbs_certificate().issuer().to_string();
    let named = |ca: &&str| issuer.contains(&format!("PCK {ca} CA"));
    let ca = ["Platform", "Processor"].into_iter().find(named)?;
    Some(match ca {
        "Platform" => "platform",
        _ => "processor",
    })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn unknown(fact: impl Into<String>) -> CollateralError {
    CollateralError::new(CollateralErrorKind::PlatformUnknown, fact)
}

const SGX_EXTENSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1");
const FMSPC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.4");
/// Lengths and types of the parts of a quote (Intel, ECDSA quote format).
const HEADER_BYTES: usize = 48;
const ENCLAVE_REPORT_BYTES: usize = 384;
const TD_REPORT_BYTES: usize = 584;
const SIGNATURE_BYTES: usize = 64;
const KEY_BYTES: usize = 64;
const PCK_CHAIN: u16 = 5;
const QE_REPORT: u16 = 6;
/// Where the parts of a report stand (AMD, SEV-SNP ABI, ATTESTATION_REPORT).
const FLAGS: usize = 0x48;
const REPORTED_TCB: usize = 0x180;
const CPUID: usize = 0x188;
const CHIP_ID: usize = 0x1a0;
