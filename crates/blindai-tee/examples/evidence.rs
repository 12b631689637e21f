//! Writes simulated evidence into a folder, so that tools of other people can be tried on it:
//!
//!     cargo run -p blindai-tee --example evidence -- --tee sgx|tdx|sev-snp --out DIR
//!
//! It holds for 30 days; the claims in it for an hour.

use std::error::Error;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs};

use blindai_core::simulation::{ARK_CERTIFICATE_DER, ROOT_CERTIFICATE_DER};
use blindai_core::{Claims, Digest, Evidence, EvidenceDocument, ReportData, Tee};
use blindai_tee::{
    Attester, RUNNING_EXECUTABLE, Simulation, SimulationOptions, measure_executable,
};

fn main() -> Result<(), Box<dyn Error>> {
    let (tee, folder) = arguments().ok_or("usage: --tee sgx|tdx|sev-snp --out DIR")?;
    let measurement = measure_executable(tee, RUNNING_EXECUTABLE)?;
    let attester = Simulation::new(SimulationOptions::new(measurement))?;
    let claims = claims()?.encode();
    let quote = attester.quote(&ReportData::of_claims(&claims))?;
    let collateral = attester.collateral()?;
    let root = match tee {
        Tee::SevSnp => ARK_CERTIFICATE_DER,
        _ => ROOT_CERTIFICATE_DER,
    };

    fs::create_dir_all(&folder)?;
    fs::write(folder.join("quote.bin"), &quote)?;
    fs::write(folder.join("claims.cbor"), &claims)?;
    fs::write(
        folder.join("collateral.json"),
        serde_json::to_vec(&collateral)?,
    )?;
    fs::write(folder.join("root.der"), root)?;
    let document = EvidenceDocument::new(tee, Evidence { quote, claims }, collateral);
    fs::write(folder.join("evidence.json"), document.to_json())?;
    Ok(())
}

fn arguments() -> Option<(Tee, PathBuf)> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let value = |name| arguments.iter().skip_while(|a| *a != name).nth(1);
    let tees = [Tee::Sgx, Tee::Tdx, Tee::SevSnp];
    let tee = tees
        .into_iter()
        .find(|tee| Some(tee.as_str()) == value("--tee").map(String::as_str));
    Some((tee?, value("--out")?.into()))
}

fn claims() -> Result<Claims, Box<dyn Error>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(Claims {
        // There is no connection here, so this is the digest of no key.
        tls_spki_sha256: *Digest::of(b"no TLS key").as_bytes(),
        receipt_key: None,
        hpke_key: None,
        config_digest: None,
        nonce: None,
        issued_at: Some(now),
        expires_at: Some(now + 3600),
        version: None,
    })
}
