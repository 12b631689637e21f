//! The certificates that the host of an SEV-SNP guest hands over beside a report.
//!
//! Layout: AMD's GHCB specification, SNP_EXTENDED_GUEST_REQUEST: entries of GUID, offset and length,
//! one of zeros at the end, then what they point to. The host wrote it, so nothing is believed: an
//! entry outside of the table is an error, and whether a certificate is right, the verifier says.

use blindai_core::SnpCollateral;
use pem::{EncodeConfig, LineEnding, Pem};

use crate::{TeeError, TeeErrorKind};

/// The certificates for this `report` in a table; none where the host gave none for its key.
pub(super) fn parse(table: &[u8], report: &[u8]) -> Result<Option<SnpCollateral>, TeeError> {
    if table.is_empty() {
        return Ok(None);
    }
    let table = Table::read(table).ok_or_else(malformed)?;
    let Some(signer) = table.certificate(signer_guid(report))? else {
        return Ok(None);
    };
    let issuer_chain = match (table.certificate(ASK)?, table.certificate(ARK)?) {
        (Some(intermediate), Some(root)) => Some(to_text(&[intermediate, root])),
        _ => None,
    };
    Ok(Some(SnpCollateral {
        signer: to_text(&[signer]),
        issuer_chain,
        crl: table.find(CRL).map(<[u8]>::to_vec),
    }))
}

/// The key that signed: the provider's, loaded into the chip, or the chip's own.
fn signer_guid(report: &[u8]) -> [u8; 16] {
    const SIGNING_KEY: u8 = 0b111 << 2;
    const IS_VLEK: u8 = 1 << 2;
    match report.get(KEY_INFORMATION) {
        Some(flags) if flags & SIGNING_KEY == IS_VLEK => VLEK,
        _ => VCEK,
    }
}

struct Table<'a>(Vec<([u8; 16], &'a [u8])>);

impl<'a> Table<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut entries: Vec<([u8; 16], &[u8])> = Vec::new();
        for entry in bytes.chunks_exact(ENTRY_BYTES).take(MOST_ENTRIES) {
            let (guid, place) = entry.split_first_chunk()?;
            if *guid == [0; 16] {
                return Some(Self(entries));
            }
            let (offset, length) = place.split_at(4);
            let content = bytes.get(number(offset)?..)?.get(..number(length)?)?;
            if content.is_empty() || entries.iter().any(|(earlier, _)| earlier == guid) {
                return None;
            }
            entries.push((*guid, content));
        }
        None
    }

    fn find(&self, guid: [u8; 16]) -> Option<&'a [u8]> {
        let found = self.0.iter().find(|(of, _)| *of == guid);
        found.map(|(_, content)| *content)
    }

    /// Hosts load DER and PEM.
    fn certificate(&self, guid: [u8; 16]) -> Result<Option<Pem>, TeeError> {
        let Some(content) = self.find(guid) else {
            return Ok(None);
        };
        let der = match content.starts_with(b"-----BEGIN") {
            true => pem::parse(content)
                .map_err(|_| malformed())?
                .into_contents(),
            false => content.to_vec(),
        };
        Ok(Some(Pem::new("CERTIFICATE", der)))
    }
}

fn to_text(certificates: &[Pem]) -> String {
    let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_many_config(certificates, lines)
}

fn number(bytes: &[u8]) -> Option<usize> {
    let number = u32::from_le_bytes(bytes.try_into().ok()?);
    usize::try_from(number).ok()
}

fn malformed() -> TeeError {
    TeeError::new(
        TeeErrorKind::Platform,
        "the certificate table that the host gave is malformed",
        "load the certificates on the host again (snphost import), or none",
    )
}

/// The byte of a report that says which key signed it.
const KEY_INFORMATION: usize = 0x48;
const ENTRY_BYTES: usize = 24;
const MOST_ENTRIES: usize = 32;
/// GUIDs in the order in which their text is written.
const VCEK: [u8; 16] = 0x63da758d_e664_4564_adc5_f4b93be8accd_u128.to_be_bytes();
const VLEK: [u8; 16] = 0xa8074bc2_a25a_483e_aae6_39c045a0b8a1_u128.to_be_bytes();
const ASK: [u8; 16] = 0x4ab7b379_bbac_4fe4_a02f_05aef327c782_u128.to_be_bytes();
const ARK: [u8; 16] = 0xc0b406a4_a803_4952_9743_3fb6014cd0ae_u128.to_be_bytes();
const CRL: [u8; 16] = 0x92f81bc3_5811_4d3d_97ff_d19f88dc67ea_u128.to_be_bytes();
