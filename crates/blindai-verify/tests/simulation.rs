//! A simulated server, and everything that can be wrong with it.

mod support;

use blindai_core::{Claims, DcapCollateral, Digest, Nonce, ReportData, Tee, simulation};
use blindai_tee::SIMULATION_ROOT_PRIVATE_KEY_KNOWN_TO_EVERYONE;
use blindai_verify::{Binding, Outcome, Policy, RejectionCode as Code, checks};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, RevokedCertParams, SerialNumber,
    SigningKey as _,
};
use x509_cert::Certificate;
use x509_cert::der::EncodePem as _;

use support::{
    NOW, Server, TLS_KEY, appraise_quote, assert_code, claims, connection, outcome, policy_pinning,
    verify,
};

const DAY: u64 = 24 * 3600;

#[test]
fn a_simulated_server_is_trusted_when_asked_for_and_says_so() {
    for tee in [Tee::Sgx, Tee::Tdx] {
        let server = Server::new(tee);
        let report = server.verify(&claims(), &support::simulation()).unwrap();
        assert_eq!(report.tee(), tee);
        assert!(report.simulated());
        assert_eq!(report.trust_root(), simulation::ROOT_NAME);
        assert_eq!(report.tcb_status(), "UpToDate");
        assert!(report.to_string().contains("protects nothing"), "{report}");
        assert_eq!(report.claims(), &claims());
        assert_eq!(report.verified_at(), NOW);
        assert_eq!(report.valid_until(), NOW + 3600);
        let json = report.to_json();
        assert_eq!(json["verdict"], "trusted");
        assert_eq!(json["simulated"], true);
        let (name, value) = &report.measurements()[0];
        assert_eq!(json["measurements"][name], *value);
        assert!(value.starts_with("0101"));
    }
}

#[test]
fn the_verdict_ends_with_the_collateral_when_that_ends_first() {
    let server = Server::with(Tee::Sgx, |options| {
        options.collateral_validity = std::time::Duration::from_secs(DAY);
    });
    let mut claims = claims();
    claims.expires_at = Some(NOW + 30 * DAY);
    let report = server.verify(&claims, &support::simulation()).unwrap();
    assert!((NOW + 1..=NOW + DAY).contains(&report.valid_until()));
}

#[test]
fn a_policy_for_hardware_refuses_the_simulation_by_its_name() {
    for tee in [Tee::Sgx, Tee::Tdx] {
        let server = Server::new(tee);
        let quote = server.evidence(&claims()).quote;
        let policy = policy_pinning(&quote, "", "");
        let rejection = assert_code(server.verify(&claims(), &policy), Code::TrustRootSimulation);
        assert!(
            rejection.fact().contains(simulation::ROOT_NAME),
            "{rejection}"
        );
        assert!(
            rejection.remedy().contains("protects nothing"),
            "{rejection}"
        );
        let others = rejection
            .checks()
            .iter()
            .filter(|c| c.name() != checks::TRUST_ROOT);
        assert!(others.clone().all(|check| check.outcome() != Outcome::Fail));
        assert!(others.count() > 10);
        let json = rejection.to_json();
        assert_eq!(json["verdict"], "rejected");
        assert_eq!(json["code"], "trust-root-simulation");

        let policy = policy.dangerous_accept_simulation();
        assert!(server.verify(&claims(), &policy).unwrap().simulated());
    }
}

#[test]
fn the_policy_of_nothing_refuses_all_and_names_the_simulation() {
    for tee in [Tee::Sgx, Tee::Tdx] {
        let server = Server::new(tee);
        let nothing = Policy::accept_nothing();
        let rejection = assert_code(
            server.verify(&claims(), &nothing),
            Code::TrustRootSimulation,
        );
        assert!(
            rejection.fact().contains(simulation::ROOT_NAME),
            "{rejection}"
        );
        // What would be left if it were hardware.
        let nothing = nothing.dangerous_accept_simulation();
        assert_code(
            server.verify(&claims(), &nothing),
            Code::MeasurementMismatch,
        );
    }
}

#[test]
fn pins_hold_for_simulated_evidence_too() {
    for (tee, other) in [(Tee::Sgx, [2; 48]), (Tee::Tdx, [2; 48])] {
        let server = Server::new(tee);
        let mut quote = server.evidence(&claims()).quote;
        // MRENCLAVE and MRTD, where the formats have them.
        let at = if tee == Tee::Sgx { 48 + 64 } else { 48 + 136 };
        let length = if tee == Tee::Sgx { 32 } else { 48 };
        quote[at..at + length].copy_from_slice(&other[..length]);
        let policy = policy_pinning(&quote, "", "").dangerous_accept_simulation();
        let rejection = assert_code(server.verify(&claims(), &policy), Code::MeasurementMismatch);
        assert!(
            rejection.fact().contains(&"01".repeat(length)),
            "{rejection}"
        );
        assert!(
            rejection.fact().contains(&"02".repeat(length)),
            "{rejection}"
        );
    }
}

#[test]
fn another_key_at_the_other_end_is_refused() {
    let server = Server::new(Tee::Sgx);
    let mut claims = claims();
    claims.tls_spki_sha256 = [8; 32];
    let result = server.verify(&claims, &support::simulation());
    assert_code(result, Code::TlsKeyMismatch);
}

#[test]
fn only_the_nonce_that_was_sent_passes() {
    let server = Server::new(Tee::Sgx);
    let sent = Nonce::from_bytes([9; 32]);
    for (carried, passes) in [
        (Some(sent), true),
        (Some(Nonce::from_bytes([8; 32])), false),
        (None, false),
    ] {
        let mut claims = claims();
        claims.nonce = carried;
        let evidence = server.evidence(&claims);
        let binding = Binding {
            tls_spki_sha256: Some(TLS_KEY),
            nonce: Some(sent),
        };
        let collateral = server.collateral();
        let result = verify(
            &evidence,
            &collateral,
            &binding,
            &support::simulation(),
            NOW,
        );
        match passes {
            true => drop(result.unwrap()),
            false => drop(assert_code(result, Code::NonceMismatch)),
        }
    }
}

#[test]
fn the_quote_of_another_server_is_refused() {
    let server = Server::new(Tee::Sgx);
    let mut evidence = server.evidence(&claims());
    let mut others = claims();
    others.tls_spki_sha256 = [8; 32];
    evidence.quote = server.evidence(&others).quote;
    let policy = support::simulation();
    let result = verify(&evidence, &server.collateral(), &connection(), &policy, NOW);
    let rejection = assert_code(result, Code::ReportDataMismatch);
    // The thief's claims name the thief's key, so nothing but the report data can tell.
    assert_eq!(outcome(&rejection, checks::TLS_KEY), Outcome::Pass);
    assert_eq!(outcome(&rejection, checks::QUOTE), Outcome::Pass);
}

#[test]
fn report_data_with_anything_after_the_digest_is_refused() {
    let evidence = Server::new(Tee::Sgx).evidence(&claims());
    let digest = ReportData::of_claims(&evidence.claims);
    assert_eq!(digest.as_bytes()[32..], [0; 32]);
    let mut claims = evidence.claims.clone();
    claims.push(0);
    let changed = blindai_core::Evidence { claims, ..evidence };
    let server = Server::new(Tee::Sgx);
    let policy = support::simulation();
    let result = verify(&changed, &server.collateral(), &connection(), &policy, NOW);
    assert!(result.is_err());
}

#[test]
fn claims_hold_only_in_their_time_and_must_name_it() {
    type Change = fn(&mut Claims);
    let cases: [(Change, Code); 5] = [
        (|c| c.expires_at = Some(NOW), Code::ClaimsExpired),
        (|c| c.expires_at = Some(0), Code::ClaimsExpired),
        (|c| c.expires_at = None, Code::ClaimsExpired),
        (|c| c.issued_at = Some(NOW + 301), Code::ClaimsNotYetValid),
        (|c| c.issued_at = None, Code::ClaimsNotYetValid),
    ];
    let server = Server::new(Tee::Sgx);
    for (change, code) in cases {
        let mut claims = claims();
        change(&mut claims);
        assert_code(server.verify(&claims, &support::simulation()), code);
    }
    let mut claims = claims();
    (claims.issued_at, claims.expires_at) = (Some(NOW + 300), Some(NOW + 1));
    server.verify(&claims, &support::simulation()).unwrap();
}

#[test]
fn collateral_is_refused_after_its_end_and_before_its_beginning() {
    let server = Server::new(Tee::Sgx);
    let mut claims = claims();
    claims.expires_at = Some(u64::MAX);
    let (evidence, collateral) = (server.evidence(&claims), server.collateral());
    let at = |now| {
        verify(
            &evidence,
            &collateral,
            &connection(),
            &support::simulation(),
            now,
        )
    };
    at(NOW).unwrap();
    assert_code(at(NOW + 40 * DAY), Code::CrlExpired);
    assert_code(at(NOW - 2 * DAY), Code::CollateralNotYetValid);
    assert!(at(u64::MAX).is_err());
    assert!(at(0).is_err());
}

#[test]
fn the_configuration_is_held_to_the_policy() {
    let server = Server::new(Tee::Sgx);
    let quote = server.evidence(&claims()).quote;
    let policy = |digest: Digest| {
        let line = format!("config_digest = [\"{digest}\"]");
        policy_pinning(&quote, &line, "").dangerous_accept_simulation()
    };
    let (right, wrong) = (policy(Digest::of(b"config")), policy(Digest::of(b"other")));
    server.verify(&claims(), &right).unwrap();
    assert_code(server.verify(&claims(), &wrong), Code::ConfigMismatch);
    let mut silent = claims();
    silent.config_digest = None;
    assert_code(server.verify(&silent, &right), Code::ConfigMismatch);
}

#[test]
fn debug_is_refused() {
    for tee in [Tee::Sgx, Tee::Tdx] {
        let server = Server::with(tee, |options| options.debug = true);
        let result = server.verify(&claims(), &support::simulation());
        let rejection = assert_code(result, Code::Debug);
        assert_eq!(outcome(&rejection, checks::QUOTE), Outcome::Pass);
    }
}

#[test]
fn everything_that_is_wrong_is_shown_at_once() {
    let server = Server::with(Tee::Sgx, |options| options.debug = true);
    let policy = policy_pinning(&Server::new(Tee::Tdx).evidence(&claims()).quote, "", "");
    let mut wrong = claims();
    (wrong.tls_spki_sha256, wrong.expires_at) = ([8; 32], Some(1));
    let rejection = assert_code(server.verify(&wrong, &policy), Code::TeeNotAccepted);
    for name in [
        checks::TEE,
        checks::TRUST_ROOT,
        checks::DEBUG,
        checks::TLS_KEY,
        checks::VALIDITY,
    ] {
        assert_eq!(outcome(&rejection, name), Outcome::Fail, "{name}");
    }
    assert_eq!(outcome(&rejection, checks::REPORT_DATA), Outcome::Pass);
    assert!(rejection.table().lines().count() > 12);
}

#[test]
fn no_changed_byte_of_the_quote_or_the_claims_passes_for_another_statement() {
    let server = Server::new(Tee::Sgx);
    let (evidence, collateral) = (server.evidence(&claims()), server.collateral());
    let policy = support::simulation();
    let verify = |evidence: &_| verify(evidence, &collateral, &connection(), &policy, NOW);
    let honest = verify(&evidence).unwrap();
    let signed = dcap_qvl::quote::Quote::parse(&evidence.quote)
        .unwrap()
        .signed_length();
    // The chain of certificates at the end is long and in PEM; every 16th byte of it will do.
    let chain = evidence
        .quote
        .windows(5)
        .position(|bytes| bytes == b"-----")
        .unwrap();
    let sampled = (chain..evidence.quote.len()).step_by(16);
    for at in (0..chain).chain(sampled) {
        let mut changed = evidence.clone();
        changed.quote[at] ^= 1;
        // Past the signed part stand the signatures and the chain: a byte there may be one that
        // PEM ignores, but the statement stays the same.
        match verify(&changed) {
            Ok(_) if at < signed => panic!("byte {at} may be changed"),
            Ok(report) => assert_eq!(report.measurements(), honest.measurements()),
            Err(_) => {}
        }
    }
    for at in 0..evidence.claims.len() {
        let mut changed = evidence.clone();
        changed.claims[at] ^= 1;
        let rejection = verify(&changed).unwrap_err();
        assert_eq!(outcome(&rejection, checks::REPORT_DATA), Outcome::Fail);
    }
}

#[test]
fn a_quote_alone_gives_a_report_of_its_own_kind() {
    let server = Server::new(Tee::Tdx);
    let quote = server.evidence(&claims()).quote;
    let report = appraise_quote(&quote, &server.collateral(), &support::simulation(), NOW).unwrap();
    assert_eq!(report.to_json()["verdict"], "quote-verified");
    assert!(
        report
            .checks()
            .iter()
            .all(|check| check.name() != checks::TLS_KEY)
    );
}

// What follows is signed with the root's key, which everyone has: that is why the simulation
// protects nothing, and how revocation can be tested.

fn root() -> Issuer<'static, KeyPair> {
    let key = KeyPair::from_pkcs8_pem_and_sign_algo(
        SIMULATION_ROOT_PRIVATE_KEY_KNOWN_TO_EVERYONE,
        &PKCS_ECDSA_P256_SHA256,
    );
    let mut params = CertificateParams::default();
    params.distinguished_name = named(simulation::ROOT_NAME);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Issuer::new(params, key.unwrap())
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name.push(DnType::OrganizationName, "BlindAI");
    name
}

/// Lets the root revoke the first certificate of a chain.
fn revoke(collateral: &mut DcapCollateral, chain: &str) {
    let chain = Certificate::load_pem_chain(chain.as_bytes()).unwrap();
    let serial = chain[0].tbs_certificate().serial_number().as_bytes();
    let params = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2049, 1, 1),
        crl_number: SerialNumber::from(2),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: rcgen::date_time_ymd(2026, 1, 2),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    collateral.root_ca_crl = params.signed_by(&root()).unwrap().der().to_vec();
}

/// Replaces the TCB info by another one, properly signed by a signer of the root.
fn replace_tcb_info(collateral: &mut DcapCollateral, from: &str, to: &str) {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Another TCB Signing");
    params.not_after = rcgen::date_time_ymd(2049, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &root()).unwrap();
    let certificate: Certificate = x509_cert::der::Decode::from_der(certificate.der()).unwrap();
    assert!(
        collateral.tcb_info.contains(from),
        "{}",
        collateral.tcb_info
    );
    collateral.tcb_info = collateral.tcb_info.replace(from, to);
    let signature = key.sign(collateral.tcb_info.as_bytes()).unwrap();
    let signature = p256::ecdsa::Signature::from_der(&signature).unwrap();
    collateral.tcb_info_signature = signature.to_bytes().to_vec();
    collateral.tcb_info_issuer_chain = certificate.to_pem(Default::default()).unwrap();
}

#[test]
fn what_the_root_revoked_is_refused() {
    let server = Server::new(Tee::Sgx);
    let genuine = server.collateral();
    for chain in [
        &genuine.pck_crl_issuer_chain,
        &genuine.tcb_info_issuer_chain,
    ] {
        let mut collateral = genuine.clone();
        revoke(&mut collateral, chain);
        let evidence = server.evidence(&claims());
        let policy = support::simulation();
        let result = verify(&evidence, &collateral, &connection(), &policy, NOW);
        assert_code(result, Code::CertificateRevoked);
    }
}

#[test]
fn patch_levels_are_held_to_the_policy() {
    for tee in [Tee::Sgx, Tee::Tdx] {
        let server = Server::new(tee);
        let quote = server.evidence(&claims()).quote;
        let appraise = |from: &str, to: &str, tcb: &str| {
            let mut collateral = server.collateral();
            replace_tcb_info(&mut collateral, from, to);
            let policy = policy_pinning(&quote, "", tcb).dangerous_accept_simulation();
            appraise_quote(&quote, &collateral, &policy, NOW)
        };
        let status = "\"tcbStatus\":\"UpToDate\"";
        let outdated = "\"tcbStatus\":\"OutOfDate\"";
        let advised = "\"advisoryIDs\":[\"INTEL-SA-1\"],\"tcbStatus\":\"UpToDate\"";
        let accepted = "allowed = [\"UpToDate\", \"OutOfDate\"]";
        let report = appraise(status, status, "").unwrap();
        assert_eq!(report.tcb_status(), "UpToDate");
        assert_code(appraise(status, outdated, ""), Code::TcbStatus);
        let report = appraise(status, outdated, accepted).unwrap();
        assert_eq!(report.tcb_status(), "OutOfDate");
        assert_code(appraise(status, advised, ""), Code::TcbAdvisory);
        let revoked = "\"tcbStatus\":\"Revoked\"";
        assert_code(appraise(status, revoked, accepted), Code::TcbRevoked);
        assert_code(appraise("\"svn\":", "\"svn\":2", ""), Code::TcbUnknown);
        assert_code(
            appraise("\"fmspc\":\"", "\"fmspc\":\"00", ""),
            Code::CollateralMismatch,
        );
    }
}

#[test]
fn what_the_peer_wrote_reaches_no_terminal_as_it_came() {
    let server = Server::new(Tee::Tdx);
    let quote = server.evidence(&claims()).quote;
    let mut collateral = server.collateral();
    let status = "\"tcbStatus\":\"UpToDate\"";
    let escape = "INTEL-\\u001b[2J\\r\\u202e".to_owned() + &"9".repeat(5000);
    let hostile = format!("\"advisoryIDs\":[{escape:?}],{status}").replace("\\\\", "\\");
    replace_tcb_info(&mut collateral, status, &hostile);

    let hardware = policy_pinning(&quote, "", "");
    let accepting = hardware.clone().dangerous_accept_simulation();
    let result = appraise_quote(&quote, &collateral, &accepting, NOW);
    let rejection = assert_code(result, Code::TcbAdvisory);
    assert!(
        rejection
            .fact()
            .starts_with("INTEL-\u{fffd}[2J\u{fffd}\u{fffd}999")
    );
    for line in rejection.table().lines() {
        assert!(!line.contains(['\u{1b}', '\r', '\u{202e}']), "{line:?}");
        assert!(line.chars().count() < 700, "{line:?}");
    }

    // Where the root is not accepted, what it signed is no news at all.
    let result = appraise_quote(&quote, &collateral, &hardware, NOW);
    let rejection = assert_code(result, Code::TrustRootSimulation);
    assert!(!rejection.to_json().to_string().contains("INTEL"));
    for name in [
        checks::TCB_STATUS,
        checks::TCB_ADVISORIES,
        checks::TCB_EVALUATION,
    ] {
        assert_eq!(outcome(&rejection, name), Outcome::Skipped, "{name}");
    }
}
