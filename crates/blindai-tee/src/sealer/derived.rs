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
    /// Bit 0: from the root key of this guest (VMRK) instead of that of the chip. Bits 2:1, which of
    /// the chip's: 0 the provider's (VLEK) where one is loaded and else the chip's own (VCEK), 1 the
    /// VCEK, 2 the VLEK. Firmware that knows no VLEK wants these two to be zero.
    pub root_key_select: u32,
    /// Which fields of the guest: bit 0 policy, 1 image id, 2 family id, 3 launch measurement, 4
    /// guest SVN, 5 TCB version.
    pub guest_field_select: u64,
    /// The privilege level, 0 to 3, not above the caller's own.
    pub vmpl: u32,
}

impl DerivedKeyRequest {
    /// The request of [`GuestSealer`]: from the chip's own key, for this launch measurement under this
    /// guest policy, at VMPL 0.
    ///
    /// The VCEK by name: a VLEK is the same in every machine of a provider, and the host decides when
    /// it is loaded, so the key would change with it and be had elsewhere. Firmware that does not know
    /// the choice refuses it, and then there is no key.
    ///
    /// Without the policy, the host could start the same code with debugging on and read the key.
    /// Without VMPL 0, a less privileged part of the guest could ask for it. The TCB version is not
    /// mixed in beside. Whether the firmware gives the same key after an update or a rollback is its
    /// own matter: count neither on having it again nor on being rid of it.
    pub const SEALING: Self = Self {
        root_key_select: VCEK,
        guest_field_select: GUEST_POLICY | MEASUREMENT,
        vmpl: 0,
    };
}

/// A guest's sealing key.
///
/// It is worth what the launch measurement covers. That holds kernel, initial disk and command line
/// only where the host started them through firmware that checks their digests (`kernel-hashes` of
/// QEMU); else it is that of the firmware alone, and whatever else the host boots there gets the same
/// key. From inside the guest the two cannot be told apart: pin a measurement that was computed with
/// the kernel in it, and let clients verify it.
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
        "sealed to chip, launch measurement and policy of this sev-snp guest; without kernel hashes \
         the measurement is that of its firmware only"
            .to_owned()
    }
}

impl<D> fmt::Debug for GuestSealer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuestSealer")
    }
}

const SOURCE: &str = "sev-snp derived key";
/// KEY_SEL 1, from bit 1 on.
const VCEK: u32 = 1 << 1;
const GUEST_POLICY: u64 = 1 << 0;
const MEASUREMENT: u64 = 1 << 3;
