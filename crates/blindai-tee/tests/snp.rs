//! What is particular to the simulation of SEV-SNP, checked without the verifier of production: each
//! signature by itself, and the report where the format has its fields.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_FIXED, RSA_PSS_2048_8192_SHA384, UnparsedPublicKey, VerificationAlgorithm,
};
use blindai_core::simulation::{ARK_CERTIFICATE_DER, ASK_CERTIFICATE_DER};
use blindai_core::{Collateral, ReportData, SnpCollateral, Tee};
use blindai_tee::{Attester, Measurement, SIMULATED_CHIP_ID, Simulation, SimulationOptions};
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::der::{Decode as _, Encode as _};

#[test]
fn the_report_is_signed_by_a_key_that_leads_to_the_root() {
    let attester = simulation(|_| {});
    let collateral = collateral(&attester);
    let certificates = [
        &collateral.signer,
        collateral.issuer_chain.as_ref().unwrap(),
    ]
    .map(|pem| Certificate::load_pem_chain(pem.as_bytes()).unwrap())
    .concat();
    let [vcek, ask, ark] = &certificates[..] else {
        panic!("{} certificates", certificates.len())
    };
    assert_eq!(ask.to_der().unwrap(), ASK_CERTIFICATE_DER);
    assert_eq!(ark.to_der().unwrap(), ARK_CERTIFICATE_DER);
    for (signed, signer) in [(vcek, ask), (ask, ark), (ark, ark)] {
        let tbs = signed.tbs_certificate();
        assert_eq!(tbs.issuer(), signer.tbs_certificate().subject());
        let signature = signed.signature().raw_bytes();
        assert!(holds(
            &RSA_PSS_2048_8192_SHA384,
            signer,
            &tbs.to_der().unwrap(),
            signature
        ));
    }
    let list: CertificateList =
        CertificateList::from_der(collateral.crl.as_ref().unwrap()).unwrap();
    let (signed, signature) = (list.tbs_cert_list.to_der().unwrap(), &list.signature);
    assert!(holds(
        &RSA_PSS_2048_8192_SHA384,
        ark,
        &signed,
        signature.raw_bytes()
    ));
    assert!(list.tbs_cert_list.revoked_certificates.is_none());

    let report = attester.quote(&report_data(1)).unwrap();
    assert!(report_is_signed(&report, vcek));
    for position in 0..0x2a0 + 144 {
        let mut flipped = report.clone();
        flipped[position] ^= 1;
        assert!(!report_is_signed(&flipped, vcek), "byte {position}");
    }
}

#[test]
fn the_report_says_what_the_options_say() {
    let attester = simulation(|_| {});
    assert_eq!(attester.tee(), Tee::SevSnp);
    let [one, other] = [1, 2].map(|seed| attester.quote(&report_data(seed)).unwrap());
    assert_eq!((one.len(), one[0]), (1184, 5));
    assert_eq!(one[0x50..0x90], *report_data(1).as_bytes());
    assert_eq!(other[0x50..0x90], *report_data(2).as_bytes());
    assert_eq!(one[0x90..0xc0], [0xee; 48]);
    assert_eq!(one[0x1a0..0x1e0], SIMULATED_CHIP_ID);
    assert_eq!(one[0x30..0x34], [0; 4], "VMPL");
    let tcbs = [0x38, 0x180, 0x1e0, 0x1f0].map(|at| &one[at..at + 8]);
    assert!(tcbs.iter().all(|tcb| *tcb == tcbs[0] && tcb[7] != 0));
    let debug = |report: &[u8]| report[8 + 2] & 8 != 0;
    assert!(!debug(&one));
    let attester = simulation(|options| options.debug = true);
    assert!(debug(&attester.quote(&report_data(1)).unwrap()));
}

#[test]
fn the_certificate_says_what_the_report_says() {
    let attester = simulation(|_| {});
    let report = attester.quote(&report_data(1)).unwrap();
    let vcek = Certificate::load_pem_chain(collateral(&attester).signer.as_bytes()).unwrap();
    let extensions = vcek[0].tbs_certificate().extensions().unwrap();
    let value = |id: &str| {
        let oid = format!("1.3.6.1.4.1.3704.1.{id}");
        let found = extensions.iter().find(|e| e.extn_id.to_string() == oid);
        found
            .unwrap_or_else(|| panic!("no {oid}"))
            .extn_value
            .as_bytes()
    };
    for (id, at) in [("3.1", 0), ("3.2", 1), ("3.3", 6), ("3.8", 7)] {
        assert_eq!(value(id), [2, 1, report[0x180 + at]], "{id}");
    }
    assert_eq!(value("4"), &report[0x1a0..0x1e0]);
    assert_eq!(value("2"), b"\x16\x05Genoa");
}

#[test]
fn it_describes_itself() {
    let line = simulation(|_| {}).describe();
    assert!(
        line.contains("sev-snp") && line.contains("protects nothing"),
        "{line}"
    );
    assert!(line.contains(&"ee".repeat(48)), "{line}");
}

fn report_is_signed(report: &[u8], vcek: &Certificate) -> bool {
    // Each half of the signature is little-endian and padded to 72 bytes.
    let half = |at: usize| report[at..at + 48].iter().rev().copied();
    let padding = [0x2a0 + 48..0x2a0 + 72, 0x2a0 + 120..0x2a0 + 144];
    let signature: Vec<_> = half(0x2a0).chain(half(0x2a0 + 72)).collect();
    padding.into_iter().flatten().all(|at| report[at] == 0)
        && holds(&ECDSA_P384_SHA384_FIXED, vcek, &report[..0x2a0], &signature)
}

fn holds(
    algorithm: &'static dyn VerificationAlgorithm,
    signer: &Certificate,
    message: &[u8],
    signature: &[u8],
) -> bool {
    let key = signer.tbs_certificate().subject_public_key_info();
    let key = key.subject_public_key.raw_bytes();
    UnparsedPublicKey::new(algorithm, key)
        .verify(message, signature)
        .is_ok()
}

fn collateral(attester: &Simulation) -> SnpCollateral {
    match attester.collateral().unwrap() {
        Some(Collateral::Snp(collateral)) => collateral,
        other => panic!("{other:?}"),
    }
}

fn simulation(change: impl FnOnce(&mut SimulationOptions)) -> Simulation {
    let mut options = SimulationOptions::new(Measurement::Launch([0xee; 48]));
    options.clock = Arc::new(|| UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    change(&mut options);
    Simulation::new(options).unwrap()
}

fn report_data(seed: u8) -> ReportData {
    ReportData::of_claims(&[seed])
}
