use std::fmt::{self, Write as _};

use blindai_core::pins::ModelPins;
use blindai_core::{Claims, Tee};
use chrono::DateTime;
use serde_json::{Map, Value, json};

use crate::Check;
use crate::check::{printable, write_checks};
use crate::dcap::Root;

/// The proof that evidence was verified: only [`verify`](crate::verify()) makes one, so whoever
/// holds one need not ask again what was checked.
#[derive(Clone, Debug)]
pub struct VerifiedReport {
    pub(crate) quote: QuoteReport,
    pub(crate) claims: Claims,
    /// Nothing that evidence proves: what the policy says of the receipts that are judged under it.
    pub(crate) models: ModelPins,
}

/// What a quote alone proves: what code runs on what hardware, but not that it is at the other end
/// of a connection. No client can be made from it.
#[derive(Clone, Debug)]
pub struct QuoteReport {
    pub(crate) tee: Tee,
    pub(crate) root: Root,
    pub(crate) tcb_status: String,
    pub(crate) advisories: Vec<String>,
    pub(crate) measurements: Vec<(&'static str, String)>,
    pub(crate) details: Vec<(&'static str, String)>,
    pub(crate) checks: Vec<Check>,
    pub(crate) verified_at: u64,
    pub(crate) valid_until: u64,
}

impl QuoteReport {
    /// The kind of TEE.
    pub fn tee(&self) -> Tee {
        self.tee
    }

    /// Whether the evidence is simulated and therefore protects nothing.
    pub fn simulated(&self) -> bool {
        self.root.simulated()
    }

    /// The name of the root that the chain of certificates ends in.
    pub fn trust_root(&self) -> &'static str {
        self.root.name()
    }

    /// The platform's patch level as Intel names it, `UpToDate` at best. AMD names none: `reported`
    /// says only that the policy's minimum holds.
    pub fn tcb_status(&self) -> &str {
        &self.tcb_status
    }

    /// The security advisories that apply to the platform.
    pub fn advisories(&self) -> &[String] {
        &self.advisories
    }

    /// The measurements with their names: hexadecimal digests, decimal numbers.
    pub fn measurements(&self) -> &[(&'static str, String)] {
        &self.measurements
    }

    /// What else was said, with names: how the TEE was set up, and on which hardware.
    pub fn details(&self) -> &[(&'static str, String)] {
        &self.details
    }

    /// The measurement of this name.
    pub fn measurement(&self, name: &str) -> Option<&str> {
        let (_, value) = self.measurements.iter().find(|(n, _)| *n == name)?;
        Some(value)
    }

    /// Every check with its outcome.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// The time the verifier was given, in seconds since 1970.
    pub fn verified_at(&self) -> u64 {
        self.verified_at
    }

    /// From when on the verdict no longer holds, in seconds since 1970: the earliest end of the
    /// claims, the collateral and the policy's exceptions that were needed.
    pub fn valid_until(&self) -> u64 {
        self.valid_until
    }

    /// `{"verdict": "quote-verified", "tee", "simulated", …}`. No statement on any connection.
    pub fn to_json(&self) -> Value {
        self.json("quote-verified")
    }

    fn json(&self, verdict: &str) -> Value {
        json!({
            "verdict": verdict,
            "tee": self.tee.as_str(),
            "simulated": self.simulated(),
            "trust_root": self.trust_root(),
            "tcb_status": self.tcb_status,
            "advisories": self.advisories,
            "measurements": json_object(&self.measurements),
            "details": json_object(&self.details),
            "verified_at": self.verified_at,
            "valid_until": self.valid_until,
            "checks": self.checks.iter().map(Check::to_json).collect::<Vec<_>>(),
        })
    }

    fn text(&self, verdict: &str) -> String {
        let until = utc(self.valid_until);
        let mut text = format!(
            "{verdict} · {} · {} · valid until {until}\n",
            self.tee, self.tcb_status
        );
        if self.simulated() {
            text.push_str("  SIMULATED: this protects nothing; anybody can make such evidence\n");
        }
        for (name, value) in &self.measurements {
            // Writing into a String cannot fail.
            let _ = writeln!(text, "  {name:<11}  {value}");
        }
        write_checks(&mut text, &self.checks);
        text
    }
}

impl fmt::Display for QuoteReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text("quote verified, no connection"))
    }
}

impl VerifiedReport {
    /// What the server says of itself, signed by the quote: its keys, its configuration's digest.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The kind of TEE.
    pub fn tee(&self) -> Tee {
        self.quote.tee()
    }

    /// Whether the evidence is simulated and therefore protects nothing.
    pub fn simulated(&self) -> bool {
        self.quote.simulated()
    }

    /// The name of the root that the chain of certificates ends in.
    pub fn trust_root(&self) -> &'static str {
        self.quote.trust_root()
    }

    /// The platform's patch level as Intel names it, `UpToDate` at best. AMD names none: `reported`
    /// says only that the policy's minimum holds.
    pub fn tcb_status(&self) -> &str {
        self.quote.tcb_status()
    }

    /// The security advisories that apply to the platform; the policy has an exception for each.
    pub fn advisories(&self) -> &[String] {
        self.quote.advisories()
    }

    /// The measurements with their names, in reading order: for SGX `mrenclave`, `mrsigner`,
    /// `isv_prod_id`, `isv_svn`; for TDX `mrtd`, `rtmr0` to `rtmr3`; for SEV-SNP `measurement`,
    /// `host_data`, `id_key_digest`, `author_key_digest`, `family_id`, `image_id`, `guest_svn`,
    /// `chip_id`. Digests are hexadecimal, numbers decimal.
    pub fn measurements(&self) -> &[(&'static str, String)] {
        self.quote.measurements()
    }

    /// What else was said, with names: how the TEE was set up, and on which hardware.
    pub fn details(&self) -> &[(&'static str, String)] {
        self.quote.details()
    }

    /// The measurement of this name.
    pub fn measurement(&self, name: &str) -> Option<&str> {
        self.quote.measurement(name)
    }

    /// Every check with its outcome.
    pub fn checks(&self) -> &[Check] {
        self.quote.checks()
    }

    /// The time the verifier was given, in seconds since 1970.
    pub fn verified_at(&self) -> u64 {
        self.quote.verified_at()
    }

    /// From when on the verdict no longer holds, in seconds since 1970: the earliest end of the
    /// claims, the collateral and the policy's exceptions that were needed. Ask before each use.
    pub fn valid_until(&self) -> u64 {
        self.quote.valid_until()
    }

    /// `{"verdict": "trusted", "tee", "simulated", "trust_root", "tcb_status", "advisories",
    /// "measurements", "details", "verified_at", "valid_until", "checks", "claims"}`
    pub fn to_json(&self) -> Value {
        let mut json = self.quote.json("trusted");
        json["claims"] = json!({
            "tls_spki_sha256": hex::encode(self.claims.tls_spki_sha256),
            "config_digest": self.claims.config_digest,
            "nonce": self.claims.nonce.map(|nonce| nonce.to_hex()),
            "issued_at": self.claims.issued_at,
            "expires_at": self.claims.expires_at,
            "version": self.claims.version.as_deref().map(printable),
        });
        json
    }
}

impl fmt::Display for VerifiedReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.quote.text("trusted"))
    }
}

pub(crate) fn json_object(values: &[(&'static str, String)]) -> Map<String, Value> {
    let entry = |(name, value): &(&str, String)| ((*name).to_owned(), json!(value));
    values.iter().map(entry).collect()
}

/// A time for people; far beyond any calendar it stays a number.
pub(crate) fn utc(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok();
    match time.and_then(|seconds| DateTime::from_timestamp(seconds, 0)) {
        Some(time) => time.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
        None => format!("second {seconds}"),
    }
}
