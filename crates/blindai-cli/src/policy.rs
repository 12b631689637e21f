//! `blindai policy`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use blindai_core::api::ModelList;
use blindai_verify::{Difference, Observation, Verification};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::collateral::CollateralArguments;
use crate::connection::read_policy;
use crate::file;
use crate::measure;
use crate::output;
use crate::subject::Subject;
use crate::time::Time;

#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a policy that pins what evidence says, commented so that a person can judge each line.
    Init(Init),
    /// Show in what evidence is not as a policy asks. Exit code 0 without a difference, 1 with one.
    Diff(Diff),
    /// Compute a measurement from what will be started.
    Measure {
        #[command(subcommand)]
        tee: measure::Tee,
    },
}

#[derive(Args)]
struct Init {
    /// The evidence: an evidence document, a quote, a report, or a certificate that carries one.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Pin the models in this file, too: what `blindai models list --json` wrote.
    #[arg(long, value_name = "FILE")]
    models: Option<PathBuf>,
    #[command(flatten)]
    time: Time,
    #[command(flatten)]
    collateral: CollateralArguments,
}

#[derive(Args)]
struct Diff {
    /// The policy.
    policy: PathBuf,
    /// The evidence: an evidence document, a quote, a report, or a certificate that carries one.
    file: PathBuf,
    /// Compare with the policy as it stands with --simulation.
    #[arg(long)]
    simulation: bool,
    /// Compare the models in this file, too: what `blindai models list --json` wrote.
    #[arg(long, value_name = "FILE")]
    models: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    time: Time,
    #[command(flatten)]
    collateral: CollateralArguments,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.command {
        Command::Init(init) => init.run(),
        Command::Diff(diff) => diff.run(),
        Command::Measure { tee } => tee.run(),
    }
}

impl Init {
    fn run(&self) -> Result<ExitCode> {
        let seen = observe(&Subject::read(&self.from)?, &self.collateral, &self.time)?;
        warn(&seen);
        let seen = with_models(seen, self.models.as_deref())?;
        let drafted = seen.to_policy_toml();
        if drafted.contains(TO_BE_JUDGED) {
            eprintln!(
                "NOTE: the policy has lines marked {TO_BE_JUDGED}; read them before you use it"
            );
        }
        output::print(drafted.trim_end());
        Ok(ExitCode::SUCCESS)
    }
}

/// How a drafted policy marks what somebody has to decide.
const TO_BE_JUDGED: &str = "TO BE JUDGED";

impl Diff {
    fn run(&self) -> Result<ExitCode> {
        let policy = read_policy(&self.policy, self.simulation)?;
        let seen = observe(&Subject::read(&self.file)?, &self.collateral, &self.time)?;
        warn(&seen);
        if !policy.models().is_empty() && self.models.is_none() {
            output::warn(
                "NOTE: the policy pins models, which evidence does not name; give --models FILE",
            );
        }
        let seen = with_models(seen, self.models.as_deref())?;
        let found = policy.differences(&seen);
        if self.json {
            output::print_json(&differences_json(&found, &seen));
        } else if found.is_empty() {
            output::print("no difference");
        } else {
            output::print(differences(&found));
        }
        Ok(match found.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(output::EXIT_REFUSED),
        })
    }
}

fn observe(
    subject: &Subject,
    collateral: &CollateralArguments,
    time: &Time,
) -> Result<Observation> {
    let collateral = collateral.find(subject)?;
    let seen = blindai_verify::observe(subject.quote(), collateral.as_ref(), time.seconds())?;
    Ok(match subject.claims() {
        Some(claims) => seen.with_claims(claims)?,
        None => seen,
    })
}

fn with_models(seen: Observation, list: Option<&Path>) -> Result<Observation> {
    let Some(path) = list else {
        return Ok(seen);
    };
    let text = file::read_text(path, LIST_BYTES)?;
    let list: ModelList = serde_json::from_str(&text)
        .with_context(|| format!("{} is no list of models", path.display()))?;
    Ok(seen.with_models(list.models))
}

/// Far more models than a server holds.
const LIST_BYTES: u64 = 64 * 1024 * 1024;

fn warn(seen: &Observation) {
    match seen.verification() {
        Verification::Verified(verified) if !verified.simulated() => {}
        // It says itself that it is not verified, or simulated.
        verification => output::warn(format_args!("WARNING: the evidence {verification}")),
    }
    if seen.debug() {
        eprintln!("WARNING: debug is on: the host can read everything inside");
    }
}

fn differences(found: &[Difference]) -> comfy_table::Table {
    let mut table = output::table(&["", "the policy asks for", "seen"]);
    for difference in found {
        table.add_row([difference.name(), difference.policy(), difference.seen()]);
    }
    table
}

fn differences_json(found: &[Difference], seen: &Observation) -> Value {
    let difference =
        |d: &Difference| json!({ "name": d.name(), "policy": d.policy(), "seen": d.seen() });
    json!({
        "differences": found.iter().map(difference).collect::<Vec<_>>(),
        "observation": seen.to_json(),
    })
}
