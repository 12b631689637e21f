//! Certificates of other programs that speak the same RA-TLS.

mod support;

use blindai_core::{Evidence, RA_TLS_OID};
use blindai_verify::{RejectionCode as Code, read_certificate};
use rcgen::{CertificateParams, CustomExtension, KeyPair, PublicKeyData as _};
use sha2::{Digest as _, Sha256};
use x509_cert::der::{DecodePem as _, Encode as _};

use support::{Server, assert_code, claims, file};

#[test]
fn foreign_certificates_are_read_and_bound() {
    for name in ["gramine-cert", "intel-sgxsdk-cert", "rats-tls-cert"] {
        let pem = file(&format!("ratls/{name}.pem"));
        let certificate = x509_cert::Certificate::from_pem(pem).unwrap();
        let evidence = read_certificate(&certificate.to_der().unwrap()).unwrap();
        evidence
            .check_binding()
            .unwrap_or_else(|r| panic!("{name}: {}", r.table()));
    }
}

fn certificate(key: &KeyPair, extensions: &[Vec<u8>]) -> Vec<u8> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    let extension = |value: &Vec<u8>| CustomExtension::from_oid_content(RA_TLS_OID, value.clone());
    params.custom_extensions = extensions.iter().map(extension).collect();
    params.self_signed(key).unwrap().der().to_vec()
}

fn evidence_for(key: &KeyPair) -> Evidence {
    let mut claims = claims();
    claims.tls_spki_sha256 = Sha256::digest(key.subject_public_key_info()).into();
    Server::new(blindai_core::Tee::Sgx).evidence(&claims)
}

#[test]
fn the_key_in_the_certificate_is_the_one_in_the_claims() {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let evidence = evidence_for(&key).to_extension().1;
    let own = read_certificate(&certificate(&key, std::slice::from_ref(&evidence))).unwrap();
    let spki: [u8; 32] = Sha256::digest(key.subject_public_key_info()).into();
    assert_eq!(own.tls_spki_sha256(), spki);
    own.check_binding().unwrap();

    let stolen = read_certificate(&certificate(&other, &[evidence])).unwrap();
    assert_code(stolen.check_binding(), Code::TlsKeyMismatch);
}

#[test]
fn claims_that_the_quote_does_not_sign_are_refused() {
    let key = KeyPair::generate().unwrap();
    let mut evidence = evidence_for(&key);
    evidence.quote = evidence_for(&KeyPair::generate().unwrap()).quote;
    let read = read_certificate(&certificate(&key, &[evidence.to_extension().1])).unwrap();
    assert_code(read.check_binding(), Code::ReportDataMismatch);

    evidence.quote.truncate(500);
    let read = read_certificate(&certificate(&key, &[evidence.to_extension().1])).unwrap();
    assert_code(read.check_binding(), Code::QuoteMalformed);
}

#[test]
fn no_extension_two_extensions_and_garbage_are_refused() {
    let key = KeyPair::generate().unwrap();
    let evidence = evidence_for(&key).to_extension().1;
    let two = certificate(&key, &[evidence.clone(), evidence]);
    for der in [
        Vec::new(),
        b"not a certificate".to_vec(),
        vec![0x30; 1 << 20],
        certificate(&key, &[]),
        certificate(&key, &[b"not evidence".to_vec()]),
        two,
    ] {
        assert_code(read_certificate(&der), Code::CertificateMalformed);
    }
}

#[test]
fn a_certificate_cut_anywhere_is_refused() {
    let key = KeyPair::generate().unwrap();
    let whole = certificate(&key, &[evidence_for(&key).to_extension().1]);
    for end in 0..whole.len() {
        assert_code(read_certificate(&whole[..end]), Code::CertificateMalformed);
    }
}
