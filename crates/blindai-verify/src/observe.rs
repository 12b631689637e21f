//! Looking at evidence without judging it: what it says, and whether it verifies.

use std::fmt;

use blindai_core::{
    Claims, Collateral, DcapCollateral, Digest, Evidence, ModelInfo, ReportData, Tee,
};
use dcap_qvl::QuoteClaims;
use dcap_qvl::quote::Quote;
use serde_json::{Value as Json, json};

use crate::check::printable;
use crate::dcap::{self, Body, Refused, Root};
use crate::field::{Field, Value, Values};
use crate::report::{json_object, utc};
use crate::{Rejection, RejectionCode, snp};

/// What a quote or report says, and whether it verifies. It is no verdict: that takes a
/// [`Policy`](crate::Policy).
#[derive(Clone, Debug)]
pub struct Observation {
    pub(crate) tee: Tee,
    pub(crate) values: Values,
    pub(crate) report_data: [u8; 64],
    pub(crate) debug: bool,
    pub(crate) verification: Verification,
    pub(crate) observed_at: u64,
    pub(crate) config_digest: Option<Digest>,
    pub(crate) snp: Option<snp::Seen>,
    /// What a server listed; evidence says nothing of it.
    pub(crate) models: Option<Vec<ModelInfo>>,
}

/// Whether observed evidence verifies: signatures, chains of certificates, revocation and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verification {
    /// There was no collateral to verify it with. Anybody may have written it.
    NotTried,
    /// It does not verify. Anybody may have written it.
    Refused {
        /// Why.
        code: RejectionCode,
        /// What was found, for people.
        fact: String,
    },
    /// It verifies.
    Verified(Verified),
}

/// What verification adds to what evidence says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub(crate) root: Root,
    pub(crate) tcb_status: String,
    pub(crate) advisories: Vec<String>,
    pub(crate) evaluation_number: Option<u32>,
    pub(crate) collateral_until: u64,
}

/// Says what a quote (SGX, TDX) or report (SEV-SNP) holds and, with collateral, whether it verifies at this time.
///
/// Debug is shown and not refused. No policy is applied.
///
/// # Errors
/// When the bytes cannot be read: [`RejectionCode::QuoteMalformed`],
/// [`RejectionCode::QuoteUnsupported`]. Evidence that does not verify is no error:
/// [`Observation::verification`] says so.
pub fn observe(
    quote: &[u8],
    collateral: Option<&Collateral>,
    now_unix_seconds: u64,
) -> Result<Observation, Rejection> {
    let observed = match Evidence::is_snp_report(quote) {
        true => snp::observe(quote, collateral, now_unix_seconds),
        false => observe_dcap(quote, collateral, now_unix_seconds),
    };
    observed.map_err(|refused| Rejection::new(refused.code, refused.text))
}

impl Observation {
    /// Adds what the claims say, when the quote was made for them: the configuration's digest.
    ///
    /// # Errors
    /// [`RejectionCode::ReportDataMismatch`] when it was not, [`RejectionCode::ClaimsMalformed`].
    pub fn with_claims(mut self, encoded: &[u8]) -> Result<Self, Rejection> {
        if ReportData::of_claims(encoded).as_bytes() != &self.report_data {
            let fact = "the quote was not made for these claims";
            return Err(Rejection::new(RejectionCode::ReportDataMismatch, fact));
        }
        let malformed = |error: blindai_core::ClaimsError| {
            Rejection::new(RejectionCode::ClaimsMalformed, error.to_string())
        };
        self.config_digest = Claims::decode(encoded).map_err(malformed)?.config_digest;
        Ok(self)
    }

    /// Adds the models that the server listed, in its order: by name, and of each name in the order of
    /// upload. Evidence does not vouch for them.
    #[must_use]
    pub fn with_models(mut self, models: Vec<ModelInfo>) -> Self {
        self.models = Some(models);
        self
    }

    /// The kind of TEE.
    pub fn tee(&self) -> Tee {
        self.tee
    }

    /// Whether it verifies. Without that, nothing that it says is known to be true.
    pub fn verification(&self) -> &Verification {
        &self.verification
    }

    /// Whether the host can read everything inside.
    pub fn debug(&self) -> bool {
        self.debug
    }

    /// The 64 bytes that the program asked the hardware to sign.
    pub fn report_data(&self) -> &[u8; 64] {
        &self.report_data
    }

    /// Everything that it says, with names and in reading order: first what code runs, then how
    /// it was started, then where. Digests are hexadecimal, numbers decimal.
    pub fn values(&self) -> Vec<(&'static str, String)> {
        let fields = Field::of(self.tee);
        let text = |field: &'static Field| Some((field.name, self.value(field)?.to_string()));
        fields.filter_map(text).collect()
    }

    /// `{"tee", "values", "debug", "report_data", "config_digest", "verification", "observed_at"}`
    pub fn to_json(&self) -> Json {
        json!({
            "tee": self.tee.as_str(),
            "values": json_object(&self.values()),
            "debug": self.debug,
            "report_data": hex::encode(self.report_data),
            "config_digest": self.config_digest,
            "verification": self.verification.to_json(),
            "observed_at": self.observed_at,
        })
    }

    pub(crate) fn value(&self, field: &Field) -> Option<&Value> {
        let value = self.values.iter().find(|(name, _)| *name == field.name);
        value.map(|(_, value)| value)
    }

    pub(crate) fn verified(&self) -> Option<&Verified> {
        match &self.verification {
            Verification::Verified(verified) => Some(verified),
            Verification::NotTried | Verification::Refused { .. } => None,
        }
    }
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} · {}", self.tee, self.verification)?;
        let values = self.values();
        let width = values.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in values {
            writeln!(f, "  {name:<width$}  {value}")?;
        }
        let debug = if self.debug {
            "ON: the host can read everything"
        } else {
            "off"
        };
        writeln!(f, "  {:<width$}  {debug}", "debug")?;
        let report_data = hex::encode(self.report_data);
        writeln!(f, "  {:<width$}  {report_data}", "report_data")
    }
}

impl Verification {
    fn to_json(&self) -> Json {
        match self {
            Verification::NotTried => json!({ "outcome": "not-tried" }),
            Verification::Refused { code, fact } => {
                json!({ "outcome": "refused", "code": code.as_str(), "fact": fact })
            }
            Verification::Verified(verified) => json!({
                "outcome": "verified",
                "trust_root": verified.trust_root(),
                "simulated": verified.simulated(),
                "tcb_status": verified.tcb_status,
                "advisories": verified.advisories,
                "evaluation_number": verified.evaluation_number,
                "collateral_until": verified.collateral_until,
            }),
        }
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verified = match self {
            Verification::NotTried => {
                return f.write_str("NOT VERIFIED: no collateral; anybody may have written this");
            }
            Verification::Refused { code, fact } => {
                let code = code.as_str();
                return write!(
                    f,
                    "NOT VERIFIED: {code}: {fact}; anybody may have written this"
                );
            }
            Verification::Verified(verified) => verified,
        };
        let root = verified.trust_root();
        let until = utc(verified.collateral_until);
        write!(
            f,
            "verifies under {root:?} · {} · collateral until {until}",
            verified.tcb_status
        )?;
        if verified.simulated() {
            f.write_str(" · SIMULATED: this protects nothing; anybody can make such evidence")?;
        }
        if !verified.advisories.is_empty() {
            write!(f, " · {}", verified.advisories.join(", "))?;
        }
        Ok(())
    }
}

impl Verified {
    /// The name of the root that the chain of certificates ends in.
    pub fn trust_root(&self) -> &'static str {
        self.root.name()
    }

    /// Whether the evidence is simulated and therefore protects nothing.
    pub fn simulated(&self) -> bool {
        self.root.simulated()
    }

    /// The platform's patch level as Intel names it, `UpToDate` at best; `reported` for SEV-SNP, of
    /// which AMD names none.
    pub fn tcb_status(&self) -> &str {
        &self.tcb_status
    }

    /// The security advisories that apply to the platform.
    pub fn advisories(&self) -> &[String] {
        &self.advisories
    }

    /// The number of Intel's evaluation that the collateral is of; `None` where there is none.
    pub fn evaluation_number(&self) -> Option<u32> {
        self.evaluation_number
    }

    /// When the first part of the collateral ends, in seconds since 1970.
    pub fn collateral_until(&self) -> u64 {
        self.collateral_until
    }
}

fn observe_dcap(
    quote: &[u8],
    collateral: Option<&Collateral>,
    now: u64,
) -> Result<Observation, Refused> {
    let parsed = dcap::parse(quote)?;
    let (own, verified) = match collateral {
        None => (None, Err(Verification::NotTried)),
        Some(Collateral::Dcap(own)) => (Some(own), verify_dcap(quote, &parsed, own, now)),
        Some(Collateral::Snp(_)) => {
            let code = RejectionCode::CollateralMismatch;
            let fact = "the collateral is of SEV-SNP, the quote is not".to_owned();
            (None, Err(Verification::Refused { code, fact }))
        }
    };
    let body = Body::from(&parsed.report);
    let pck = match &verified {
        Ok((claims, _)) => Some(claims.platform.pck.clone()),
        Err(_) => dcap::unverified_pck(&parsed, own),
    };
    let mut values = body.values;
    values.extend(
        pck.iter()
            .flat_map(|pck| dcap::platform(&parsed.header, pck)),
    );
    Ok(Observation {
        tee: body.tee,
        values,
        report_data: body.report_data,
        debug: body.debug,
        verification: verified.map_or_else(|why_not| why_not, |(_, v)| Verification::Verified(v)),
        observed_at: now,
        config_digest: None,
        snp: None,
        models: None,
    })
}

fn verify_dcap(
    quote: &[u8],
    parsed: &Quote,
    collateral: &DcapCollateral,
    now: u64,
) -> Result<(QuoteClaims, Verified), Verification> {
    let root = dcap::claimed_root(parsed, collateral);
    let claims = dcap::verify(quote, collateral, root, true, now);
    let claims = claims.map_err(|refused| Verification::Refused {
        code: refused.code,
        fact: printable(&refused.text),
    })?;
    let verified = Verified {
        root,
        tcb_status: claims.tcb.status.to_string(),
        advisories: dcap::advisories(&claims),
        evaluation_number: Some(claims.tcb.eval_data_number),
        collateral_until: claims.earliest_expiration_date,
    };
    Ok((claims, verified))
}
