//! Receipts: what holds, and everything that can be wrong with one.

mod support;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use blindai_core::receipt::{Deed, Kind, ReceiptNonce, SignedStatement, Statement, TensorDigest};
use blindai_core::{Claims, DType, Digest, Evidence, NamedTensor, Tee, Tensor};
use blindai_verify::{
    ExpectedReceipt, Outcome, Rejection, RejectionCode as Code, VerifiedReceipt, VerifiedReport,
    checks, verify_kept_receipt, verify_receipt,
};

use support::{NOW, Server, TLS_KEY, assert_code, outcome, policy_pinning};

/// A server with a receipt key, its verified report, and a receipt of one inference.
struct Scene {
    key: Ed25519KeyPair,
    report: VerifiedReport,
    statement: Statement,
    inputs: Vec<NamedTensor>,
    outputs: Vec<NamedTensor>,
}

impl Scene {
    fn new() -> Self {
        let key = Ed25519KeyPair::generate().unwrap();
        let report = report_of(&claims(&key));
        let inputs = vec![tensor("a", &[1, 2]), tensor("b", &[3])];
        let outputs = vec![tensor("y", &[4])];
        let statement = Statement {
            deed: Deed::Infer {
                inputs: TensorDigest::of_all(&inputs),
                outputs: TensorDigest::of_all(&outputs),
            },
            model_name: "m".parse().unwrap(),
            model_version: "3".parse().unwrap(),
            model_digest: Digest::of(b"model"),
            nonce: ReceiptNonce::from_bytes(&[5; 32]),
            issued_at: NOW,
            config_digest: Digest::of(b"config"),
            replica: TLS_KEY,
            server_version: "0.1.0".to_owned(),
        };
        Self {
            key,
            report,
            statement,
            inputs,
            outputs,
        }
    }

    fn expected(&self) -> ExpectedReceipt<'_> {
        ExpectedReceipt {
            kind: Some(Kind::Infer),
            model_name: Some(&self.statement.model_name),
            model_version: Some(&self.statement.model_version),
            model_digest: Some(self.statement.model_digest),
            inputs: &self.inputs,
            outputs: &self.outputs,
            complete: true,
            nonce: self.statement.nonce.as_ref(),
            window: Some(NOW - 5..=NOW + 5),
        }
    }

    fn sign(&self, statement: &Statement) -> Vec<u8> {
        signed(statement, &self.key)
    }

    fn verify(&self, receipt: &[u8]) -> Result<VerifiedReceipt, Rejection> {
        verify_receipt(receipt, &self.report, &self.expected())
    }

    /// What becomes of the receipt of a statement that was changed before it was signed.
    fn of_changed(
        &self,
        change: impl FnOnce(&mut Statement),
    ) -> Result<VerifiedReceipt, Rejection> {
        let mut statement = self.statement.clone();
        change(&mut statement);
        self.verify(&self.sign(&statement))
    }
}

fn claims(key: &Ed25519KeyPair) -> Claims {
    Claims {
        receipt_key: Some(key.public_key().as_ref().try_into().unwrap()),
        version: Some("0.1.0".to_owned()),
        ..support::claims()
    }
}

fn report_of(claims: &Claims) -> VerifiedReport {
    let server = Server::new(Tee::Tdx);
    server.verify(claims, &support::simulation()).unwrap()
}

fn signed(statement: &Statement, key: &Ed25519KeyPair) -> Vec<u8> {
    let sign = |bytes: &[u8]| key.sign(bytes).as_ref().to_vec();
    statement.sign(key.public_key().as_ref(), sign).unwrap()
}

fn tensor(name: &str, data: &'static [u8]) -> NamedTensor {
    let tensor = Tensor::new(DType::U8, vec![data.len()], data.into()).unwrap();
    NamedTensor::new(name, tensor)
}

#[test]
fn a_receipt_of_the_server_holds_and_says_so() {
    let scene = Scene::new();
    let verified = scene.verify(&scene.sign(&scene.statement)).unwrap();
    assert_eq!(verified.statement(), &scene.statement);
    let mut skipped = verified.checks().iter();
    let skipped = skipped.find(|check| check.outcome() != Outcome::Pass);
    // The policy of the scene pins no models.
    assert_eq!(
        skipped.map(|check| check.name()),
        Some(checks::RECEIPT_MODEL_ACCEPTED)
    );
    assert!(verified.simulated());
    assert!(
        verified.to_string().contains("proves nothing"),
        "{verified}"
    );
    let json = verified.to_json(&scene.report);
    assert!(json["checks"].as_array().unwrap().len() > verified.checks().len());
    assert_eq!(json["verdict"], "trusted");
    assert_eq!(json["subject"], "receipt");
    assert_eq!(json["receipt"]["inputs"][1]["name"], "b");
    assert_eq!(json["receipt"]["nonce"], "05".repeat(32));
}

#[test]
fn the_policy_decides_whatever_the_caller_expects() {
    let scene = Scene::new();
    let server = Server::new(Tee::Tdx);
    let claims = claims(&scene.key);
    let evidence = server.evidence(&claims);
    let receipt = scene.sign(&scene.statement);
    let judged = |models: &str| {
        let (own, other) = (Digest::of(b"model"), Digest::of(b"old"));
        let models = models.replace("OWN", &own.to_string());
        let models = models.replace("OTHER", &other.to_string());
        let policy = policy_pinning(&evidence.quote, "", &format!("[models]\n{models}"));
        let policy = policy.dangerous_accept_simulation();
        let report = server.verify(&claims, &policy).unwrap();
        let result = verify_receipt(&receipt, &report, &scene.expected());
        let checks = match &result {
            Ok(verified) => verified.checks().to_vec(),
            Err(rejection) => rejection.checks().to_vec(),
        };
        let named = |check: &&blindai_verify::Check| check.name() == checks::RECEIPT_MODEL_ACCEPTED;
        let outcome = checks.iter().find(named).unwrap().outcome();
        (result.map_err(|rejection| rejection.code()).err(), outcome)
    };
    let refused = (Some(Code::ReceiptModelNotAccepted), Outcome::Fail);
    for (models, want) in [
        ("m = [\"OWN\"]", (None, Outcome::Pass)),
        ("m = [\"OTHER\", \"OWN\"]", (None, Outcome::Pass)),
        ("\"m/3\" = [\"OWN\"]", (None, Outcome::Pass)),
        ("n = [\"OTHER\"]", (None, Outcome::Skipped)),
        ("m = [\"OTHER\"]", refused),
        ("\"m/4\" = [\"OWN\"]", refused),
        ("n = [\"OWN\"]\n\"*\" = \"refuse\"", refused),
    ] {
        assert_eq!(judged(models), want, "{models}");
    }
}

#[test]
fn what_was_not_given_is_skipped_and_not_passed() {
    let scene = Scene::new();
    let expected = ExpectedReceipt {
        inputs: &scene.inputs[1..],
        ..ExpectedReceipt::default()
    };
    let receipt = scene.sign(&scene.statement);
    let verified = verify_receipt(&receipt, &scene.report, &expected).unwrap();
    let skipped = verified
        .checks()
        .iter()
        .filter(|check| check.outcome() == Outcome::Skipped);
    let skipped: Vec<_> = skipped
        .map(|check| (check.name(), check.detail()))
        .collect();
    let names: Vec<_> = skipped.iter().map(|(name, _)| *name).collect();
    let want = [
        checks::RECEIPT_KIND,
        checks::RECEIPT_NONCE,
        checks::RECEIPT_MODEL,
        checks::RECEIPT_MODEL_ACCEPTED,
        checks::RECEIPT_INPUT,
        checks::RECEIPT_OUTPUT,
    ];
    assert_eq!(names, want);
    assert!(skipped[4].1.contains("\"a\""), "{skipped:?}");
}

#[test]
fn each_thing_that_does_not_match_has_its_code() {
    let scene = Scene::new();
    type Change = fn(&mut Statement);
    let changes: [(Code, Change); 14] = [
        (Code::ReceiptKind, |s| s.deed = Deed::Upload),
        (Code::ReceiptTime, |s| s.issued_at += 6),
        (Code::ReceiptTime, |s| s.issued_at -= 6),
        (Code::ReceiptServer, |s| s.replica = [8; 32]),
        (Code::ReceiptServer, |s| s.server_version.push('1')),
        (Code::ReceiptConfig, |s| {
            s.config_digest = Digest::of(b"other")
        }),
        (Code::ReceiptNonce, |s| s.nonce = None),
        (Code::ReceiptNonce, |s| {
            s.nonce = ReceiptNonce::from_bytes(&[5; 31])
        }),
        (Code::ReceiptModel, |s| {
            s.model_digest = Digest::of(b"other")
        }),
        (Code::ReceiptModel, |s| s.model_name = "n".parse().unwrap()),
        (Code::ReceiptModel, |s| {
            s.model_version = "4".parse().unwrap()
        }),
        (Code::ReceiptInput, |s| {
            change(s, |inputs, _| inputs[0].digest = Digest::of(b""))
        }),
        (Code::ReceiptInput, |s| {
            change(s, |inputs, _| inputs.truncate(1))
        }),
        (Code::ReceiptOutput, |s| {
            change(s, |_, outputs| outputs[0].name = "z".to_owned())
        }),
    ];
    for (i, (code, change)) in changes.into_iter().enumerate() {
        let rejection = assert_code(scene.of_changed(change), code);
        let failed = rejection
            .checks()
            .iter()
            .filter(|c| c.outcome() == Outcome::Fail);
        assert!(failed.count() >= 1, "{i}");
        assert_eq!(
            outcome(&rejection, checks::RECEIPT_SIGNATURE),
            Outcome::Pass
        );
    }
}

fn change(
    statement: &mut Statement,
    change: impl FnOnce(&mut Vec<TensorDigest>, &mut Vec<TensorDigest>),
) {
    let Deed::Infer { inputs, outputs } = &mut statement.deed else {
        panic!("it is an inference")
    };
    change(inputs, outputs);
}

#[test]
fn each_tensor_is_held_to_its_own_line() {
    let scene = Scene::new();
    let receipt = scene.sign(&scene.statement);
    let flat = |data: &'static [u8], shape: &[usize], dtype| {
        let tensor = Tensor::new(dtype, shape.to_vec(), data.into()).unwrap();
        vec![NamedTensor::new("y", tensor)]
    };
    let contents = flat(&[5], &[1], DType::U8);
    let shape = flat(&[4], &[1, 1], DType::U8);
    let dtype = flat(&[4], &[1], DType::I8);
    let name = vec![tensor("x", &[4])];
    for outputs in [contents, shape, dtype, name, Vec::new()] {
        let expected = ExpectedReceipt {
            outputs: &outputs,
            ..scene.expected()
        };
        let result = verify_receipt(&receipt, &scene.report, &expected);
        let rejection = assert_code(result, Code::ReceiptOutput);
        assert_eq!(outcome(&rejection, checks::RECEIPT_INPUT), Outcome::Pass);
    }
    // Only who claims to give all of them is told of one more.
    let expected = ExpectedReceipt {
        complete: false,
        outputs: &[],
        ..scene.expected()
    };
    verify_receipt(&receipt, &scene.report, &expected).unwrap();
}

#[test]
fn only_the_key_in_the_claims_signs() {
    let scene = Scene::new();
    let stranger = Ed25519KeyPair::generate().unwrap();
    let forged = signed(&scene.statement, &stranger);
    let rejection = assert_code(scene.verify(&forged), Code::ReceiptKey);
    let detail = rejection
        .checks()
        .iter()
        .find(|c| c.name() == checks::RECEIPT_SERVER);
    assert!(detail.unwrap().detail().starts_with("as it says, unproven"));

    // Under the name of the right key.
    let sign = |bytes: &[u8]| stranger.sign(bytes).as_ref().to_vec();
    let key = scene.key.public_key();
    let forged = scene.statement.sign(key.as_ref(), sign).unwrap();
    assert_code(scene.verify(&forged), Code::ReceiptSignature);

    let without = Claims {
        receipt_key: None,
        ..claims(&scene.key)
    };
    let receipt = scene.sign(&scene.statement);
    let result = verify_receipt(&receipt, &report_of(&without), &scene.expected());
    assert_code(result, Code::ReceiptKey);
}

#[test]
fn the_time_of_the_evidence_bounds_that_of_the_receipt() {
    let scene = Scene::new();
    let (from, to) = (NOW - 10, NOW + 3600);
    let expected = ExpectedReceipt {
        window: None,
        ..scene.expected()
    };
    for (made, holds) in [
        (from - 300, true),
        (from - 301, false),
        (to + 300, true),
        (to + 301, false),
        (0, false),
        (u64::MAX, false),
    ] {
        let statement = Statement {
            issued_at: made,
            ..scene.statement.clone()
        };
        let receipt = scene.sign(&statement);
        let result = verify_receipt(&receipt, &scene.report, &expected);
        match holds {
            true => drop(result.unwrap()),
            false => drop(assert_code(result, Code::ReceiptTime)),
        }
    }
}

#[test]
fn kept_evidence_is_judged_as_of_the_receipts_own_time() {
    let scene = Scene::new();
    let server = Server::new(Tee::Tdx);
    let evidence = server.evidence(&claims(&scene.key));
    let collateral = server.collateral().into();
    let verify = |made: u64, at: Option<u64>| {
        let statement = Statement {
            issued_at: made,
            ..scene.statement.clone()
        };
        let expected = ExpectedReceipt::default();
        verify_kept_receipt(
            &scene.sign(&statement),
            &evidence,
            &collateral,
            &support::connection(),
            &support::simulation(),
            at,
            &expected,
        )
    };
    let (verified, report) = verify(NOW, None).unwrap();
    assert_eq!(report.verified_at(), NOW);
    assert_eq!(verified.statement().issued_at, NOW);
    // Clocks differ: the evidence is judged within its time.
    let (_, report) = verify(NOW + 3700, None).unwrap();
    assert_eq!(report.verified_at(), NOW + 3599);
    // A time of choice in the receipt is told as what it is.
    for made in [0, NOW + 4000, u64::MAX] {
        assert_code(verify(made, None), Code::ReceiptTime);
    }
    assert_code(verify(NOW, Some(NOW + 3600)), Code::ClaimsExpired);
    // The claims with the key that the quote does not sign.
    let unsigned = Evidence {
        claims: claims(&scene.key).encode(),
        ..server.evidence(&support::claims())
    };
    let result = verify_kept_receipt(
        &scene.sign(&scene.statement),
        &unsigned,
        &collateral,
        &support::connection(),
        &support::simulation(),
        None,
        &ExpectedReceipt::default(),
    );
    assert_code(result, Code::ReportDataMismatch);
}

#[test]
fn a_bit_flipped_anywhere_is_refused() {
    let scene = Scene::new();
    let receipt = scene.sign(&scene.statement);
    let mut codes = std::collections::BTreeSet::new();
    for i in 0..receipt.len() * 8 {
        let mut flipped = receipt.clone();
        flipped[i / 8] ^= 1 << (i % 8);
        let rejection = scene.verify(&flipped).expect_err("a flipped bit");
        codes.insert(rejection.code().as_str());
    }
    let want = ["receipt-key", "receipt-malformed", "receipt-signature"];
    assert_eq!(codes.into_iter().collect::<Vec<_>>(), want);
}

#[test]
fn what_is_no_receipt_is_malformed() {
    let scene = Scene::new();
    for bytes in [&b""[..], b"{}", &[0xd2], &[0xff; 100], &vec![0; 1 << 20]] {
        assert_code(scene.verify(bytes), Code::ReceiptMalformed);
    }
}

// What the fuzz target begins with.
#[test]
fn the_kept_receipt_of_the_corpus_is_one() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fuzz/corpus/receipt/infer"
    );
    let scene = Scene::new();
    let kept = SignedStatement::decode(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(kept.statement, scene.statement);
}
