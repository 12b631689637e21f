//! The bytes of a quote: header and report, signed; then the signature and what certifies it.
//!
//! Layouts: Intel SGX ECDSA QuoteLibReference (version 3) and TDX DCAP Quoting Library API
//! (version 4). All numbers are little-endian.

use aws_lc_rs::digest::{SHA256, digest};
use blindai_core::Tee;

use super::forge::{Draft, Forge};
use super::pki::{CPU_SVN, PCE_SVN, Pki, RawKey};
use super::{SIMULATED_MRSIGNER, SimulationOptions, simulated_rtmr};
use crate::TeeError;

/// Emits quotes. Only the report data and its signature differ between two of them, so everything
/// else is made once.
pub(super) struct Quoter {
    attestation_key: RawKey,
    /// Header and report, with report data of zeros at its end.
    unsigned: Vec<u8>,
    /// What follows the signature and the attestation key.
    certification: Vec<u8>,
}

impl Quoter {
    /// Draws the attestation key and certifies it by the report of a quoting enclave that the PCK
    /// signs.
    pub(super) fn new(
        tee: Tee,
        mut unsigned: Vec<u8>,
        pki: &Pki,
        pck: &RawKey,
        forge: &Forge,
    ) -> Result<Self, TeeError> {
        let attestation_key = RawKey::p256()?;
        let mut qe_report = qe_report(tee, &attestation_key);
        forge.edit(Draft::QeReport(&mut qe_report));
        forge.edit(Draft::Report(&mut unsigned));
        let certificates = [pki.pck_chain.as_bytes(), &[0]].concat();
        let qe = [
            &qe_report,
            &pck.sign(&qe_report)?[..],
            &(QE_AUTH_DATA.len() as u16).to_le_bytes(),
            &QE_AUTH_DATA,
            &certification_data(PCK_CERTIFICATE_CHAIN, &certificates),
        ];
        let certification = match tee {
            Tee::Tdx => certification_data(QE_REPORT_CERTIFICATION, &qe.concat()),
            _ => qe.concat(),
        };
        Ok(Self {
            attestation_key,
            unsigned,
            certification,
        })
    }

    /// A quote over `report_data`: one signature.
    pub(super) fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, TeeError> {
        let public_key = self.attestation_key.public_key();
        let signature_data = SIGNATURE_BYTES + public_key.len() + self.certification.len();
        let mut quote = Vec::with_capacity(self.unsigned.len() + 4 + signature_data);
        quote.extend_from_slice(&self.unsigned[..self.unsigned.len() - REPORT_DATA_BYTES]);
        quote.extend_from_slice(report_data);
        let signature = self.attestation_key.sign(&quote)?;
        quote.extend_from_slice(&(signature_data as u32).to_le_bytes());
        quote.extend_from_slice(&signature);
        quote.extend_from_slice(public_key);
        quote.extend_from_slice(&self.certification);
        Ok(quote)
    }
}

/// `bytes`, then zeros.
pub(super) fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array[..bytes.len()].copy_from_slice(bytes);
    array
}

/// ISVPRODID of Intel's quoting enclaves: 1 for SGX, 2 for TDX.
pub(super) fn qe_isv_prod_id(tee: Tee) -> u16 {
    if tee == Tee::Tdx { 2 } else { 1 }
}

/// Header and report of an enclave, with report data of zeros at its end.
pub(super) fn sgx_quote(options: &SimulationOptions, mr_enclave: &[u8; 32]) -> Vec<u8> {
    [SGX_HEADER.concat(), sgx_report(options, mr_enclave)].concat()
}

/// Header and report of a trust domain, with report data of zeros at its end.
pub(super) fn tdx_quote(options: &SimulationOptions, mr_td: &[u8; 48]) -> Vec<u8> {
    [TDX_HEADER.concat(), td_report(options, mr_td)].concat()
}

fn qe_report(tee: Tee, attestation_key: &RawKey) -> Vec<u8> {
    let certified = [attestation_key.public_key(), &QE_AUTH_DATA].concat();
    EnclaveReport {
        attributes: ENCLAVE_INIT | ENCLAVE_MODE_64_BIT | ENCLAVE_PROVISION_KEY,
        mr_enclave: QE_MRENCLAVE,
        mr_signer: QE_MRSIGNER,
        isv_prod_id: qe_isv_prod_id(tee),
        isv_svn: QE_ISV_SVN,
        report_data: padded(digest(&SHA256, &certified).as_ref()),
    }
    .to_bytes()
}

fn sgx_report(options: &SimulationOptions, mr_enclave: &[u8; 32]) -> Vec<u8> {
    let debug = if options.debug { ENCLAVE_DEBUG } else { 0 };
    EnclaveReport {
        attributes: ENCLAVE_INIT | ENCLAVE_MODE_64_BIT | debug,
        mr_enclave: *mr_enclave,
        mr_signer: SIMULATED_MRSIGNER,
        isv_prod_id: options.isv_prod_id,
        isv_svn: options.isv_svn,
        report_data: [0; REPORT_DATA_BYTES],
    }
    .to_bytes()
}

/// The parts of an SGX report that are not the same in all of ours.
struct EnclaveReport {
    attributes: u64,
    mr_enclave: [u8; 32],
    mr_signer: [u8; 32],
    isv_prod_id: u16,
    isv_svn: u16,
    report_data: [u8; REPORT_DATA_BYTES],
}

impl EnclaveReport {
    fn to_bytes(&self) -> Vec<u8> {
        [
            &CPU_SVN[..],
            &[0; 4],  // MISCSELECT
            &[0; 28], // reserved, ISVEXTPRODID
            &self.attributes.to_le_bytes(),
            &ENCLAVE_XFRM.to_le_bytes(),
            &self.mr_enclave,
            &[0; 32],
            &self.mr_signer,
            &[0; 96], // reserved, CONFIGID
            &self.isv_prod_id.to_le_bytes(),
            &self.isv_svn.to_le_bytes(),
            &[0; 60], // CONFIGSVN, reserved, ISVFAMILYID
            &self.report_data,
        ]
        .concat()
    }
}

fn td_report(options: &SimulationOptions, mr_td: &[u8; 48]) -> Vec<u8> {
    let debug = if options.debug { TD_DEBUG } else { 0 };
    [
        &TEE_TCB_SVN[..],
        &padded::<48>(b"BlindAI simulated TDX module"), // MRSEAM
        &MR_SIGNER_SEAM,
        &[0; 8], // SEAMATTRIBUTES
        &(TD_SEPT_VE_DISABLE | debug).to_le_bytes(),
        &TD_XFAM.to_le_bytes(),
        mr_td,
        &[0; 48], // MRCONFIGID
        &[0; 48], // MROWNER
        &[0; 48], // MROWNERCONFIG
        &simulated_rtmr(0),
        &simulated_rtmr(1),
        &simulated_rtmr(2),
        &simulated_rtmr(3),
        &[0; REPORT_DATA_BYTES],
    ]
    .concat()
}

fn certification_data(kind: u16, body: &[u8]) -> Vec<u8> {
    [
        &kind.to_le_bytes()[..],
        &(body.len() as u32).to_le_bytes(),
        body,
    ]
    .concat()
}

const SIGNATURE_BYTES: usize = 64;
const REPORT_DATA_BYTES: usize = 64;

/// Version 3, ECDSA P-256, reserved, the SVNs of the quoting and the certification enclave, the
/// vendor of the quoting enclave, its id.
const SGX_HEADER: [&[u8]; 7] = [
    &[3, 0],
    &[2, 0],
    &[0; 4],
    &QE_ISV_SVN.to_le_bytes(),
    &PCE_SVN.to_le_bytes(),
    &INTEL_QE_VENDOR_ID,
    QE_ID,
];
/// Version 4, ECDSA P-256, TDX, reserved, the vendor of the quoting enclave, its id.
const TDX_HEADER: [&[u8]; 6] = [
    &[4, 0],
    &[2, 0],
    &[0x81, 0, 0, 0],
    &[0; 4],
    &INTEL_QE_VENDOR_ID,
    QE_ID,
];
/// Verifiers refuse any other vendor. It says which format this is, not who signed.
const INTEL_QE_VENDOR_ID: [u8; 16] = [
    0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
];
const QE_ID: &[u8; 20] = b"BlindAI sim QE\0\0\0\0\0\0";

const PCK_CERTIFICATE_CHAIN: u16 = 5;
const QE_REPORT_CERTIFICATION: u16 = 6;

const QE_MRENCLAVE: [u8; 32] = *b"BlindAI simulated quoting encl. ";
pub(super) const QE_MRSIGNER: [u8; 32] = *b"BlindAI simulated quoting signer";
pub(super) const QE_ISV_SVN: u16 = 8;
/// What Intel's quoting enclaves put here, too.
const QE_AUTH_DATA: [u8; 32] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25,
    26, 27, 28, 29, 30, 31,
];

const ENCLAVE_INIT: u64 = 1;
const ENCLAVE_DEBUG: u64 = 1 << 1;
const ENCLAVE_MODE_64_BIT: u64 = 1 << 2;
const ENCLAVE_PROVISION_KEY: u64 = 1 << 4;
/// x87, SSE, AVX, AVX-512: what a server of today enables.
const ENCLAVE_XFRM: u64 = 0xe7;

/// TDX module 1.x: its ISVSVN, its major version, the late microcode's SVN.
pub(super) const TEE_TCB_SVN: [u8; 16] = [6, 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Zeros stand for Intel's own module.
pub(super) const MR_SIGNER_SEAM: [u8; 48] = [0; 48];
const TD_DEBUG: u64 = 1;
/// Without it the host can inject faults on pages that the guest has not accepted.
const TD_SEPT_VE_DISABLE: u64 = 1 << 28;
const TD_XFAM: u64 = 0x602e7;
