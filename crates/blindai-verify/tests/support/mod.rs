#![allow(dead_code, reason = "each test program uses its own part")]

pub mod rows;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use blindai_core::{Claims, Collateral, DcapCollateral, Digest, Evidence, Nonce, ReportData, Tee};
use blindai_tee::{Attester, Measurement, Simulation, SimulationOptions};
use blindai_verify::{
    Binding, Outcome, Policy, QuoteReport, Rejection, RejectionCode, VerifiedReport,
};
use dcap_qvl::quote::Quote;

/// The simulated platform's clock stands at this second.
pub const NOW: u64 = 1_800_000_000;
pub const TLS_KEY: [u8; 32] = [7; 32];

pub fn file(name: &str) -> Vec<u8> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/evidence");
    let path = root.join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn collateral(name: &str) -> DcapCollateral {
    serde_json::from_slice(&file(name)).unwrap()
}

/// A policy that pins exactly what this quote says, with the rest as given.
pub fn policy_pinning(quote: &[u8], top: &str, tcb: &str) -> Policy {
    let report = Quote::parse(quote).unwrap().report;
    let pins = match (report.as_sgx(), report.as_td10()) {
        (Some(enclave), _) => format!("[sgx]\nmrenclave = [{:?}]", hex::encode(enclave.mr_enclave)),
        (_, Some(td)) => {
            let [mrtd, kernel, disk] = [td.mr_td, td.rt_mr1, td.rt_mr2].map(hex::encode);
            format!("[tdx]\nmrtd = [{mrtd:?}]\nrtmr1 = [{kernel:?}]\nrtmr2 = [{disk:?}]")
        }
        _ => panic!("neither SGX nor TDX"),
    };
    let tee = if report.is_sgx() { "sgx" } else { "tdx" };
    let text = format!("tee = [{tee:?}]\n{top}\n{pins}\n[tcb]\n{tcb}");
    Policy::from_toml(&text).unwrap()
}

/// A simulated server, as far as evidence goes.
pub struct Server {
    pub platform: Simulation,
}

impl Server {
    pub fn new(tee: Tee) -> Self {
        Self::with(tee, |_| {})
    }

    pub fn with(tee: Tee, change: impl FnOnce(&mut SimulationOptions)) -> Self {
        let measurement = match tee {
            Tee::Sgx => Measurement::MrEnclave([1; 32]),
            _ => Measurement::MrTd([1; 48]),
        };
        let mut options = SimulationOptions::new(measurement);
        options.clock = Arc::new(|| UNIX_EPOCH + Duration::from_secs(NOW));
        change(&mut options);
        Self {
            platform: Simulation::new(options).unwrap(),
        }
    }

    pub fn evidence(&self, claims: &Claims) -> Evidence {
        let claims = claims.encode();
        let quote = self
            .platform
            .quote(&ReportData::of_claims(&claims))
            .unwrap();
        Evidence { quote, claims }
    }

    pub fn collateral(&self) -> DcapCollateral {
        match self.platform.collateral().unwrap() {
            Some(Collateral::Dcap(collateral)) => collateral,
            other => panic!("{other:?}"),
        }
    }

    /// Verifies evidence of these claims for a connection to [`TLS_KEY`].
    pub fn verify(&self, claims: &Claims, policy: &Policy) -> Result<VerifiedReport, Rejection> {
        let evidence = self.evidence(claims);
        verify(&evidence, &self.collateral(), &connection(), policy, NOW)
    }
}

/// [`blindai_verify::verify`] with collateral of SGX and TDX.
pub fn verify(
    evidence: &Evidence,
    collateral: &DcapCollateral,
    binding: &Binding,
    policy: &Policy,
    now: u64,
) -> Result<VerifiedReport, Rejection> {
    let collateral = collateral.clone().into();
    blindai_verify::verify(evidence, &collateral, binding, policy, now)
}

/// [`blindai_verify::appraise_quote`] with collateral of SGX and TDX.
pub fn appraise_quote(
    quote: &[u8],
    collateral: &DcapCollateral,
    policy: &Policy,
    now: u64,
) -> Result<QuoteReport, Rejection> {
    blindai_verify::appraise_quote(quote, &collateral.clone().into(), policy, now)
}

pub fn claims() -> Claims {
    Claims {
        tls_spki_sha256: TLS_KEY,
        receipt_key: None,
        hpke_key: None,
        config_digest: Some(Digest::of(b"config")),
        nonce: Some(Nonce::from_bytes([9; 32])),
        issued_at: Some(NOW - 10),
        expires_at: Some(NOW + 3600),
        version: None,
    }
}

pub fn connection() -> Binding {
    Binding {
        tls_spki_sha256: Some(TLS_KEY),
        nonce: None,
    }
}

pub fn simulation() -> Policy {
    Policy::dangerous().accept_simulation()
}

pub fn outcome(rejection: &Rejection, name: &str) -> Outcome {
    let check = rejection.checks().iter().find(|check| check.name() == name);
    check.unwrap_or_else(|| panic!("no check {name}")).outcome()
}

#[track_caller]
pub fn assert_code<T>(result: Result<T, Rejection>, code: RejectionCode) -> Rejection {
    let rejection = result.err().expect("refused");
    assert_eq!(rejection.code(), code, "{}", rejection.table());
    rejection
}
