//! From when to when collateral holds, read from its parts. Their signatures are not checked here.

use blindai_core::{Collateral, DcapCollateral, SnpCollateral};
use der::{DateTime, Decode as _};
use serde::Deserialize;
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;

use crate::{CollateralError, CollateralErrorKind};

/// When all parts of a collateral hold, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// When the last of its parts was issued.
    pub not_before: u64,
    /// When the first of its parts ends: a list or statement that must be renewed, or a certificate.
    pub not_after: u64,
}

impl Validity {
    /// Reads when a collateral holds.
    ///
    /// # Errors
    /// When a part of it cannot be read.
    pub fn of(collateral: &Collateral) -> Result<Self, CollateralError> {
        match collateral {
            Collateral::Dcap(collateral) => Self::of_dcap(collateral),
            Collateral::Snp(collateral) => Self::of_snp(collateral),
        }
    }

    /// Whether it holds at this time.
    pub fn contains(&self, now_unix_seconds: u64) -> bool {
        (self.not_before..self.not_after).contains(&now_unix_seconds)
    }

    fn of_dcap(c: &DcapCollateral) -> Result<Self, CollateralError> {
        let parts = [
            statement(&c.tcb_info, "TCB info")?,
            statement(&c.qe_identity, "QE identity")?,
            crl(&c.root_ca_crl)?,
            crl(&c.pck_crl)?,
            chain(&c.pck_crl_issuer_chain)?,
            chain(&c.tcb_info_issuer_chain)?,
            chain(&c.qe_identity_issuer_chain)?,
        ];
        Ok(parts.into_iter().fold(ALWAYS, Self::and))
    }

    fn of_snp(c: &SnpCollateral) -> Result<Self, CollateralError> {
        let mut all = chain(&c.signer)?;
        if let Some(issuers) = &c.issuer_chain {
            all = all.and(chain(issuers)?);
        }
        if let Some(list) = &c.crl {
            all = all.and(crl(list)?);
        }
        Ok(all)
    }

    fn and(self, other: Self) -> Self {
        Self {
            not_before: self.not_before.max(other.not_before),
            not_after: self.not_after.min(other.not_after),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    issue_date: String,
    next_update: String,
}

fn statement(json: &str, what: &str) -> Result<Validity, CollateralError> {
    let statement: Option<Statement> = serde_json::from_str(json).ok();
    let date = |text: &str| Some(text.parse::<DateTime>().ok()?.unix_duration().as_secs());
    let read = || {
        let statement = statement?;
        Some(Validity {
            not_before: date(&statement.issue_date)?,
            not_after: date(&statement.next_update)?,
        })
    };
    read().ok_or_else(|| unreadable(format!("the {what} does not say when it holds")))
}

fn crl(der: &[u8]) -> Result<Validity, CollateralError> {
    let list: CertificateList = CertificateList::from_der(der)
        .map_err(|_| unreadable("a certificate revocation list cannot be read"))?;
    let next = list.tbs_cert_list.next_update;
    let next = next.ok_or_else(|| unreadable("a revocation list does not say when it ends"))?;
    Ok(Validity {
        not_before: list.tbs_cert_list.this_update.to_unix_duration().as_secs(),
        not_after: next.to_unix_duration().as_secs(),
    })
}

fn chain(pem: &str) -> Result<Validity, CollateralError> {
    let chain = Certificate::load_pem_chain(pem.as_bytes()).unwrap_or_default();
    if chain.is_empty() {
        return Err(unreadable("a chain of certificates cannot be read"));
    }
    let validity = |certificate: &Certificate| {
        let validity = certificate.tbs_certificate().validity();
        Validity {
            not_before: validity.not_before.to_unix_duration().as_secs(),
            not_after: validity.not_after.to_unix_duration().as_secs(),
        }
    };
    Ok(chain.iter().map(validity).fold(ALWAYS, Validity::and))
}

fn unreadable(fact: impl Into<String>) -> CollateralError {
    CollateralError::new(CollateralErrorKind::Unreadable, fact)
}

const ALWAYS: Validity = Validity {
    not_before: 0,
    not_after: u64::MAX,
};
