//! Who calls, for servers that want to know.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use blindai_core::Token;
use http::HeaderValue;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use crate::ClientError;

/// A client certificate with its private key.
///
/// It is shown in the TLS handshake, to whoever presents evidence that is bound to its TLS key and
/// before that evidence was appraised: this tells who calls, and gives nobody the right to speak for it.
#[derive(Clone)]
pub struct ClientCertificate(Arc<SingleCertAndKey>);

impl ClientCertificate {
    /// Reads PEM files; the certificate's may hold a chain.
    ///
    /// # Errors
    /// Of kind `Local` when a file cannot be read, holds no such thing, or the key is not the
    /// certificate's.
    pub fn from_pem_files(certificate: &Path, key: &Path) -> Result<Self, ClientError> {
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| ClientError::certificate_unusable(certificate, &unquoted(&error)))?;
        let private = PrivateKeyDer::from_pem_file(key);
        let private =
            private.map_err(|error| ClientError::certificate_unusable(key, &unquoted(&error)))?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let certified = CertifiedKey::from_der(chain, private, &provider);
        let certified =
            certified.map_err(|error| ClientError::certificate_unusable(certificate, &error))?;
        Ok(Self(Arc::new(certified.into())))
    }

    pub(crate) fn resolver(&self) -> Arc<dyn ResolvesClientCert> {
        self.0.clone()
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCertificate(..)")
    }
}

/// What is wrong with a PEM file. The library's own words quote lines of it, and a key whose line breaks
/// were lost is one line.
fn unquoted(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "there is no such thing in it".to_owned(),
        _ => "it is not PEM: no lines of base64 between BEGIN and END".to_owned(),
    }
}

/// What a client says of itself.
pub(crate) struct Credentials {
    /// For verified servers only.
    pub authorization: Option<HeaderValue>,
    /// For the handshake.
    pub certificate: Option<ClientCertificate>,
}

/// The value of the header `Authorization` with this token; it is marked as secret.
pub fn authorization(token: &Token) -> HeaderValue {
    let text = format!("Bearer {}", token.expose());
    let mut value = HeaderValue::from_str(&text).expect("a token is letters and digits");
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_without_line_breaks_is_not_repeated() {
        let secret = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg";
        for text in [
            format!("-----BEGIN PRIVATE KEY-----\\n{secret}\\n-----END PRIVATE KEY-----\n"),
            format!("-----BEGIN PRIVATE KEY-----\n{secret}\n"),
            format!("-----BEGIN PRIVATE KEY-----\n{secret}\u{fffd}!\n-----END PRIVATE KEY-----\n"),
        ] {
            let error = PrivateKeyDer::from_pem_slice(text.as_bytes()).unwrap_err();
            let said = unquoted(&error);
            assert!(said.starts_with("it is not PEM"), "{said}");
        }
        let none = PrivateKeyDer::from_pem_slice(b"").unwrap_err();
        assert!(unquoted(&none).contains("no such thing"));
    }
}
