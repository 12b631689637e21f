//! The server's keys and the evidence that binds them.
//!
//! The keys are drawn at start and never leave this process. The quote signs the digest of the
//! claims, the claims hold the keys: what a client talks to is what the hardware vouches for.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use aws_lc_rs::agreement::{PrivateKey, X25519};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use blindai_core::receipt::{Deed, ReceiptRequest, Statement};
use blindai_core::{
    Claims, Code, CollateralState, CollateralStatus, Digest, Error, Evidence, EvidenceDocument,
    ModelName, ModelVersion, Nonce, ReportData, Result, Tee,
};
use blindai_tee::Attester;
use rcgen::{
    CertificateParams, CustomExtension, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::collateral::{Stapling, unix_seconds};

/// Clocks of client and server may differ by this much.
const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// Quotes that one port may have in the making; hardware makes them one by one.
const CONCURRENT_QUOTES: usize = 4;
/// How long a caller may wait for its turn.
const QUOTE_WAIT: Duration = Duration::from_secs(5);
/// Callers that may wait for it. Nobody needs a credential for that, and a connection that waits for the
/// server is not given up for another: without a bound, strangers would keep newcomers from a port.
const WAITING: usize = 32;

/// The certificate extension in which clients of BlindAI 0.3 look for the key that signs answers.
const RECEIPT_KEY_OID: &[u64] = &[1, 3, 6, 1, 3, 2];

/// A port's share of the platform that quotes.
#[derive(Clone)]
pub struct Share {
    turns: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(CONCURRENT_QUOTES)),
            waiting: Arc::new(Semaphore::new(WAITING)),
        }
    }
}

impl Share {
    async fn turn(&self) -> Result<OwnedSemaphorePermit> {
        let full = "too many callers ask for fresh evidence";
        let full = || Error::new(Code::TooManyRequests, full);
        let _waiting = self.waiting.try_acquire().map_err(|_| full())?;
        let turn = self.turns.clone().acquire_owned();
        let turn = tokio::time::timeout(QUOTE_WAIT, turn).await;
        turn.map_err(|_| full())?.map_err(internal)
    }
}

/// The keyset: drawn at start, bound by every quote.
struct Keyset {
    tls: KeyPair,
    receipt: Ed25519KeyPair,
    hpke: PrivateKey,
}

impl Keyset {
    fn draw() -> Result<Self> {
        Ok(Self {
            tls: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|_| no_key())?,
            receipt: Ed25519KeyPair::generate().map_err(|_| no_key())?,
            hpke: PrivateKey::generate(&X25519).map_err(|_| no_key())?,
        })
    }

    fn tls_spki_sha256(&self) -> [u8; 32] {
        *Digest::of(&self.tls.subject_public_key_info()).as_bytes()
    }

    fn receipt_key(&self) -> Option<[u8; 32]> {
        self.receipt.public_key().as_ref().try_into().ok()
    }

    fn hpke_key(&self) -> Option<[u8; 32]> {
        let public = self.hpke.compute_public_key().ok()?;
        public.as_ref().try_into().ok()
    }
}

/// The keys, what attests them, and the certificate in use.
pub struct Identity {
    keys: Keyset,
    attester: Box<dyn Attester>,
    config_digest: Digest,
    validity: Duration,
    current: ArcSwap<Current>,
    stapling: Stapling,
}

/// The evidence in use until it is renewed.
struct Current {
    certificate: Arc<CertifiedKey>,
    evidence: Evidence,
    /// As its claims say, in seconds since 1970.
    issued_at: u64,
    expires_at: u64,
}

/// How the evidence in use stands. Times are in seconds.
pub struct EvidenceState {
    pub tee: Tee,
    pub simulated: bool,
    pub age: u64,
    pub remaining: u64,
    pub collateral: CollateralStatus,
    pub collateral_remaining: Option<u64>,
}

impl Identity {
    /// Draws the keys and has them attested for the first time.
    ///
    /// # Errors
    /// When the platform gives no quote.
    pub fn new(
        attester: Box<dyn Attester>,
        config_digest: Digest,
        validity: Duration,
        stapling: Stapling,
    ) -> Result<Self> {
        let keys = Keyset::draw()?;
        let current = attest(&keys, attester.as_ref(), config_digest, validity)?;
        Ok(Self {
            keys,
            attester,
            config_digest,
            validity,
            current: ArcSwap::from_pointee(current),
            stapling,
        })
    }

    /// The evidence document: with a nonce a fresh one, without the one in use.
    ///
    /// # Errors
    /// When the platform gives no quote.
    pub async fn document(
        self: &Arc<Self>,
        nonce: Option<Nonce>,
        share: &Share,
    ) -> Result<Vec<u8>> {
        let Some(nonce) = nonce else {
            let evidence = self.current.load().evidence.clone();
            return Ok(self.with_collateral(evidence));
        };
        let permit = share.turn().await?;
        let identity = self.clone();
        // A quote takes the hardware milliseconds, and the thread with it. The permit goes along:
        // a caller who hangs up does not make room for the next one before the quote is made.
        let quoting = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let claims = make_claims(
                &identity.keys,
                identity.config_digest,
                identity.validity,
                Some(nonce),
            );
            let evidence = quote(identity.attester.as_ref(), &claims)?;
            Ok(identity.with_collateral(evidence))
        });
        quoting.await.map_err(internal)?
    }

    /// The certificate in use, DER.
    pub fn certificate(&self) -> Vec<u8> {
        let certificate = self.current.load().certificate.clone();
        certificate
            .cert
            .first()
            .map_or_else(Vec::new, |der| der.to_vec())
    }

    /// Signs with the receipt key, which the evidence names.
    ///
    /// Clients of 0.3 verify the signature of nothing but the message, so whatever else this key signs
    /// must not be readable as one. A receipt is not: what is signed of it begins with a CBOR list of
    /// four, where a message has the key of a field.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature = self.keys.receipt.sign(message);
        let bytes = signature.as_ref().try_into();
        bytes.expect("a signature of Ed25519 has 64 bytes")
    }

    /// Signs a receipt: what was done with which model, beside what the claims say of this server.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when it would be too long.
    pub fn receipt(
        &self,
        wish: ReceiptRequest,
        deed: Deed,
        (model_name, model_version, model_digest): (ModelName, ModelVersion, Digest),
    ) -> Result<Vec<u8>> {
        let statement = Statement {
            deed,
            model_name,
            model_version,
            model_digest,
            nonce: wish.nonce,
            issued_at: unix_now(),
            config_digest: self.config_digest,
            replica: self.keys.tls_spki_sha256(),
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let key = &self.keys.receipt;
        let sign = |bytes: &[u8]| key.sign(bytes).as_ref().to_vec();
        statement.sign(key.public_key().as_ref(), sign)
    }

    /// How the collateral beside the evidence stands.
    pub fn collateral_state(&self) -> CollateralState {
        self.stapling.staple(unix_now()).1.state
    }

    /// How the evidence in use and its collateral stand.
    pub fn state(&self) -> EvidenceState {
        let (now, current) = (unix_now(), self.current.load());
        let (_, collateral) = self.stapling.staple(now);
        let ends = collateral.expires_at;
        EvidenceState {
            tee: self.attester.tee(),
            simulated: self.attester.is_simulated(),
            age: now.saturating_sub(current.issued_at),
            remaining: current.expires_at.saturating_sub(now),
            collateral_remaining: ends.map(|end| end.saturating_sub(now)),
            collateral,
        }
    }

    /// Renews the evidence at half of its validity, and refreshes the collateral, for as long as the
    /// server runs. Neither waits for the other.
    pub async fn keep_fresh(self: Arc<Self>) {
        tokio::join!(self.keep_evidence(), self.keep_collateral());
    }

    /// Looks for newer collateral, once.
    pub async fn refresh_collateral(self: &Arc<Self>) {
        let quote = self.current.load().evidence.quote.clone();
        let identity = self.clone();
        // It may come from a device.
        let supplied = tokio::task::spawn_blocking(move || identity.attester.collateral()).await;
        let supplied = supplied.map_err(internal).and_then(|s| s.map_err(internal));
        let supplied = supplied.unwrap_or_else(|error| {
            tracing::error!(fact = error.fact(), "the platform gives no collateral");
            None
        });
        self.stapling.refresh(&quote, supplied, unix_now()).await;
    }

    async fn keep_evidence(self: &Arc<Self>) {
        loop {
            tokio::time::sleep(self.validity / 2).await;
            let identity = self.clone();
            match tokio::task::spawn_blocking(move || identity.renew()).await {
                Ok(Ok(())) => tracing::info!("evidence renewed"),
                // The old evidence stays until clients refuse it: they fail closed, we keep trying.
                Ok(Err(error)) => tracing::error!(code = error.code().as_str(), "no new evidence"),
                Err(_) => tracing::error!("renewing the evidence panicked"),
            }
        }
    }

    async fn keep_collateral(self: &Arc<Self>) {
        loop {
            tokio::time::sleep(self.stapling.pause(unix_now())).await;
            self.refresh_collateral().await;
        }
    }

    fn with_collateral(&self, evidence: Evidence) -> Vec<u8> {
        let (collateral, status) = self.stapling.staple(unix_now());
        let mut document = EvidenceDocument::new(self.attester.tee(), evidence, collateral);
        document.collateral_status = Some(status);
        document.to_json()
    }

    fn renew(&self) -> Result<()> {
        let current = attest(
            &self.keys,
            self.attester.as_ref(),
            self.config_digest,
            self.validity,
        )?;
        self.current.store(Arc::new(current));
        Ok(())
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().certificate.clone())
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(..)")
    }
}

fn attest(
    keys: &Keyset,
    attester: &dyn Attester,
    config_digest: Digest,
    validity: Duration,
) -> Result<Current> {
    let claims = make_claims(keys, config_digest, validity, None);
    let evidence = quote(attester, &claims)?;
    Ok(Current {
        certificate: Arc::new(certificate(keys, &evidence, validity)?),
        evidence,
        issued_at: claims.issued_at.unwrap_or_default(),
        expires_at: claims.expires_at.unwrap_or_default(),
    })
}

fn make_claims(
    keys: &Keyset,
    config_digest: Digest,
    validity: Duration,
    nonce: Option<Nonce>,
) -> Claims {
    let now = SystemTime::now();
    Claims {
        tls_spki_sha256: keys.tls_spki_sha256(),
        receipt_key: keys.receipt_key(),
        hpke_key: keys.hpke_key(),
        config_digest: Some(config_digest),
        nonce,
        issued_at: Some(unix_seconds(now)),
        expires_at: Some(unix_seconds(now + validity)),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
    }
}

fn quote(attester: &dyn Attester, claims: &Claims) -> Result<Evidence> {
    let claims = claims.encode();
    let report_data = ReportData::of_claims(&claims);
    let quote = attester.quote(&report_data).map_err(internal)?;
    Ok(Evidence { quote, claims })
}

fn certificate(keys: &Keyset, evidence: &Evidence, validity: Duration) -> Result<CertifiedKey> {
    let names = vec!["blindai-srv".to_owned(), "localhost".to_owned()];
    let mut params = CertificateParams::new(names).map_err(internal)?;
    let name = &mut params.distinguished_name;
    name.push(DnType::CommonName, "blindai-srv");
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + validity).into();
    let (oid, value) = evidence.to_extension();
    let extension = CustomExtension::from_oid_content(oid, value);
    params.custom_extensions.push(extension);
    if let Some(key) = keys.receipt_key() {
        let extension = CustomExtension::from_oid_content(RECEIPT_KEY_OID, key.to_vec());
        params.custom_extensions.push(extension);
    }
    certified_key(params, &keys.tls)
}

/// A self-signed certificate with its key, ready for rustls.
pub fn certified_key(params: CertificateParams, key: &KeyPair) -> Result<CertifiedKey> {
    let certificate = params.self_signed(key).map_err(internal)?;
    let private = PrivatePkcs8KeyDer::from(key.serialize_der());
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(vec![certificate.der().clone()], private.into(), &provider)
        .map_err(internal)
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    unix_seconds(SystemTime::now())
}

fn no_key() -> Error {
    Error::new(Code::Internal, "no randomness to draw keys from")
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::new(Code::Internal, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_so_many_wait_for_a_quote() {
        let share = Share::default();
        let mut turns = Vec::new();
        for _ in 0..CONCURRENT_QUOTES {
            turns.push(share.turn().await.unwrap());
        }
        let waiting = (0..WAITING).map(|_| {
            tokio::spawn({
                let share = share.clone();
                async move { share.turn().await.map(drop) }
            })
        });
        let waiting: Vec<_> = waiting.collect();
        tokio::task::yield_now().await;
        let refused = tokio::time::timeout(QUOTE_WAIT / 5, share.turn()).await;
        let error = refused.expect("at once").unwrap_err();
        assert_eq!(error.code(), Code::TooManyRequests);
        drop(turns);
        for one in waiting {
            one.await.unwrap().unwrap();
        }
        assert!(share.turn().await.is_ok());
    }
}
