//! What a quote or report says of itself, looked up before it goes out.
//!
//! This is no verification: it catches a platform that cut, mixed up or repeated something, on this
//! side, where the cause can still be named.

use blindai_core::{Evidence, ReportData, Tee};

use crate::{TeeError, TeeErrorKind};

/// Checks that `quote` is a whole one of this kind of TEE and is over `asked`.
///
/// # Errors
/// [`TeeErrorKind::Platform`] otherwise.
pub(crate) fn check(tee: Tee, quote: &[u8], asked: &ReportData) -> Result<(), TeeError> {
    let Some(signed) = report_data(tee, quote) else {
        let fact = format!(
            "{} bytes came that are no whole {tee} evidence",
            quote.len()
        );
        return Err(TeeError::new(TeeErrorKind::Platform, fact, REMEDY));
    };
    if signed == asked.as_bytes() {
        return Ok(());
    }
    let fact = "the evidence that came is over other report data than was asked for";
    Err(TeeError::new(TeeErrorKind::Platform, fact, REMEDY))
}

/// The report data, when the bytes are long enough for all that they announce.
fn report_data(tee: Tee, quote: &[u8]) -> Option<&[u8]> {
    let offset = match tee {
        Tee::SevSnp => {
            let report = Evidence::is_snp_report(quote).then_some(quote)?;
            return report.get(SNP_REPORT_DATA..SNP_REPORT_DATA + REPORT_DATA_BYTES);
        }
        Tee::Sgx => SGX_REPORT_DATA,
        Tee::Tdx => TDX_REPORT_DATA,
    };
    let (start, length) = body(tee, quote)?;
    let body = quote.get(start..)?.get(..length)?;
    let signature_bytes = number(quote, start + length)?;
    quote.get(start + length + 4..)?.get(..signature_bytes)?;
    body.get(offset..offset + REPORT_DATA_BYTES)
}

/// Where the report of the enclave or trust domain begins, and its length.
fn body(tee: Tee, quote: &[u8]) -> Option<(usize, usize)> {
    let version = u16::from_le_bytes(*quote.first_chunk()?);
    // Version 3 is older than TDX and has no such field.
    if version > 3 && number(quote, 4)? != tee_type(tee) {
        return None;
    }
    match (version, tee) {
        (3 | 4, Tee::Sgx) => Some((HEADER_BYTES, 384)),
        (4, Tee::Tdx) => Some((HEADER_BYTES, 584)),
        // Type and length stand before the report.
        (5, _) => Some((HEADER_BYTES + 6, number(quote, HEADER_BYTES + 2)?)),
        _ => None,
    }
}

fn tee_type(tee: Tee) -> usize {
    if tee == Tee::Tdx { 0x81 } else { 0 }
}

fn number(quote: &[u8], offset: usize) -> Option<usize> {
    let bytes = quote.get(offset..)?.first_chunk()?;
    usize::try_from(u32::from_le_bytes(*bytes)).ok()
}

const HEADER_BYTES: usize = 48;
const REPORT_DATA_BYTES: usize = 64;
/// Within the report of an enclave, of a trust domain, of a guest.
const SGX_REPORT_DATA: usize = 320;
const TDX_REPORT_DATA: usize = 520;
const SNP_REPORT_DATA: usize = 0x50;
const REMEDY: &str =
    "try again; if it stays, the platform is faulty or somebody interferes with it";
