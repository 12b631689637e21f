//! A verdict for relying parties: an EAT attestation result (EAR, draft-ietf-rats-ear-04), signed as
//! a JWT, with the trustworthiness claims of AR4SI.
//!
//! The crate `ear` is not used: each of its versions builds OpenSSL, the newest for the build of
//! `cmw` alone. Its version 0.6.0 reads and verifies what is written here.
//!
//! A claim is made only where a check that was made supports it. What nobody looked at, such as
//! storage, is left out, which a reader takes as "no claim".

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::file;
use crate::time::now;

#[derive(Args)]
pub struct EarArguments {
    /// Write the verdict, trusted or rejected, as an EAR token (JWT) for relying parties
    #[arg(long, value_name = "FILE", requires = "ear_key")]
    ear: Option<PathBuf>,
    /// The key that signs the token: ECDSA over P-256 (ES256) or P-384 (ES384), PEM
    #[arg(long, value_name = "FILE", requires = "ear")]
    ear_key: Option<PathBuf>,
}

impl EarArguments {
    /// Writes the token of a verdict in the form of `--json`, when one was asked for.
    ///
    /// # Errors
    /// When the key cannot be used or the file not be written.
    pub fn write(&self, verdict: &Value, policy_id: Option<String>) -> Result<()> {
        let (Some(path), Some(key)) = (&self.ear, &self.ear_key) else {
            return Ok(());
        };
        let token = Signer::read(key)?.sign(&claims(verdict, policy_id))?;
        let named = || format!("{} cannot be written", path.display());
        std::fs::write(path, token).with_context(named)
    }
}

struct Signer {
    key: EcdsaKeyPair,
    algorithm: &'static str,
}

impl Signer {
    fn read(path: &Path) -> Result<Self> {
        let pem = pem::parse(file::read(path, KEY_BYTES)?);
        // Nothing of it is shown: it is a secret.
        let Ok(pem) = pem else {
            bail!("{} is not a key in PEM", path.display());
        };
        for (algorithm, curve) in [
            ("ES256", &ECDSA_P256_SHA256_FIXED_SIGNING),
            ("ES384", &ECDSA_P384_SHA384_FIXED_SIGNING),
        ] {
            if let Ok(key) = EcdsaKeyPair::from_private_key_der(curve, pem.contents()) {
                return Ok(Self { key, algorithm });
            }
        }
        bail!(
            "{} is not a private key over P-256 or P-384",
            path.display()
        )
    }

    fn sign(&self, claims: &Value) -> Result<String> {
        let header = json!({ "alg": self.algorithm, "typ": "JWT" });
        let [header, claims] =
            [&header, claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.to_string()));
        let signed = format!("{header}.{claims}");
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = signature.ok().context("the key does not sign")?;
        let signature = BASE64_URL_SAFE_NO_PAD.encode(signature);
        Ok(format!("{signed}.{signature}"))
    }
}

fn claims(verdict: &Value, policy_id: Option<String>) -> Value {
    let vector = vector(verdict);
    let status = status(verdict, &vector);
    let mut appraisal = json!({
        "ear_status": status,
        "ear_verifier_claims": verifier_claims(verdict),
    });
    if !vector.is_empty() {
        appraisal["ear_trustworthiness_vector"] = vector.into();
    }
    if let Some(id) = policy_id {
        appraisal["ear_appraisal_policy_ids"] = json!([id]);
    }
    if verdict["measurements"]
        .as_object()
        .is_some_and(|map| !map.is_empty())
    {
        appraisal["ear_attester_claims"] = verdict["measurements"].clone();
    }
    let nonce = verdict["claims"]["nonce"].as_str();
    if let Some(nonce) = nonce.and_then(|nonce| hex::decode(nonce).ok()) {
        appraisal["eat_nonce"] = BASE64_URL_SAFE_NO_PAD.encode(nonce).into();
    }
    let environment = verdict["tee"].as_str().unwrap_or("unknown");
    let mut token = json!({
        "eat_profile": "tag:ietf.org,2026:rats/ear#04",
        "iat": now(),
        "ear_status": status,
        "ear_verifier_id": {
            "developer": "BlindAI",
            "build": concat!("blindai ", env!("CARGO_PKG_VERSION")),
        },
        "submods": { environment: appraisal },
    });
    // A verdict as of years ago ended long ago, and so does its token: it says so to every reader.
    if verdict["valid_until"].is_u64() {
        token["exp"] = verdict["valid_until"].clone();
    }
    token
}

/// What has no place in the vector: what was judged, as of when, why it was refused, and what nobody
/// looked at.
fn verifier_claims(verdict: &Value) -> Value {
    let known = [
        "verdict",
        "subject",
        "code",
        "tcb_status",
        "trust_root",
        "verified_at",
    ]
    .into_iter()
    .filter(|key| !verdict[*key].is_null());
    let mut claims: Map<_, _> = known
        .map(|key| (format!("blindai_{key}"), verdict[key].clone()))
        .collect();
    let checks = Checks(verdict);
    let skipped = checks.all().filter(|c| c["outcome"] == "skipped");
    let skipped = skipped.map(|check| check["name"].clone()).collect();
    claims.insert("blindai_skipped_checks".to_owned(), skipped);
    claims.into()
}

/// A rejection is never better than contraindicated, whatever single claims hold; and what says nothing
/// of the hardware affirms nothing as a whole.
fn status(verdict: &Value, vector: &Map<String, Value>) -> &'static str {
    let worst = vector.values().filter_map(Value::as_u64).max();
    match (verdict["verdict"] == "trusted", worst) {
        (false, _) | (true, Some(CONTRAINDICATED..)) => "contraindicated",
        (true, Some(WARNING..)) => "warning",
        (true, Some(_)) if vector.contains_key("hardware") => "affirming",
        (true, _) => "none",
    }
}

fn vector(verdict: &Value) -> Map<String, Value> {
    let checks = Checks(verdict);
    let claims: &[(&str, Option<u8>)] = if checks.failed_with(FORGED) {
        &[("hardware", Some(CRYPTO_FAILED))]
    } else if checks.failed_with(REVOKED) {
        &[("instance-identity", Some(CONTRAINDICATED_VALUE))]
    } else if !checks.passed("quote") || !checks.passed("trust_root") {
        &[]
    } else if verdict["simulated"] == true {
        &[("hardware", Some(UNRECOGNIZED_HARDWARE))]
    } else {
        &[
            ("configuration", checks.configuration()),
            ("executables", checks.executables()),
            ("hardware", checks.hardware()),
            ("runtime-opaque", checks.runtime()),
        ]
    };
    let made = claims
        .iter()
        .filter_map(|(name, value)| Some(((*name).to_owned(), (*value)?.into())));
    made.collect()
}

struct Checks<'a>(&'a Value);

impl Checks<'_> {
    fn all(&self) -> impl Iterator<Item = &Value> {
        self.0["checks"].as_array().into_iter().flatten()
    }

    fn named(&self, name: &str) -> Option<&Value> {
        self.all().find(|check| check["name"] == name)
    }

    fn passed(&self, name: &str) -> bool {
        self.named(name)
            .is_some_and(|check| check["outcome"] == "pass")
    }

    fn failed(&self, name: &str) -> bool {
        self.named(name)
            .is_some_and(|check| check["outcome"] == "fail")
    }

    fn failed_with(&self, codes: &[&str]) -> bool {
        let mut found = self.all().filter_map(|check| check["code"].as_str());
        found.any(|code| codes.contains(&code))
    }

    fn configuration(&self) -> Option<u8> {
        match (self.passed("config_digest"), self.failed("config_digest")) {
            (true, _) => Some(APPROVED),
            (_, true) => Some(CONTRAINDICATED_VALUE),
            _ => None,
        }
    }

    /// What was measured when it was loaded. What was loaded later is not known.
    fn executables(&self) -> Option<u8> {
        let measured = |check: &&Value| {
            let name = check["name"].as_str().unwrap_or_default();
            self.0["measurements"].get(name).is_some()
        };
        let outcomes: Vec<_> = self
            .all()
            .filter(measured)
            .map(|check| &check["outcome"])
            .collect();
        match (
            outcomes.contains(&&"fail".into()),
            outcomes.contains(&&"pass".into()),
        ) {
            (true, _) => Some(UNRECOGNIZED_RUNTIME),
            (false, true) => Some(APPROVED_BOOT),
            (false, false) => None,
        }
    }

    /// AMD publishes no status; there the levels that the policy asks for speak, where it was also
    /// looked whether the chip's certificates were revoked.
    fn hardware(&self) -> Option<u8> {
        let clean = self.0["advisories"].as_array().is_some_and(Vec::is_empty);
        match self.0["tcb_status"].as_str()? {
            "UpToDate" if clean => Some(APPROVED),
            "reported" => {
                let asked = ["reported_tcb", "committed_tcb", "revocation"];
                asked
                    .iter()
                    .all(|name| self.passed(name))
                    .then_some(APPROVED)
            }
            _ => Some(UNSAFE_HARDWARE),
        }
    }

    /// Debug that a policy allows passes, and is on all the same.
    fn runtime(&self) -> Option<u8> {
        match self.named("debug")?["detail"] == "off" {
            true => Some(APPROVED),
            false => Some(CONTRAINDICATED_VALUE),
        }
    }
}

// The values of AR4SI (draft-ietf-rats-ar4si).
const APPROVED: u8 = 2;
const APPROVED_BOOT: u8 = 3;
const UNSAFE_HARDWARE: u8 = 32;
const UNRECOGNIZED_RUNTIME: u8 = 33;
const CONTRAINDICATED_VALUE: u8 = 96;
const UNRECOGNIZED_HARDWARE: u8 = 97;
const CRYPTO_FAILED: u8 = 99;
// Where the tiers begin.
const WARNING: u64 = 32;
const CONTRAINDICATED: u64 = 96;

const FORGED: &[&str] = &[
    "quote-signature",
    "chain-invalid",
    "trust-root-unknown",
    "collateral-signature",
    "report-data-mismatch",
];
const REVOKED: &[&str] = &["certificate-revoked", "tcb-revoked"];
const KEY_BYTES: u64 = 16 * 1024;
