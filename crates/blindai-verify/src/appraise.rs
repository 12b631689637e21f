use blindai_core::{Claims, Collateral, DcapCollateral, Evidence, Nonce, ReportData, Tee};
use dcap_qvl::{QuoteClaims, TcbStatus};

use crate::check::{Table, checks};
use crate::dcap::{self, Body, Refused, Root};
use crate::field::{Field, Values};
use crate::policy::{Excepted, Policy};
use crate::report::{QuoteReport, VerifiedReport, utc};
use crate::{Rejection, RejectionCode, snp};

/// What the evidence has to be bound to, beside the code and the hardware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// SHA-256 of the SubjectPublicKeyInfo of the TLS key at the other end. `None` only where there
    /// is no connection, as for a stored document: such a report vouches for no connection.
    pub tls_spki_sha256: Option<[u8; 32]>,
    /// The nonce that was sent for this evidence, when one was.
    pub nonce: Option<Nonce>,
}

/// Decides whether evidence is to be trusted, at a time that the caller names.
///
/// Pure: the same arguments give the same answer, on every machine and at every time.
///
/// # Errors
/// The [`Rejection`] holds every check that could be made; the first that failed gives its code.
pub fn verify(
    evidence: &Evidence,
    collateral: &Collateral,
    binding: &Binding,
    policy: &Policy,
    now_unix_seconds: u64,
) -> Result<VerifiedReport, Rejection> {
    let now = now_unix_seconds;
    let mut table = Table::default();
    let appraised = appraise(&evidence.quote, collateral, policy, now, &mut table);
    let report_data = appraised.report_data;
    let claims = check_claims(&evidence.claims, report_data.as_ref(), &mut table);
    check_binding(claims.as_ref(), binding, &mut table);
    check_validity(claims.as_ref(), now, &mut table);
    check_config(claims.as_ref(), policy, &mut table);

    let checks = table.finish()?;
    // All checks hold, so both are there; if they were not, that would be a refusal too.
    let (Some(mut quote), Some(claims)) = (appraised.report, claims) else {
        return Err(no_verdict());
    };
    quote.checks = checks;
    quote.valid_until = quote.valid_until.min(claims.expires_at.unwrap_or(0));
    let models = policy.models.clone();
    Ok(VerifiedReport {
        quote,
        claims,
        models,
    })
}

/// Appraises a quote by itself, without claims and without a connection: for looking at evidence of
/// other programs. It is no proof of who is at the other end of anything. A policy that asks for a
/// configuration refuses it, because only claims name one.
///
/// # Errors
/// As [`verify`].
pub fn appraise_quote(
    quote: &[u8],
    collateral: &Collateral,
    policy: &Policy,
    now_unix_seconds: u64,
) -> Result<QuoteReport, Rejection> {
    let mut table = Table::default();
    let appraised = appraise(quote, collateral, policy, now_unix_seconds, &mut table);
    skip_config(policy, &mut table);
    let checks = table.finish()?;
    let mut report = appraised.report.ok_or_else(no_verdict)?;
    report.checks = checks;
    Ok(report)
}

/// The part of a verdict that needs no signature check: the quote was made for these claims, and
/// the claims name this TLS key.
pub(crate) fn check_static_binding(
    evidence: &Evidence,
    tls_spki_sha256: [u8; 32],
) -> Result<(), Rejection> {
    let mut table = Table::default();
    let report_data = match report_data_of(&evidence.quote) {
        Ok(report_data) => {
            table.pass(
                checks::QUOTE,
                "it can be read; its signature is not checked here",
            );
            Some(report_data)
        }
        Err(Refused { code, text }) => {
            table.fail(checks::QUOTE, code, text);
            None
        }
    };
    let claims = check_claims(&evidence.claims, report_data.as_ref(), &mut table);
    check_certificate_key(claims.as_ref(), tls_spki_sha256, &mut table);
    table.finish().map(drop)
}

fn report_data_of(quote: &[u8]) -> Result<[u8; 64], Refused> {
    match Evidence::is_snp_report(quote) {
        true => Ok(snp::Report::parse(quote)?.report_data()),
        false => Ok(Body::from(&dcap::parse(quote)?.report).report_data),
    }
}

/// How far a server's clock may run ahead, in seconds.
pub(crate) const CLOCK_SKEW_SECONDS: u64 = 300;
const NOT_READ: &str = "the quote cannot be read";
const NOT_VERIFIED: &str = "the quote does not verify";
const NOT_JUDGED: &str = "not judged: the trust root is not accepted";
const NO_CLAIMS: &str = "the claims cannot be read";

pub(crate) struct Appraised {
    /// From the quote as it came, verified or not: for the table only, until all checks hold.
    pub report_data: Option<[u8; 64]>,
    /// There only when the quote verified.
    pub report: Option<QuoteReport>,
}

pub(crate) fn appraise(
    quote: &[u8],
    collateral: &Collateral,
    policy: &Policy,
    now: u64,
    table: &mut Table,
) -> Appraised {
    let code = RejectionCode::CollateralMismatch;
    let text = match (Evidence::is_snp_report(quote), collateral) {
        (false, Collateral::Dcap(collateral)) => {
            return appraise_dcap(quote, collateral, policy, now, table);
        }
        (true, Collateral::Snp(collateral)) => {
            return snp::appraise(quote, collateral, policy, now, table);
        }
        (true, Collateral::Dcap(_)) => "the collateral is of SGX and TDX, the bytes are a report",
        (false, Collateral::Snp(_)) => {
            "the collateral is of SEV-SNP, the bytes are no report of it"
        }
    };
    let text = text.to_owned();
    skip_all(Refused { code, text }, table);
    Appraised {
        report_data: None,
        report: None,
    }
}

fn appraise_dcap(
    quote: &[u8],
    collateral: &DcapCollateral,
    policy: &Policy,
    now: u64,
    table: &mut Table,
) -> Appraised {
    let parsed = match dcap::parse(quote) {
        Ok(parsed) => parsed,
        Err(refused) => {
            skip_all(refused, table);
            return Appraised {
                report_data: None,
                report: None,
            };
        }
    };
    let body = Body::from(&parsed.report);
    check_tee(body.tee, policy, table);
    let root = dcap::claimed_root(&parsed, collateral);
    let claims = check_quote(quote, collateral, root, policy, now, &body, table);
    // Under another root anybody may have written the patch level: it is not repeated.
    let judged = match policy.accepts_root(root) {
        true => claims.as_ref().ok_or(NOT_VERIFIED),
        false => Err(NOT_JUDGED),
    };
    let limit = check_tcb(judged, policy, now, table);
    let platform = judged.map(|claims| dcap::platform(&claims.header, &claims.platform.pck));
    check_pins(body.tee, &body.values, platform.as_ref(), policy, table);

    let report_data = Some(body.report_data);
    let report = claims.map(|claims| {
        let verified = Body::from(&claims.report);
        let platform = dcap::platform(&claims.header, &claims.platform.pck);
        let (measurements, details) = report_values(verified.tee, verified.values, platform);
        QuoteReport {
            tee: verified.tee,
            root,
            tcb_status: claims.tcb.status.to_string(),
            advisories: dcap::advisories(&claims),
            measurements,
            details,
            checks: Vec::new(),
            verified_at: now,
            valid_until: claims.earliest_expiration_date.min(limit),
        }
    });
    Appraised {
        report_data,
        report,
    }
}

type Texts = Vec<(&'static str, String)>;

/// The measurements, and beside them all else that was said, in reading order.
pub(crate) fn report_values(tee: Tee, said: Values, platform: Values) -> (Texts, Texts) {
    let said: Vec<_> = said.into_iter().chain(platform).collect();
    let text = |field: &&'static Field| {
        let (name, value) = said.iter().find(|(name, _)| *name == field.name)?;
        Some((*name, value.to_string()))
    };
    let (code, rest): (Vec<_>, Vec<_>) = Field::of(tee).partition(|field| field.is_measurement());
    let texts = |fields: Vec<_>| fields.iter().filter_map(text).collect();
    (texts(code), texts(rest))
}

fn skip_all(refused: Refused, table: &mut Table) {
    table.not_possible(checks::TEE, NOT_READ);
    table.not_possible(checks::TRUST_ROOT, NOT_READ);
    table.fail(checks::QUOTE, refused.code, refused.text);
    for name in [
        checks::DEBUG,
        checks::TCB_STATUS,
        checks::TCB_ADVISORIES,
        checks::TCB_EVALUATION,
    ] {
        table.not_possible(name, NOT_READ);
    }
}

pub(crate) fn check_tee(tee: Tee, policy: &Policy, table: &mut Table) {
    let accepted = policy.tees.iter().map(|tee| tee.as_str());
    let accepted: Vec<_> = accepted.collect();
    let result = if policy.tees.contains(&tee) {
        Ok(tee.to_string())
    } else {
        let accepted = accepted.join(", ");
        Err(format!(
            "the server runs on {tee}, the policy accepts {accepted}"
        ))
    };
    table.decide(checks::TEE, RejectionCode::TeeNotAccepted, result);
}

/// Trust root, signatures and debug. The claims are there when signatures, chains and times hold.
fn check_quote(
    quote: &[u8],
    collateral: &DcapCollateral,
    root: Root,
    policy: &Policy,
    now: u64,
    body: &Body,
    table: &mut Table,
) -> Option<QuoteClaims> {
    let verify = |allow_debug| dcap::verify(quote, collateral, root, allow_debug, now);
    let mut verified = verify(policy.allow_debug);
    let debug_refused = matches!(&verified, Err(r) if r.code == RejectionCode::Debug);
    if debug_refused {
        // Only to fill in the rest of the table: the check below fails whatever comes of it.
        verified = verify(true);
    }
    check_root(root, verified.as_ref().err(), policy, table);
    let claims = match verified {
        Ok(claims) => {
            let end = utc(claims.earliest_expiration_date);
            table.pass(
                checks::QUOTE,
                format!("signatures, chains, revocation and times hold; collateral until {end}"),
            );
            Some(claims)
        }
        Err(refused) => {
            table.fail(checks::QUOTE, refused.code, refused.text);
            None
        }
    };
    let allowed = policy.allow_debug && !debug_refused;
    check_debug(body.debug || debug_refused, allowed, table);
    claims
}

pub(crate) fn check_debug(on: bool, allowed: bool, table: &mut Table) {
    let result = match (on, allowed) {
        (false, _) => Ok("off".to_owned()),
        (true, true) => Ok("ON, as the policy allows: the host can read everything".to_owned()),
        (true, false) => Err("debug is on: the host can read everything inside".to_owned()),
    };
    table.decide(checks::DEBUG, RejectionCode::Debug, result);
}

pub(crate) fn check_root(
    root: Root,
    refused: Option<&Refused>,
    policy: &Policy,
    table: &mut Table,
) {
    let name = root.name();
    let unknown = |r: &&Refused| r.code == RejectionCode::TrustRootUnknown;
    if !policy.accepts_root(root) {
        let (code, fact) = match root {
            Root::Simulation | Root::SimulationArk => (
                RejectionCode::TrustRootSimulation,
                format!(
                    "the evidence is simulated, its root is {name:?}; the policy accepts hardware"
                ),
            ),
            Root::Intel | Root::Amd(_) => (
                RejectionCode::TrustRootHardware,
                format!(
                    "the evidence is of hardware, its root is {name:?}; the policy accepts only the simulation"
                ),
            ),
        };
        table.fail(checks::TRUST_ROOT, code, fact);
    } else if let Some(refused) = refused.filter(unknown) {
        let fact = format!("the evidence does not lead to {name:?}: {}", refused.text);
        table.fail(checks::TRUST_ROOT, refused.code, fact);
    } else if refused.is_some() {
        table.not_possible(checks::TRUST_ROOT, NOT_VERIFIED);
    } else {
        table.pass(checks::TRUST_ROOT, name);
    }
}

/// Patch level, advisories and age of the evaluation. Answers when the first exception that was
/// needed ends.
fn check_tcb(
    claims: Result<&QuoteClaims, &str>,
    policy: &Policy,
    now: u64,
    table: &mut Table,
) -> u64 {
    let claims = match claims {
        Ok(claims) => claims,
        Err(why_not) => {
            for name in [
                checks::TCB_STATUS,
                checks::TCB_ADVISORIES,
                checks::TCB_EVALUATION,
            ] {
                table.not_possible(name, why_not);
            }
            return 0;
        }
    };
    let status = check_status(claims.tcb.status, policy, now, table);
    let advisories = check_advisories(&dcap::advisories(claims), policy, now, table);
    let number = claims.tcb.eval_data_number;
    match policy.min_evaluation_number {
        None => table.not_asked(
            checks::TCB_EVALUATION,
            format!("{number}; the policy names no minimum"),
        ),
        Some(minimum) => {
            let fact =
                format!("the collateral is of evaluation {number}, the policy asks for {minimum}");
            let result = if number >= minimum {
                Ok(number.to_string())
            } else {
                Err(fact)
            };
            table.decide(checks::TCB_EVALUATION, RejectionCode::TcbEvaluation, result);
        }
    }
    status.min(advisories)
}

fn check_status(status: TcbStatus, policy: &Policy, now: u64, table: &mut Table) -> u64 {
    if policy.allowed_statuses.contains(&status) {
        table.pass(checks::TCB_STATUS, status.to_string());
        return u64::MAX;
    }
    let until = policy.excepted_until(&Excepted::Status(status), now);
    let result = match until {
        Some(until) => Ok(format!("{status}, accepted until {}", utc(until))),
        None => Err(format!(
            "the platform is {status}, which the policy does not accept"
        )),
    };
    table.decide(checks::TCB_STATUS, RejectionCode::TcbStatus, result);
    until.unwrap_or(0)
}

fn check_advisories(ids: &[String], policy: &Policy, now: u64, table: &mut Table) -> u64 {
    let until = |id: &String| policy.excepted_until(&Excepted::Advisory(id.clone()), now);
    let open: Vec<_> = ids
        .iter()
        .filter(|id| until(id).is_none())
        .cloned()
        .collect();
    let result = match (ids.is_empty(), open.is_empty()) {
        (true, _) => Ok("none".to_owned()),
        (false, true) => Ok(format!("{}, each accepted", ids.join(", "))),
        (false, false) => Err(format!(
            "{} without an exception in the policy",
            open.join(", ")
        )),
    };
    table.decide(checks::TCB_ADVISORIES, RejectionCode::TcbAdvisory, result);
    ids.iter().filter_map(until).min().unwrap_or(u64::MAX)
}

pub(crate) fn check_pins(
    tee: Tee,
    values: &Values,
    platform: Result<&Values, &&str>,
    policy: &Policy,
    table: &mut Table,
) {
    for pin in policy.pins.iter().filter(|pin| pin.tee == tee) {
        let name = pin.field.name;
        let known = values.iter().chain(platform.into_iter().flatten());
        let Some((_, seen)) = known.into_iter().find(|(n, _)| *n == name) else {
            let why_not = platform.err().copied();
            table.not_possible(name, why_not.unwrap_or("the evidence does not say"));
            continue;
        };
        let allowed = &pin.allowed;
        let result = match allowed.holds(seen) {
            true => Ok(seen.to_string()),
            false => Err(format!(
                "the server has {name} {seen}, the policy allows {allowed}"
            )),
        };
        table.decide(name, pin.field.code(), result);
    }
}

pub(crate) fn check_claims(
    encoded: &[u8],
    report_data: Option<&[u8; 64]>,
    table: &mut Table,
) -> Option<Claims> {
    let claims = match Claims::decode(encoded) {
        Ok(claims) => {
            table.pass(checks::CLAIMS, "they can be read");
            Some(claims)
        }
        Err(error) => {
            table.fail(
                checks::CLAIMS,
                RejectionCode::ClaimsMalformed,
                error.to_string(),
            );
            None
        }
    };
    match report_data {
        None => table.not_possible(checks::REPORT_DATA, NOT_READ),
        Some(signed) => {
            let result = if ReportData::of_claims(encoded).as_bytes() == signed {
                Ok("the quote was made for these claims".to_owned())
            } else {
                Err("the quote was not made for these claims".to_owned())
            };
            table.decide(
                checks::REPORT_DATA,
                RejectionCode::ReportDataMismatch,
                result,
            );
        }
    }
    claims
}

fn check_binding(claims: Option<&Claims>, binding: &Binding, table: &mut Table) {
    match binding.tls_spki_sha256 {
        None => table.not_asked(checks::TLS_KEY, "no connection to check"),
        Some(used) => check_key(claims, used, "connection", table),
    }
    match (binding.nonce, claims) {
        (None, _) => table.not_asked(checks::NONCE, "none was sent"),
        (Some(_), None) => table.not_possible(checks::NONCE, NO_CLAIMS),
        (Some(sent), Some(claims)) => {
            let result = if claims.nonce == Some(sent) {
                Ok("the evidence was made for this request".to_owned())
            } else {
                Err("the claims do not carry the nonce that was sent".to_owned())
            };
            table.decide(checks::NONCE, RejectionCode::NonceMismatch, result);
        }
    }
}

/// The key of a certificate that lies there as a file: who holds it, nobody showed.
pub(crate) fn check_certificate_key(claims: Option<&Claims>, key: [u8; 32], table: &mut Table) {
    check_key(claims, key, "certificate", table);
}

fn check_key(claims: Option<&Claims>, used: [u8; 32], whose: &str, table: &mut Table) {
    let Some(claims) = claims else {
        return table.not_possible(checks::TLS_KEY, NO_CLAIMS);
    };
    let claimed = claims.tls_spki_sha256;
    let result = match used == claimed {
        true => Ok(format!("the {whose}'s key is the one in the claims")),
        false => Err(format!(
            "the {whose} uses the key {}, the claims name {}",
            hex::encode(used),
            hex::encode(claimed)
        )),
    };
    table.decide(checks::TLS_KEY, RejectionCode::TlsKeyMismatch, result);
}

/// The times that the claims of other programs name; they need not name any. Answers when the claims
/// end.
pub(crate) fn check_named_validity(claims: Option<&Claims>, now: u64, table: &mut Table) -> u64 {
    let times = claims.map(|claims| (claims.issued_at, claims.expires_at));
    match times {
        Some((None, None)) => {
            table.not_asked(checks::VALIDITY, "the claims name no times");
            u64::MAX
        }
        _ => {
            check_validity(claims, now, table);
            times.and_then(|(_, end)| end).unwrap_or(0)
        }
    }
}

fn check_validity(claims: Option<&Claims>, now: u64, table: &mut Table) {
    use RejectionCode::{ClaimsExpired, ClaimsNotYetValid};
    let Some(claims) = claims else {
        return table.not_possible(checks::VALIDITY, NO_CLAIMS);
    };
    let at = utc(now);
    let (code, fact) = match (claims.issued_at, claims.expires_at) {
        (_, None) => (
            ClaimsExpired,
            "the claims do not say when they end".to_owned(),
        ),
        (None, _) => (
            ClaimsNotYetValid,
            "the claims do not say when they were made".to_owned(),
        ),
        (Some(made), _) if made > now.saturating_add(CLOCK_SKEW_SECONDS) => {
            let made = utc(made);
            (
                ClaimsNotYetValid,
                format!("the claims were made at {made}, it is {at}"),
            )
        }
        (_, Some(end)) if end <= now => {
            let end = utc(end);
            (
                ClaimsExpired,
                format!("the claims ended at {end}, it is {at}"),
            )
        }
        (_, Some(end)) => return table.pass(checks::VALIDITY, format!("until {}", utc(end))),
    };
    table.fail(checks::VALIDITY, code, fact);
}

pub(crate) fn check_config(claims: Option<&Claims>, policy: &Policy, table: &mut Table) {
    let allowed = &policy.config_digests;
    let claimed = claims.map(|claims| claims.config_digest);
    let result = match (allowed.is_empty(), claimed) {
        (true, None | Some(None)) => {
            return table.not_asked(checks::CONFIG_DIGEST, "the policy names none");
        }
        (true, Some(Some(digest))) => {
            return table.not_asked(
                checks::CONFIG_DIGEST,
                format!("{digest}; the policy names none"),
            );
        }
        (false, None) => return table.not_possible(checks::CONFIG_DIGEST, NO_CLAIMS),
        (false, Some(Some(digest))) if allowed.contains(&digest) => Ok(digest.to_string()),
        (false, Some(found)) => {
            let found = found.map_or("nothing".to_owned(), |digest| digest.to_string());
            let allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
            let allowed = allowed.join(" or ");
            Err(format!(
                "the server's configuration is {found}, the policy allows {allowed}"
            ))
        }
    };
    table.decide(checks::CONFIG_DIGEST, RejectionCode::ConfigMismatch, result);
}

/// Without claims nothing names a configuration, so a policy that asks for one cannot be met.
pub(crate) fn skip_config(policy: &Policy, table: &mut Table) {
    if !policy.config_digests.is_empty() {
        let fact = "there are no claims, which name the configuration that the policy asks for";
        table.not_possible(checks::CONFIG_DIGEST, fact);
    }
}

pub(crate) fn no_verdict() -> Rejection {
    Rejection::new(RejectionCode::AppraisalFailed, "the checks gave no verdict")
}
