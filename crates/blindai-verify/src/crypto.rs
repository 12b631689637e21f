//! Which code checks signatures.

/// AWS-LC, which the TLS stack uses as well.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) type Backend = aws_lc::AwsLc;
/// In pure Rust, where there is no C.
#[cfg(target_arch = "wasm32")]
pub(crate) type Backend = dcap_qvl::configs::RustCryptoConfig;

/// Whether the key, a point on the curve P-384, signed the message. The signature is two numbers,
/// most significant byte first.
pub(crate) fn ecdsa_p384_sha384(point: &[u8], message: &[u8], signature: &[u8; 96]) -> bool {
    primitives::ecdsa_p384_sha384(point, message, signature)
}

/// Whether the key, in the form of PKCS #1, signed the message: RSA-PSS with MGF1 and 48 bytes of
/// salt.
pub(crate) fn rsa_pss_sha384(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    signature.len() == RSA_4096_BYTES && primitives::rsa_pss_sha384(key, message, signature)
}

/// Whether the key, 32 bytes, signed the message: Ed25519.
pub(crate) fn ed25519(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    primitives::ed25519(key, message, signature)
}

/// The only length of key that AMD signs with.
const RSA_4096_BYTES: usize = 512;

#[cfg(not(target_arch = "wasm32"))]
use aws_lc as primitives;
#[cfg(target_arch = "wasm32")]
use pure_rust as primitives;

#[cfg(any(target_arch = "wasm32", test))]
pub(crate) mod pure_rust {
    use ed25519_dalek::VerifyingKey as Ed25519Key;
    use p384::ecdsa::signature::Verifier as _;
    use p384::ecdsa::{Signature, VerifyingKey};
    use rsa::RsaPublicKey;
    use rsa::pkcs1::DecodeRsaPublicKey as _;
    use rsa::pss::Pss;
    use sha2::{Digest as _, Sha384};

    pub(crate) fn ecdsa_p384_sha384(point: &[u8], message: &[u8], signature: &[u8; 96]) -> bool {
        let key = VerifyingKey::from_sec1_bytes(point);
        let signature = Signature::from_slice(signature);
        matches!((key, signature), (Ok(key), Ok(signature)) if key.verify(message, &signature).is_ok())
    }

    pub(crate) fn ed25519(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
        // The strict rules: no key of small order, which would sign everything.
        Ed25519Key::from_bytes(key)
            .is_ok_and(|key| key.verify_strict(message, &signature.into()).is_ok())
    }

    pub(crate) fn rsa_pss_sha384(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let scheme = Pss::<Sha384>::new_with_salt(48);
        let hash = Sha384::digest(message);
        RsaPublicKey::from_pkcs1_der(key)
            .is_ok_and(|key| key.verify(scheme, &hash, signature).is_ok())
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod aws_lc {
    use aws_lc_rs::digest::{SHA256, SHA384, digest};
    use aws_lc_rs::signature::{
        ECDSA_P384_SHA384_FIXED, ED25519, RSA_PSS_2048_8192_SHA384, UnparsedPublicKey,
    };
    use dcap_qvl::config::{Config, CryptoProvider};
    use rustls_pki_types::SignatureVerificationAlgorithm;

    pub(crate) fn ecdsa_p384_sha384(point: &[u8], message: &[u8], signature: &[u8; 96]) -> bool {
        let key = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point);
        key.verify(message, signature).is_ok()
    }

    pub(crate) fn ed25519(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, key);
        key.verify(message, signature).is_ok()
    }

    pub(crate) fn rsa_pss_sha384(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, key);
        key.verify(message, signature).is_ok()
    }

    /// The library's own readers of certificates and signatures, with the primitives of AWS-LC.
    pub(crate) struct AwsLc;

    impl Config for AwsLc {
        type X509 = dcap_qvl::x509::X509CertBackend;
        type SigEncoder = dcap_qvl::signature::DerSigEncoder;
        type Crypto = Self;
    }

    impl CryptoProvider for AwsLc {
        fn sig_algo() -> &'static dyn SignatureVerificationAlgorithm {
            webpki::aws_lc_rs::ECDSA_P256_SHA256
        }

        fn sha256(data: &[u8]) -> [u8; 32] {
            let mut out = [0; 32];
            out.copy_from_slice(digest(&SHA256, data).as_ref());
            out
        }

        fn sha384(data: &[u8]) -> [u8; 48] {
            let mut out = [0; 48];
            out.copy_from_slice(digest(&SHA384, data).as_ref());
            out
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

    use super::{ed25519, pure_rust};

    #[test]
    fn both_backends_say_the_same_of_a_receipts_signature() {
        let key = Ed25519KeyPair::generate().unwrap();
        let signed = b"what a receipt says";
        let public: [u8; 32] = key.public_key().as_ref().try_into().unwrap();
        let signature: [u8; 64] = key.sign(signed).as_ref().try_into().unwrap();
        for flipped in 0..=signature.len() * 8 {
            let mut signature = signature;
            let holds = flipped == signature.len() * 8;
            if !holds {
                signature[flipped / 8] ^= 1 << (flipped % 8);
            }
            assert_eq!(ed25519(&public, signed, &signature), holds, "{flipped}");
            assert_eq!(pure_rust::ed25519(&public, signed, &signature), holds);
        }
        // A key of small order would let one signature be of every message.
        let (mut small, mut signature) = ([0; 32], [0; 64]);
        (small[0], signature[0]) = (1, 1);
        assert!(!pure_rust::ed25519(&small, signed, &signature));
    }
}
