//! Evidence that was kept beside what a server signed, and is judged later.

use blindai_core::{Claims, EvidenceDocument};
use blindai_verify::{Binding, Check, Outcome, Policy, Rejection, VerifiedReport, checks, verify};

use crate::ClientError;

/// Judges an evidence document that was kept with something signed by the key that it names. Both
/// times are in seconds since 1970. The report vouches for no connection.
///
/// It is judged twice: as of the signature, and as of now. Claims end within hours, and then nothing
/// new is signed; but the collateral beside it must still be within its time, because whoever has broken
/// hardware can write any time into what he signs. What was published later, it does not know.
///
/// # Errors
/// Of kind `Attestation`.
pub fn judge_kept(
    evidence: &[u8],
    policy: &Policy,
    signed_at: u64,
    now: u64,
) -> Result<VerifiedReport, ClientError> {
    let document = EvidenceDocument::from_json(evidence)
        .map_err(|error| ClientError::evidence_malformed(&error))?;
    let then = judge(&document, policy, signed_at)??;
    match judge(&document, policy, now)? {
        Ok(_) => Ok(then),
        Err(rejection) if signed_at <= now && only_expired(&then, &rejection) => Ok(then),
        Err(rejection) => Err(rejection.into()),
    }
}

/// Whether an evidence document is of a simulation, as of when it was made.
pub fn is_simulated(evidence: &[u8]) -> bool {
    let policy = Policy::dangerous().accept_simulation();
    let judged = || {
        let document = EvidenceDocument::from_json(evidence).ok()?;
        let made_at = Claims::decode(document.claims()).ok()?.issued_at?;
        judge(&document, &policy, made_at).ok()?.ok()
    };
    judged().is_some()
}

fn judge(
    document: &EvidenceDocument,
    policy: &Policy,
    at: u64,
) -> Result<Result<VerifiedReport, Rejection>, ClientError> {
    let collateral = document.collateral.as_ref();
    let collateral = collateral.ok_or_else(ClientError::collateral_missing)?;
    let binding = Binding {
        tls_spki_sha256: None,
        nonce: None,
    };
    let evidence = document.evidence();
    Ok(verify(&evidence, collateral, &binding, policy, at))
}

/// Whether nothing but the end of the claims has changed.
fn only_expired(then: &VerifiedReport, now: &Rejection) -> bool {
    let outcomes = |made: &[Check]| -> Vec<(&'static str, Outcome)> {
        let made = made.iter().filter(|check| check.name() != checks::VALIDITY);
        made.map(|check| (check.name(), check.outcome())).collect()
    };
    outcomes(then.checks()) == outcomes(now.checks())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, UNIX_EPOCH};

    use blindai_core::{Evidence, ReportData, Tee};
    use blindai_tee::{Attester as _, Measurement, Simulation, SimulationOptions};

    use super::*;

    const MADE_AT: u64 = 1_800_000_000;
    const HOUR: u64 = 3600;

    fn evidence() -> Vec<u8> {
        let mut options = SimulationOptions::new(Measurement::MrEnclave([1; 32]));
        options.clock = Arc::new(|| UNIX_EPOCH + Duration::from_secs(MADE_AT));
        let platform = Simulation::new(options).unwrap();
        let claims = Claims {
            tls_spki_sha256: [1; 32],
            receipt_key: Some([2; 32]),
            hpke_key: None,
            config_digest: None,
            nonce: None,
            issued_at: Some(MADE_AT),
            expires_at: Some(MADE_AT + HOUR),
            version: None,
        };
        let claims = claims.encode();
        let quote = platform.quote(&ReportData::of_claims(&claims)).unwrap();
        let collateral = platform.collateral().unwrap();
        EvidenceDocument::new(Tee::Sgx, Evidence { quote, claims }, collateral).to_json()
    }

    #[test]
    fn claims_may_have_ended_since_and_nothing_else() {
        let (evidence, policy) = (evidence(), Policy::dangerous().accept_simulation());
        let judged = |signed_at, now| judge_kept(&evidence, &policy, signed_at, now);
        let report = judged(MADE_AT, MADE_AT).unwrap();
        assert_eq!(report.claims().receipt_key, Some([2; 32]));
        judged(MADE_AT + HOUR - 1, MADE_AT + 48 * HOUR).unwrap();
        for (signed_at, now) in [
            // Signed outside of the claims; by the evidence of tomorrow; collateral that has ended.
            (MADE_AT - HOUR, MADE_AT),
            (MADE_AT + HOUR, MADE_AT + HOUR),
            (MADE_AT, MADE_AT - HOUR),
            (MADE_AT, MADE_AT + 365 * 24 * HOUR),
        ] {
            assert!(judged(signed_at, now).is_err(), "{signed_at} {now}");
        }
        assert!(judge_kept(&evidence, &Policy::accept_nothing(), MADE_AT, MADE_AT).is_err());
    }

    #[test]
    fn a_simulation_is_told_from_what_is_no_evidence() {
        assert!(is_simulated(&evidence()));
        assert!(!is_simulated(b"{}"));
    }
}
