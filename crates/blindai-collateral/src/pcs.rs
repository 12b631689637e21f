//! What Intel publishes of a platform, from its provisioning certification service (PCS) or from a
//! cache of it (PCCS). Both speak version 4 of one protocol, and differ in small things.

use blindai_core::{Collateral, DcapCollateral, Tee};
use der::Document;
use http::HeaderMap;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::http::{Answer, Http};
use crate::platform::Dcap;
use crate::{CollateralError, CollateralErrorKind};

/// Fetches the four parts, side by side.
pub(crate) async fn fetch(
    http: &Http,
    service: &str,
    platform: &Dcap,
) -> Result<Collateral, CollateralError> {
    let base = base(service);
    let (fmspc, ca) = (hex::encode_upper(platform.fmspc), platform.ca);
    let tee = match platform.tee {
        Tee::Tdx => "tdx",
        _ => "sgx",
    };
    let tcb = format!("{base}/{tee}/certification/v4/tcb?fmspc={fmspc}");
    let qe = format!("{base}/{tee}/certification/v4/qe/identity");
    let crl = format!("{base}/sgx/certification/v4/pckcrl?ca={ca}&encoding=der");
    let root = root_crl(base);
    let (tcb, qe, pck_crl, root_crl) = tokio::try_join!(
        http.get(&tcb),
        http.get(&qe),
        http.get(&crl),
        http.get(&root)
    )?;
    let (tcb_info, tcb_info_signature) = signed::<TcbInfo>(&tcb, "TCB info")?;
    let (qe_identity, qe_identity_signature) = signed::<QeIdentity>(&qe, "QE identity")?;
    Ok(Collateral::Dcap(DcapCollateral {
        pck_crl_issuer_chain: issuers(&pck_crl.headers, PCK_CRL_ISSUERS)?,
        root_ca_crl: der(&root_crl)?,
        pck_crl: der(&pck_crl)?,
        tcb_info_issuer_chain: issuers(&tcb.headers, TCB_INFO_ISSUERS)?,
        tcb_info,
        tcb_info_signature,
        qe_identity_issuer_chain: issuers(&qe.headers, QE_IDENTITY_ISSUERS)?,
        qe_identity,
        qe_identity_signature,
        // The quote carries it; it said which platform this is.
        pck_certificate_chain: None,
    }))
}

/// Operators write the URL with and without the path that their tools want.
fn base(service: &str) -> &str {
    let base = service.trim_end_matches('/');
    let tails = ["/sgx/certification/v4", "/tdx/certification/v4"];
    let base = tails.iter().find_map(|tail| base.strip_suffix(tail));
    base.unwrap_or(service.trim_end_matches('/'))
}

/// Intel's own service does not serve the root's list, its caches do.
fn root_crl(base: &str) -> String {
    match base == INTEL_PCS {
        true => INTEL_ROOT_CRL.to_owned(),
        false => format!("{base}/sgx/certification/v4/rootcacrl"),
    }
}

/// What Intel signs is the text of one member, byte by byte as it came.
trait Signed: for<'de> Deserialize<'de> {
    fn parts(self) -> (Box<RawValue>, String);
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TcbInfo {
    tcb_info: Box<RawValue>,
    signature: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct QeIdentity {
    enclave_identity: Box<RawValue>,
    signature: String,
}

impl Signed for TcbInfo {
    fn parts(self) -> (Box<RawValue>, String) {
        (self.tcb_info, self.signature)
    }
}

impl Signed for QeIdentity {
    fn parts(self) -> (Box<RawValue>, String) {
        (self.enclave_identity, self.signature)
    }
}

fn signed<T: Signed>(answer: &Answer, what: &str) -> Result<(String, Vec<u8>), CollateralError> {
    let read = || {
        let (text, signature) = serde_json::from_slice::<T>(&answer.body).ok()?.parts();
        Some((text.get().to_owned(), hex::decode(signature).ok()?))
    };
    read().ok_or_else(|| unreadable(format!("the service did not answer with a signed {what}")))
}

fn issuers(headers: &HeaderMap, names: &[&str]) -> Result<String, CollateralError> {
    let read = || {
        let value = names.iter().find_map(|name| headers.get(*name))?;
        let decoded = percent_decode_str(value.to_str().ok()?).decode_utf8();
        decoded.ok().map(String::from)
    };
    read().ok_or_else(|| unreadable(format!("the service did not send the header {}", names[0])))
}

/// A revocation list as DER: caches send it in hexadecimal or PEM as well.
fn der(answer: &Answer) -> Result<Vec<u8>, CollateralError> {
    const SEQUENCE: u8 = 0x30;
    if answer.body.first() == Some(&SEQUENCE) {
        // An ASCII "0" is the same byte, and DER is not text.
        if !answer.body.iter().all(u8::is_ascii_hexdigit) {
            return Ok(answer.body.to_vec());
        }
    }
    let read = || {
        let text = std::str::from_utf8(&answer.body).ok()?.trim();
        match Document::from_pem(text) {
            Ok((_, document)) => Some(document.as_bytes().to_vec()),
            Err(_) => hex::decode(text).ok(),
        }
    };
    read().ok_or_else(|| unreadable("the service did not answer with a revocation list"))
}

fn unreadable(fact: impl Into<String>) -> CollateralError {
    CollateralError::new(CollateralErrorKind::Unreadable, fact)
}

/// Intel's service.
pub(crate) const INTEL_PCS: &str = "https://api.trustedservices.intel.com";
/// Where the certificate of Intel's root says that its list is.
const INTEL_ROOT_CRL: &str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der";
/// Spelled in two ways, by version and by service.
const TCB_INFO_ISSUERS: &[&str] = &["TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"];
const QE_IDENTITY_ISSUERS: &[&str] = &[
    "SGX-Enclave-Identity-Issuer-Chain",
    "Enclave-Identity-Issuer-Chain",
];
const PCK_CRL_ISSUERS: &[&str] = &["SGX-PCK-CRL-Issuer-Chain", "PCK-CRL-Issuer-Chain"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_list_of_intel_is_elsewhere() {
        for written in [
            INTEL_PCS,
            "https://api.trustedservices.intel.com/",
            "https://api.trustedservices.intel.com/sgx/certification/v4/",
        ] {
            assert_eq!(root_crl(base(written)), INTEL_ROOT_CRL);
        }
        assert_eq!(
            root_crl(base("http://pccs:8081/tdx/certification/v4")),
            "http://pccs:8081/sgx/certification/v4/rootcacrl"
        );
    }
}
