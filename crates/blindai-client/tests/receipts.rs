//! Receipts over real connections: what holds is kept, what does not is an error.

mod support;

use std::sync::Arc;

use blindai_client::{Client, ErrorKind, ExpectedReceipt, ModelName, Receipt, Upload};
use blindai_core::Digest;
use blindai_core::receipt::{Deed, ReceiptNonce, Statement};
use support::*;

/// A server that signs what `change` made of each statement.
async fn server(change: fn(&mut Statement)) -> (Arc<Server>, Client) {
    let time = Time::now();
    let identity = Identity::new(MEASUREMENT, &time);
    let server = Server::honest(&identity).await;
    let receipts = move |deed: Deed, asked: &str, name: &str, digest: Digest| {
        let mut statement = identity.statement(deed, asked, name, digest);
        change(&mut statement);
        identity.sign(&statement)
    };
    *server.receipts.lock().unwrap() = Some(Box::new(receipts));
    let client = Client::connect(&server.address, options(&time)).await;
    (server, client.unwrap())
}

fn name() -> ModelName {
    "m".parse().unwrap()
}

#[tokio::test]
async fn a_receipt_is_kept_with_the_evidence_that_proves_it() {
    let (_server, client) = server(|_| {}).await;
    let sent = request(vec![1, 2, 3]);
    let (answer, receipt) = client
        .infer_with_receipt(&name(), None, &sent)
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.cbor");
    receipt.save(&path).unwrap();
    assert!(folder.path().join("r.evidence.json").is_file());

    let kept = Receipt::load(&path, None).unwrap();
    let expected = ExpectedReceipt {
        inputs: &sent.inputs,
        outputs: &answer.outputs,
        complete: true,
        ..ExpectedReceipt::default()
    };
    let (verified, report) = kept.verify(&pinned_policy(), None, &expected).unwrap();
    let statement = verified.statement();
    assert_eq!(statement.nonce.as_ref().unwrap().as_bytes().len(), 32);
    assert_eq!(report.verified_at(), statement.issued_at);

    let other = request(vec![1, 2, 4]);
    let expected = ExpectedReceipt {
        inputs: &other.inputs,
        ..expected
    };
    let error = kept.verify(&pinned_policy(), None, &expected).unwrap_err();
    assert_eq!(error.code(), "receipt-input");
    let error = kept.verify(&production_policy(), None, &expected);
    assert_eq!(error.unwrap_err().code(), "trust-root-simulation");
    let late = statement.issued_at + LIFETIME_SECONDS;
    let error = kept.verify(&pinned_policy(), Some(late), &expected);
    assert_eq!(error.unwrap_err().code(), "claims-expired");
}

#[tokio::test]
async fn an_upload_has_a_receipt_too() {
    let (_server, client) = server(|_| {}).await;
    let upload = Upload::bytes(&name(), vec![1; 1000]);
    let (info, receipt) = client.upload_with_receipt(upload).await.unwrap();
    let expected = ExpectedReceipt {
        model_digest: Some(info.digest),
        ..ExpectedReceipt::default()
    };
    let verdict = receipt.verify(&pinned_policy(), None, &expected);
    assert_eq!(verdict.unwrap().0.statement().deed, Deed::Upload);
}

#[tokio::test]
async fn an_answer_whose_receipt_does_not_hold_is_not_given() {
    type Change = fn(&mut Statement);
    let changes: [(&str, Change); 8] = [
        ("receipt-kind", |s| s.deed = Deed::Upload),
        ("receipt-time", |s| s.issued_at += LIFETIME_SECONDS + 301),
        ("receipt-server", |s| s.replica = [0; 32]),
        ("receipt-config", |s| s.config_digest = Digest::of(b"")),
        ("receipt-nonce", |s| {
            s.nonce = ReceiptNonce::from_bytes(b"1")
        }),
        ("receipt-model", |s| s.model_name = "other".parse().unwrap()),
        ("receipt-input", |s| change(s, |inputs, _| inputs.clear())),
        ("receipt-output", |s| {
            change(s, |_, outputs| outputs[0].digest = Digest::of(b""));
        }),
    ];
    for (code, change) in changes {
        let (_server, client) = server(change).await;
        let sent = request(vec![1]);
        let error = client.infer_with_receipt(&name(), None, &sent).await;
        let error = error.unwrap_err();
        assert_eq!(error.code(), code);
        assert_eq!(error.kind(), ErrorKind::Attestation);
        assert!(error.rejection().is_some());
    }
}

fn change(
    statement: &mut Statement,
    change: impl FnOnce(
        &mut Vec<blindai_core::receipt::TensorDigest>,
        &mut Vec<blindai_core::receipt::TensorDigest>,
    ),
) {
    if let Deed::Infer { inputs, outputs } = &mut statement.deed {
        change(inputs, outputs);
    }
}

#[tokio::test]
async fn a_receipt_of_another_key_or_none_is_refused() {
    let (server, client) = server(|_| {}).await;
    let other = Identity::new(MEASUREMENT, &Time::now());
    let receipts = move |deed: Deed, asked: &str, name: &str, digest: Digest| {
        other.sign(&other.statement(deed, asked, name, digest))
    };
    *server.receipts.lock().unwrap() = Some(Box::new(receipts));
    let sent = request(vec![1]);
    let error = client.infer_with_receipt(&name(), None, &sent).await;
    assert_eq!(error.unwrap_err().code(), "receipt-key");
    *server.receipts.lock().unwrap() = None;
    let error = client.infer_with_receipt(&name(), None, &sent).await;
    assert_eq!(error.unwrap_err().code(), "receipt-missing");
    // Who asks for none is not bothered.
    client.infer(&name(), None, &sent).await.unwrap();
}
