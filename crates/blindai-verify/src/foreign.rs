//! Certificates of other programs that speak RA-TLS, for looking at them.
//!
//! Older programs put a bare quote into the certificate whose report data is the digest of the key
//! itself: no claims, no nonce, no times. That binds a key and nothing else, so it is kept apart
//! from [`CertificateEvidence`](crate::CertificateEvidence): what is read here gives a
//! [`QuoteReport`], from which no client can be made.

use blindai_core::{CMW_OID, Claims, Collateral, Evidence, RA_TLS_OID};
use sha2::{Digest as _, Sha256};

use crate::appraise::{
    appraise, check_certificate_key, check_claims, check_config, check_named_validity,
    check_static_binding, no_verdict, skip_config,
};
use crate::certificate::{carries, only_extension, parse, read_certificate, spki_sha256};
use crate::check::{Table, checks};
use crate::observe::observe;
use crate::{Policy, QuoteReport, Rejection, RejectionCode};

/// The evidence in a certificate of another program, with the key that the certificate is for.
/// Nothing in it is verified.
#[derive(Clone, Debug)]
pub struct ForeignCertificate {
    evidence: Evidence,
    /// Without claims the quote signs the key itself.
    has_claims: bool,
    spki_sha256: [u8; 32],
}

/// Reads the evidence in an X.509 certificate, DER, of any program: that of
/// [`read_certificate`](crate::read_certificate) and, where there is none, a bare quote as Gramine
/// and Intel's SGX SDK wrote it, in the extensions 1.2.840.113741.1337.6 and 1.2.840.113741.1.13.1.
///
/// # Errors
/// [`RejectionCode::CertificateMalformed`]
pub fn read_foreign_certificate(der: &[u8]) -> Result<ForeignCertificate, Rejection> {
    let certificate = parse(der)?;
    // A certificate may carry both, for old and new readers: the claims say more.
    let (evidence, has_claims) = match carries(&certificate, &[RA_TLS_OID, CMW_OID]) {
        true => (read_certificate(der)?.evidence().clone(), true),
        false => {
            let claims = Vec::new();
            let quote = only_extension(&certificate, BARE_QUOTE_OIDS)?.to_vec();
            (Evidence { quote, claims }, false)
        }
    };
    Ok(ForeignCertificate {
        evidence,
        has_claims,
        spki_sha256: spki_sha256(&certificate)?,
    })
}

impl ForeignCertificate {
    /// The quote or report, for [`observe`](crate::observe()).
    pub fn quote(&self) -> &[u8] {
        &self.evidence.quote
    }

    /// The encoded claims; `None` when the quote signs the certificate's key itself.
    pub fn claims(&self) -> Option<&[u8]> {
        self.has_claims.then_some(&*self.evidence.claims)
    }

    /// SHA-256 of the certificate's SubjectPublicKeyInfo.
    pub fn spki_sha256(&self) -> [u8; 32] {
        self.spki_sha256
    }

    /// Checks that the quote was made for the certificate's key, directly or through the claims.
    /// This is **not** verification: the quote's signature is not looked at.
    ///
    /// # Errors
    /// With the table of these checks.
    pub fn check_binding(&self) -> Result<(), Rejection> {
        if self.has_claims {
            return check_static_binding(&self.evidence, self.spki_sha256);
        }
        let mut table = Table::default();
        let report_data = *observe(self.quote(), None, 0)?.report_data();
        self.check_signed_key(Some(&report_data), &mut table);
        table.finish().map(drop)
    }

    /// Appraises the quote, its binding to the certificate's key and, of the claims, the times and
    /// the configuration. Times and a nonce are not asked for, because other programs' claims may
    /// name none; times that are named must hold. It proves nothing of the connection that the
    /// certificate came over.
    ///
    /// # Errors
    /// As [`verify`](crate::verify()).
    pub fn appraise(
        &self,
        collateral: &Collateral,
        policy: &Policy,
        now_unix_seconds: u64,
    ) -> Result<QuoteReport, Rejection> {
        let mut table = Table::default();
        let (quote, now) = (&self.evidence.quote, now_unix_seconds);
        let appraised = appraise(quote, collateral, policy, now, &mut table);
        let signed = appraised.report_data.as_ref();
        let claims_end = match self.has_claims {
            true => self.check_claims(signed, policy, now, &mut table),
            false => {
                self.check_signed_key(signed, &mut table);
                skip_config(policy, &mut table);
                u64::MAX
            }
        };
        let checks = table.finish()?;
        let mut report = appraised.report.ok_or_else(no_verdict)?;
        report.checks = checks;
        report.valid_until = report.valid_until.min(claims_end);
        Ok(report)
    }

    /// Answers when the claims end.
    fn check_claims(
        &self,
        signed: Option<&[u8; 64]>,
        policy: &Policy,
        now: u64,
        table: &mut Table,
    ) -> u64 {
        let claims = check_claims(&self.evidence.claims, signed, table);
        let claims = claims.as_ref();
        check_certificate_key(claims, self.spki_sha256, table);
        let end = check_named_validity(claims, now, table);
        check_config(claims, policy, table);
        end
    }

    fn check_signed_key(&self, report_data: Option<&[u8; 64]>, table: &mut Table) {
        let Some(signed) = report_data else {
            return table.not_possible(checks::TLS_KEY, "the quote cannot be read");
        };
        let claims = Sha256::digest(only_key(self.spki_sha256)).into();
        let names = |digest: &[u8; 32]| signed[..32] == *digest && signed[32..] == [0; 32];
        let names_key = [self.spki_sha256, claims].iter().any(names);
        let result = match names_key {
            true => Ok("the quote was made for the certificate's key".to_owned()),
            false => Err("the quote was not made for the certificate's key".to_owned()),
        };
        table.decide(checks::TLS_KEY, RejectionCode::TlsKeyMismatch, result);
    }
}

// Intel's SDK writes the same quote twice: with these claims, and bare.
fn only_key(tls_spki_sha256: [u8; 32]) -> Vec<u8> {
    let claims = Claims {
        tls_spki_sha256,
        receipt_key: None,
        hpke_key: None,
        config_digest: None,
        nonce: None,
        issued_at: None,
        expires_at: None,
        version: None,
    };
    claims.encode()
}

const BARE_QUOTE_OIDS: &[&[u64]] = &[
    // Gramine, which wrote tag and length of the name into the name.
    &[0, 6, 9, 42, 840, 113741, 1337, 6],
    // Gramine, as it was meant.
    &[1, 2, 840, 113741, 1337, 6],
    // Intel's SGX SDK.
    &[1, 2, 840, 113741, 1, 13, 1],
];
