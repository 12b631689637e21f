//! Collateral on the command line.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use blindai_core::{Collateral, SnpCollateral};
use clap::Args;

use crate::file;
use crate::subject::Subject;

/// What it takes beside the evidence. A document can bring its own; what is given here comes first.
#[derive(Args)]
#[command(next_help_heading = "Collateral")]
pub struct CollateralArguments {
    /// Collateral as JSON: of SGX and TDX in the form of dcap-qvl and its tools, of SEV-SNP in that
    /// of an evidence document; or a folder with such a file of each platform, as a server keeps it
    /// [default: what the evidence document brings]
    #[arg(long, value_name = "FILE|DIR")]
    collateral: Option<PathBuf>,
    /// SEV-SNP: the certificate of the key that signed the report, VCEK or VLEK, PEM or DER
    #[arg(long, value_name = "FILE", conflicts_with = "collateral")]
    vcek: Option<PathBuf>,
    /// SEV-SNP: its issuers, PEM: ASK or ASVK, then ARK [default: AMD's own]
    #[arg(long, value_name = "FILE", conflicts_with = "collateral")]
    chain: Option<PathBuf>,
    /// SEV-SNP: AMD's revocation list, DER or PEM
    #[arg(long, value_name = "FILE", conflicts_with = "collateral")]
    crl: Option<PathBuf>,
}

impl CollateralArguments {
    /// The collateral for this evidence.
    ///
    /// # Errors
    /// When a file cannot be read, or there is none for this kind of evidence.
    pub fn read(&self, subject: &Subject) -> Result<Collateral> {
        if let Some(collateral) = self.find(subject)? {
            return Ok(collateral);
        }
        match subject.is_snp() {
            true => bail!("nothing says which key signed the report · give --vcek FILE"),
            false => {
                bail!("there is no collateral to verify the quote with · give --collateral FILE")
            }
        }
    }

    /// The same, `None` where there is none.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn find(&self, subject: &Subject) -> Result<Option<Collateral>> {
        let own = match subject {
            Subject::Document(document) => document.collateral.clone(),
            _ => None,
        };
        match &self.collateral {
            Some(path) if path.is_dir() => {
                let name = blindai_collateral::file_name(subject.quote())?;
                read_json(&path.join(name)).map(Some)
            }
            Some(path) => read_json(path).map(Some),
            None if self.vcek.is_none() && self.chain.is_none() && self.crl.is_none() => Ok(own),
            None => self.snp(subject, own).map(Some),
        }
    }

    fn snp(&self, subject: &Subject, own: Option<Collateral>) -> Result<Collateral> {
        if !subject.is_snp() {
            bail!("--vcek, --chain and --crl are for SEV-SNP, and this is not");
        }
        let own = match own {
            Some(Collateral::Snp(own)) => Some(own),
            _ => None,
        };
        let signer = match (&self.vcek, &own) {
            (Some(path), _) => read_pem(path)?,
            (None, Some(own)) => own.signer.clone(),
            (None, None) => bail!("nothing says which key signed the report · give --vcek FILE"),
        };
        let chain = self.chain.as_deref().map(read_pem).transpose()?;
        let crl = self.crl.as_deref().map(read_der).transpose()?;
        let (own_chain, own_crl) = own.map_or((None, None), |own| (own.issuer_chain, own.crl));
        Ok(Collateral::Snp(SnpCollateral {
            signer,
            issuer_chain: chain.or(own_chain),
            crl: crl.or(own_crl),
        }))
    }
}

fn read_json(path: &Path) -> Result<Collateral> {
    let json = file::read(path, COLLATERAL_BYTES)?;
    serde_json::from_slice(&json).with_context(|| format!("{} is not collateral", path.display()))
}

fn read_pem(path: &Path) -> Result<String> {
    let bytes = file::read(path, COLLATERAL_BYTES)?;
    if !is_pem(&bytes) {
        return Ok(pem::encode(&pem::Pem::new("CERTIFICATE", bytes)));
    }
    String::from_utf8(bytes).with_context(|| format!("{} is not PEM", path.display()))
}

fn read_der(path: &Path) -> Result<Vec<u8>> {
    let bytes = file::read(path, COLLATERAL_BYTES)?;
    if !is_pem(&bytes) {
        return Ok(bytes);
    }
    let pem = pem::parse(&bytes).with_context(|| format!("{} is not PEM", path.display()))?;
    Ok(pem.into_contents())
}

fn is_pem(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"-----BEGIN ")
}

/// The verifier takes 1 MiB, half of which may be hexadecimal here.
const COLLATERAL_BYTES: u64 = 3 * 1024 * 1024;
