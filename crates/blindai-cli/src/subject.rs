//! What kind of evidence a file holds.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use blindai_core::{Evidence, EvidenceDocument, Seen};
use blindai_verify::{ForeignCertificate, read_foreign_certificate};

use crate::file;

/// Evidence that somebody kept. Nothing in it is verified.
pub enum Subject {
    /// What `GET /v1/attestation` answers and `blindai attest --save` writes.
    Document(Box<EvidenceDocument>),
    /// A TLS certificate that carries evidence, of any program.
    Certificate(Box<ForeignCertificate>),
    /// A quote of SGX or TDX, or a report of SEV-SNP, without claims.
    Quote(Vec<u8>),
}

impl Subject {
    /// Reads a file and decides by its contents, never by its name, what it holds.
    ///
    /// # Errors
    /// When it is none of these, or is one that cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = file::read(path, FILE_BYTES)?;
        Self::parse(&bytes).with_context(|| format!("{} cannot be verified", path.display()))
    }

    /// What a verdict on it is about: `document`, `certificate` or `quote`.
    pub fn name(&self) -> &'static str {
        match self {
            Subject::Document(_) => "document",
            Subject::Certificate(_) => "certificate",
            Subject::Quote(_) => "quote",
        }
    }

    /// The quote or report in it.
    pub fn quote(&self) -> &[u8] {
        match self {
            Subject::Document(document) => document.quote(),
            Subject::Certificate(certificate) => certificate.quote(),
            Subject::Quote(quote) => quote,
        }
    }

    /// The claims beside it, as encoded.
    pub fn claims(&self) -> Option<&[u8]> {
        match self {
            Subject::Document(document) => Some(document.claims()),
            Subject::Certificate(certificate) => certificate.claims(),
            Subject::Quote(_) => None,
        }
    }

    /// How it came, in the words of whoever kept it.
    pub fn seen(&self) -> Option<&Seen> {
        match self {
            Subject::Document(document) => document.seen.as_ref(),
            _ => None,
        }
    }

    /// Whether it is of SEV-SNP; if not, it is of SGX or TDX.
    pub fn is_snp(&self) -> bool {
        Evidence::is_snp_report(self.quote())
    }

    /// For people: what the file was taken for.
    pub fn taken_for(&self) -> String {
        let quote = quote_name(self.quote());
        match self {
            Subject::Document(_) if self.seen().is_some() => {
                format!(
                    "a kept evidence document with {quote}, claims, and the word of its keeper on the connection"
                )
            }
            Subject::Document(_) => format!("an evidence document with {quote} and claims"),
            Subject::Certificate(certificate) if certificate.claims().is_none() => {
                format!("a TLS certificate with {quote}, without claims")
            }
            Subject::Certificate(_) => format!("a TLS certificate with {quote} and claims"),
            Subject::Quote(_) => format!("{quote} alone, without claims"),
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let text = bytes.trim_ascii_start();
        if text.starts_with(b"{") {
            let document = EvidenceDocument::from_json(text)?;
            return Ok(Subject::Document(Box::new(document)));
        }
        if text.starts_with(PEM_CERTIFICATE) {
            let pem = pem::parse(text).context("the PEM is broken")?;
            return certificate(pem.contents());
        }
        // In this order: a report of version 0x8230 would look like DER, but is none of AMD's.
        if Evidence::is_snp_report(bytes) && !bytes.starts_with(DER_SEQUENCE) {
            return Ok(Subject::Quote(bytes.to_vec()));
        }
        if bytes.starts_with(DER_SEQUENCE) {
            return certificate(bytes);
        }
        if dcap_version(bytes).is_some() {
            return Ok(Subject::Quote(bytes.to_vec()));
        }
        bail!(
            "it is neither an evidence document (JSON), nor a quote of SGX or TDX, nor a report of \
             SEV-SNP (1184 bytes), nor a certificate (PEM or DER)"
        )
    }
}

fn certificate(der: &[u8]) -> Result<Subject> {
    let certificate = read_foreign_certificate(der)?;
    Ok(Subject::Certificate(Box::new(certificate)))
}

fn quote_name(quote: &[u8]) -> String {
    match (Evidence::is_snp_report(quote), dcap_version(quote)) {
        (true, _) => format!("a report of SEV-SNP, version {}", quote[0]),
        (false, Some((version, TDX))) => format!("a quote of TDX, version {version}"),
        (false, Some((version, _))) => format!("a quote of SGX, version {version}"),
        (false, None) => "something that is no known quote".to_owned(),
    }
}

/// Version and TEE type in the header of a quote of SGX or TDX.
fn dcap_version(quote: &[u8]) -> Option<(u16, u32)> {
    let version = u16::from_le_bytes(*quote.first_chunk()?);
    let tee = u32::from_le_bytes(*quote.get(4..)?.first_chunk()?);
    let known = matches!((version, tee), (3, SGX) | (4 | 5, SGX | TDX));
    known.then_some((version, tee))
}

const SGX: u32 = 0;
const TDX: u32 = 0x81;
const PEM_CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";
/// Of 256 bytes or more, which a certificate always is.
const DER_SEQUENCE: &[u8] = &[0x30, 0x82];
/// A document holds 128 KiB of evidence and 1 MiB of collateral at most, half as much again in
/// base64 and hexadecimal.
const FILE_BYTES: u64 = 4 * 1024 * 1024;
