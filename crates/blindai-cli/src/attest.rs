//! `blindai attest`

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use blindai_client::{ClientError, EvidenceDocument, Rejection, VerifiedReport};
use clap::Args;
use serde_json::Value;

use crate::connection::{Fetching, Trust};
use crate::ear::EarArguments;
use crate::output;

#[derive(Args)]
pub struct Arguments {
    /// The server's attested port [default: localhost:50051].
    #[arg(value_name = "HOST:PORT")]
    address: Option<String>,
    /// The same, as the other commands take it.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "address")]
    server: Option<String>,
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    fetching: Fetching,
    /// Keep the evidence in this file, for blindai verify: also of a server that is rejected.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ear: EarArguments,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let given = arguments.address.as_ref().or(arguments.server.as_ref());
    let server = given.map_or("localhost:50051", String::as_str);
    match attest(arguments, server) {
        Ok((document, report)) => {
            arguments.keep(Some(&document))?;
            arguments.show(report.to_json(), &report)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => refused(arguments, error),
    }
}

fn attest(arguments: &Arguments, server: &str) -> Result<(EvidenceDocument, Arc<VerifiedReport>)> {
    let options = arguments.trust.options(&arguments.fetching)?;
    Ok(arguments.trust.connect(server, options)?.attest()?)
}

// A rejection is an answer, not an accident: the table of checks says why.
fn refused(arguments: &Arguments, error: anyhow::Error) -> Result<ExitCode> {
    let refused = error.downcast_ref::<ClientError>();
    let Some((refused, rejection)) = refused.and_then(|e| Some((e, e.rejection()?))) else {
        return Err(error);
    };
    arguments.keep(refused.evidence())?;
    let json = match refused.evidence() {
        Some(document) => rejected(rejection, document),
        None => rejection.to_json(),
    };
    arguments.show(json, &rejection.table())?;
    Ok(output::failure(&error))
}

fn rejected(rejection: &Rejection, document: &EvidenceDocument) -> Value {
    let at = document.seen.as_ref().map_or(0, |seen| seen.at);
    output::rejection_json(
        rejection,
        document.quote(),
        document.collateral.as_ref(),
        at,
    )
}

impl Arguments {
    fn show(&self, mut json: Value, text: &dyn fmt::Display) -> Result<()> {
        json["subject"] = "connection".into();
        self.ear.write(&json, self.trust.policy_id()?)?;
        match self.json {
            true => output::print_json(&json),
            false => output::print(text),
        }
        Ok(())
    }

    fn keep(&self, document: Option<&EvidenceDocument>) -> Result<()> {
        match (&self.save, document) {
            (Some(path), Some(document)) => std::fs::write(path, document.to_json())
                .with_context(|| format!("{} cannot be written", path.display())),
            (Some(path), None) => {
                let path = path.display();
                eprintln!("blindai: no evidence came as far as that, so {path} is not written");
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }
}
