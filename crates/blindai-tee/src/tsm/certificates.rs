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
        (Some(intermediate), Some(root)) => Some(intermediate + &root),
        _ => None,
    };
    Ok(Some(SnpCollateral {
        signer,
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

    /// As PEM; hosts load DER and PEM.
    fn certificate(&self, guid: [u8; 16]) -> Result<Option<String>, TeeError> {
        let Some(content) = self.find(guid) else {
            return Ok(None);
        };
        let der = match content.starts_with(b"-----BEGIN") {
            true => pem::parse(content)
                .map_err(|_| malformed())?
                .into_contents(),
            false => content.to_vec(),
        };
        let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
        let pem = pem::encode_config(&Pem::new("CERTIFICATE", der), lines);
        Ok(Some(pem))
    }
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
const VCEK: [u8; 16] = *b"\x63\xda\x75\x8d\xe6\x64\x45\x64\xad\xc5\xf4\xb9\x3b\xe8\xac\xcd";
const VLEK: [u8; 16] = *b"\xa8\x07\x4b\xc2\xa2\x5a\x48\x3e\xaa\xe6\x39\xc0\x45\xa0\xb8\xa1";
const ASK: [u8; 16] = *b"\x4a\xb7\xb3\x79\xbb\xac\x4f\xe4\xa0\x2f\x05\xae\xf3\x27\xc7\x82";
const ARK: [u8; 16] = *b"\xc0\xb4\x06\xa4\xa8\x03\x49\x52\x97\x43\x3f\xb6\x01\x4c\xd0\xae";
const CRL: [u8; 16] = *b"\x92\xf8\x1b\xc3\x58\x11\x4d\x3d\x97\xff\xd1\x9f\x88\xdc\x67\xea";
