//! The keys of a store, each derived for one use from the platform's sealing key.

use std::fmt;

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use aws_lc_rs::hmac;
use zeroize::Zeroizing;

/// The sealing key of a store: 32 bytes that only this code on this hardware gets again. Zeroed when
/// dropped; neither shown nor copied.
pub struct StoreKey(Prk);

impl StoreKey {
    /// From the sealing key for [`PURPOSE`](Self::PURPOSE).
    pub fn new(sealing_key: &[u8; 32]) -> Self {
        Self(Salt::new(HKDF_SHA256, b"BlindAI store v1").extract(sealing_key))
    }

    /// What the platform's sealer is to be asked for.
    pub const PURPOSE: &str = "models at rest";

    /// For what the models hold.
    pub(crate) fn content(&self) -> StreamKey {
        StreamKey(self.derive(b"content"))
    }

    /// For manifests.
    pub(crate) fn manifest(&self) -> StreamKey {
        StreamKey(self.derive(b"manifest"))
    }

    /// Tells keys from each other, and says nothing of the key itself.
    pub(crate) fn id(&self) -> [u8; 16] {
        *self.derive(b"key id")
    }

    /// For the names of objects: who has no key learns nothing of the digest that is in them.
    pub(crate) fn names(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &*self.derive::<32>(b"names"))
    }

    /// For the file that remembers the newest generation.
    pub(crate) fn seen(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &*self.derive::<32>(b"seen"))
    }

    fn derive<const N: usize>(&self, label: &[u8]) -> Zeroizing<[u8; N]> {
        let mut key = Zeroizing::new([0; N]);
        self.0
            .expand(&[label], Length(N))
            .and_then(|okm| okm.fill(&mut *key))
            .expect("HKDF-SHA256 gives up to 8160 bytes for any label");
        key
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey(..)")
    }
}

/// From which the key of each stream is derived.
pub(crate) struct StreamKey(Zeroizing<[u8; 32]>);

impl StreamKey {
    /// HKDF-SHA256 with the stream's own salt, over what the stream is bound to.
    pub(crate) fn derive(&self, salt: &[u8], bound_to: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        Salt::new(HKDF_SHA256, salt)
            .extract(&*self.0)
            .expand(&[bound_to], Length(32))
            .and_then(|okm| okm.fill(&mut *key))
            .expect("HKDF-SHA256 gives 32 bytes for any salt");
        key
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}
