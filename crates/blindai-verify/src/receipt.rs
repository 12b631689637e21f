use std::fmt::{self, Write as _};
use std::ops::RangeInclusive;

use blindai_core::pins::ModelPins;
use blindai_core::receipt::{
    Kind, ReceiptError, ReceiptNonce, SignedStatement, Statement, TensorDigest,
};
use blindai_core::{
    Claims, Collateral, Digest, Evidence, ModelName, ModelVersion, NamedTensor, Tee,
};
use serde_json::Value;

use crate::appraise::{Binding, CLOCK_SKEW_SECONDS, verify};
use crate::check::{Table, checks, write_checks};
use crate::report::{VerifiedReport, utc};
use crate::{Check, Policy, Rejection, RejectionCode, crypto};

/// What a receipt has to say, as far as the caller knows it. What is left out is told as skipped.
#[derive(Clone, Debug, Default)]
pub struct ExpectedReceipt<'a> {
    pub kind: Option<Kind>,
    pub model_name: Option<&'a ModelName>,
    pub model_version: Option<&'a ModelVersion>,
    pub model_digest: Option<Digest>,
    /// Tensors under the names that they had in the request.
    pub inputs: &'a [NamedTensor],
    /// Tensors under the names that they had in the answer.
    pub outputs: &'a [NamedTensor],
    /// Whether these are all inputs and outputs that there were.
    pub complete: bool,
    pub nonce: Option<&'a ReceiptNonce>,
    /// When it may have been made, in seconds since 1970.
    pub window: Option<RangeInclusive<u64>>,
}

/// The proof that a receipt was verified under evidence that was verified: only [`verify_receipt`]
/// makes one.
#[derive(Clone, Debug)]
pub struct VerifiedReceipt {
    statement: Statement,
    checks: Vec<Check>,
    tee: Tee,
    simulated: bool,
    verified_at: u64,
}

/// Decides whether a receipt holds: the key in the report's claims signed it, in the time of the
/// evidence, and it says what the caller expects.
///
/// The report is about the evidence of the server that made the receipt, as of when it made it: the
/// receipt's own time. That time is the server's word, and no more trusted than the key that signs it.
///
/// # Errors
/// The [`Rejection`] holds every check; the first that failed gives its code.
pub fn verify_receipt(
    receipt: &[u8],
    report: &VerifiedReport,
    expected: &ExpectedReceipt<'_>,
) -> Result<VerifiedReceipt, Rejection> {
    let mut table = Table::default();
    let signed = SignedStatement::decode(receipt).map_err(malformed)?;
    let (statement, claims) = (&signed.statement, report.claims());
    table.pass(checks::RECEIPT, "a COSE_Sign1 message of one form");
    check_signature(&signed, claims, &mut table);
    check_kind(statement, expected.kind, &mut table);
    check_time(statement, claims, expected.window.as_ref(), &mut table);
    check_server(statement, claims, &mut table);
    check_nonce(statement, expected.nonce, &mut table);
    check_model(statement, expected, &mut table);
    check_accepted(statement, &report.models, &mut table);
    let deed = &statement.deed;
    INPUTS.check(
        deed.inputs(),
        expected.inputs,
        expected.complete,
        &mut table,
    );
    OUTPUTS.check(
        deed.outputs(),
        expected.outputs,
        expected.complete,
        &mut table,
    );
    Ok(VerifiedReceipt {
        checks: table.finish()?,
        tee: report.tee(),
        simulated: report.simulated(),
        verified_at: report.verified_at(),
        statement: signed.statement,
    })
}

/// The same for a receipt and evidence that somebody kept: judges the evidence first, as of `at` or
/// else of when the receipt says that it was made, and answers with the verdict on each.
///
/// That time is moved into the time of the claims when it lies outside: [`verify_receipt`] then says
/// whether it is a matter of clocks.
///
/// # Errors
/// As [`verify`] and [`verify_receipt`].
pub fn verify_kept_receipt(
    receipt: &[u8],
    evidence: &Evidence,
    collateral: &Collateral,
    binding: &Binding,
    policy: &Policy,
    at: Option<u64>,
    expected: &ExpectedReceipt<'_>,
) -> Result<(VerifiedReceipt, VerifiedReport), Rejection> {
    let signed = SignedStatement::decode(receipt).map_err(malformed)?;
    let at = at.unwrap_or_else(|| time_within(&evidence.claims, signed.statement.issued_at));
    let report = verify(evidence, collateral, binding, policy, at)?;
    Ok((verify_receipt(receipt, &report, expected)?, report))
}

impl VerifiedReceipt {
    /// What the server states.
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// Every check with its outcome.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// Whether the evidence was simulated, so that anybody can have made the receipt.
    pub fn simulated(&self) -> bool {
        self.simulated
    }

    /// The verdict on the whole chain: that on the evidence, as [`VerifiedReport::to_json`] gives it,
    /// with `"subject": "receipt"`, the checks of the receipt after its own, and `receipt` as in
    /// [`Statement::to_json`].
    pub fn to_json(&self, report: &VerifiedReport) -> Value {
        let checks = report.checks().iter().chain(&self.checks);
        let checks: Vec<_> = checks.map(Check::to_json).collect();
        let mut json = report.to_json();
        json["subject"] = "receipt".into();
        json["receipt"] = self.statement.to_json();
        json["checks"] = checks.into();
        json
    }
}

impl fmt::Display for VerifiedReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = &self.statement;
        let mut text = format!(
            "trusted · receipt of {} · {} version {} · {} · {}\n",
            said.deed.kind().as_str(),
            said.model_name,
            said.model_version,
            self.tee,
            utc(said.issued_at)
        );
        if self.simulated {
            text.push_str("  SIMULATED: this proves nothing; anybody can make such a receipt\n");
        }
        // Writing into a String cannot fail.
        let _ = writeln!(text, "  evidence judged as of {}", utc(self.verified_at));
        write_checks(&mut text, &self.checks);
        f.write_str(&text)
    }
}

fn malformed(error: ReceiptError) -> Rejection {
    Rejection::new(RejectionCode::ReceiptMalformed, error.to_string())
}

/// Nobody has verified the claims yet: this chooses as of when they will be.
fn time_within(claims: &[u8], time: u64) -> u64 {
    let claims = Claims::decode(claims).ok();
    let times = claims.and_then(|claims| Some((claims.issued_at?, claims.expires_at?)));
    let (from, to) = times.unwrap_or((0, u64::MAX));
    time.min(to.saturating_sub(1)).max(from)
}

fn check_signature(signed: &SignedStatement, claims: &Claims, table: &mut Table) {
    let named = signed.key_id;
    let key = claims.receipt_key.as_ref();
    let result = match key.map(|key| Digest::of(key)) {
        Some(claimed) if claimed == named => Ok(format!("{named}, as in the claims")),
        Some(claimed) => Err(format!(
            "the receipt names the key {named}, the claims {claimed}"
        )),
        None => Err(format!(
            "the receipt names the key {named}, the claims none"
        )),
    };
    let known = result.is_ok();
    table.decide(checks::RECEIPT_KEY, RejectionCode::ReceiptKey, result);
    let Some(key) = key.filter(|_| known) else {
        return table.not_possible(checks::RECEIPT_SIGNATURE, "the key is not known");
    };
    let result = match crypto::ed25519(key, &signed.signed_bytes, &signed.signature) {
        true => Ok("by that key".to_owned()),
        false => Err("the key in the claims did not sign this receipt".to_owned()),
    };
    table.decide(
        checks::RECEIPT_SIGNATURE,
        RejectionCode::ReceiptSignature,
        result,
    );
}

fn check_kind(statement: &Statement, expected: Option<Kind>, table: &mut Table) {
    let kind = statement.deed.kind();
    let result = match expected {
        None => return table.not_asked(checks::RECEIPT_KIND, kind.as_str()),
        Some(expected) if expected == kind => Ok(kind.as_str().to_owned()),
        Some(expected) => Err(format!(
            "the receipt is of {}, not of {}",
            kind.as_str(),
            expected.as_str()
        )),
    };
    table.decide(checks::RECEIPT_KIND, RejectionCode::ReceiptKind, result);
}

fn check_time(
    statement: &Statement,
    claims: &Claims,
    window: Option<&RangeInclusive<u64>>,
    table: &mut Table,
) {
    let made = statement.issued_at;
    let (from, to) = (
        claims.issued_at.unwrap_or(u64::MAX),
        claims.expires_at.unwrap_or(0),
    );
    // The claims may have been asked for right after the receipt; clocks differ.
    let evidence = from.saturating_sub(CLOCK_SKEW_SECONDS)..=to.saturating_add(CLOCK_SKEW_SECONDS);
    let outside = |range: &RangeInclusive<u64>, whose| {
        let (made, start, end) = (utc(made), utc(*range.start()), utc(*range.end()));
        format!("made at {made}; {whose} from {start} to {end}")
    };
    let result = if !evidence.contains(&made) {
        Err(outside(&(from..=to), "the evidence is"))
    } else if let Some(window) = window.filter(|window| !window.contains(&made)) {
        Err(outside(window, "expected"))
    } else {
        Ok(format!("{}, by the server's clock", utc(made)))
    };
    table.decide(checks::RECEIPT_TIME, RejectionCode::ReceiptTime, result);
}

/// What the server says of itself here and in the claims.
fn check_server(statement: &Statement, claims: &Claims, table: &mut Table) {
    let (ours, theirs) = (&statement.server_version, claims.version.as_deref());
    let replica = hex::encode(statement.replica);
    let result = if statement.replica != claims.tls_spki_sha256 {
        let claimed = hex::encode(claims.tls_spki_sha256);
        Err(format!(
            "the receipt is of the TLS key {replica}, the claims of {claimed}"
        ))
    } else if theirs != Some(ours) {
        let theirs = theirs.unwrap_or("none");
        Err(format!(
            "the receipt is of version {ours}, the claims of {theirs}"
        ))
    } else {
        Ok(format!("TLS key {replica}, version {ours}"))
    };
    table.decide(checks::RECEIPT_SERVER, RejectionCode::ReceiptServer, result);
    let (ours, theirs) = (statement.config_digest, claims.config_digest);
    let result = match theirs {
        Some(theirs) if theirs == ours => Ok(format!("{ours}, as in the claims")),
        Some(theirs) => Err(format!("the receipt names {ours}, the claims {theirs}")),
        None => Err(format!("the receipt names {ours}, the claims none")),
    };
    table.decide(checks::RECEIPT_CONFIG, RejectionCode::ReceiptConfig, result);
}

fn check_nonce(statement: &Statement, expected: Option<&ReceiptNonce>, table: &mut Table) {
    let carried = statement.nonce.as_ref().map(ReceiptNonce::to_hex);
    let carried = carried.as_deref().unwrap_or("none");
    let result = match expected {
        None => {
            let detail = format!("not given to compare; the receipt carries {carried}");
            return table.not_asked(checks::RECEIPT_NONCE, detail);
        }
        sent if sent == statement.nonce.as_ref() => Ok(carried.to_owned()),
        Some(sent) => Err(format!(
            "{} was sent, the receipt carries {carried}",
            sent.to_hex()
        )),
    };
    table.decide(checks::RECEIPT_NONCE, RejectionCode::ReceiptNonce, result);
}

fn check_model(statement: &Statement, expected: &ExpectedReceipt<'_>, table: &mut Table) {
    let (name, version) = (&statement.model_name, &statement.model_version);
    let digest = statement.model_digest;
    let said = format!("{name} version {version}, {digest}");
    let names = expected.model_name.is_some_and(|expected| expected != name);
    let versions = expected
        .model_version
        .is_some_and(|expected| expected != version);
    let digests = expected
        .model_digest
        .is_some_and(|expected| expected != digest);
    let result = if digests {
        let expected = expected.model_digest.map(|digest| digest.to_string());
        Err(format!(
            "the receipt is of {said}; expected {}",
            expected.unwrap_or_default()
        ))
    } else if names || versions {
        Err(format!(
            "the receipt is of {said}; another name or version was expected"
        ))
    } else if expected.model_digest.is_none() {
        return table.not_asked(checks::RECEIPT_MODEL, format!("no digest given; {said}"));
    } else {
        Ok(said)
    };
    table.decide(checks::RECEIPT_MODEL, RejectionCode::ReceiptModel, result);
}

/// What the policy says of models, whoever is asked for which.
fn check_accepted(statement: &Statement, models: &ModelPins, table: &mut Table) {
    let (name, version) = (&statement.model_name, &statement.model_version);
    if models.about(name).is_empty() {
        let detail = format!("the policy does not pin {name}");
        return table.not_asked(checks::RECEIPT_MODEL_ACCEPTED, detail);
    }
    let accepted = models.accept(name, version, &statement.model_digest);
    let result = match accepted {
        Ok(()) => Ok(format!(
            "{}, as the policy pins {name}",
            statement.model_digest
        )),
        Err(error) => Err(error.fact().to_owned()),
    };
    table.decide(
        checks::RECEIPT_MODEL_ACCEPTED,
        RejectionCode::ReceiptModelNotAccepted,
        result,
    );
}

/// One of the two lists of tensors.
struct Side {
    check: &'static str,
    code: RejectionCode,
}

const INPUTS: Side = Side {
    check: checks::RECEIPT_INPUT,
    code: RejectionCode::ReceiptInput,
};
const OUTPUTS: Side = Side {
    check: checks::RECEIPT_OUTPUT,
    code: RejectionCode::ReceiptOutput,
};

impl Side {
    fn check(
        &self,
        said: &[TensorDigest],
        given: &[NamedTensor],
        complete: bool,
        table: &mut Table,
    ) {
        for tensor in given {
            table.decide(self.check, self.code, compare(said, tensor));
        }
        let missing = |said: &&TensorDigest| !given.iter().any(|given| given.name == said.name);
        for tensor in said.iter().filter(missing) {
            let detail = format!("{:?} is in the receipt and was not given", tensor.name);
            match complete {
                true => table.fail(self.check, self.code, detail),
                false => table.not_asked(self.check, detail),
            }
        }
    }
}

fn compare(said: &[TensorDigest], given: &NamedTensor) -> Result<String, String> {
    let name = &given.name;
    let Some(said) = said.iter().find(|said| said.name == *name) else {
        return Err(format!("{name:?} is not in the receipt"));
    };
    let found = TensorDigest::of(given);
    let (dtype, shape) = (found.dtype, &found.shape);
    if (dtype, shape) != (said.dtype, &said.shape) {
        let (dtype_said, shape_said) = (said.dtype, &said.shape);
        return Err(format!(
            "{name:?} is {dtype}{shape:?}, in the receipt {dtype_said}{shape_said:?}"
        ));
    }
    match found.digest == said.digest {
        true => Ok(format!("{name:?}, {dtype}{shape:?}")),
        false => Err(format!("{name:?} has other contents than in the receipt")),
    }
}
