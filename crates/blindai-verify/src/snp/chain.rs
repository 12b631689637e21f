//! The signer's certificate, its issuer and AMD's root: who may speak for a chip.

use blindai_core::{SnpCollateral, simulation};
use x509_cert::der::Decode;
use x509_cert::der::asn1::{Ia5StringRef, ObjectIdentifier, OctetStringRef};

use super::certificate::{Certificate, RevocationList};
use super::report::{Component, Report, SigningKey, Tcb};
use crate::RejectionCode as Code;
use crate::dcap::{Refused, Root};

/// A kind of processor; each has a root of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Product {
    Milan,
    /// With Bergamo and Siena.
    Genoa,
    Turin,
}

impl Product {
    pub const ALL: [Product; 3] = [Product::Milan, Product::Genoa, Product::Turin];

    pub fn name(self) -> &'static str {
        match self {
            Product::Milan => "Milan",
            Product::Genoa => "Genoa",
            Product::Turin => "Turin",
        }
    }

    /// In the policy file.
    pub fn key(self) -> &'static str {
        match self {
            Product::Milan => "milan",
            Product::Genoa => "genoa",
            Product::Turin => "turin",
        }
    }

    /// What has a security version.
    pub fn components(self) -> Vec<Component> {
        let has = |component: &Component| Tcb([0; 8]).version(self, *component).is_some();
        Component::ALL.into_iter().filter(has).collect()
    }

    pub fn root_name(self) -> &'static str {
        match self {
            Product::Milan => "AMD ARK-Milan",
            Product::Genoa => "AMD ARK-Genoa",
            Product::Turin => "AMD ARK-Turin",
        }
    }

    /// `Milan`, or with a stepping `Milan-B0`.
    fn named(text: &str) -> Option<Self> {
        let name = text.split('-').next()?;
        Self::ALL.into_iter().find(|product| product.name() == name)
    }

    /// Whether a CPU of this family and model is of the product.
    pub fn includes(self, [family, model, _]: [u8; 3]) -> bool {
        matches!(
            (self, family, model),
            (Product::Milan, 0x19, 0x00..=0x0f)
                | (Product::Genoa, 0x19, 0x10..=0x1f | 0xa0..=0xaf)
                | (Product::Turin, 0x1a, 0x00..=0x11)
        )
    }

    pub fn includes_some(self, cpu: Option<[u8; 3]>) -> bool {
        cpu.is_some_and(|cpu| self.includes(cpu))
    }

    /// The extensions under 1.3.6.1.4.1.3704.1.3 that certify the bytes of a patch level, in order.
    fn tcb_extensions(self) -> [u32; 8] {
        match self {
            Product::Milan | Product::Genoa => [1, 2, 4, 5, 6, 7, 3, 8],
            Product::Turin => [9, 1, 2, 3, 5, 6, 7, 8],
        }
    }

    /// So many bytes of the chip's id are in use.
    fn chip_id_bytes(self) -> usize {
        match self {
            Product::Milan | Product::Genoa => 64,
            Product::Turin => 8,
        }
    }
}

/// A chain as it came, with the root that it says it ends in. Nothing in it is verified.
pub(super) struct Chain {
    pub root: Root,
    pub product: Product,
    signer: Certificate,
    intermediate: Certificate,
    ark: Certificate,
}

impl Chain {
    /// Reads the chain of a signer. The ARK is always our own copy: one that comes along proves
    /// nothing, and another than ours is refused.
    pub fn read(collateral: &SnpCollateral) -> Result<Self, Refused> {
        let signer = Certificate::from_pem(&collateral.signer, 1)?.remove(0);
        let product = product(&signer)?;
        let (mut intermediates, arks) = issuers(collateral)?;
        let issued = |c: &Certificate| c.body.subject() == signer.body.issuer();
        let Some(position) = intermediates.iter().position(issued) else {
            let issuer = signer.body.issuer();
            let text = format!("no certificate of the signer's issuer, {issuer}, is there");
            return Err(refused(Code::ChainInvalid, text));
        };
        let intermediate = intermediates.remove(position);
        let (root, ark) = pinned_root(&intermediate)?;
        if !arks.iter().all(|other| other.same_identity(&ark)) {
            let text = "the chain brings a root of its own".to_owned();
            return Err(refused(Code::TrustRootUnknown, text));
        }
        Ok(Self {
            root,
            product,
            signer,
            intermediate,
            ark,
        })
    }

    /// Signatures, uses and dates.
    pub fn verify(&self, now: u64) -> Result<(), Refused> {
        // First, so that whoever made a chain of his own is told so.
        if !self.ark.signed(&self.intermediate) {
            let name = self.root.name();
            let text = format!("{name} did not sign the signer's issuer");
            return Err(refused(Code::TrustRootUnknown, text));
        }
        if !self.intermediate.is_authority() {
            let text = "the signer's issuer may not sign certificates".to_owned();
            return Err(refused(Code::ChainInvalid, text));
        }
        if !self.intermediate.signed(&self.signer) || !self.signer.is_understood() {
            let text = "the signer's issuer did not sign this certificate".to_owned();
            return Err(refused(Code::ChainInvalid, text));
        }
        if let Root::Amd(product) = self.root
            && product != self.product
        {
            let text = "the certificate is of another product than its root".to_owned();
            return Err(refused(Code::ChainInvalid, text));
        }
        self.ark.check_time("ARK", now)?;
        self.intermediate.check_time("ASK", now)?;
        self.signer.check_time("signer's", now)
    }

    /// From when on a certificate of the chain no longer holds.
    pub fn ends_at(&self) -> u64 {
        let all = [&self.ark, &self.intermediate, &self.signer];
        let ends = all.map(Certificate::not_after);
        ends.into_iter().min().unwrap_or(0)
    }

    /// Whether a revocation list of the root names a certificate of the chain. Answers when the list
    /// ends.
    pub fn check_revocation(&self, crl: &[u8], now: u64) -> Result<u64, Refused> {
        let list = RevocationList::from_der(crl)?;
        list.check(&self.ark, now)?;
        for (name, certificate) in [("issuer", &self.intermediate), ("signer", &self.signer)] {
            if list.has_revoked(certificate) {
                let text = format!("the {name}'s certificate was revoked");
                return Err(refused(Code::CertificateRevoked, text));
            }
        }
        Ok(list.next_update())
    }

    /// Whether the certified key signed the report.
    pub fn signed(&self, report: Report<'_>) -> bool {
        self.signer.p384_point().is_some_and(|key| {
            crate::crypto::ecdsa_p384_sha384(key, report.signed(), &report.signature())
        })
    }

    /// The patch level that the certificate is for.
    pub fn tcb(&self) -> Option<Tcb> {
        let mut tcb = [0; 8];
        for (byte, id) in tcb.iter_mut().zip(self.product.tcb_extensions()) {
            let oid = TCB_PARTS.push_arc(id).ok()?;
            *byte = match self.signer.extension(oid) {
                Some(value) => u8::from_der(value).ok()?,
                // Bytes that no product uses yet.
                None if (4..=7).contains(&id) && !self.signer.has_extension(oid) => 0,
                None => return None,
            };
        }
        Some(Tcb(tcb))
    }

    /// Whether the certificate is for this machine: a VCEK names the chip, a VLEK the provider.
    /// Answers with who it is for.
    pub fn check_chip(&self, report: Report<'_>) -> Result<String, Refused> {
        let named = self.signer.has_extension(HARDWARE_ID);
        let provider = self.signer.has_extension(CSP_ID);
        match (report.signing_key()?, named, provider) {
            (SigningKey::Vcek, true, false) => self.check_hardware_id(report.chip_id()),
            (SigningKey::Vlek, false, true) => self.provider(),
            (key, ..) => {
                let name = key.name();
                let text = format!("a {name} signed the report; the certificate is of another key");
                Err(refused(Code::CollateralMismatch, text))
            }
        }
    }

    fn check_hardware_id(&self, chip_id: [u8; 64]) -> Result<String, Refused> {
        let (used, unused) = chip_id.split_at(self.product.chip_id_bytes());
        let value = self.signer.extension(HARDWARE_ID).unwrap_or_default();
        // AMD wrote the bytes as they are, and for a time as an OCTET STRING.
        let wrapped = <&OctetStringRef>::from_der(value).map(OctetStringRef::as_bytes);
        let same = value == used || wrapped.is_ok_and(|bytes| bytes == used);
        let masked = chip_id.iter().all(|byte| *byte == 0);
        if !same || masked || unused.iter().any(|byte| *byte != 0) {
            let text = if masked {
                "the host masks the chip's id, so the certificate cannot be held to it"
            } else {
                "the certificate is of another chip than the report"
            };
            return Err(refused(Code::CollateralMismatch, text.to_owned()));
        }
        Ok(format!("the chip {}", hex::encode(used)))
    }

    fn provider(&self) -> Result<String, Refused> {
        let name = self.signer.extension(CSP_ID).unwrap_or_default();
        match Ia5StringRef::from_der(name) {
            Ok(name) => Ok(format!("the provider {}", name.as_str())),
            Err(_) => {
                let text = "the certificate's name of the provider cannot be read".to_owned();
                Err(refused(Code::CollateralMalformed, text))
            }
        }
    }
}

fn product(signer: &Certificate) -> Result<Product, Refused> {
    let name = signer.extension(PRODUCT_NAME);
    let name = name.and_then(|name| Ia5StringRef::from_der(name).ok());
    name.and_then(|name| Product::named(name.as_str()))
        .ok_or_else(|| {
            let text = "the signer's certificate names no product that is known".to_owned();
            refused(Code::CollateralMalformed, text)
        })
}

/// The certificates that may have issued the signer's, and the roots that came with them.
fn issuers(collateral: &SnpCollateral) -> Result<(Vec<Certificate>, Vec<Certificate>), Refused> {
    let Some(chain) = &collateral.issuer_chain else {
        let known = INTERMEDIATES.iter().map(|der| Certificate::from_der(der));
        return Ok((known.collect::<Result<_, _>>()?, Vec::new()));
    };
    let chain = Certificate::from_pem(chain, CHAIN_LENGTH)?;
    let own_issuer = |c: &Certificate| c.body.subject() == c.body.issuer();
    let (arks, intermediates) = chain.into_iter().partition(own_issuer);
    Ok((intermediates, arks))
}

/// The root of ours that a certificate names as its issuer.
fn pinned_root(intermediate: &Certificate) -> Result<(Root, Certificate), Refused> {
    for (root, der) in ROOTS {
        let ark = Certificate::from_der(der)?;
        if ark.body.subject() == intermediate.body.issuer() {
            return Ok((*root, ark));
        }
    }
    let issuer = intermediate.body.issuer();
    let text = format!("the chain ends in {issuer}, which is no root of AMD");
    Err(refused(Code::TrustRootUnknown, text))
}

fn refused(code: Code, text: String) -> Refused {
    Refused { code, text }
}

/// ASK and ARK, and none too many.
const CHAIN_LENGTH: usize = 4;

const PRODUCT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.2");
const TCB_PARTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3");
const HARDWARE_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");
const CSP_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.5");

/// AMD's roots, from its key distribution service, and the one that everybody can sign with.
const ROOTS: &[(Root, &[u8])] = &[
    (
        Root::Amd(Product::Milan),
        include_bytes!("amd/milan_ark.der"),
    ),
    (
        Root::Amd(Product::Genoa),
        include_bytes!("amd/genoa_ark.der"),
    ),
    (
        Root::Amd(Product::Turin),
        include_bytes!("amd/turin_ark.der"),
    ),
    (Root::SimulationArk, simulation::ARK_CERTIFICATE_DER),
];

/// What the roots certified: for VCEKs (ASK) and for VLEKs (ASVK).
const INTERMEDIATES: &[&[u8]] = &[
    include_bytes!("amd/milan_ask.der"),
    include_bytes!("amd/milan_asvk.der"),
    include_bytes!("amd/genoa_ask.der"),
    include_bytes!("amd/genoa_asvk.der"),
    include_bytes!("amd/turin_ask.der"),
    include_bytes!("amd/turin_asvk.der"),
    simulation::ASK_CERTIFICATE_DER,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_certificate_here_leads_to_its_root() {
        for (_, der) in ROOTS {
            let ark = Certificate::from_der(der).unwrap();
            assert!(ark.signed(&ark) && ark.is_authority());
        }
        for der in INTERMEDIATES {
            let intermediate = Certificate::from_der(der).unwrap();
            let (_, ark) = pinned_root(&intermediate).unwrap();
            assert!(ark.signed(&intermediate) && intermediate.is_authority());
        }
    }
}
