//! The certificates: root → platform CA → PCK, and root → TCB signer.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use blindai_core::simulation::{ROOT_CERTIFICATE_DER, ROOT_NAME};
use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CustomExtension, DistinguishedName, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber, SignatureAlgorithm,
};
use time::OffsetDateTime;
use yasna::models::ObjectIdentifier;
use yasna::{DERWriter, construct_der};

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
    pub(super) fn new() -> Result<(Self, RawKey), TeeError> {
        let root = root()?;
        let ca_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(cannot_certify)?;
        let (pck, tcb_signer) = (RawKey::generate()?, RawKey::generate()?);

        let ca_params = ca_params();
        let ca_cert = certify(&ca_params, &ca_key, &root)?;
        let platform_ca = Issuer::new(ca_params, ca_key);
        let pck_cert = certify(&pck_params(), &pck, &platform_ca)?;
        let tcb_cert = certify(&leaf_params("TCB Signing"), &tcb_signer, &root)?;

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
    pub(super) fn crls(
        &self,
        this_update: OffsetDateTime,
        next_update: OffsetDateTime,
    ) -> Result<RevocationLists, TeeError> {
        let of = |issuer, key_identifier_method| -> Result<Vec<u8>, TeeError> {
            let params = CertificateRevocationListParams {
                this_update,
                next_update,
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: Vec::new(),
                key_identifier_method,
            };
            let crl = params.signed_by(issuer).map_err(cannot_certify)?;
            Ok(crl.der().to_vec())
        };
        Ok(RevocationLists {
            root: of(&self.root, root_key_id())?,
            platform_ca: of(&self.platform_ca, KeyIdMethod::Sha256)?,
        })
    }
}

/// Two revocation lists, DER.
pub(super) struct RevocationLists {
    pub(super) root: Vec<u8>,
    pub(super) platform_ca: Vec<u8>,
}

/// An ECDSA P-256 key whose signatures are `r ‖ s`, as quotes and collateral have them.
pub(super) struct RawKey(EcdsaKeyPair);

impl RawKey {
    pub(super) fn generate() -> Result<Self, TeeError> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        Ok(Self(key.map_err(|_| cannot_sign())?))
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<[u8; 64], TeeError> {
        let signature = self.0.sign(&SystemRandom::new(), message);
        let signature = signature.map_err(|_| cannot_sign())?;
        signature.as_ref().try_into().map_err(|_| cannot_sign())
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
        &PKCS_ECDSA_P256_SHA256
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

fn ca_params() -> CertificateParams {
    let mut params = leaf_params("PCK Platform CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = CA_USAGES.to_vec();
    params
}

fn pck_params() -> CertificateParams {
    let mut params = leaf_params("PCK Certificate");
    let extension = CustomExtension::from_oid_content(SGX_EXTENSIONS, sgx_extensions());
    params.custom_extensions.push(extension);
    params
}

fn leaf_params(role: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("BlindAI Simulation {role}"));
    // Fixed dates, so that a client whose clock lags behind the server's is not refused.
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2049, 12, 31);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::ContentCommitment,
    ];
    params.use_authority_key_identifier_extension = true;
    params.crl_distribution_points = vec![CrlDistributionPoint {
        uris: vec![NO_SUCH_URL.to_owned()],
    }];
    params
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

fn to_pem(certificates: &[&[u8]]) -> String {
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

fn cannot_sign() -> TeeError {
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
        let (pki, _) = Pki::new().unwrap();
        let start = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let crls = pki.crls(start, start + time::Duration::DAY).unwrap();
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
