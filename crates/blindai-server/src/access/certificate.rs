//! Client certificates: pinned by the SHA-256 of their key, issued by whoever wants to.
//!
//! A pinned key needs no authority: whose names, dates and lists of revocations would have to be
//! checked, and who could let in others. Nothing of a certificate but its key is looked at.

use std::fmt;

use blindai_core::Digest;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};

/// The key of a client certificate, of which the peer proved in the handshake that it holds it.
#[derive(Clone, Copy, Debug)]
pub struct PeerKey(Digest);

impl PeerKey {
    /// The key of the first of the certificates that rustls has verified.
    pub fn of(certificates: Option<&[CertificateDer<'_>]>) -> Option<Self> {
        spki_sha256(certificates?.first()?).ok().map(Self)
    }

    /// SHA-256 of its SubjectPublicKeyInfo.
    pub fn sha256(self) -> Digest {
        self.0
    }

    #[cfg(test)]
    pub fn from_sha256(sha256: Digest) -> Self {
        Self(sha256)
    }
}

/// Lets in who shows no certificate, and who shows one with a pinned key and holds that key.
///
/// Whoever shows another is refused in the handshake: nobody else's certificate is ever looked at
/// again.
pub struct PinnedClients {
    keys: Vec<Digest>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedClients {
    pub(super) fn new(keys: Vec<Digest>) -> Self {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        Self {
            keys,
            algorithms: provider.signature_verification_algorithms,
        }
    }
}

impl fmt::Debug for PinnedClients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedClients({})", self.keys.len())
    }
}

impl ClientCertVerifier for PinnedClients {
    fn client_auth_mandatory(&self) -> bool {
        // Evidence and health are for everybody, and others may have tokens.
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let key = spki_sha256(certificate)?;
        match self.keys.contains(&key) {
            true => Ok(ClientCertVerified::assertion()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Unreachable: the configuration offers TLS 1.3 alone.
        Err(rustls::PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn spki_sha256(certificate: &CertificateDer<'_>) -> Result<Digest, rustls::Error> {
    let read = webpki::EndEntityCert::try_from(certificate);
    let read = read.map_err(|_| CertificateError::BadEncoding)?;
    Ok(Digest::of(&read.subject_public_key_info()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::sign::{CertifiedKey, SingleCertAndKey};

    use super::*;

    fn certificate(pair: &KeyPair) -> CertificateDer<'static> {
        let params = CertificateParams::new(vec!["anything".to_owned()]).unwrap();
        params.self_signed(pair).unwrap().der().clone()
    }

    #[test]
    fn only_pinned_keys_come_in_whatever_certificate_they_are_in() {
        let (pinned, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let key = Digest::of(&pinned.subject_public_key_info());
        let verifier = PinnedClients::new(vec![key]);
        let check = |certificate: &CertificateDer<'_>| {
            verifier.verify_client_cert(certificate, &[], UnixTime::since_unix_epoch(NEVER))
        };
        for _ in 0..2 {
            assert!(check(&certificate(&pinned)).is_ok());
        }
        assert!(check(&certificate(&other)).is_err());
        assert!(check(&CertificateDer::from(&b"no certificate"[..])).is_err());
        let shown = [certificate(&pinned)];
        assert_eq!(PeerKey::of(Some(&shown)).unwrap().sha256(), key);
        assert!(PeerKey::of(Some(&[])).is_none() && PeerKey::of(None).is_none());
        assert!(!verifier.client_auth_mandatory());
    }

    /// The handshake of a client that shows this certificate and signs with this key.
    fn handshake(shown: &KeyPair, held: &KeyPair, pinned: &KeyPair) -> Result<(), rustls::Error> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let signer = |pair: &KeyPair| {
            let key = PrivatePkcs8KeyDer::from(pair.serialize_der()).into();
            provider.key_provider.load_private_key(key).unwrap()
        };
        let own = KeyPair::generate().unwrap();
        let server = CertifiedKey::new(vec![certificate(&own)], signer(&own));
        let pinned = Digest::of(&pinned.subject_public_key_info());
        let clients = Arc::new(PinnedClients::new(vec![pinned]));
        let resolver = Arc::new(SingleCertAndKey::from(server));
        let config = crate::tls::server_config(resolver, Some(clients)).unwrap();
        let mut server = rustls::ServerConnection::new(config).unwrap();
        let client = CertifiedKey::new(vec![certificate(shown)], signer(held));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate(&own)).unwrap();
        let mut config = rustls::ClientConfig::builder_with_provider(provider.clone().into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(client));
        let name = "anything".try_into().unwrap();
        let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
        for _ in 0..3 {
            let mut sent = Vec::new();
            client.write_tls(&mut sent).unwrap();
            server.read_tls(&mut sent.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut sent = Vec::new();
            server.write_tls(&mut sent).unwrap();
            client.read_tls(&mut sent.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        assert!(!server.is_handshaking());
        let key = PeerKey::of(server.peer_certificates()).unwrap();
        assert_eq!(key.sha256(), pinned);
        Ok(())
    }

    #[test]
    fn who_shows_a_certificate_must_hold_its_key() {
        let (pinned, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        assert_eq!(handshake(&pinned, &pinned, &pinned), Ok(()));
        let stolen = handshake(&pinned, &other, &pinned).unwrap_err();
        assert_eq!(stolen, CertificateError::BadSignature.into());
        let unknown = handshake(&other, &other, &pinned).unwrap_err();
        let refused = CertificateError::ApplicationVerificationFailure;
        assert_eq!(unknown, refused.into());
    }

    const NEVER: std::time::Duration = std::time::Duration::ZERO;
}
