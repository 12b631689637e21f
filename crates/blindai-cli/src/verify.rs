//! `blindai verify`

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use blindai_core::{Collateral, Nonce};
use blindai_verify::{Binding, Policy, QuoteReport, Rejection, VerifiedReport};
use clap::Args;
use serde_json::Value;

use crate::collateral::CollateralArguments;
use crate::connection::Trust;
use crate::ear::EarArguments;
use crate::output;
use crate::subject::Subject;
use crate::time::Time;

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
    time: Time,
    /// The nonce that the claims must carry [default: the one that a saved document names, if any]
    #[arg(long, value_name = "64 HEX DIGITS", value_parser = parse_nonce)]
    nonce: Option<Nonce>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ear: EarArguments,
    #[command(flatten)]
    collateral: CollateralArguments,
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
    let json = verdict.json(&subject, &collateral, now);
    arguments.ear.write(&json, arguments.trust.policy_id()?)?;
    if arguments.json {
        output::print_json(&json);
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
    let Subject::Document(document) = subject else {
        if nonce.is_some() {
            bail!("a quote or a certificate was made for no request, so it carries no nonce");
        }
        let result = match subject {
            Subject::Certificate(certificate) => certificate.appraise(collateral, policy, now),
            _ => blindai_verify::appraise_quote(subject.quote(), collateral, policy, now),
        };
        return Ok(result.map_or_else(Verdict::Rejected, Verdict::Quote));
    };
    // Not because the words of whoever kept it were proof, but because what was refused then, such
    // as evidence relayed from another server, must be refused again.
    let seen = subject.seen();
    let sent = seen.map(|seen| Nonce::from_bytes(seen.nonce));
    let (nonce, tls_spki_sha256) = (nonce.or(sent), seen.map(|seen| seen.tls_spki_sha256));
    let binding = Binding {
        tls_spki_sha256,
        nonce,
    };
    let result = blindai_verify::verify(&document.evidence(), collateral, &binding, policy, now);
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
