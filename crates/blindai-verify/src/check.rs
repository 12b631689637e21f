use std::borrow::Cow;
use std::fmt;

use serde_json::{Value, json};

use crate::RejectionCode;

/// One line of the table that explains a verdict.
#[derive(Clone, Debug)]
pub struct Check {
    name: &'static str,
    outcome: Outcome,
    /// A skipped check that had to be made is a failure.
    required: bool,
    code: Option<RejectionCode>,
    detail: String,
    remedy: Cow<'static, str>,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Pass,
    Fail,
    /// Not asked for, or not possible after an earlier failure.
    Skipped,
}

impl Outcome {
    /// `pass`, `fail` or `skipped`.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Pass => "pass",
            Outcome::Fail => "fail",
            Outcome::Skipped => "skipped",
        }
    }
}

impl Check {
    /// The check's stable name, as in [`checks`].
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// How it ended.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Why it failed; `None` when it did not.
    pub fn code(&self) -> Option<RejectionCode> {
        self.code
    }

    /// What was found.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// What to do when it failed; may be empty.
    pub fn remedy(&self) -> &str {
        &self.remedy
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "outcome": self.outcome.as_str(),
            "code": self.code.map(RejectionCode::as_str),
            "detail": self.detail,
            "remedy": self.remedy,
        })
    }
}

/// The stable names of the checks that stand in every table. The measurements' checks have the
/// measurements' names.
pub mod checks {
    pub const TEE: &str = "tee";
    pub const TRUST_ROOT: &str = "trust_root";
    pub const QUOTE: &str = "quote";
    pub const DEBUG: &str = "debug";
    pub const TCB_STATUS: &str = "tcb_status";
    pub const TCB_ADVISORIES: &str = "tcb_advisories";
    pub const TCB_EVALUATION: &str = "tcb_evaluation_number";
    pub const CLAIMS: &str = "claims";
    pub const REPORT_DATA: &str = "report_data";
    pub const TLS_KEY: &str = "tls_key";
    pub const NONCE: &str = "nonce";
    pub const VALIDITY: &str = "validity";
    pub const CONFIG_DIGEST: &str = "config_digest";

    // Of SEV-SNP alone.
    pub const CERTIFICATE_CHAIN: &str = "certificate_chain";
    pub const CERTIFICATE_TCB: &str = "certificate_tcb";
    pub const CERTIFICATE_CHIP: &str = "certificate_chip";
    pub const CPU: &str = "cpu";
    pub const REVOCATION: &str = "revocation";
    pub const GUEST_POLICY: &str = "guest_policy";
    pub const MIGRATION_AGENT: &str = "migration_agent";
    pub const SMT: &str = "smt";
    pub const ABI: &str = "abi";
    pub const VMPL: &str = "vmpl";
    pub const REPORTED_TCB: &str = "reported_tcb";
    pub const COMMITTED_TCB: &str = "committed_tcb";
    pub const LAUNCH_TCB: &str = "launch_tcb";
    pub const PLATFORM_INFO: &str = "platform_info";

    /// Of comparisons with a policy alone: evidence does not name models.
    pub const MODEL: &str = "model";

    // Of receipts alone.
    pub const RECEIPT: &str = "receipt";
    pub const RECEIPT_KEY: &str = "receipt_key";
    pub const RECEIPT_SIGNATURE: &str = "receipt_signature";
    pub const RECEIPT_KIND: &str = "receipt_kind";
    pub const RECEIPT_TIME: &str = "receipt_time";
    pub const RECEIPT_SERVER: &str = "receipt_server";
    pub const RECEIPT_CONFIG: &str = "receipt_config";
    pub const RECEIPT_NONCE: &str = "receipt_nonce";
    pub const RECEIPT_MODEL: &str = "receipt_model";
    pub const RECEIPT_MODEL_ACCEPTED: &str = "receipt_model_accepted";
    pub const RECEIPT_INPUT: &str = "receipt_input";
    pub const RECEIPT_OUTPUT: &str = "receipt_output";
}

/// The table while it is being filled. Every check that can still be made is made after a failure
/// too, so that a person sees all reasons at once.
#[derive(Default)]
pub(crate) struct Table(Vec<Check>);

impl Table {
    pub fn pass(&mut self, name: &'static str, detail: impl Into<String>) {
        self.push(name, Outcome::Pass, None, detail.into());
    }

    pub fn fail(&mut self, name: &'static str, code: RejectionCode, detail: impl Into<String>) {
        self.push(name, Outcome::Fail, Some(code), detail.into());
    }

    /// Nobody asked for the check.
    pub fn not_asked(&mut self, name: &'static str, detail: impl Into<String>) {
        self.push(name, Outcome::Skipped, None, detail.into());
    }

    /// The check had to be made and could not.
    pub fn not_possible(&mut self, name: &'static str, detail: impl Into<String>) {
        self.push(name, Outcome::Skipped, None, detail.into());
        if let Some(check) = self.0.last_mut() {
            check.required = true;
        }
    }

    pub fn decide(
        &mut self,
        name: &'static str,
        code: RejectionCode,
        result: Result<String, String>,
    ) {
        match result {
            Ok(detail) => self.pass(name, detail),
            Err(detail) => self.fail(name, code, detail),
        }
    }

    /// The checks when all hold; otherwise the rejection by the first that failed.
    pub fn finish(self) -> Result<Vec<Check>, Rejection> {
        let failed = self.0.iter().find(|check| check.outcome == Outcome::Fail);
        let missing = |check: &&Check| check.required && check.outcome != Outcome::Pass;
        let (code, check) = match (failed, self.0.iter().find(missing)) {
            (Some(check), _) => (check.code.unwrap_or(RejectionCode::AppraisalFailed), check),
            (None, Some(check)) => (RejectionCode::CheckSkipped, check),
            (None, None) => return Ok(self.0),
        };
        let (fact, remedy) = (check.detail.clone(), check.remedy.clone());
        Err(Rejection {
            code,
            fact,
            remedy,
            checks: self.qualified(),
        })
    }

    /// Where the quote or the receipt itself does not hold, anybody may have written what the other checks found.
    fn qualified(mut self) -> Vec<Check> {
        let signed = [
            checks::QUOTE,
            checks::RECEIPT_KEY,
            checks::RECEIPT_SIGNATURE,
        ];
        let forged = |check: &Check| signed.contains(&check.name) && check.outcome == Outcome::Fail;
        if self.0.iter().any(forged) {
            let passed = self.0.iter_mut().filter(|c| c.outcome == Outcome::Pass);
            passed.for_each(|check| check.detail.insert_str(0, "as it says, unproven: "));
        }
        self.0
    }

    fn push(
        &mut self,
        name: &'static str,
        outcome: Outcome,
        code: Option<RejectionCode>,
        detail: String,
    ) {
        self.0.push(Check {
            name,
            outcome,
            required: false,
            code,
            detail: printable(&detail),
            remedy: Cow::Borrowed(code.map_or("", RejectionCode::remedy)),
        });
    }
}

/// Why evidence was refused, with the whole table of checks.
#[derive(Clone, Debug)]
pub struct Rejection {
    code: RejectionCode,
    fact: String,
    remedy: Cow<'static, str>,
    checks: Vec<Check>,
}

impl Rejection {
    pub(crate) fn new(code: RejectionCode, fact: impl Into<String>) -> Self {
        Self {
            code,
            fact: printable(&fact.into()),
            remedy: Cow::Borrowed(code.remedy()),
            checks: Vec::new(),
        }
    }

    /// The stable code, for programs.
    pub fn code(&self) -> RejectionCode {
        self.code
    }

    /// What was found, for people.
    pub fn fact(&self) -> &str {
        &self.fact
    }

    /// What to do, for people; may be empty.
    pub fn remedy(&self) -> &str {
        &self.remedy
    }

    /// Every check, also those that passed. Empty when the evidence could not even be read.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// The whole table, for people.
    pub fn table(&self) -> String {
        let mut text = format!("rejected · {self}\n");
        write_checks(&mut text, &self.checks);
        text
    }

    /// `{"verdict": "rejected", "code", "fact", "remedy", "checks"}`
    pub fn to_json(&self) -> Value {
        json!({
            "verdict": "rejected",
            "code": self.code.as_str(),
            "fact": self.fact,
            "remedy": self.remedy,
            "checks": self.checks.iter().map(Check::to_json).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.fact)?;
        if !self.remedy.is_empty() {
            write!(f, " · {}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for Rejection {}

/// What a stranger may have written, for a terminal: an escape sequence could repaint the table, a
/// character that turns the direction of the line could turn its meaning, and length could push the
/// verdict out of sight.
pub(crate) fn printable(text: &str) -> String {
    let shown = |c: char| matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1;
    let mut chars = text.chars();
    let kept = chars.by_ref().take(TEXT_CHARS);
    let mut clean: String = kept
        .map(|c| if shown(c) { c } else { '\u{fffd}' })
        .collect();
    if chars.next().is_some() {
        clean.push('…');
    }
    clean
}

pub(crate) fn write_checks(text: &mut String, checks: &[Check]) {
    let width = checks.iter().map(|check| check.name.len()).max();
    let width = width.unwrap_or(0);
    for check in checks {
        let outcome = check.outcome.as_str();
        text.push_str(&format!(
            "  {outcome:<7}  {:<width$}  {}\n",
            check.name, check.detail
        ));
    }
}

/// The longest text of this crate itself lists a few digests.
const TEXT_CHARS: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_short_and_printable() {
        assert_eq!(printable("\"a\" · it's b\\c…"), "\"a\" · it's b\\c…");
        let odd = "\u{1b}[2J\r\n\0\u{9b}\u{202e}\u{2028}x";
        assert_eq!(printable(odd), "�[2J������x");
        let long = printable(&"\u{1b}".repeat(10 * TEXT_CHARS));
        assert_eq!(long.chars().count(), TEXT_CHARS + 1);
        let rejection = Rejection::new(RejectionCode::CertificateMalformed, odd);
        assert!(!rejection.table().contains('\u{1b}'));
    }

    #[test]
    fn a_required_check_that_was_skipped_is_a_failure() {
        let mut table = Table::default();
        table.pass(checks::TEE, "");
        table.not_asked(checks::NONCE, "");
        assert_eq!(table.0.len(), 2);
        table.not_possible(checks::REPORT_DATA, "no claims");
        let rejection = table.finish().unwrap_err();
        assert_eq!(rejection.code(), RejectionCode::CheckSkipped);
        assert_eq!(rejection.fact(), "no claims");
        assert_eq!(rejection.checks().len(), 3);
    }

    #[test]
    fn the_first_failure_gives_the_code_and_all_stay_in_the_table() {
        let mut table = Table::default();
        table.not_possible(checks::QUOTE, "");
        table.fail(checks::DEBUG, RejectionCode::Debug, "debug is on");
        table.fail(checks::NONCE, RejectionCode::NonceMismatch, "");
        let rejection = table.finish().unwrap_err();
        assert_eq!(rejection.code(), RejectionCode::Debug);
        assert_eq!(rejection.checks().len(), 3);
    }

    #[test]
    fn what_an_unproven_quote_says_is_called_that() {
        let mut table = Table::default();
        table.pass(checks::DEBUG, "off");
        table.fail(checks::QUOTE, RejectionCode::QuoteSignature, "changed");
        let rejection = table.finish().unwrap_err();
        assert_eq!(rejection.checks()[0].detail(), "as it says, unproven: off");
        let mut table = Table::default();
        table.pass(checks::DEBUG, "off");
        table.fail(checks::NONCE, RejectionCode::NonceMismatch, "old");
        assert_eq!(table.finish().unwrap_err().checks()[0].detail(), "off");
    }

    #[test]
    fn codes_are_distinct() {
        for (i, code) in RejectionCode::ALL.iter().enumerate() {
            let earlier = &RejectionCode::ALL[..i];
            assert!(!earlier.iter().any(|e| e.as_str() == code.as_str()));
        }
    }
}
