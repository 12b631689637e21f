//! `blindai verify`

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use blindai_core::{Collateral, Nonce};
use blindai_verify::{Binding, Policy, QuoteReport, Rejection, VerifiedReport};
use chrono::DateTime;
use clap::Args;
use serde_json::Value;

use crate::collateral::CollateralArguments;
use crate::connection::Trust;
use crate::output;
use crate::subject::Subject;

/// Says whether evidence that somebody kept is to be trusted, without asking anybody.
#[derive(Args)]
#[command(after_long_help = AFTER_HELP)]
pub struct Arguments {
    /// An evidence document (JSON), a quote of SGX or TDX, a report of SEV-SNP, or a TLS
    /// certificate that carries one (PEM or DER), of any origin. The contents decide which it is
    file: PathBuf,
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    collateral: CollateralArguments,
    #[command(flatten)]
    time: Time,
    /// The nonce that the claims must carry [default: the one that a saved document names, if any]
    #[arg(long, value_name = "64 HEX DIGITS", value_parser = parse_nonce)]
    nonce: Option<Nonce>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// As of when evidence is judged.
#[derive(Args)]
pub struct Time {
    /// Judge as of this time: 2026-02-01T00:00:00Z, or seconds since 1970 [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<u64>,
}

impl Time {
    /// The time that was given, or now. In seconds since 1970.
    pub fn seconds(&self) -> u64 {
        self.at.unwrap_or_else(now)
    }
}

/// Exit code 0 when trusted, 1 when rejected.
///
/// # Errors
/// When nothing could be judged.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Some(policy) = arguments.trust.policy()? else {
        bail!("no policy says what the evidence must prove · give --policy FILE");
    };
    let subject = Subject::read(&arguments.file)?;
    let collateral = arguments.collateral.read(&subject)?;
    let now = arguments.time.seconds();
    let verdict = judge(&subject, &collateral, arguments.nonce, &policy, now)?;
    if arguments.json {
        output::print_json(&verdict.json(&subject, &collateral, now));
    } else {
        let (file, taken_for) = (arguments.file.display(), subject.taken_for());
        output::print(format!("{file}: {taken_for}\n{verdict}"));
    }
    Ok(verdict.exit_code(&subject, arguments))
}

/// What came of it.
enum Verdict {
    Evidence(Box<VerifiedReport>),
    Quote(QuoteReport),
    Rejected(Rejection),
}

fn judge(
    subject: &Subject,
    collateral: &Collateral,
    nonce: Option<Nonce>,
    policy: &Policy,
    now: u64,
) -> Result<Verdict> {
    let (evidence, tls_spki_sha256, nonce) = match subject {
        Subject::Quote(_) if nonce.is_some() => {
            bail!("a quote alone has no claims, so it carries no nonce of ours")
        }
        Subject::Quote(quote) => {
            let result = blindai_verify::appraise_quote(quote, collateral, policy, now);
            return Ok(result.map_or_else(Verdict::Rejected, Verdict::Quote));
        }
        Subject::Certificate(certificate) => {
            let key = certificate.tls_spki_sha256();
            (certificate.evidence().clone(), Some(key), nonce)
        }
        Subject::Document(document) => {
            // Not because the words of whoever kept it were proof, but because what was refused
            // then, such as evidence relayed from another server, must be refused again.
            let seen = document.seen.as_ref();
            let sent = seen.map(|seen| Nonce::from_bytes(seen.nonce));
            let key = seen.map(|seen| seen.tls_spki_sha256);
            (document.evidence(), key, nonce.or(sent))
        }
    };
    let binding = Binding {
        tls_spki_sha256,
        nonce,
    };
    let result = blindai_verify::verify(&evidence, collateral, &binding, policy, now);
    Ok(result.map_or_else(Verdict::Rejected, |report| {
        Verdict::Evidence(Box::new(report))
    }))
}

impl Verdict {
    fn json(&self, subject: &Subject, collateral: &Collateral, now: u64) -> Value {
        let mut json = match self {
            Verdict::Evidence(report) => report.to_json(),
            Verdict::Quote(report) => report.to_json(),
            Verdict::Rejected(rejection) => {
                output::rejection_json(rejection, subject.quote(), Some(collateral), now)
            }
        };
        json["verdict"] = match self {
            Verdict::Rejected(_) => "rejected".into(),
            _ => "trusted".into(),
        };
        if let Some(seen) = subject.seen() {
            json["seen"] = serde_json::json!(seen);
        }
        json["subject"] = subject.name().into();
        json["taken_for"] = subject.taken_for().into();
        json["verified_at"] = now.into();
        json
    }

    fn exit_code(&self, subject: &Subject, arguments: &Arguments) -> ExitCode {
        let simulated = match self {
            Verdict::Evidence(report) => report.simulated(),
            Verdict::Quote(report) => report.simulated(),
            Verdict::Rejected(rejection) => {
                hint(subject, arguments);
                return output::refusal(rejection);
            }
        };
        if simulated {
            eprintln!("WARNING: this is evidence of a simulation. It protects nothing.");
        }
        ExitCode::SUCCESS
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Evidence(report) => report.fmt(f),
            Verdict::Quote(report) => report.fmt(f),
            Verdict::Rejected(rejection) => f.write_str(&rejection.table()),
        }
    }
}

// Evidence lives for hours. Whoever looks at it years later wants the verdict of then.
fn hint(subject: &Subject, arguments: &Arguments) {
    if let (Some(seen), None) = (subject.seen(), arguments.time.at) {
        let at = seen.at;
        eprintln!("The document says that it was seen at {at}; to judge it as of then: --at {at}");
    }
}

fn now() -> u64 {
    // A clock before 1970 reads as 1970: evidence is then not valid yet, and rejected.
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn parse_time(text: &str) -> Result<u64, &'static str> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let time = DateTime::parse_from_rfc3339(text).ok();
    let seconds = time.and_then(|time| time.timestamp().try_into().ok());
    seconds.ok_or("write 2026-02-01T00:00:00Z, or seconds since 1970")
}

fn parse_nonce(text: &str) -> Result<Nonce, &'static str> {
    Nonce::from_hex(text).ok_or("a nonce has 64 hexadecimal digits")
}

const AFTER_HELP: &str = "\
Nothing is asked over the network, and with --at not even the clock: the same files give the same \
verdict, today and in ten years.

A verdict is about what it says it is about (\"subject\" in JSON). A trusted quote or document says \
that such code ran on such hardware. It does not say who is at the other end of any connection: for \
that, ask the server itself with blindai attest.

Exit code: 0 trusted, 1 rejected, 2 could not be run.

Examples:
  blindai verify evidence.json --policy policy.toml --at 2026-02-01T00:00:00Z
  blindai verify tdx.quote --collateral tdx.json --at 1772700000 --policy p.toml --json
  blindai verify snp.report --vcek vcek.pem --policy p.toml";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_date_with_a_zone_or_seconds() {
        assert_eq!(parse_time("1772700000"), Ok(1_772_700_000));
        assert_eq!(parse_time("2026-02-01T00:00:00Z"), Ok(1_769_904_000));
        assert_eq!(parse_time("2026-02-01T01:00:00+01:00"), Ok(1_769_904_000));
        for bad in ["", "-1", "2026-02-01", "1969-12-31T00:00:00Z", "now", "1e9"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
