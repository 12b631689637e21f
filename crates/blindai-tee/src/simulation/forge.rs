//! Lets tests of verifiers change what the simulated vendors say, before they sign it.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

/// What a simulated vendor or processor is about to sign.
///
/// Its signature will hold, whatever is changed here: what a verifier has to judge is the content.
#[derive(Debug)]
#[non_exhaustive]
#[cfg_attr(
    not(feature = "forge"),
    expect(dead_code, reason = "nobody reads them")
)]
pub enum Draft<'a> {
    /// Intel's intermediate, issued by the root.
    PlatformCa(&'a mut Certificate),
    /// The certificate of the platform, issued by the platform CA.
    Pck(&'a mut Certificate),
    /// The certificate of the key that signs TCB info and QE identity, issued by the root.
    TcbSigner(&'a mut Certificate),
    /// What the root has revoked.
    RootCrl(&'a mut RevocationList),
    /// What the platform CA has revoked.
    PckCrl(&'a mut RevocationList),
    /// The JSON of the TCB info.
    TcbInfo(&'a mut Value),
    /// The JSON of the quoting enclave's identity.
    QeIdentity(&'a mut Value),
    /// The report of the quoting enclave: 384 bytes.
    QeReport(&'a mut [u8]),
    /// Header and report of every quote, or the report of SEV-SNP up to its signature. The report
    /// data is filled in later.
    Report(&'a mut [u8]),
    /// AMD's intermediate, issued by the ARK.
    Ask(&'a mut Certificate),
    /// The certificate of the chip, issued by the ASK.
    Vcek(&'a mut Certificate),
    /// What the ARK has revoked.
    AmdCrl(&'a mut RevocationList),
}

/// The parts of a certificate that a test may want different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The serial number.
    pub serial: u64,
    /// The first second of its validity, since 1970.
    pub not_before: u64,
    /// The last second of its validity, since 1970; at most the end of 2049.
    pub not_after: u64,
    /// The vendor's extensions.
    pub extensions: Vec<Extension>,
}

/// One extension of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// The object identifier.
    pub oid: Vec<u64>,
    /// Whether whoever does not know it must refuse the certificate.
    pub critical: bool,
    /// What the OCTET STRING holds.
    pub value: Vec<u8>,
}

/// A list of revoked certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationList {
    /// When it was issued, in seconds since 1970.
    pub this_update: u64,
    /// When it ends, in seconds since 1970.
    pub next_update: u64,
    /// The serial numbers of certificates that the list's issuer issued.
    pub revoked: Vec<u64>,
}

/// The change, when there is one.
#[derive(Clone, Default)]
pub(super) struct Forge(Option<Arc<Change>>);

type Change = dyn Fn(Draft<'_>) + Send + Sync;

impl Forge {
    #[cfg(feature = "forge")]
    pub(super) fn new(change: impl Fn(Draft<'_>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(change)))
    }

    pub(super) fn edit(&self, draft: Draft<'_>) {
        if let Some(change) = &self.0 {
            change(draft);
        }
    }
}

impl fmt::Debug for Forge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Forge({})", self.0.is_some())
    }
}
