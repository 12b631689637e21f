//! Certificates of other programs that speak the same RA-TLS.

mod support;

use blindai_core::{Claims, Digest, Evidence, RA_TLS_OID};
use blindai_verify::{
    Outcome, Policy, QuoteReport, Rejection, RejectionCode as Code, checks, read_certificate,
    read_foreign_certificate,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair, PublicKeyData as _};
use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;
use x509_cert::der::{DecodePem as _, Encode as _};

use support::{NOW, Server, assert_code, claims, file, outcome};

const FOREIGN: [&str; 3] = ["gramine-cert", "intel-sgxsdk-cert", "rats-tls-cert"];
/// Gramine wrote tag and length of the name into the name.
const GRAMINE: &[u64] = &[0, 6, 9, 42, 840, 113741, 1337, 6];

fn foreign(name: &str) -> Certificate {
    Certificate::from_pem(file(&format!("ratls/{name}.pem"))).unwrap()
}

fn value(of: &Certificate, oid: &str) -> Vec<u8> {
    let mut extensions = of.tbs_certificate().extensions().unwrap().iter();
    let found = extensions.find(|extension| extension.extn_id.to_string() == oid);
    found.unwrap().extn_value.as_bytes().to_vec()
}

/// Puts other bytes of the same length in the place of these: the lengths around them still hold.
fn replace(der: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let places = der.windows(from.len()).enumerate();
    let places = places.filter(|(_, window)| *window == from);
    let places: Vec<_> = places.map(|(at, _)| at).collect();
    assert!(!places.is_empty());
    let mut der = der.to_vec();
    for at in places {
        der[at..at + to.len()].copy_from_slice(to);
    }
    der
}

#[test]
fn foreign_certificates_are_read_and_bound() {
    for name in FOREIGN {
        let der = foreign(name).to_der().unwrap();
        let ours = read_certificate(&der).unwrap();
        ours.check_binding()
            .unwrap_or_else(|r| panic!("{name}: {}", r.table()));
        let read = read_foreign_certificate(&der).unwrap();
        read.check_binding()
            .unwrap_or_else(|r| panic!("{name}: {}", r.table()));
        assert_eq!(read.spki_sha256(), ours.tls_spki_sha256());
        assert_eq!(read.claims(), Some(&*ours.evidence().claims));
        assert_eq!(read.quote(), ours.evidence().quote);
    }
}

#[test]
fn a_foreign_certificate_with_another_key_or_other_claims_is_refused() {
    for name in FOREIGN {
        let certificate = foreign(name);
        let der = certificate.to_der().unwrap();
        let key = certificate.tbs_certificate().subject_public_key_info();
        let key = key.subject_public_key.raw_bytes();
        let mut other = key.to_vec();
        other[20] ^= 1;
        let stolen = read_foreign_certificate(&replace(&der, key, &other)).unwrap();
        assert_code(stolen.check_binding(), Code::TlsKeyMismatch);

        // The key's digest in the claims.
        let digest = read_foreign_certificate(&der).unwrap().spki_sha256();
        let mut other = digest;
        other[0] ^= 1;
        let claims = read_foreign_certificate(&der)
            .unwrap()
            .claims()
            .unwrap()
            .to_vec();
        let changed = replace(&claims, &digest, &other);
        let changed = read_foreign_certificate(&replace(&der, &claims, &changed)).unwrap();
        let rejection = assert_code(changed.check_binding(), Code::ReportDataMismatch);
        assert_eq!(outcome(&rejection, checks::TLS_KEY), Outcome::Fail);
    }
}

#[test]
fn a_bare_quote_binds_the_key_and_makes_no_evidence_of_ours() {
    let mut bare = Vec::new();
    for (name, oid) in [
        ("gramine-cert", "0.6.9.42.840.113741.1337.6"),
        ("intel-sgxsdk-cert", "1.2.840.113741.1.13.1"),
    ] {
        let certificate = foreign(name);
        let quote = value(&certificate, oid);
        // The name of the other extension, changed: only the bare quote is left.
        let other = [0x06, 0x06, 0x67, 0x81, 0x05, 0x05, 0x04, 0x0a];
        let claims_oid = [0x06, 0x06, 0x67, 0x81, 0x05, 0x05, 0x04, 0x09];
        let der = replace(&certificate.to_der().unwrap(), &claims_oid, &other);
        assert_code(read_certificate(&der), Code::CertificateMalformed);
        let read = read_foreign_certificate(&der).unwrap();
        read.check_binding()
            .unwrap_or_else(|r| panic!("{name}: {}", r.table()));
        assert_eq!((read.claims(), read.quote()), (None, &*quote));

        let key = certificate.tbs_certificate().subject_public_key_info();
        let key = key.subject_public_key.raw_bytes();
        let mut changed = key.to_vec();
        changed[20] ^= 1;
        let stolen = read_foreign_certificate(&replace(&der, key, &changed)).unwrap();
        assert_code(stolen.check_binding(), Code::TlsKeyMismatch);
        bare.push(quote);
    }
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    let extension = |quote| CustomExtension::from_oid_content(GRAMINE, quote);
    params.custom_extensions = bare.into_iter().map(extension).collect();
    let two = params.self_signed(&key).unwrap();
    assert_code(
        read_foreign_certificate(two.der()),
        Code::CertificateMalformed,
    );
}

#[test]
fn a_foreign_certificate_is_appraised_without_the_claims_that_it_cannot_have() {
    let key = KeyPair::generate().unwrap();
    let mut claims = evidence_claims(&key);
    (claims.issued_at, claims.expires_at) = (None, None);
    let server = Server::new(blindai_core::Tee::Sgx);
    let (collateral, policy) = (server.collateral(), support::simulation());
    let der = certificate(&key, &[server.evidence(&claims).to_extension().1]);

    let ours = read_certificate(&der).unwrap();
    let binding = support::connection();
    let strict = support::verify(ours.evidence(), &collateral, &binding, &policy, NOW);
    assert_code(strict, Code::TlsKeyMismatch);
    let read = read_foreign_certificate(&der).unwrap();
    let report = read
        .appraise(&collateral.clone().into(), &policy, NOW)
        .unwrap();
    assert!(report.simulated());
    let mut checks = report.checks().iter();
    let key_check = checks.find(|check| check.name() == checks::TLS_KEY);
    let key_check = key_check.unwrap();
    assert_eq!(key_check.outcome(), Outcome::Pass);
    assert!(!key_check.detail().contains("connection"), "{report}");

    let other = certificate(
        &KeyPair::generate().unwrap(),
        &[server.evidence(&claims).to_extension().1],
    );
    let read = read_foreign_certificate(&other).unwrap();
    let refused = read.appraise(&collateral.into(), &policy, NOW);
    assert_code(refused, Code::TlsKeyMismatch);
}

/// The verdict on a certificate with such claims.
fn appraise_claims(
    policy: &Policy,
    change: impl Fn(&mut Claims),
) -> Result<QuoteReport, Rejection> {
    let key = KeyPair::generate().unwrap();
    let mut claims = evidence_claims(&key);
    change(&mut claims);
    let server = Server::new(blindai_core::Tee::Sgx);
    let der = certificate(&key, &[server.evidence(&claims).to_extension().1]);
    let read = read_foreign_certificate(&der).unwrap();
    read.appraise(&server.collateral().into(), policy, NOW)
}

/// A policy that asks for this configuration, of the simulation.
fn of_config(config: &[u8]) -> Policy {
    let (digest, enclave) = (Digest::of(config), "01".repeat(32));
    let text = format!(
        "tee = [\"sgx\"]\nconfig_digest = [\"{digest}\"]\n[sgx]\nmrenclave = [\"{enclave}\"]"
    );
    Policy::from_toml(&text)
        .unwrap()
        .dangerous_accept_simulation()
}

#[test]
fn the_claims_of_a_certificate_are_in_their_time_when_they_name_one() {
    let report = appraise_claims(&support::simulation(), |_| {}).unwrap();
    assert_eq!(Some(report.valid_until()), claims().expires_at);
    for (times, code) in [
        ((Some(NOW - 10), Some(NOW)), Code::ClaimsExpired),
        ((Some(NOW - 10), None), Code::ClaimsExpired),
        ((Some(NOW + 301), Some(NOW + 900)), Code::ClaimsNotYetValid),
        ((None, Some(NOW + 900)), Code::ClaimsNotYetValid),
    ] {
        let change = |claims: &mut Claims| (claims.issued_at, claims.expires_at) = times;
        assert_code(appraise_claims(&support::simulation(), change), code);
    }
}

#[test]
fn the_configuration_that_a_policy_asks_for_is_required_of_a_certificate() {
    let no_config = |claims: &mut Claims| claims.config_digest = None;
    appraise_claims(&of_config(b"config"), |_| {}).unwrap();
    let other = of_config(b"other");
    assert_code(appraise_claims(&other, |_| {}), Code::ConfigMismatch);
    assert_code(appraise_claims(&other, no_config), Code::ConfigMismatch);
    appraise_claims(&support::simulation(), no_config).unwrap();
}

#[test]
fn a_quote_without_claims_names_no_configuration() {
    let key = KeyPair::generate().unwrap();
    let mut claims = evidence_claims(&key);
    (claims.config_digest, claims.nonce) = (None, None);
    (claims.issued_at, claims.expires_at) = (None, None);
    let server = Server::new(blindai_core::Tee::Sgx);
    let quote = server.evidence(&claims).quote;
    let collateral = server.collateral();

    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.custom_extensions = vec![CustomExtension::from_oid_content(GRAMINE, quote.clone())];
    let der = params.self_signed(&key).unwrap().der().to_vec();
    let read = read_foreign_certificate(&der).unwrap();
    assert_eq!(read.claims(), None);
    let appraise = |policy: &Policy| read.appraise(&collateral.clone().into(), policy, NOW);
    appraise(&support::simulation()).unwrap();
    let rejection = assert_code(appraise(&of_config(b"config")), Code::CheckSkipped);
    assert_eq!(outcome(&rejection, checks::CONFIG_DIGEST), Outcome::Skipped);

    let appraise = |policy: &Policy| support::appraise_quote(&quote, &collateral, policy, NOW);
    appraise(&support::simulation()).unwrap();
    let rejection = assert_code(appraise(&of_config(b"config")), Code::CheckSkipped);
    assert_eq!(outcome(&rejection, checks::CONFIG_DIGEST), Outcome::Skipped);
}

fn certificate(key: &KeyPair, extensions: &[Vec<u8>]) -> Vec<u8> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    let extension = |value: &Vec<u8>| CustomExtension::from_oid_content(RA_TLS_OID, value.clone());
    params.custom_extensions = extensions.iter().map(extension).collect();
    params.self_signed(key).unwrap().der().to_vec()
}

fn evidence_claims(key: &KeyPair) -> Claims {
    let tls_spki_sha256 = Sha256::digest(key.subject_public_key_info()).into();
    Claims {
        tls_spki_sha256,
        ..claims()
    }
}

fn evidence_for(key: &KeyPair) -> Evidence {
    Server::new(blindai_core::Tee::Sgx).evidence(&evidence_claims(key))
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
