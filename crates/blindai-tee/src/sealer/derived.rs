//! SEV-SNP: the firmware derives a key from the chip's secret and what the guest lets it mix in.

use std::{fmt, io};

use zeroize::Zeroizing;

use super::{BROKEN, Sealer, SealingKey, no_key};
use crate::{TeeError, TeeErrorKind};

/// Who derives keys for a guest; the seam between what is asked for and the system call.
pub trait DerivedKey: Send + Sync {
    /// Fills `key` with the key that the firmware derives.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is no such firmware here; else what went wrong.
    fn derive(&self, request: &DerivedKeyRequest, key: &mut [u8; 32]) -> io::Result<()>;
}

/// What is mixed into a derived key (SEV-SNP firmware ABI, MSG_KEY_REQ).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DerivedKeyRequest {
    /// Bit 0: from the migration agent's key instead of the chip's (or, where one is loaded, the
    /// provider's).
    pub root_key_select: u32,
    /// Which fields of the guest: bit 0 policy, 1 image id, 2 family id, 3 launch measurement, 4
    /// guest SVN, 5 TCB version.
    pub guest_field_select: u64,
    /// The privilege level, 0 to 3, not above the caller's own.
    pub vmpl: u32,
}

impl DerivedKeyRequest {
    /// The request of [`GuestSealer`]: from the chip's key, for this launch measurement under this
    /// guest policy, at VMPL 0.
    ///
    /// Without the policy, the host could start the same code with debugging on and read the key.
    /// Without VMPL 0, a less privileged part of the guest could ask for it. The TCB version is not
    /// mixed in: what is sealed outlives updates of the firmware, and rollbacks.
    pub const SEALING: Self = Self {
        root_key_select: 0,
        guest_field_select: GUEST_POLICY | MEASUREMENT,
        vmpl: 0,
    };
}

/// A guest's sealing key.
pub struct GuestSealer<D>(D);

impl<D: DerivedKey> GuestSealer<D> {
    /// With the keys from here: [`super::SevGuest`] on hardware.
    pub fn new(keys: D) -> Self {
        Self(keys)
    }
}

impl<D: DerivedKey> Sealer for GuestSealer<D> {
    fn sealing_key(&self, purpose: &str) -> Result<SealingKey, TeeError> {
        let mut secret = Zeroizing::new([0; 32]);
        match self.0.derive(&DerivedKeyRequest::SEALING, &mut secret) {
            Ok(()) => SealingKey::derive(&*secret, SOURCE, purpose),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(no_key(format!("no key is derived for this guest: {error}")))
            }
            Err(error) => {
                let fact = format!("no key was derived: {error}");
                Err(TeeError::new(TeeErrorKind::Platform, fact, BROKEN))
            }
        }
    }

    fn is_simulated(&self) -> bool {
        false
    }

    fn describe(&self) -> String {
        "sealed to launch measurement and policy of this sev-snp guest".to_owned()
    }
}

impl<D> fmt::Debug for GuestSealer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuestSealer")
    }
}

const SOURCE: &str = "sev-snp derived key";
const GUEST_POLICY: u64 = 1 << 0;
const MEASUREMENT: u64 = 1 << 3;
