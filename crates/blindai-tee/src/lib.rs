//! Collects evidence: the proof of what runs here and on what, signed by the hardware.
//!
//! [`Attester`] is the one way to ask for it: [`Gramine`] is an SGX enclave, [`Tsm`] a TDX or SEV-SNP
//! guest, [`detect`] looks where we are. [`Simulation`] implements it on any machine: it emits quotes
//! of the true SGX and TDX formats and reports of the true SEV-SNP format, with certificates,
//! revocation lists and TCB information of the true formats, so a verifier runs every check that it
//! runs in production. [`sealer`] holds the keys that only the same code on the same hardware gets
//! again.
//!
//! ```
//! use blindai_core::{ReportData, Tee};
//! use blindai_tee::{Attester, RUNNING_EXECUTABLE, Simulation, SimulationOptions, measure_executable};
//!
//! let measurement = measure_executable(Tee::Sgx, RUNNING_EXECUTABLE)?;
//! let attester = Simulation::new(SimulationOptions::new(measurement))?;
//! let quote = attester.quote(&ReportData::of_claims(b"claims"))?;
//! let collateral = attester.collateral()?;
//! # assert!(!quote.is_empty() && collateral.is_some());
//! # Ok::<(), blindai_tee::TeeError>(())
//! ```
//!
//! # What a simulation proves
//! That the code around the hardware works: the binding of the TLS key to the claims and of the
//! claims to the report data, the chain of signatures, expiry, revocation, the policy. Its
//! measurement is the digest of the executable, so a policy pins something real and an upgrade
//! changes it.
//!
//! # What it does not prove
//! Anything about the machine. The private key of its root is public, in the source
//! ([`SIMULATION_ROOT_PRIVATE_KEY_KNOWN_TO_EVERYONE`]), so anybody can forge any quote under it. The
//! operator reads the memory of the process. The measurement is what the process says of itself; it
//! covers the executable, not the libraries it loads, not its arguments, not the kernel. A verifier
//! must accept this root ([`blindai_core::simulation`]) only when it was asked to, by name.
#![deny(unsafe_code)]

mod attester;
mod detect;
mod device;
mod error;
mod gramine;
mod measurement;
pub mod sealer;
mod signed;
mod simulation;
mod tsm;

pub use attester::Attester;
pub use detect::detect;
pub use error::{TeeError, TeeErrorKind};
pub use gramine::Gramine;
pub use measurement::{Measurement, RUNNING_EXECUTABLE, measure_executable};
#[cfg(feature = "forge")]
pub use simulation::{Certificate, Draft, Extension, RevocationList};
pub use simulation::{
    Clock, DEFAULT_COLLATERAL_VALIDITY, SIMULATED_CHIP_ID, SIMULATED_FMSPC, SIMULATED_MRSIGNER,
    SIMULATED_PLATFORM_INSTANCE_ID, SIMULATED_PPID, SIMULATION_ARK_PRIVATE_KEY_KNOWN_TO_EVERYONE,
    SIMULATION_ASK_PRIVATE_KEY_KNOWN_TO_EVERYONE, SIMULATION_ROOT_PRIVATE_KEY_KNOWN_TO_EVERYONE,
    Simulation, SimulationOptions, simulated_rtmr,
};
pub use tsm::Tsm;
