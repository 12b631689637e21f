//! `blindai receipt`

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use blindai_client::{
    Digest, ExpectedReceipt, Receipt, ReceiptNonce, Rejection, Statement, VerifiedReceipt,
    VerifiedReport, evidence_beside,
};
use blindai_core::receipt::{RECEIPT_BYTES, SignedStatement, TensorDigest};
use blindai_core::{NamedTensor, Nonce};
use blindai_verify::{Binding, verify_kept_receipt};
use clap::{Args, Subcommand};
use sha2::{Digest as _, Sha256};

use crate::collateral::CollateralArguments;
use crate::connection::Trust;
use crate::subject::Subject;
use crate::time::utc;
use crate::{file, infer, output, time};

#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Verify a receipt that somebody kept, under the evidence of its server. Exit code 0 only when
    /// it holds.
    #[command(after_long_help = AFTER_HELP)]
    Verify(Box<VerifyArguments>),
    /// Show what a receipt says, without verifying anything.
    Show {
        /// The receipt.
        file: PathBuf,
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct VerifyArguments {
    /// The receipt.
    file: PathBuf,
    /// The evidence document of the server that made it [default: beside it, r.evidence.json of
    /// r.cbor]
    #[arg(long, value_name = "FILE")]
    evidence: Option<PathBuf>,
    #[command(flatten)]
    trust: Trust,
    /// Judge the evidence as of this time: 2026-02-01T00:00:00Z, or seconds since 1970 [default: when
    /// the receipt says that it was made]
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    at: Option<u64>,
    /// The model's file, whose digest the receipt must name.
    #[arg(long, value_name = "FILE", conflicts_with = "model_digest")]
    model: Option<PathBuf>,
    /// The digest that the receipt must name: sha256:<64 HEX DIGITS>.
    #[arg(long, value_name = "DIGEST")]
    model_digest: Option<Digest>,
    /// An input under the name it had in the request; repeat for each.
    #[arg(long = "input", value_name = "NAME=FILE.npy", value_parser = infer::assignment)]
    inputs: Vec<(String, PathBuf)>,
    /// An output under the name it had in the answer; repeat for each.
    #[arg(long = "output", value_name = "NAME=FILE.npy", value_parser = infer::assignment)]
    outputs: Vec<(String, PathBuf)>,
    /// The nonce that was sent.
    #[arg(long, value_name = "HEX DIGITS", value_parser = parse_nonce)]
    nonce: Option<ReceiptNonce>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    collateral: CollateralArguments,
}

/// Exit code 0 when the receipt holds or is shown, 1 when it is rejected.
///
/// # Errors
/// When nothing could be judged.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.command {
        Command::Verify(arguments) => verify(arguments),
        Command::Show { file, json } => show(file, *json),
    }
}

/// Where a command keeps the receipt of what it does.
#[derive(Args)]
pub struct Keep {
    /// Ask for a receipt, check it, and keep it in this file, with the evidence beside it as
    /// NAME.evidence.json of NAME.cbor.
    #[arg(long, value_name = "FILE")]
    pub receipt: Option<PathBuf>,
}

impl Keep {
    /// Writes the receipt, if one was asked for.
    pub fn save(&self, receipt: Option<&Receipt>) -> Result<()> {
        if let (Some(path), Some(receipt)) = (&self.receipt, receipt) {
            receipt.save(path)?;
        }
        Ok(())
    }
}

fn verify(arguments: &VerifyArguments) -> Result<ExitCode> {
    let Some(policy) = arguments.trust.policy()? else {
        bail!("no policy says what the evidence must prove · give --policy FILE");
    };
    let beside = evidence_beside(&arguments.file);
    let evidence = arguments.evidence.as_deref().unwrap_or(&beside);
    let subject = Subject::read(evidence)?;
    let Subject::Document(document) = &subject else {
        bail!(
            "{} is no evidence document: only that holds the claims",
            evidence.display()
        );
    };
    let collateral = arguments.collateral.read(&subject)?;
    let seen = subject.seen();
    let binding = Binding {
        tls_spki_sha256: seen.map(|seen| seen.tls_spki_sha256),
        nonce: seen.map(|seen| Nonce::from_bytes(seen.nonce)),
    };
    let receipt = file::read(&arguments.file, RECEIPT_BYTES as u64)?;
    let (inputs, outputs) = (tensors(&arguments.inputs)?, tensors(&arguments.outputs)?);
    let expected = ExpectedReceipt {
        model_digest: arguments.model_digest()?,
        inputs: &inputs,
        outputs: &outputs,
        nonce: arguments.nonce.as_ref(),
        ..ExpectedReceipt::default()
    };
    let evidence = document.evidence();
    let at = arguments.at;
    match verify_kept_receipt(
        &receipt,
        &evidence,
        &collateral,
        &binding,
        &policy,
        at,
        &expected,
    ) {
        Ok((verified, report)) => Ok(trusted(arguments.json, &verified, &report)),
        Err(rejection) => Ok(rejected(arguments.json, &receipt, &rejection)),
    }
}

fn trusted(json: bool, verified: &VerifiedReceipt, report: &VerifiedReport) -> ExitCode {
    if json {
        output::print_json(&verified.to_json(report));
    } else {
        output::print(format!("{verified}\nits evidence:\n{report}"));
    }
    if verified.simulated() {
        eprintln!("WARNING: this is a receipt of a simulation. It proves nothing.");
    }
    ExitCode::SUCCESS
}

fn rejected(json: bool, receipt: &[u8], rejection: &Rejection) -> ExitCode {
    if json {
        let said = SignedStatement::decode(receipt).ok();
        let mut json = rejection.to_json();
        json["subject"] = "receipt".into();
        // As it says, unproven.
        json["receipt"] = said.map(|said| said.statement.to_json()).into();
        output::print_json(&json);
    } else {
        output::print(rejection.table());
    }
    output::refusal(rejection)
}

fn show(path: &Path, json: bool) -> Result<ExitCode> {
    let receipt = file::read(path, RECEIPT_BYTES as u64)?;
    let said = SignedStatement::decode(&receipt)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    let (key, said) = (said.key_id, said.statement);
    if json {
        let mut json = said.to_json();
        json["key_id"] = key.to_string().into();
        output::print_json(&json);
    } else {
        output::print(format_args!("{}\n{}", head(&said, &key), table(&said)));
    }
    eprintln!("Nothing of this is verified: see blindai receipt verify.");
    Ok(ExitCode::SUCCESS)
}

fn head(said: &Statement, key: &Digest) -> String {
    let nonce = said.nonce.as_ref();
    format!(
        "receipt of {kind}\nmodel    {name} version {version}\n         {digest}\nmade     {made}\n\
         nonce    {nonce}\nserver   version {server}, TLS key {replica}\nconfig   {config}\n\
         key      {key}",
        kind = said.deed.kind().as_str(),
        name = said.model_name,
        version = said.model_version,
        digest = said.model_digest,
        made = utc(said.issued_at),
        nonce = nonce.map_or_else(|| "none".to_owned(), ReceiptNonce::to_hex),
        server = said.server_version,
        replica = hex::encode(said.replica),
        config = said.config_digest,
    )
}

fn table(said: &Statement) -> comfy_table::Table {
    let mut table = output::table(&["", "name", "type", "shape", "digest"]);
    let inputs = said.deed.inputs().iter().map(|tensor| ("input", tensor));
    let outputs = said.deed.outputs().iter().map(|tensor| ("output", tensor));
    for (kind, tensor) in inputs.chain(outputs) {
        let TensorDigest {
            name,
            dtype,
            shape,
            digest,
        } = tensor;
        let shape = format!("{shape:?}");
        table.add_row([kind, name, dtype.as_str(), &shape, &digest.to_hex()]);
    }
    table
}

impl VerifyArguments {
    fn model_digest(&self) -> Result<Option<Digest>> {
        match &self.model {
            Some(path) => digest_of(path).map(Some),
            None => Ok(self.model_digest),
        }
    }
}

/// A model may be larger than memory.
fn digest_of(path: &Path) -> Result<Digest> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("{name} cannot be read"))?;
    let (mut reader, mut hash) = (BufReader::new(file), Sha256::new());
    let mut chunk = vec![0; 1 << 20];
    loop {
        let read = reader.read(&mut chunk);
        match read.with_context(|| format!("{name} cannot be read"))? {
            0 => return Ok(Digest::from_bytes(hash.finalize().into())),
            read => hash.update(&chunk[..read]),
        }
    }
}

fn tensors(given: &[(String, PathBuf)]) -> Result<Vec<NamedTensor>> {
    let tensors = given.iter().map(|(name, path)| infer::read(name, path));
    tensors.collect()
}

fn parse_nonce(text: &str) -> Result<ReceiptNonce, &'static str> {
    ReceiptNonce::from_hex(text).ok_or("a receipt's nonce is 1 to 64 bytes in hexadecimal digits")
}

const AFTER_HELP: &str = "\
The evidence is judged first, under the policy, as of when the receipt says that it was made: that time is \
the server's word, signed by the key that is being judged. Then the receipt: the key in the claims signed \
it, and it says what was given here to compare. What was not given is listed as skipped.

Exit code: 0 the receipt holds, 1 rejected, 2 could not be run.

Examples:
  blindai receipt verify r.cbor --policy policy.toml --input x=x.npy --output y=y.npy --model m.onnx
  blindai receipt verify r.cbor --evidence evidence.json --policy policy.toml --json";
