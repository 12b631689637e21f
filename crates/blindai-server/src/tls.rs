//! TLS of both ports: 1.3 only, the hybrid post-quantum exchange preferred, nothing resumed.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use blindai_core::{Code, Error, Result};
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

/// The TLS configuration of a port whose certificates come from `resolver`. Client certificates are
/// asked for where there is something to check them.
///
/// # Errors
/// Never with the protocol versions of this program; rustls asks.
pub fn server_config(
    resolver: Arc<dyn ResolvesServerCert>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Error::new(Code::Internal, error.to_string()))?
        .with_client_cert_verifier(clients.unwrap_or_else(|| Arc::new(NoClientAuth)))
        .with_cert_resolver(resolver);
    // A resumed session would skip the client's verification of the evidence.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The host-side certificate of the public port, from `host_server.pem` and `host_server.key`;
/// both are made when neither is there.
///
/// # Errors
/// Names the file that is missing, unreadable or malformed.
pub fn host_certificate(folder: &Path) -> Result<Arc<dyn ResolvesServerCert>> {
    let pem = folder.join("host_server.pem");
    let key = folder.join("host_server.key");
    if !pem.exists() && !key.exists() {
        generate(folder, &pem, &key)?;
    }
    let chain = CertificateDer::pem_file_iter(&pem)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(&pem, unquoted(&error)))?;
    let private =
        PrivateKeyDer::from_pem_file(&key).map_err(|error| unusable(&key, unquoted(&error)))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let certified =
        CertifiedKey::from_der(chain, private, &provider).map_err(|error| unusable(&pem, error))?;
    Ok(Arc::new(SingleCertAndKey::from(certified)))
}

// The library's own words quote lines of the file, and a key whose line breaks were lost is one line.
fn unquoted(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "there is no such thing in it".to_owned(),
        _ => "it is not PEM: no lines of base64 between BEGIN and END".to_owned(),
    }
}

fn generate(folder: &Path, pem: &Path, key: &Path) -> Result<()> {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| unusable(key, e))?;
    let names = vec!["localhost".to_owned(), "blindai-srv".to_owned()];
    let mut params = CertificateParams::new(names).map_err(|e| unusable(pem, e))?;
    params
        .distinguished_name
        .push(DnType::CommonName, "blindai-srv");
    let certificate = params.self_signed(&pair).map_err(|e| unusable(pem, e))?;
    fs::create_dir_all(folder).map_err(|e| unusable(folder, e))?;
    write_private(key, &pair.serialize_pem()).map_err(|e| unusable(key, e))?;
    fs::write(pem, certificate.pem()).map_err(|e| unusable(pem, e))
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

fn unusable(path: &Path, error: impl std::fmt::Display) -> Error {
    let fact = format!("{}: {error}", path.display());
    Error::new(Code::InvalidRequest, fact)
        .with_remedy("give a readable PEM pair, or remove both files to have them made")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let tls = folder.path().join("tls");
        host_certificate(&tls).unwrap();
        let first = fs::read(tls.join("host_server.pem")).unwrap();
        host_certificate(&tls).unwrap();
        assert_eq!(fs::read(tls.join("host_server.pem")).unwrap(), first);
    }

    #[test]
    fn an_empty_folder_is_generated_into() {
        let folder = tempfile::tempdir().unwrap();
        host_certificate(folder.path()).unwrap();
    }

    #[test]
    fn half_a_pair_is_refused_and_named() {
        let folder = tempfile::tempdir().unwrap();
        host_certificate(folder.path()).unwrap();
        fs::remove_file(folder.path().join("host_server.key")).unwrap();
        let error = host_certificate(folder.path()).err().unwrap();
        assert!(error.fact().contains("host_server.key"), "{error}");
    }
}
