//! What Intel's provisioning service publishes of a platform, for the simulated one.

use std::time::Duration;

use blindai_core::{DcapCollateral, Tee};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::SIMULATED_FMSPC;
use super::forge::{Draft, Forge, RevocationList};
use super::pki::{CPU_SVN, PCE_ID, PCE_SVN, Pki};
use super::quote::{MR_SIGNER_SEAM, QE_ISV_SVN, QE_MRSIGNER, TEE_TCB_SVN, qe_isv_prod_id};
use crate::{TeeError, TeeErrorKind};

/// From when to when a piece of collateral holds, in seconds since 1970.
pub(super) struct Window {
    made: u64,
    issued: u64,
    next_update: u64,
}

impl Window {
    pub(super) fn starting(now: u64, validity: Duration) -> Result<Self, TeeError> {
        let (issued, next_update) = (
            now.saturating_sub(CLOCK_SKEW_SECONDS),
            now.saturating_add(validity.as_secs()),
        );
        if issued < CERTIFICATES_BEGIN || next_update > CERTIFICATES_END {
            return Err(wrong_clock(&format!("{now} seconds after 1970")));
        }
        Ok(Self {
            made: now,
            issued,
            next_update,
        })
    }

    /// Whether less than half of the validity has passed. A clock that went back also asks for new
    /// collateral: its issue date could be in the future now.
    pub(super) fn is_fresh(&self, now: u64) -> bool {
        let renewal = self.made + (self.next_update - self.made) / 2;
        (self.issued..renewal).contains(&now)
    }

    /// A list that revokes nothing.
    pub(super) fn revocation_list(&self) -> RevocationList {
        RevocationList {
            this_update: self.issued,
            next_update: self.next_update,
            revoked: Vec::new(),
        }
    }
}

/// Everything that it takes beside a quote, valid in this window.
pub(super) fn issue(
    pki: &Pki,
    tee: Tee,
    window: &Window,
    forge: &Forge,
) -> Result<DcapCollateral, TeeError> {
    let crls = pki.crls(window, forge)?;
    let dates = Dates(rfc3339(window.issued)?, rfc3339(window.next_update)?);
    let mut tcb_info = tcb_info(tee, &dates);
    forge.edit(Draft::TcbInfo(&mut tcb_info));
    let tcb_info = tcb_info.to_string();
    let mut qe_identity = qe_identity(tee, &dates);
    forge.edit(Draft::QeIdentity(&mut qe_identity));
    let qe_identity = qe_identity.to_string();
    Ok(DcapCollateral {
        pck_crl_issuer_chain: pki.platform_ca_chain.clone(),
        root_ca_crl: crls.root,
        pck_crl: crls.platform_ca,
        tcb_info_issuer_chain: pki.tcb_signer_chain.clone(),
        tcb_info_signature: pki.tcb_signer.sign(tcb_info.as_bytes())?,
        tcb_info,
        qe_identity_issuer_chain: pki.tcb_signer_chain.clone(),
        qe_identity_signature: pki.tcb_signer.sign(qe_identity.as_bytes())?,
        qe_identity,
        // The quote itself carries the chain.
        pck_certificate_chain: None,
    })
}

pub(super) fn wrong_clock(now: &str) -> TeeError {
    TeeError::new(
        TeeErrorKind::Clock,
        format!("the clock says {now}, the simulation's certificates hold from 2026 to 2049"),
        "set the clock of the machine",
    )
}

struct Dates(String, String);

fn tcb_info(tee: Tee, Dates(issued, next_update): &Dates) -> Value {
    let mut info = json!({
        "id": if tee == Tee::Tdx { "TDX" } else { "SGX" },
        "version": 3,
        "issueDate": issued,
        "nextUpdate": next_update,
        "fmspc": hex::encode_upper(SIMULATED_FMSPC),
        "pceId": hex::encode_upper(PCE_ID),
        "tcbType": 0,
        "tcbEvaluationDataNumber": TCB_EVALUATION_DATA_NUMBER,
        "tcbLevels": [up_to_date(platform_tcb(tee))],
    });
    if tee == Tee::Tdx {
        info["tdxModule"] = tdx_module();
        info["tdxModuleIdentities"] = json!([tdx_module_identity()]);
    }
    info
}

fn platform_tcb(tee: Tee) -> Value {
    let mut tcb = json!({ "sgxtcbcomponents": components(CPU_SVN), "pcesvn": PCE_SVN });
    if tee == Tee::Tdx {
        tcb["tdxtcbcomponents"] = components(TEE_TCB_SVN);
    }
    tcb
}

fn components(svns: [u8; 16]) -> Value {
    svns.iter().map(|svn| json!({ "svn": svn })).collect()
}

fn tdx_module() -> Value {
    json!({
        "mrsigner": hex::encode_upper(MR_SIGNER_SEAM),
        "attributes": "0000000000000000",
        "attributesMask": "FFFFFFFFFFFFFFFF",
    })
}

fn tdx_module_identity() -> Value {
    let [isv_svn, version, ..] = TEE_TCB_SVN;
    let mut identity = tdx_module();
    identity["id"] = json!(format!("TDX_{version:02X}"));
    identity["tcbLevels"] = json!([up_to_date(json!({ "isvsvn": isv_svn }))]);
    identity
}

fn qe_identity(tee: Tee, Dates(issued, next_update): &Dates) -> Value {
    json!({
        "id": if tee == Tee::Tdx { "TD_QE" } else { "QE" },
        "version": 2,
        "issueDate": issued,
        "nextUpdate": next_update,
        "tcbEvaluationDataNumber": TCB_EVALUATION_DATA_NUMBER,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": hex::encode_upper(QE_MRSIGNER),
        "isvprodid": qe_isv_prod_id(tee),
        "tcbLevels": [up_to_date(json!({ "isvsvn": QE_ISV_SVN }))],
    })
}

fn up_to_date(tcb: Value) -> Value {
    json!({ "tcb": tcb, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": "UpToDate" })
}

pub(super) fn date(seconds: u64) -> Result<OffsetDateTime, TeeError> {
    let seconds = i64::try_from(seconds).map_err(|_| wrong_clock("more than it can"))?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| wrong_clock("more than it can"))
}

fn rfc3339(seconds: u64) -> Result<String, TeeError> {
    date(seconds)?
        .format(&Rfc3339)
        .map_err(|e| wrong_clock(&e.to_string()))
}

/// Collateral is dated back so far, for clients whose clocks lag behind.
const CLOCK_SKEW_SECONDS: u64 = 3600;
/// 2026-01-01, and the first moment of 2049-12-31, when the certificates end.
pub(super) const CERTIFICATES_BEGIN: u64 = 1_767_225_600;
pub(super) const CERTIFICATES_END: u64 = 2_524_521_600;
const TCB_EVALUATION_DATA_NUMBER: u32 = 17;
