//! Who is refused, over real connections, and that nothing was sent to them.

mod support;

use std::sync::Arc;

use blindai_client::{
    Client, ClientError, ConnectOptions, ErrorKind, FetchOptions, Fetcher, Policy, Source, Upload,
};
use blindai_core::{Claims, Collateral, Evidence, EvidenceDocument, Tee};
use blindai_tee::{Attester as _, Measurement, simulated_rtmr};
use blindai_verify::Binding;
use rcgen::KeyPair;
use rustls::HandshakeKind;
use support::*;

async fn refused(server: &Server, options: ConnectOptions) -> ClientError {
    let error = Client::connect(&server.address, options).await.unwrap_err();
    assert_eq!(server.user_requests(), [""; 0], "{error}");
    error
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn identity() -> (Arc<Identity>, Time) {
    let time = Time::now();
    (Identity::new(MEASUREMENT, &time), time)
}

#[tokio::test]
async fn an_honest_server_is_verified_for_its_tls_key() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let client = Client::connect(&server.address, options(&time))
        .await
        .unwrap();
    let report = client.report();
    assert!(report.simulated());
    assert_eq!(report.claims().tls_spki_sha256, identity.spki_sha256());
    assert!(report.claims().nonce.is_some());
    assert_eq!(report.valid_until(), time.seconds() + LIFETIME_SECONDS);
}

#[tokio::test]
async fn fresh_evidence_has_a_new_nonce_and_verifies_offline() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let client = Client::connect(&server.address, options(&time))
        .await
        .unwrap();
    let before = client.report();
    let (document, report) = client.attest().await.unwrap();
    assert_ne!(before.claims().nonce, report.claims().nonce);
    assert!(Arc::ptr_eq(&client.report(), &report));

    let kept = EvidenceDocument::from_json(&document.to_json()).unwrap();
    let binding = Binding {
        tls_spki_sha256: None,
        nonce: report.claims().nonce,
    };
    let collateral = kept.collateral.as_ref().unwrap();
    let now = time.seconds();
    blindai_verify::verify(
        &kept.evidence(),
        collateral,
        &binding,
        &pinned_policy(),
        now,
    )
    .unwrap();
}

#[tokio::test]
async fn a_simulated_server_is_refused_by_a_production_policy() {
    let (identity, _) = identity();
    let server = Server::honest(&identity).await;
    let error = refused(&server, ConnectOptions::new(production_policy())).await;
    assert_eq!(error.kind(), ErrorKind::Attestation);
    assert_eq!(error.code(), "trust-root-simulation");
    assert!(!error.rejection().unwrap().checks().is_empty());
}

#[test]
fn an_empty_policy_connects_to_nobody() {
    for text in [
        "",
        "tee = []",
        "tee = [\"sgx\"]",
        "tee = [\"sgx\"]\n[sgx]\nmrenclave = []",
    ] {
        // There is no client without options, and there are none without a policy.
        let error = ClientError::from(Policy::from_toml(text).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::Policy);
        assert_eq!(error.code(), "policy-invalid");
    }
}

#[tokio::test]
async fn a_required_check_that_cannot_be_made_is_a_refusal() {
    let time = Time::now();
    let identity = Identity::of(Measurement::MrTd([0x11; 48]), &time);
    let server = Server::honest(&identity).await;
    let pins = [
        ("mrtd", [0x11; 48]),
        ("rtmr1", simulated_rtmr(1)),
        ("rtmr2", simulated_rtmr(2)),
    ];
    let pins = pins.map(|(name, value)| format!("{name} = [\"{}\"]\n", hex(&value)));
    let pins = pins.concat();
    let policy = |more: &str| {
        let policy = Policy::from_toml(&format!("tee = [\"tdx\"]\n[tdx]\n{pins}{more}"));
        ConnectOptions::new(policy.unwrap().dangerous_accept_simulation())
    };
    Client::connect(&server.address, policy("")).await.unwrap();

    // Quotes of TDX 1.0 do not say this.
    let zeros = "00".repeat(16);
    let options = policy(&format!("min_tee_tcb_svn2 = \"{zeros}\""));
    let error = Client::connect(&server.address, options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Attestation);
    assert_eq!(error.code(), "check-skipped");
}

#[tokio::test]
async fn other_code_than_the_policy_names_is_refused() {
    let time = Time::now();
    let server = Server::honest(&Identity::new([0x22; 32], &time)).await;
    let error = refused(&server, options(&time)).await;
    assert_eq!(error.code(), "measurement-mismatch");
}

#[tokio::test]
async fn a_certificate_for_another_key_than_its_evidence_is_refused_in_the_handshake() {
    let (identity, time) = identity();
    // A machine in between, with its own key, repeats the evidence of an honest server.
    let own = KeyPair::generate().unwrap();
    let certificate = certificate_with(&own, &identity.evidence(None));
    let relayed = identity.clone();
    let server = Server::start(tls(certificate, &own, TLS13), move |nonce| {
        relayed.document(nonce)
    });
    let server = server.await;
    let error = refused(&server, options(&time)).await;
    assert_eq!(error.kind(), ErrorKind::Attestation);
    assert_eq!(error.code(), "tls-key-mismatch");
    assert_eq!(server.attestations(), 0);
}

#[tokio::test]
async fn a_relayed_document_of_another_server_is_refused() {
    let (victim, time) = identity();
    // Simulated evidence of its own gets a machine in between past the handshake, not further.
    let own = Identity::new(MEASUREMENT, &time);
    let config = tls(own.certificate(), &own.key, TLS13);
    let server = Server::start(config, move |nonce| victim.document(nonce)).await;
    let error = refused(&server, options(&time)).await;
    assert_eq!(error.code(), "tls-key-mismatch");
    assert_eq!(server.attestations(), 1);
}

#[tokio::test]
async fn a_copied_certificate_without_its_private_key_is_refused() {
    let (identity, time) = identity();
    let other = KeyPair::generate().unwrap();
    let config = tls(identity.certificate(), &other, TLS13);
    let server = Server::start(config, move |nonce| identity.document(nonce)).await;
    let error = refused(&server, options(&time)).await;
    assert_eq!(error.kind(), ErrorKind::Attestation);
    assert_eq!(error.code(), "tls-key-not-held");
    assert_eq!(server.attestations(), 0);
}

#[tokio::test]
async fn a_host_that_signs_a_certificate_for_the_servers_key_gains_nothing() {
    let (identity, time) = identity();
    let certificate = certificate_of_a_host(&identity.key, &identity.evidence(None));
    for holds_the_key in [false, true] {
        let other = KeyPair::generate().unwrap();
        let key = if holds_the_key { &identity.key } else { &other };
        let attest = identity.clone();
        let config = tls(certificate.clone(), key, TLS13);
        let server = Server::start(config, move |nonce| attest.document(nonce)).await;
        if holds_the_key {
            // Whoever issued the certificate, the connection ends where the evidence says.
            Client::connect(&server.address, options(&time))
                .await
                .unwrap();
        } else {
            let error = refused(&server, options(&time)).await;
            assert_eq!(error.code(), "tls-key-not-held");
        }
    }
}

#[tokio::test]
async fn a_certificate_that_a_host_signed_for_its_own_key_is_refused() {
    let (identity, time) = identity();
    let own = KeyPair::generate().unwrap();
    let certificate = certificate_of_a_host(&own, &identity.evidence(None));
    let config = tls(certificate, &own, TLS13);
    let server = Server::start(config, move |nonce| identity.document(nonce)).await;
    let error = refused(&server, options(&time)).await;
    assert_eq!(error.code(), "tls-key-mismatch");
    assert_eq!(server.attestations(), 0);
}

#[tokio::test]
async fn a_certificate_with_a_second_evidence_is_refused() {
    let (identity, time) = identity();
    let own = identity.evidence(None);
    // In the same extension, and in the one for the other kinds of TEE.
    let second = Identity::new(MEASUREMENT, &time).evidence(None);
    let third = Identity::of(Measurement::Launch([0x11; 48]), &time).evidence(None);
    let pairs = [
        [&own, &second],
        [&second, &own],
        [&own, &third],
        [&third, &own],
    ];
    for pair in pairs.map(|pair| pair.map(Evidence::clone)) {
        let certificate = carrying(&pair).self_signed(&identity.key).unwrap();
        let config = tls(certificate.der().to_vec(), &identity.key, TLS13);
        let attest = identity.clone();
        let server = Server::start(config, move |nonce| attest.document(nonce)).await;
        let error = refused(&server, options(&time)).await;
        assert_eq!(error.code(), "certificate-malformed");
        assert_eq!(server.attestations(), 0);
    }
}

#[tokio::test]
async fn a_key_beside_the_evidence_is_refused() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    server.attest_with(move |nonce| {
        let document = String::from_utf8(identity.document(nonce)).unwrap();
        let key = format!("{{\"hpke_key\":\"{}\",", "22".repeat(32));
        document.replacen('{', &key, 1).into_bytes()
    });
    let error = refused(&server, options(&time)).await;
    assert_eq!(error.kind(), ErrorKind::Attestation);
    assert_eq!(error.code(), "evidence-malformed");
}

#[tokio::test]
async fn a_key_that_was_put_into_the_claims_is_refused() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    server.attest_with(move |nonce| {
        let mut evidence = identity.evidence(Some(nonce));
        let mut claims = Claims::decode(&evidence.claims).unwrap();
        claims.hpke_key = Some([0x22; 32]);
        evidence.claims = claims.encode();
        let collateral = identity.platform.collateral().unwrap();
        EvidenceDocument::new(Tee::Sgx, evidence, collateral).to_json()
    });
    let error = refused(&server, options(&time)).await;
    assert_eq!(error.code(), "report-data-mismatch");
}

#[tokio::test]
async fn a_certificate_without_evidence_is_refused() {
    let (identity, time) = identity();
    let plain = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let plain = plain.self_signed(&identity.key).unwrap().der().to_vec();
    let config = tls(plain, &identity.key, TLS13);
    let server = Server::start(config, move |nonce| identity.document(nonce)).await;
    let error = refused(&server, options(&time)).await;
    assert_eq!(error.code(), "certificate-malformed");
}

#[tokio::test]
async fn an_old_nonce_is_refused() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let kept = identity.document(blindai_core::Nonce::from_bytes([7; 32]));
    server.attest_with(move |_| kept.clone());
    let error = refused(&server, options(&time)).await;
    assert_eq!(error.code(), "nonce-mismatch");
}

#[tokio::test]
async fn evidence_past_its_end_is_refused() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let later = time.seconds() + LIFETIME_SECONDS;
    let error = refused(&server, options(&time).clock(move || later)).await;
    assert_eq!(error.code(), "claims-expired");
}

#[tokio::test]
async fn a_report_that_expires_between_requests_is_renewed_before_the_next() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let client = Client::connect(&server.address, options(&time))
        .await
        .unwrap();
    let first = client.report();
    client.models().await.unwrap();
    assert_eq!(server.attestations(), 1);

    time.advance(LIFETIME_SECONDS);
    client.models().await.unwrap();
    assert_eq!(server.attestations(), 2);
    assert!(client.report().valid_until() > first.valid_until());
}

#[tokio::test]
async fn a_report_that_cannot_be_renewed_stops_every_request() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let ahead = Time::now();
    let clock = ahead.clone();
    let options = options(&time).clock(move || clock.seconds());
    let client = Client::connect(&server.address, options).await.unwrap();

    ahead.advance(LIFETIME_SECONDS + 1);
    let name = "m".parse().unwrap();
    let errors = [
        client.models().await.unwrap_err(),
        client
            .infer(&name, None, &request(vec![1]))
            .await
            .unwrap_err(),
        client.delete(&name, None).await.unwrap_err(),
        client
            .upload(Upload::bytes(&name, vec![1]))
            .await
            .unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Attestation);
        assert_eq!(error.code(), "claims-expired");
    }
    assert_eq!(server.user_requests(), [""; 0]);
}

#[tokio::test]
async fn a_restarted_server_with_a_new_key_proves_itself_anew() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let client = Client::connect(&server.address, options(&time))
        .await
        .unwrap();
    let next = Identity::new(MEASUREMENT, &time);
    server.become_identity(&next);

    let name = "m".parse().unwrap();
    client.infer(&name, None, &request(vec![1])).await.unwrap();
    assert_eq!(client.report().claims().tls_spki_sha256, next.spki_sha256());
    assert_eq!(server.attestations(), 2);
}

#[tokio::test]
async fn a_restarted_server_with_other_code_gets_nothing() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let client = Client::connect(&server.address, options(&time))
        .await
        .unwrap();
    server.become_identity(&Identity::new([0x22; 32], &time));

    let name = "m".parse().unwrap();
    let error = client
        .infer(&name, None, &request(vec![1]))
        .await
        .unwrap_err();
    assert_eq!(error.code(), "measurement-mismatch");
    let error = client
        .upload(Upload::bytes(&name, vec![1]))
        .await
        .unwrap_err();
    assert_eq!(error.code(), "measurement-mismatch");
    assert_eq!(server.user_requests(), [""; 0]);
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let (identity, time) = identity();
    let versions: &[_] = &[&rustls::version::TLS12];
    let config = tls(identity.certificate(), &identity.key, versions);
    let server = Server::start(config, move |nonce| identity.document(nonce)).await;
    let error = refused(&server, options(&time)).await;
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert_eq!(error.code(), "tls-failed");
    assert_eq!(server.attestations(), 0);
}

#[tokio::test]
async fn no_session_is_ever_resumed() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let client = Client::connect(&server.address, options(&time))
        .await
        .unwrap();
    let name = "m".parse().unwrap();
    for _ in 0..3 {
        // Each takes a new connection, after the server's tickets have come.
        client.models().await.unwrap();
        client.delete(&name, None).await.unwrap();
    }
    let handshakes = server.handshakes.lock().unwrap().clone();
    assert!(handshakes.len() >= 4);
    assert!(
        !handshakes.contains(&HandshakeKind::Resumed),
        "{handshakes:?}"
    );
}

#[tokio::test]
async fn documents_that_are_none_are_refused() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let cases = [
        (vec![b' '; 1024 * 1024 + 1], "response-too-large"),
        (b"{}".to_vec(), "evidence-malformed"),
        (Vec::new(), "evidence-malformed"),
    ];
    for (document, code) in cases {
        server.attest_with(move |_| document.clone());
        assert_eq!(refused(&server, options(&time)).await.code(), code);
    }
    let bare = EvidenceDocument::new(Tee::Sgx, identity.evidence(None), None);
    server.attest_with(move |_| bare.to_json());
    let error = refused(&server, options(&time)).await;
    assert_eq!(error.code(), "collateral-missing");
}

/// What a client brings itself, in a file; the server's own stays as it is.
fn own_collateral(json: &[u8]) -> (tempfile::TempDir, Fetcher) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("collateral.json");
    std::fs::write(&path, json).unwrap();
    let fetcher = Fetcher::new(Source::Path(path), &FetchOptions::default());
    (folder, fetcher.unwrap())
}

fn collateral_of(identity: &Identity) -> Vec<u8> {
    let collateral = identity.platform.collateral().unwrap();
    serde_json::to_vec(&collateral.unwrap()).unwrap()
}

#[tokio::test]
async fn a_client_that_fetches_needs_nothing_stapled() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let bare = identity.clone();
    server.attest_with(move |nonce| {
        let evidence = bare.evidence(Some(nonce));
        EvidenceDocument::new(Tee::Sgx, evidence, None).to_json()
    });
    let error = refused(&server, options(&time)).await;
    assert_eq!(error.code(), "collateral-missing");

    let (_folder, fetcher) = own_collateral(&collateral_of(&identity));
    let client = Client::connect(&server.address, options(&time).collateral(fetcher));
    let (document, _) = client.await.unwrap().attest().await.unwrap();
    // What is kept is what was verified.
    let kept = serde_json::to_vec(&document.collateral.unwrap()).unwrap();
    assert_eq!(kept, collateral_of(&identity));
}

#[tokio::test]
async fn stapled_collateral_is_a_fallback_only_when_asked_for() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let (folder, fetcher) = own_collateral(b"");
    let error = refused(&server, options(&time).collateral(fetcher.clone())).await;
    assert_eq!(error.kind(), ErrorKind::Attestation);
    assert_eq!(error.code(), "collateral-unreadable");
    let lenient = options(&time).collateral_or_stapled(fetcher.clone());
    let error = refused(&server, lenient).await;
    assert_eq!(error.code(), "collateral-unreadable");
    drop(folder);
    let error = refused(&server, options(&time).collateral(fetcher.clone())).await;
    assert_eq!(error.code(), "collateral-not-found");
    let lenient = options(&time).collateral_or_stapled(fetcher);
    Client::connect(&server.address, lenient).await.unwrap();

    // What a client fetched is what counts, also when it is worse.
    let (_folder, fetcher) = own_collateral(&collateral_of(&Identity::new(MEASUREMENT, &time)));
    let error = refused(&server, options(&time).collateral_or_stapled(fetcher)).await;
    assert_eq!(error.code(), "chain-invalid");
}

#[tokio::test]
async fn a_server_cannot_make_clients_take_what_it_staples() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let (_folder, fetcher) = own_collateral(&collateral_of(&identity));
    server.attest_with(move |nonce| {
        let mut evidence = identity.evidence(Some(nonce));
        // Cut before the certificates that name the platform.
        evidence.quote.truncate(500);
        let collateral = identity.platform.collateral().unwrap();
        EvidenceDocument::new(Tee::Sgx, evidence, collateral).to_json()
    });
    let lenient = options(&time).collateral_or_stapled(fetcher);
    let error = refused(&server, lenient).await;
    assert_eq!(error.code(), "collateral-platform-unknown");
}

/// No signature covers the certificates in a quote. Those of an unknown machine in the place of the
/// true ones, which are stapled, make a source know nothing of a machine that it may call revoked.
#[tokio::test]
async fn a_server_cannot_hide_which_machine_it_is() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let (folder, fetcher) = own_collateral(b"");
    drop(folder);
    let other = Identity::new(MEASUREMENT, &time);
    server.attest_with(move |nonce| {
        let mut evidence = identity.evidence(Some(nonce));
        let chain = split_chain(&mut evidence.quote);
        let stranger = split_chain(&mut other.evidence(Some(nonce)).quote);
        join_chain(&mut evidence.quote, &stranger);
        let mut collateral = identity.platform.collateral().unwrap();
        let Some(Collateral::Dcap(dcap)) = &mut collateral else {
            panic!("another kind of collateral")
        };
        dcap.pck_certificate_chain = Some(String::from_utf8(chain).unwrap());
        EvidenceDocument::new(Tee::Sgx, evidence, collateral).to_json()
    });
    let lenient = options(&time).collateral_or_stapled(fetcher);
    let error = refused(&server, lenient).await;
    assert_eq!(error.kind(), ErrorKind::Attestation);
    assert_eq!(error.code(), "chain-invalid");
}

/// Where a quote of version 3 says how long its signature data are, of which the chain is the end.
const SIGNATURE_LENGTH: std::ops::Range<usize> = 432..436;

/// Takes the chain out of a quote.
fn split_chain(quote: &mut Vec<u8>) -> Vec<u8> {
    let begin = b"-----BEGIN";
    let start = quote.windows(begin.len()).position(|found| found == begin);
    quote.split_off(start.unwrap())
}

fn join_chain(quote: &mut Vec<u8>, chain: &[u8]) {
    let start = quote.len();
    quote.extend_from_slice(chain);
    let lengths = [quote.len() - SIGNATURE_LENGTH.end, chain.len()];
    let [signature, own] = lengths.map(|length| u32::try_from(length).unwrap().to_le_bytes());
    quote[SIGNATURE_LENGTH].copy_from_slice(&signature);
    quote[start - 4..start].copy_from_slice(&own);
}

#[tokio::test]
async fn after_refused_evidence_nothing_goes_out_for_what_was_proved_before() {
    let (identity, time) = identity();
    let server = Server::honest(&identity).await;
    let client = Client::connect(&server.address, options(&time))
        .await
        .unwrap();
    client.models().await.unwrap();
    let bad = Identity::new([9; 32], &time);
    server.attest_with(move |nonce| {
        let collateral = bad.platform.collateral().unwrap();
        EvidenceDocument::new(Tee::Sgx, bad.evidence(Some(nonce)), collateral).to_json()
    });
    let error = client.attest().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Attestation);
    let error = client.models().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Attestation);
    let honest = identity.clone();
    server.attest_with(move |nonce| {
        let collateral = honest.platform.collateral().unwrap();
        EvidenceDocument::new(Tee::Sgx, honest.evidence(Some(nonce)), collateral).to_json()
    });
    client.models().await.unwrap();
    client.models().await.unwrap();
}

#[tokio::test]
async fn collateral_that_ends_between_requests_is_renewed_before_the_next() {
    let (identity, time) = Identity::with_collateral_for(LIFETIME_SECONDS / 2);
    let server = Server::honest(&identity).await;
    let stapled = collateral_of(&identity);
    let client = Client::connect(&server.address, options(&time))
        .await
        .unwrap();
    let end = time.seconds() + LIFETIME_SECONDS / 2;
    assert_eq!(client.report().valid_until(), end);
    client.models().await.unwrap();
    assert_eq!(server.attestations(), 1);

    time.advance(LIFETIME_SECONDS / 2);
    client.models().await.unwrap();
    assert_eq!(server.attestations(), 2);
    assert!(client.report().valid_until() > end);

    // From now on the server has no newer than the first.
    time.advance(LIFETIME_SECONDS / 2);
    let stale = identity.clone();
    server.attest_with(move |nonce| {
        let collateral = serde_json::from_slice(&stapled).unwrap();
        let evidence = stale.evidence(Some(nonce));
        EvidenceDocument::new(Tee::Sgx, evidence, Some(collateral)).to_json()
    });
    let before = server.user_requests();
    let error = client.models().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Attestation);
    assert_eq!(error.code(), "crl-expired");
    assert_eq!(server.user_requests(), before);
}
