//! Which code checks signatures.

/// AWS-LC, which the TLS stack uses as well.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) type Backend = aws_lc::AwsLc;
/// In pure Rust, where there is no C.
#[cfg(target_arch = "wasm32")]
pub(crate) type Backend = dcap_qvl::configs::RustCryptoConfig;

#[cfg(not(target_arch = "wasm32"))]
mod aws_lc {
    use aws_lc_rs::digest::{SHA256, SHA384, digest};
    use dcap_qvl::config::{Config, CryptoProvider};
    use rustls_pki_types::SignatureVerificationAlgorithm;

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
