//! SGX and TDX quotes, through the crate `dcap-qvl`: what it refuses, in our codes.

use blindai_core::{DcapCollateral, Tee, simulation};
use dcap_qvl::config::Config;
use dcap_qvl::intel::parse_pck_extension_from_pem_with;
use dcap_qvl::policy::{PckCertFlag, PckIdentity};
use dcap_qvl::quote::{EnclaveReport, Header, Quote, Report, TDReport10, TDReport15};
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{QuoteClaims, QuoteCollateralV3, QuotePolicy};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::RejectionCode;
use crate::check::printable;
use crate::crypto::Backend;
use crate::field::{Value, Values};
use crate::refusals::refused;
use crate::report::utc;
use crate::snp::Product;

/// Real quotes are under 16 KiB.
const QUOTE_BYTES: usize = 128 * 1024;
/// Real collateral is under 64 KiB; a revocation list may grow.
const COLLATERAL_BYTES: usize = 1024 * 1024;

/// Where a chain of certificates ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    Intel,
    Amd(Product),
    Simulation,
    /// The simulation's, in AMD's place.
    SimulationArk,
}

impl Root {
    pub fn name(self) -> &'static str {
        match self {
            Root::Intel => "Intel SGX Root CA",
            Root::Amd(product) => product.root_name(),
            Root::Simulation => simulation::ROOT_NAME,
            Root::SimulationArk => simulation::ARK_NAME,
        }
    }

    /// Of reports of SEV-SNP.
    pub fn is_amd(self) -> bool {
        matches!(self, Root::Amd(_) | Root::SimulationArk)
    }

    /// Whether everybody can sign under it.
    pub fn simulated(self) -> bool {
        matches!(self, Root::Simulation | Root::SimulationArk)
    }
}

/// A refusal of the library.
#[derive(Debug)]
pub(crate) struct Refused {
    pub code: RejectionCode,
    pub text: String,
}

/// Reads a quote. Nothing in it is verified.
pub(crate) fn parse(quote: &[u8]) -> Result<Quote, Refused> {
    if quote.len() > QUOTE_BYTES {
        let text = format!("the quote is over {QUOTE_BYTES} bytes");
        return Err(Refused {
            code: RejectionCode::QuoteMalformed,
            text,
        });
    }
    Quote::parse(quote).map_err(|error| Refused {
        code: RejectionCode::QuoteMalformed,
        text: format!("the bytes are not an SGX or TDX quote: {error:#}"),
    })
}

/// The root that the quote's chain says it ends in. A hint: it chooses the root to verify against,
/// and the verification proves or refutes it.
pub(crate) fn claimed_root(quote: &Quote, collateral: &DcapCollateral) -> Root {
    let pem = pck_chain(quote, Some(collateral));
    let simulated = || {
        let root = Certificate::from_der(simulation::ROOT_CERTIFICATE_DER).ok()?;
        let name = root.tbs_certificate().subject();
        let chain = Certificate::load_pem_chain(trim_zeros(pem)).ok()?;
        let names_it = |c: &Certificate| c.tbs_certificate().issuer() == name;
        chain.iter().any(names_it).then_some(())
    };
    match simulated() {
        Some(()) => Root::Simulation,
        None => Root::Intel,
    }
}

/// Verifies signatures, chains, revocation, times and the TCB level, against one root.
///
/// The policy's own decisions come after; the library's policy gets none of them.
pub(crate) fn verify(
    quote: &[u8],
    collateral: &DcapCollateral,
    root: Root,
    allow_debug: bool,
    now: u64,
) -> Result<QuoteClaims, Refused> {
    let verifier = verifier::<Backend>(root).allow_debug(allow_debug);
    let claims = verifier
        .verify_with_policy(
            quote,
            to_library(collateral)?,
            now,
            &QuotePolicy::claims_only(now),
        )
        .map_err(|error| refused(&format!("{error:#}")))?;
    if claims.earliest_expiration_date < now {
        let end = utc(claims.earliest_expiration_date);
        return Err(Refused {
            code: RejectionCode::CollateralExpired,
            text: format!("a part of the collateral ended at {end}"),
        });
    }
    Ok(claims)
}

/// The advisories that apply to the platform, in order.
// The library's own list leaves out those of a TD's current level, which can differ from the level
// it was launched with.
pub(crate) fn advisories(claims: &QuoteClaims) -> Vec<String> {
    let current = claims.platform.current_tcb_level.iter();
    let current = current.flat_map(|level| &level.advisory_ids);
    let all = claims.tcb.advisory_ids.iter().chain(current);
    let mut ids: Vec<_> = all.map(|id| printable(id)).collect();
    ids.sort();
    ids.dedup();
    ids
}

/// What the body of a quote says.
pub(crate) struct Body {
    pub tee: Tee,
    pub values: Values,
    pub report_data: [u8; 64],
    /// Whether it can be read with a debugger.
    pub debug: bool,
}

impl From<&Report> for Body {
    fn from(report: &Report) -> Self {
        match report {
            Report::SgxEnclave(enclave) => sgx_body(enclave),
            Report::TD10(td) => td_body(td),
            Report::TD15(td) => td15_body(td),
            Report::TD15Ex(td) => td15_body(&td.base),
        }
    }
}

fn td15_body(td: &TDReport15) -> Body {
    let mut body = td_body(&td.base);
    body.values.extend([
        ("tee_tcb_svn2", bytes(&td.tee_tcb_svn2)),
        ("mr_service_td", bytes(&td.mr_service_td)),
    ]);
    body
}

fn td_body(td: &TDReport10) -> Body {
    let values = vec![
        ("mrtd", bytes(&td.mr_td)),
        ("rtmr0", bytes(&td.rt_mr0)),
        ("rtmr1", bytes(&td.rt_mr1)),
        ("rtmr2", bytes(&td.rt_mr2)),
        ("rtmr3", bytes(&td.rt_mr3)),
        ("mr_config_id", bytes(&td.mr_config_id)),
        ("mr_owner", bytes(&td.mr_owner)),
        ("mr_owner_config", bytes(&td.mr_owner_config)),
        ("td_attributes", bytes(&td.td_attributes)),
        ("xfam", bytes(&td.xfam)),
        ("mr_seam", bytes(&td.mr_seam)),
        ("mr_signer_seam", bytes(&td.mr_signer_seam)),
        ("seam_attributes", bytes(&td.seam_attributes)),
        ("tee_tcb_svn", bytes(&td.tee_tcb_svn)),
    ];
    Body {
        tee: Tee::Tdx,
        values,
        report_data: td.report_data,
        // The whole group "TD under debug": debug, and profiling, which leaks as well.
        debug: td.td_attributes[0] != 0,
    }
}

fn sgx_body(enclave: &EnclaveReport) -> Body {
    const ATTRIBUTE_DEBUG: u8 = 0x02;
    let [low, high, ..] = enclave.reserved4;
    let config_svn = u16::from_le_bytes([low, high]);
    let values = vec![
        ("mrenclave", bytes(&enclave.mr_enclave)),
        ("mrsigner", bytes(&enclave.mr_signer)),
        ("isv_prod_id", Value::Number(enclave.isv_prod_id.into())),
        ("isv_svn", Value::Number(enclave.isv_svn.into())),
        ("attributes", bytes(&enclave.attributes)),
        ("misc_select", bytes(&enclave.misc_select.to_le_bytes())),
        // The library calls these reserved, as they were before key separation (KSS).
        ("config_id", bytes(&enclave.reserved3[32..])),
        ("config_svn", Value::Number(config_svn.into())),
        ("isv_ext_prod_id", bytes(&enclave.reserved1[12..])),
        ("isv_family_id", bytes(&enclave.reserved4[44..])),
    ];
    Body {
        tee: Tee::Sgx,
        values,
        report_data: enclave.report_data,
        debug: enclave.attributes[0] & ATTRIBUTE_DEBUG != 0,
    }
}

/// What the platform's certificate and the quote's header say.
pub(crate) fn platform(header: &Header, pck: &PckIdentity) -> Values {
    let flag = |flag| match flag {
        PckCertFlag::True => Some(Value::Flag(true)),
        PckCertFlag::False => Some(Value::Flag(false)),
        PckCertFlag::Undefined => None,
    };
    let values = [
        ("fmspc", Some(bytes(&pck.fmspc))),
        ("ppid", Some(bytes(&pck.ppid))),
        (
            "platform_instance_id",
            pck.platform_instance_id.as_ref().map(|id| bytes(id)),
        ),
        ("pce_svn", Some(Value::Number(pck.pce_svn.into()))),
        ("cpu_svn", Some(bytes(&pck.cpu_svn))),
        ("smt_enabled", flag(pck.smt_enabled)),
        ("dynamic_platform", flag(pck.dynamic_platform)),
        ("cached_keys", flag(pck.cached_keys)),
        ("qe_vendor_id", Some(bytes(&header.qe_vendor_id))),
    ];
    let said = values.into_iter();
    said.filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

/// What the platform's certificate says, when there is one that can be read. Nothing is verified.
pub(crate) fn unverified_pck(
    quote: &Quote,
    collateral: Option<&DcapCollateral>,
) -> Option<PckIdentity> {
    let pem = pck_chain(quote, collateral);
    let extension = parse_pck_extension_from_pem_with::<Backend>(trim_zeros(pem)).ok()?;
    let instance = extension.platform_instance_id;
    Some(PckIdentity {
        ppid: extension.ppid,
        cpu_svn: extension.cpu_svn,
        pce_svn: extension.pce_svn,
        pce_id: extension.pce_id,
        fmspc: extension.fmspc,
        sgx_type: extension.sgx_type.try_into().ok()?,
        platform_instance_id: instance.and_then(|id| id.try_into().ok()),
        dynamic_platform: extension.dynamic_platform.into(),
        cached_keys: extension.cached_keys.into(),
        smt_enabled: extension.smt_enabled.into(),
        platform_provider_id: None,
    })
}

fn bytes(bytes: &[u8]) -> Value {
    Value::Bytes(bytes.to_vec())
}

fn verifier<C: Config>(root: Root) -> QuoteVerifier<C> {
    match root {
        Root::Simulation => {
            QuoteVerifier::new_with_config(simulation::ROOT_CERTIFICATE_DER.to_vec())
        }
        _ => QuoteVerifier::new_prod().with_config(),
    }
}

fn to_library(c: &DcapCollateral) -> Result<QuoteCollateralV3, Refused> {
    let chain = c.pck_certificate_chain.as_ref();
    let texts = [
        &c.pck_crl_issuer_chain,
        &c.tcb_info_issuer_chain,
        &c.tcb_info,
        &c.qe_identity_issuer_chain,
        &c.qe_identity,
    ];
    let binaries = [
        &c.root_ca_crl,
        &c.pck_crl,
        &c.tcb_info_signature,
        &c.qe_identity_signature,
    ];
    let length = texts.iter().map(|t| t.len()).sum::<usize>()
        + binaries.iter().map(|b| b.len()).sum::<usize>()
        + chain.map_or(0, |chain| chain.len());
    if length > COLLATERAL_BYTES {
        return Err(Refused {
            code: RejectionCode::CollateralMalformed,
            text: format!("the collateral is over {COLLATERAL_BYTES} bytes"),
        });
    }
    Ok(QuoteCollateralV3 {
        pck_crl_issuer_chain: c.pck_crl_issuer_chain.clone(),
        root_ca_crl: c.root_ca_crl.clone(),
        pck_crl: c.pck_crl.clone(),
        tcb_info_issuer_chain: c.tcb_info_issuer_chain.clone(),
        tcb_info: c.tcb_info.clone(),
        tcb_info_signature: c.tcb_info_signature.clone(),
        qe_identity_issuer_chain: c.qe_identity_issuer_chain.clone(),
        qe_identity: c.qe_identity.clone(),
        qe_identity_signature: c.qe_identity_signature.clone(),
        pck_certificate_chain: c.pck_certificate_chain.clone(),
    })
}

// The library, too, takes the collateral's chain before the quote's.
fn pck_chain<'a>(quote: &'a Quote, collateral: Option<&'a DcapCollateral>) -> &'a [u8] {
    let chain = collateral.and_then(|c| c.pck_certificate_chain.as_ref());
    match chain {
        Some(chain) if chain.len() <= COLLATERAL_BYTES => chain.as_bytes(),
        _ => quote.inner_cert_data(),
    }
}

// Some quoting enclaves end the chain with a NUL, as C does.
fn trim_zeros(pem: &[u8]) -> &[u8] {
    let end = pem.iter().rposition(|byte| *byte != 0);
    &pem[..end.map_or(0, |last| last + 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_backends_give_the_same_claims_and_refusals() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/evidence/");
        let read = |name: &str| std::fs::read(format!("{folder}{name}")).unwrap();
        let json = read("collateral/sgx_00a067110000_2025-06.json");
        let collateral: DcapCollateral = serde_json::from_slice(&json).unwrap();
        let quote = read("sgx/dcapqvl_00a067110000.quote");
        let now = 1_751_600_000;
        let both = |quote: &[u8], collateral: &DcapCollateral| {
            let policy = QuotePolicy::claims_only(now);
            let pure = verifier::<dcap_qvl::configs::RustCryptoConfig>(Root::Intel);
            let pure =
                pure.verify_with_policy(quote, to_library(collateral).unwrap(), now, &policy);
            let pure = pure.map_err(|error| refused(&format!("{error:#}")).text);
            let ours = verify(quote, collateral, Root::Intel, false, now);
            assert_eq!(ours.map_err(|refused| refused.text), pure);
            pure.is_ok()
        };
        assert!(both(&quote, &collateral));
        // A byte of each thing that is signed, and of each signature.
        for at in [60, 440, 500, 570, 900, 990] {
            let mut changed = quote.clone();
            changed[at] ^= 1;
            assert!(!both(&changed, &collateral), "byte {at}");
        }
        let mut changed = collateral.clone();
        changed.tcb_info_signature[5] ^= 1;
        assert!(!both(&quote, &changed));
        let mut changed = collateral;
        *changed.root_ca_crl.last_mut().unwrap() ^= 1;
        assert!(!both(&quote, &changed));
    }
}
