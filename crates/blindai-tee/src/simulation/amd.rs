//! AMD's certificates and the report that they certify: ARK → ASK → VCEK → report.
//!
//! Layouts: SEV Secure Nested Paging Firmware ABI (56860), report version 5, and Versioned Chip
//! Endorsement Key Certificate and KDS Interface (57230). The product is a Genoa.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{KeyPair as _, RSA_PSS_SHA384, RsaKeyPair};
use blindai_core::SnpCollateral;
use blindai_core::simulation::{ARK_CERTIFICATE_DER, ARK_NAME, ASK_CERTIFICATE_DER, ASK_NAME};
use rcgen::PublicKeyData as _;
use yasna::models::{ObjectIdentifier, UTCTime};
use yasna::{DERWriter, Tag, construct_der};

use super::collateral::{Window, date};
use super::forge::{Certificate, Draft, Extension, Forge, RevocationList};
use super::pki::{RawKey, cannot_sign, certificate, to_pem};
use super::{
    SIMULATED_CHIP_ID, SIMULATION_ARK_PRIVATE_KEY_KNOWN_TO_EVERYONE,
    SIMULATION_ASK_PRIVATE_KEY_KNOWN_TO_EVERYONE, SimulationOptions,
};
use crate::TeeError;

/// A simulated chip, and what the vendor certifies of it.
pub(super) struct Chip {
    vcek: RawKey,
    /// The report up to its signature, with report data of zeros.
    unsigned: Vec<u8>,
    ark: RsaKeyPair,
    signer: String,
    issuer_chain: String,
}

impl Chip {
    /// Draws the chip's key and lets the ASK certify it.
    pub(super) fn new(
        options: &SimulationOptions,
        measurement: &[u8; 48],
        forge: &Forge,
    ) -> Result<Self, TeeError> {
        let ark = rsa_key(SIMULATION_ARK_PRIVATE_KEY_KNOWN_TO_EVERYONE)?;
        let ask = rsa_key(SIMULATION_ASK_PRIVATE_KEY_KNOWN_TO_EVERYONE)?;
        let vcek = RawKey::p384()?;
        let ask_certificate = ask_certificate(&ask, &ark, forge)?;
        let signer = vcek_certificate(&vcek, &ask, forge)?;
        let mut unsigned = report(options, measurement);
        forge.edit(Draft::Report(&mut unsigned));
        Ok(Self {
            vcek,
            unsigned,
            ark,
            signer: to_pem(&[&signer]),
            issuer_chain: to_pem(&[&ask_certificate, ARK_CERTIFICATE_DER]),
        })
    }

    /// A report over `report_data`: one signature, little-endian, each half padded to 72 bytes.
    pub(super) fn report(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, TeeError> {
        let mut report = self.unsigned.clone();
        report[REPORT_DATA_AT..][..64].copy_from_slice(report_data);
        let signature = self.vcek.sign(&report)?;
        for half in signature.chunks(signature.len() / 2) {
            report.extend(half.iter().rev());
            report.extend([0; SIGNATURE_HALF_BYTES - P384_BYTES]);
        }
        report.resize(REPORT_BYTES, 0);
        Ok(report)
    }

    /// Everything that it takes beside a report, valid in this window.
    pub(super) fn collateral(
        &self,
        window: &Window,
        forge: &Forge,
    ) -> Result<SnpCollateral, TeeError> {
        let mut list = window.revocation_list();
        forge.edit(Draft::AmdCrl(&mut list));
        Ok(SnpCollateral {
            signer: self.signer.clone(),
            issuer_chain: Some(self.issuer_chain.clone()),
            crl: Some(revocation_list(&list, &self.ark)?),
        })
    }
}

fn report(options: &SimulationOptions, measurement: &[u8; 48]) -> Vec<u8> {
    let debug = if options.debug { POLICY_DEBUG } else { 0 };
    let numbers = |numbers: [u32; 2]| numbers.map(u32::to_le_bytes).concat();
    [
        &numbers([REPORT_VERSION, GUEST_SVN])[..],
        &(POLICY | debug).to_le_bytes(),
        &[0; 32],         // FAMILY_ID, IMAGE_ID
        &numbers([0, 1]), // VMPL, ECDSA P-384 with SHA-384
        &TCB,             // current
        &PLATFORM_INFO.to_le_bytes(),
        &[0; 8],  // signed by the VCEK, chip id not masked, no author key; reserved
        &[0; 64], // REPORT_DATA
        measurement,
        &[0; 128], // HOST_DATA, ID_KEY_DIGEST, AUTHOR_KEY_DIGEST
        REPORT_ID,
        &[0xff; 32], // REPORT_ID_MA: no migration agent
        &TCB,        // reported
        &GENOA,
        &[0; 21],
        &SIMULATED_CHIP_ID,
        &TCB, // committed
        &FIRMWARE,
        &FIRMWARE,  // committed
        &TCB,       // at launch
        &[0; 16],   // mitigations at launch and now
        &[0; 0x98], // reserved
    ]
    .concat()
}

fn ask_certificate(ask: &RsaKeyPair, ark: &RsaKeyPair, forge: &Forge) -> Result<Vec<u8>, TeeError> {
    let genuine = certificate(ASK_SERIAL, ca_extensions());
    let mut draft = genuine.clone();
    forge.edit(Draft::Ask(&mut draft));
    if draft == genuine {
        return Ok(ASK_CERTIFICATE_DER.to_vec());
    }
    let key: PublicKeyX509Der<'_> = ask.public_key().as_der().map_err(|_| cannot_sign())?;
    issue(&draft, [ARK_NAME, ASK_NAME], key.as_ref(), ark)
}

fn vcek_certificate(vcek: &RawKey, ask: &RsaKeyPair, forge: &Forge) -> Result<Vec<u8>, TeeError> {
    let mut draft = certificate(VCEK_SERIAL, vcek_extensions());
    forge.edit(Draft::Vcek(&mut draft));
    let key = vcek.subject_public_key_info();
    issue(&draft, [ASK_NAME, VCEK_NAME], &key, ask)
}

fn ca_extensions() -> Vec<Extension> {
    let critical = |oid: &[u64], value: &[u8]| Extension {
        oid: oid.to_vec(),
        critical: true,
        value: value.to_vec(),
    };
    vec![
        critical(BASIC_CONSTRAINTS, CA_WITHOUT_INTERMEDIATES),
        critical(KEY_USAGE, SIGNS_CERTIFICATES),
    ]
}

/// What a VCEK certificate says of its chip, in the order that AMD writes it.
fn vcek_extensions() -> Vec<Extension> {
    let extension = |id: &[u64], value: Vec<u8>| Extension {
        oid: [AMD, id].concat(),
        critical: false,
        value,
    };
    let number = |n| construct_der(|w| w.write_u8(n));
    let svn = |component, position: usize| extension(&[3, component], number(TCB[position]));
    let unused = |component| extension(&[3, component], number(0));
    vec![
        extension(&[1], number(0)),
        extension(&[2], construct_der(|w| w.write_ia5_string(PRODUCT))),
        svn(1, 0),
        svn(2, 1),
        unused(4),
        unused(5),
        unused(6),
        unused(7),
        svn(3, 6),
        svn(8, 7),
        extension(&[4], SIMULATED_CHIP_ID.to_vec()),
    ]
}

fn issue(
    draft: &Certificate,
    [issuer, subject]: [&str; 2],
    public_key: &[u8],
    key: &RsaKeyPair,
) -> Result<Vec<u8>, TeeError> {
    let (not_before, not_after) = (utc(draft.not_before)?, utc(draft.not_after)?);
    let to_sign = construct_der(|writer| {
        writer.write_sequence(|list| {
            list.next().write_tagged(Tag::context(0), |w| w.write_u8(2)); // version 3
            list.next().write_u64(draft.serial);
            list.next().write_der(&RSA_PSS);
            write_name(list.next(), issuer);
            list.next().write_sequence(|validity| {
                validity.next().write_utctime(&not_before);
                validity.next().write_utctime(&not_after);
            });
            write_name(list.next(), subject);
            list.next().write_der(public_key);
            list.next()
                .write_tagged(Tag::context(3), |w| write_extensions(w, &draft.extensions));
        });
    });
    sign(&to_sign, key)
}

fn revocation_list(draft: &RevocationList, ark: &RsaKeyPair) -> Result<Vec<u8>, TeeError> {
    let (this_update, next_update) = (utc(draft.this_update)?, utc(draft.next_update)?);
    let number = Extension {
        oid: CRL_NUMBER.to_vec(),
        critical: false,
        value: construct_der(|w| w.write_u8(1)),
    };
    let to_sign = construct_der(|writer| {
        writer.write_sequence(|list| {
            list.next().write_u8(1); // version 2
            list.next().write_der(&RSA_PSS);
            write_name(list.next(), ARK_NAME);
            list.next().write_utctime(&this_update);
            list.next().write_utctime(&next_update);
            // An empty list is left out, as RFC 5280 asks for.
            if !draft.revoked.is_empty() {
                list.next().write_sequence(|revoked| {
                    for serial in &draft.revoked {
                        revoked.next().write_sequence(|entry| {
                            entry.next().write_u64(*serial);
                            entry.next().write_utctime(&this_update);
                        });
                    }
                });
            }
            list.next()
                .write_tagged(Tag::context(0), |w| write_extensions(w, &[number]));
        });
    });
    sign(&to_sign, ark)
}

fn write_name(writer: DERWriter<'_>, common_name: &str) {
    writer.write_sequence(|names| {
        for (oid, value) in [(ORGANIZATION, "BlindAI"), (COMMON_NAME, common_name)] {
            names.next().write_set(|set| {
                set.next().write_sequence(|pair| {
                    pair.next().write_oid(&ObjectIdentifier::from_slice(oid));
                    pair.next().write_utf8string(value);
                });
            });
        }
    });
}

fn write_extensions(writer: DERWriter<'_>, extensions: &[Extension]) {
    writer.write_sequence(|list| {
        for extension in extensions {
            list.next().write_sequence(|parts| {
                let oid = ObjectIdentifier::from_slice(&extension.oid);
                parts.next().write_oid(&oid);
                if extension.critical {
                    parts.next().write_bool(true);
                }
                parts.next().write_bytes(&extension.value);
            });
        }
    });
}

/// What is signed, how, and the signature: the form of certificates and of revocation lists.
fn sign(to_sign: &[u8], key: &RsaKeyPair) -> Result<Vec<u8>, TeeError> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(
        &RSA_PSS_SHA384,
        &SystemRandom::new(),
        to_sign,
        &mut signature,
    )
    .map_err(|_| cannot_sign())?;
    Ok(construct_der(|writer| {
        writer.write_sequence(|list| {
            list.next().write_der(to_sign);
            list.next().write_der(&RSA_PSS);
            list.next()
                .write_bitvec_bytes(&signature, signature.len() * 8);
        });
    }))
}

fn rsa_key(pkcs8: &[u8]) -> Result<RsaKeyPair, TeeError> {
    RsaKeyPair::from_pkcs8(pkcs8).map_err(|_| cannot_sign())
}

fn utc(seconds: u64) -> Result<UTCTime, TeeError> {
    // Later dates than 2049 have another form, which nothing here needs.
    UTCTime::from_datetime_opt(date(seconds)?)
        .ok_or_else(|| super::collateral::wrong_clock("after 2049"))
}

const REPORT_BYTES: usize = 1184;
const REPORT_DATA_AT: usize = 0x50;
const SIGNATURE_HALF_BYTES: usize = 72;
const P384_BYTES: usize = 48;

const REPORT_VERSION: u32 = 5;
const GUEST_SVN: u32 = 1;
/// ABI 0.31, SMT allowed, the bit that is always one; no debugging, no migration.
const POLICY: u64 = 0x3001f;
const POLICY_DEBUG: u64 = 1 << 19;
/// SMT is on, memory has ECC, its addresses were checked for aliases.
const PLATFORM_INFO: u64 = 0x25;
/// Security versions of the boot loader, the secure OS, SNP and the microcode.
const TCB: [u8; 8] = [10, 0, 0, 0, 0, 0, 23, 84];
/// Family, model and stepping, as CPUID tells them.
const GENOA: [u8; 3] = [0x19, 0x11, 1];
const PRODUCT: &str = "Genoa";
/// Build, minor, major version, reserved.
const FIRMWARE: [u8; 4] = [1, 58, 1, 0];
const REPORT_ID: &[u8; 32] = b"BlindAI simulated guest report\0\0";

const VCEK_NAME: &str = "SEV-VCEK";
/// AMD gives all of them this number.
const VCEK_SERIAL: u64 = 0;
const ASK_SERIAL: u64 = 2;

const AMD: &[u64] = &[1, 3, 6, 1, 4, 1, 3704, 1];
const ORGANIZATION: &[u64] = &[2, 5, 4, 10];
const COMMON_NAME: &[u64] = &[2, 5, 4, 3];
const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const CA_WITHOUT_INTERMEDIATES: &[u8] = &[0x30, 6, 1, 1, 0xff, 2, 1, 0];
const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const SIGNS_CERTIFICATES: &[u8] = &[3, 2, 1, 6];
const CRL_NUMBER: &[u64] = &[2, 5, 29, 20];
/// RSASSA-PSS with SHA-384, MGF1 with SHA-384, 48 bytes of salt (RFC 4055).
const RSA_PSS: [u8; 67] = [
    0x30, 0x41, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a, 0x30, 0x34, 0xa0,
    0x0f, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00,
    0xa1, 0x1c, 0x30, 0x1a, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, 0x30,
    0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0xa2, 0x03,
    0x02, 0x01, 0x30,
];
