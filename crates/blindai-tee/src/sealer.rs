//! Keys that only this code on this hardware gets again, to write data where the operator reads it.

mod derived;
mod enclave;
mod sev_guest;
mod simulated;

use std::fmt;

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use blindai_core::Tee;
use zeroize::Zeroizing;

pub use self::derived::{DerivedKey, DerivedKeyRequest, GuestSealer};
pub use self::enclave::{EnclaveSealer, SealTo};
pub use self::sev_guest::SevGuest;
pub use self::simulated::SimulatedSealer;
use crate::{TeeError, TeeErrorKind};

/// The platform that gives sealing keys. Beside [`crate::Attester`], because not every platform that
/// attests can seal; there is no fallback in software, which would protect nothing.
pub trait Sealer: Send + Sync {
    /// The key for this `purpose`, 1 to 64 characters: the same at every start of the same code on
    /// the same hardware, unrelated to that of any other purpose.
    ///
    /// # Errors
    /// [`TeeErrorKind::NoSealingKey`] when the platform has none to give;
    /// [`TeeErrorKind::InvalidOption`] for a purpose of another length.
    fn sealing_key(&self, purpose: &str) -> Result<SealingKey, TeeError>;

    /// Whether the key protects nothing.
    fn is_simulated(&self) -> bool;

    /// One line for the log at start.
    fn describe(&self) -> String;
}

/// 32 bytes that must not leave the process. Zeroed when dropped; neither shown nor copied.
pub struct SealingKey(Zeroizing<[u8; SEALING_KEY_BYTES]>);

impl SealingKey {
    /// The bytes, for a cipher.
    pub fn expose(&self) -> &[u8; SEALING_KEY_BYTES] {
        &self.0
    }

    /// HKDF-SHA256 over the platform's `secret`. The `source` keeps apart what different keys of one
    /// platform are for; no source and no purpose holds the zero byte between them.
    fn derive(secret: &[u8], source: &'static str, purpose: &str) -> Result<Self, TeeError> {
        if purpose.is_empty() || purpose.len() > LONGEST_PURPOSE || purpose.contains('\0') {
            let fact = "the purpose of a sealing key is empty, too long or holds a zero byte";
            let remedy = "name the purpose in 1 to 64 characters";
            return Err(TeeError::new(TeeErrorKind::InvalidOption, fact, remedy));
        }
        // A file that is there but empty of meaning must not become a key that anybody can guess.
        if secret.iter().all(|&byte| byte == 0) {
            let fact = format!("{source}: the platform's key is all zeros");
            return Err(TeeError::new(TeeErrorKind::Platform, fact, BROKEN));
        }
        let info = [source.as_bytes(), b"\0", purpose.as_bytes()];
        let mut key = Self(Zeroizing::new([0; SEALING_KEY_BYTES]));
        Salt::new(HKDF_SHA256, SALT)
            .extract(secret)
            .expand(&info, Length)
            .and_then(|okm| okm.fill(&mut *key.0))
            .expect("HKDF-SHA256 gives 32 bytes for any secret and any purpose");
        Ok(key)
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey(..)")
    }
}

/// The answer of a platform that has no sealing key: TDX.
#[derive(Clone, Copy, Debug)]
pub struct NoSealer(
    /// The kind of TEE.
    pub Tee,
);

impl Sealer for NoSealer {
    fn sealing_key(&self, _purpose: &str) -> Result<SealingKey, TeeError> {
        let fact = format!("{} has no sealing key", self.0);
        Err(no_key(fact))
    }

    fn is_simulated(&self) -> bool {
        false
    }

    fn describe(&self) -> String {
        format!("no sealing key on {}", self.0)
    }
}

fn no_key(fact: String) -> TeeError {
    let remedy = "keep nothing on disk here, or get the key from a key broker that attests";
    TeeError::new(TeeErrorKind::NoSealingKey, fact, remedy)
}

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        SEALING_KEY_BYTES
    }
}

const SEALING_KEY_BYTES: usize = 32;
const LONGEST_PURPOSE: usize = 64;
const SALT: &[u8] = b"BlindAI sealing v1";
const BROKEN: &str = "the platform is faulty or somebody interferes with it: do not seal here";
