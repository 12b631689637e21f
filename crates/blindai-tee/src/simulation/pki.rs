//! The certificates: root → platform CA → PCK, and root → TCB signer.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair as _,
};
use blindai_core::simulation::{ROOT_CERTIFICATE_DER, ROOT_NAME};
use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CustomExtension, DistinguishedName, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData,
    RevokedCertParams, SerialNumber, SignatureAlgorithm,
};
use yasna::models::ObjectIdentifier;
use yasna::{DERWriter, construct_der};

use super::collateral::{CERTIFICATES_BEGIN, CERTIFICATES_END, Window, date};
use super::forge::{Certificate, Draft, Extension, Forge, RevocationList};
use super::{
    SIMULATED_FMSPC, SIMULATED_PLATFORM_INSTANCE_ID, SIMULATED_PPID,
    SIMULATION_ROOT_PRIVATE_KEY_KNOWN_TO_EVERYONE,
};
use crate::{TeeError, TeeErrorKind};

/// The certified keys that sign for as long as the simulation lives, and their chains in PEM.
pub(super) struct Pki {
    root: Issuer<'static, KeyPair>,
    platform_ca: Issuer<'static, KeyPair>,
    pub(super) tcb_signer: RawKey,
    /// The PCK certificate, the platform CA, the root.
    pub(super) pck_chain: String,
    /// The platform CA, the root.
    pub(super) platform_ca_chain: String,
    /// The TCB signer, the root.
    pub(super) tcb_signer_chain: String,
}

impl Pki {
    /// Draws and certifies the keys. The second one is the PCK, which has only the quoting enclave's
    /// report to sign.
    pub(super) fn new(forge: &Forge) -> Result<(Self, RawKey), TeeError> {
        let root = root()?;
        let ca_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(cannot_certify)?;
        let (pck, tcb_signer) = (RawKey::p256()?, RawKey::p256()?);

        let ca_params = ca_params(forge)?;
        let ca_cert = certify(&ca_params, &ca_key, &root)?;
        let platform_ca = Issuer::new(ca_params, ca_key);
        let pck_cert = certify(&pck_params(forge)?, &pck, &platform_ca)?;
        let tcb_cert = certify(&tcb_signer_params(forge)?, &tcb_signer, &root)?;

        let pki = Self {
            pck_chain: to_pem(&[&pck_cert, &ca_cert, ROOT_CERTIFICATE_DER]),
            platform_ca_chain: to_pem(&[&ca_cert, ROOT_CERTIFICATE_DER]),
            tcb_signer_chain: to_pem(&[&tcb_cert, ROOT_CERTIFICATE_DER]),
            root,
            platform_ca,
            tcb_signer,
        };
        Ok((pki, pck))
    }

    /// The lists of what the root and the platform CA have revoked: nothing.
    pub(super) fn crls(&self, window: &Window, forge: &Forge) -> Result<RevocationLists, TeeError> {
        let (mut root, mut platform_ca) = (window.revocation_list(), window.revocation_list());
        forge.edit(Draft::RootCrl(&mut root));
        forge.edit(Draft::PckCrl(&mut platform_ca));
        Ok(RevocationLists {
            root: revocation_list(&root, &self.root, root_key_id())?,
            platform_ca: revocation_list(&platform_ca, &self.platform_ca, KeyIdMethod::Sha256)?,
        })
    }
}

/// Two revocation lists, DER.
pub(super) struct RevocationLists {
    pub(super) root: Vec<u8>,
    pub(super) platform_ca: Vec<u8>,
}

/// An ECDSA key whose signatures are `r ‖ s`, as quotes and collateral have them.
pub(super) struct RawKey(EcdsaKeyPair, &'static SignatureAlgorithm);

impl RawKey {
    /// Of Intel's kind; its signatures have 64 bytes.
    pub(super) fn p256() -> Result<Self, TeeError> {
        Self::generate(&ECDSA_P256_SHA256_FIXED_SIGNING, &PKCS_ECDSA_P256_SHA256)
    }

    /// Of AMD's kind; its signatures have 96 bytes.
    pub(super) fn p384() -> Result<Self, TeeError> {
        Self::generate(&ECDSA_P384_SHA384_FIXED_SIGNING, &PKCS_ECDSA_P384_SHA384)
    }

    fn generate(
        signing: &'static EcdsaSigningAlgorithm,
        named: &'static SignatureAlgorithm,
    ) -> Result<Self, TeeError> {
        let key = EcdsaKeyPair::generate(signing);
        Ok(Self(key.map_err(|_| cannot_sign())?, named))
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TeeError> {
        let signature = self.0.sign(&SystemRandom::new(), message);
        let signature = signature.map_err(|_| cannot_sign())?;
        Ok(signature.as_ref().to_vec())
    }

    /// `x ‖ y`, without the byte that says that both follow.
    pub(super) fn public_key(&self) -> &[u8] {
        &self.der_bytes()[1..]
    }
}

impl PublicKeyData for RawKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.1
    }
}

fn root() -> Result<Issuer<'static, KeyPair>, TeeError> {
    let key = KeyPair::from_pkcs8_pem_and_sign_algo(
        SIMULATION_ROOT_PRIVATE_KEY_KNOWN_TO_EVERYONE,
        &PKCS_ECDSA_P256_SHA256,
    );
    let mut params = CertificateParams::default();
    params.distinguished_name = named(ROOT_NAME);
    params.key_usages = CA_USAGES.to_vec();
    params.key_identifier_method = root_key_id();
    Ok(Issuer::new(params, key.map_err(cannot_certify)?))
}

fn root_key_id() -> KeyIdMethod {
    KeyIdMethod::PreSpecified(ROOT_KEY_ID.to_vec())
}

/// A certificate as it stands before anybody changes it.
pub(super) fn certificate(serial: u64, extensions: Vec<Extension>) -> Certificate {
    Certificate {
        serial,
        // Fixed dates, so that a client whose clock lags behind the server's is not refused.
        not_before: CERTIFICATES_BEGIN,
        not_after: CERTIFICATES_END,
        extensions,
    }
}

fn ca_params(forge: &Forge) -> Result<CertificateParams, TeeError> {
    let mut draft = certificate(PLATFORM_CA_SERIAL, Vec::new());
    forge.edit(Draft::PlatformCa(&mut draft));
    let mut params = leaf_params("PCK Platform CA", draft)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = CA_USAGES.to_vec();
    Ok(params)
}

fn pck_params(forge: &Forge) -> Result<CertificateParams, TeeError> {
    let of_the_platform = Extension {
        oid: SGX_EXTENSIONS.to_vec(),
        critical: false,
        value: sgx_extensions(),
    };
    let mut draft = certificate(PCK_SERIAL, vec![of_the_platform]);
    forge.edit(Draft::Pck(&mut draft));
    leaf_params("PCK Certificate", draft)
}

fn tcb_signer_params(forge: &Forge) -> Result<CertificateParams, TeeError> {
    let mut draft = certificate(TCB_SIGNER_SERIAL, Vec::new());
    forge.edit(Draft::TcbSigner(&mut draft));
    leaf_params("TCB Signing", draft)
}

fn leaf_params(role: &str, draft: Certificate) -> Result<CertificateParams, TeeError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("BlindAI Simulation {role}"));
    params.serial_number = Some(draft.serial.into());
    params.not_before = date(draft.not_before)?;
    params.not_after = date(draft.not_after)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::ContentCommitment,
    ];
    params.use_authority_key_identifier_extension = true;
    params.crl_distribution_points = vec![CrlDistributionPoint {
        uris: vec![NO_SUCH_URL.to_owned()],
    }];
    params.custom_extensions = draft.extensions.into_iter().map(custom).collect();
    Ok(params)
}

fn custom(extension: Extension) -> CustomExtension {
    let mut custom = CustomExtension::from_oid_content(&extension.oid, extension.value);
    custom.set_criticality(extension.critical);
    custom
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name.push(DnType::OrganizationName, "BlindAI");
    name
}

fn certify(
    params: &CertificateParams,
    key: &impl PublicKeyData,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<Vec<u8>, TeeError> {
    let certificate = params.signed_by(key, issuer).map_err(cannot_certify)?;
    Ok(certificate.der().to_vec())
}

fn revocation_list(
    draft: &RevocationList,
    issuer: &Issuer<'_, KeyPair>,
    key_identifier_method: KeyIdMethod,
) -> Result<Vec<u8>, TeeError> {
    let this_update = date(draft.this_update)?;
    let revoked = draft.revoked.iter().map(|serial| RevokedCertParams {
        serial_number: (*serial).into(),
        revocation_time: this_update,
        reason_code: None,
        invalidity_date: None,
    });
    let params = CertificateRevocationListParams {
        this_update,
        next_update: date(draft.next_update)?,
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method,
    };
    let crl = params.signed_by(issuer).map_err(cannot_certify)?;
    Ok(crl.der().to_vec())
}

pub(super) fn to_pem(certificates: &[&[u8]]) -> String {
    let pems: Vec<_> = certificates
        .iter()
        .map(|der| Pem::new("CERTIFICATE", *der))
        .collect();
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_many_config(&pems, config)
}

/// What a PCK certificate says of its platform, in the order that Intel writes it.
fn sgx_extensions() -> Vec<u8> {
    construct_der(|writer| {
        writer.write_sequence(|list| {
            entry(list.next(), &[1], |w| w.write_bytes(&SIMULATED_PPID));
            entry(list.next(), &[2], write_tcb);
            entry(list.next(), &[3], |w| w.write_bytes(&PCE_ID));
            entry(list.next(), &[4], |w| w.write_bytes(&SIMULATED_FMSPC));
            entry(list.next(), &[5], |w| w.write_enum(SGX_TYPE_SCALABLE));
            entry(list.next(), &[6], |w| {
                w.write_bytes(&SIMULATED_PLATFORM_INSTANCE_ID);
            });
            entry(list.next(), &[7], write_configuration);
        });
    })
}

fn write_tcb(writer: DERWriter<'_>) {
    writer.write_sequence(|list| {
        for (component, svn) in (1..).zip(CPU_SVN) {
            entry(list.next(), &[2, component], |w| w.write_u8(svn));
        }
        entry(list.next(), &[2, 17], |w| w.write_u16(PCE_SVN));
        entry(list.next(), &[2, 18], |w| w.write_bytes(&CPU_SVN));
    });
}

fn write_configuration(writer: DERWriter<'_>) {
    writer.write_sequence(|list| {
        // Dynamic platform, cached keys, SMT: each widens what a policy must trust.
        for flag in 1..=3 {
            entry(list.next(), &[7, flag], |w| w.write_bool(false));
        }
    });
}

fn entry(writer: DERWriter<'_>, id: &[u64], value: impl FnOnce(DERWriter<'_>)) {
    writer.write_sequence(|pair| {
        let oid = [SGX_EXTENSIONS, id].concat();
        pair.next().write_oid(&ObjectIdentifier::new(oid));
        value(pair.next());
    });
}

fn cannot_certify(error: rcgen::Error) -> TeeError {
    let fact = format!("cannot issue the simulation's certificates: {error}");
    TeeError::new(TeeErrorKind::Platform, fact, REPORT_IT)
}

pub(super) fn cannot_sign() -> TeeError {
    let fact = "the simulated platform cannot draw a key or sign";
    TeeError::new(TeeErrorKind::Platform, fact, REPORT_IT)
}

/// The patch level of the simulated processor. The TCB information calls it up to date.
pub(super) const CPU_SVN: [u8; 16] = [3, 3, 2, 2, 4, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0];
pub(super) const PCE_SVN: u16 = 13;
pub(super) const PCE_ID: [u8; 2] = [0, 0];
/// The subject key identifier in the root's certificate. Whatever the root signs repeats it: OpenSSL
/// finds the issuer by it.
const ROOT_KEY_ID: [u8; 20] = [
    0xe9, 0x6b, 0xe9, 0xd4, 0x26, 0xa2, 0xbf, 0x25, 0x04, 0x6e, 0x7f, 0x16, 0x05, 0xfb, 0x3b, 0x64,
    0xb2, 0xa4, 0xdf, 0xe0,
];
const PLATFORM_CA_SERIAL: u64 = 1;
const TCB_SIGNER_SERIAL: u64 = 2;
const PCK_SERIAL: u64 = 3;
const SGX_TYPE_SCALABLE: i64 = 1;
const SGX_EXTENSIONS: &[u64] = &[1, 2, 840, 113741, 1, 13, 1];
const CA_USAGES: [KeyUsagePurpose; 2] = [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
const NO_SUCH_URL: &str = "https://simulation.invalid/crl.der";
const REPORT_IT: &str = "report it; this is a fault of the simulation";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_root_signs_names_the_root_by_its_key_identifier() {
        let forge = Forge::default();
        let (pki, _) = Pki::new(&forge).unwrap();
        let day = std::time::Duration::from_secs(24 * 3600);
        let window = Window::starting(1_800_000_000, day).unwrap();
        let crls = pki.crls(&window, &forge).unwrap();
        let mut signed = vec![crls.root];
        for chain in [&pki.platform_ca_chain, &pki.tcb_signer_chain] {
            let certificates = pem::parse_many(chain).unwrap();
            signed.extend(certificates.into_iter().map(Pem::into_contents));
        }
        for der in signed {
            assert!(der.windows(ROOT_KEY_ID.len()).any(|w| w == ROOT_KEY_ID));
        }
    }
}
