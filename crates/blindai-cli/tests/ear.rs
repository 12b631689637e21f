//! `--ear`: the verdict as a token that a relying party can check and read.

mod support;

use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use serde_json::{Value, json};

use support::{Kept, SGX, SNP, TDX};

const FORGED: Kept = Kept {
    file: "snp/trustee_milan_v2.report",
    arguments: &[
        ("--vcek", "snp/test-vcek-invalid-new.der"),
        ("--at", "1780000000"),
    ],
};

/// A key of the relying party's verifier, as a file.
struct Key {
    folder: tempfile::TempDir,
    public: Vec<u8>,
}

impl Key {
    fn new(algorithm: &'static EcdsaSigningAlgorithm) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let der = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(algorithm, der.as_ref()).unwrap();
        let pem = pem::encode(&pem::Pem::new("PRIVATE KEY", der.as_ref()));
        std::fs::write(folder.path().join("key.pem"), pem).unwrap();
        let public = key.public_key().as_ref().to_vec();
        Self { folder, public }
    }

    fn path(&self, name: &str) -> String {
        let path: &Path = self.folder.path();
        path.join(name).to_str().unwrap().to_owned()
    }

    /// The exit code, the token, and what it says.
    fn token(&self, kept: Kept, policy: &str) -> (i32, String, Value) {
        let (ear, key) = (self.path("token.jwt"), self.path("key.pem"));
        let arguments = ["--ear", &ear, "--ear-key", &key, "--json"];
        let (code, _) = kept.run("verify", &arguments, policy);
        let token = std::fs::read_to_string(&ear).unwrap();
        let claims = token.split('.').nth(1).unwrap();
        let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).unwrap();
        (code, token, serde_json::from_slice(&claims).unwrap())
    }
}

#[test]
fn tokens_are_signed_with_the_key_that_was_given() {
    for (signing, verifying, name) in [
        (
            &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            &signature::ECDSA_P256_SHA256_FIXED,
            "ES256",
        ),
        (
            &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
            &signature::ECDSA_P384_SHA384_FIXED,
            "ES384",
        ),
    ] {
        let key = Key::new(signing);
        let (_, token, _) = key.token(TDX, &TDX.init().0);
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap();
        let public = signature::UnparsedPublicKey::new(verifying, &key.public);
        public.verify(signed.as_bytes(), &signature).unwrap();
        let header = signed.split('.').next().unwrap();
        let header = BASE64_URL_SAFE_NO_PAD.decode(header).unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        assert_eq!(header, json!({ "alg": name, "typ": "JWT" }));
    }
}

#[test]
fn the_vector_claims_what_was_checked_and_nothing_else() {
    let rows = [
        (
            TDX,
            TDX.init().0,
            "affirming",
            json!({"executables": 3, "hardware": 2, "runtime-opaque": 2}),
        ),
        (
            // Nobody looked whether the chip was revoked: nothing is said of the hardware.
            SNP,
            SNP.init().0,
            "none",
            json!({"executables": 3, "runtime-opaque": 2}),
        ),
        (
            SGX,
            SGX.init().0,
            "warning",
            json!({"executables": 3, "hardware": 32, "runtime-opaque": 2}),
        ),
        (
            FORGED,
            SNP.init().0,
            "contraindicated",
            json!({"hardware": 99}),
        ),
    ];
    let key = Key::new(&signature::ECDSA_P256_SHA256_FIXED_SIGNING);
    for (kept, policy, status, vector) in rows {
        let policy = policy.replace("\n# require_crl = false", "\nrequire_crl = false");
        let (code, _, token) = key.token(kept, &policy);
        assert_eq!(code == 0, status != "contraindicated", "{token}");
        let (_, appraisal) = token["submods"].as_object().unwrap().iter().next().unwrap();
        assert_eq!(token["ear_status"], status, "{token}");
        assert_eq!(appraisal["ear_status"], status, "{token}");
        assert_eq!(appraisal["ear_trustworthiness_vector"], vector, "{token}");
        assert_eq!(appraisal["ear_verifier_claims"]["blindai_subject"], "quote");
    }
}

#[test]
fn another_program_is_contraindicated_on_hardware_that_is_genuine() {
    let key = Key::new(&signature::ECDSA_P256_SHA256_FIXED_SIGNING);
    let (policy, _) = TDX.init();
    let mrtd = policy
        .lines()
        .find(|line| line.starts_with("mrtd"))
        .unwrap();
    let other = policy.replace(mrtd, &format!("mrtd = ['{}']", "00".repeat(48)));
    let (code, _, token) = key.token(TDX, &other);
    let appraisal = &token["submods"]["tdx"];
    assert_eq!((code, &token["ear_status"]), (1, &"contraindicated".into()));
    let claims = &appraisal["ear_verifier_claims"];
    assert_eq!(claims["blindai_code"], "measurement-mismatch");
    let vector = &appraisal["ear_trustworthiness_vector"];
    assert_eq!(
        *vector,
        json!({"executables": 33, "hardware": 2, "runtime-opaque": 2})
    );
}

#[test]
fn what_is_no_key_is_refused_without_showing_it() {
    let key = Key::new(&signature::ECDSA_P256_SHA256_FIXED_SIGNING);
    for secret in [
        "secret words",
        "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
    ] {
        std::fs::write(key.path("key.pem"), secret).unwrap();
        let (ear, file) = (key.path("token.jwt"), key.path("key.pem"));
        let (code, _) = TDX.run(
            "verify",
            &["--ear", &ear, "--ear-key", &file],
            &TDX.init().0,
        );
        assert_eq!(code, 2);
        assert!(!Path::new(&ear).exists());
    }
}
