//! A server in a guest of SEV-SNP: other evidence, in another extension of the certificate, under
//! another root; the same path.

mod support;

use std::sync::Arc;

use blindai_client::{Client, ClientError, ConnectOptions, ErrorKind, Policy};
use blindai_core::{EvidenceDocument, Tee};
use blindai_tee::Measurement;
use rcgen::KeyPair;
use support::*;

fn identity() -> (Arc<Identity>, Time) {
    let time = Time::now();
    (Identity::of(Measurement::Launch([0x11; 48]), &time), time)
}

fn hardware(measurement: &str) -> Policy {
    let measurement = measurement.repeat(48);
    let text = format!("tee = [\"sev-snp\"]\n[sev-snp]\nmeasurement = [{measurement:?}]\n");
    Policy::from_toml(&text).unwrap()
}

fn options_for(policy: Policy, time: &Time) -> ConnectOptions {
    let time = time.clone();
    ConnectOptions::new(policy).clock(move || time.seconds())
}

async fn refused(server: &Server, options: ConnectOptions) -> ClientError {
    let error = Client::connect(&server.address, options).await.unwrap_err();
    assert_eq!(server.user_requests(), [""; 0], "{error}");
    assert_eq!(error.kind(), ErrorKind::Attestation, "{error}");
    error
}

#[tokio::test]
async fn an_honest_guest_is_verified_for_its_tls_key() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let policy = hardware("11").dangerous_accept_simulation();
    let client = Client::connect(&server.address, options_for(policy, &time))
        .await
        .unwrap();
    let report = client.report();
    assert_eq!(report.tee(), Tee::SevSnp);
    assert!(report.simulated());
    assert_eq!(report.claims().tls_spki_sha256, identity.spki_sha256());
    assert_eq!(report.valid_until(), time.seconds() + LIFETIME_SECONDS);

    let (document, fresh) = client.attest().await.unwrap();
    assert_ne!(fresh.claims().nonce, report.claims().nonce);
    let kept = EvidenceDocument::from_json(&document.to_json()).unwrap();
    assert_eq!(kept.tee, Tee::SevSnp);
    let sent = request(vec![1, 2, 3]);
    client
        .infer(&"m".parse().unwrap(), None, &sent)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_simulated_guest_is_refused_by_a_production_policy() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let error = refused(&server, options_for(hardware("11"), &time)).await;
    assert_eq!(error.code(), "trust-root-simulation");
}

#[tokio::test]
async fn other_code_or_another_kind_of_tee_is_refused() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let other = hardware("22").dangerous_accept_simulation();
    let error = refused(&server, options_for(other, &time)).await;
    assert_eq!(error.code(), "measurement-mismatch");
    let error = refused(&server, options(&time)).await;
    assert_eq!(error.code(), "tee-not-accepted");
}

#[tokio::test]
async fn a_machine_in_between_with_the_guests_evidence_is_refused_in_the_handshake() {
    let (identity, time) = identity();
    let own = KeyPair::generate().unwrap();
    let certificate = certificate_with(&own, &identity.evidence(None));
    let config = tls(certificate, &own, TLS13);
    let server = Server::start(config, move |nonce| identity.document(nonce)).await;
    let policy = hardware("11").dangerous_accept_simulation();
    let error = refused(&server, options_for(policy, &time)).await;
    assert_eq!(error.code(), "tls-key-mismatch");
    assert_eq!(server.attestations(), 0);
}
