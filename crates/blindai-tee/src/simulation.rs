//! A platform that is everything real except the trust root.
//!
//! The story that its quotes tell is that of real hardware: Intel's root certifies a platform CA,
//! that one the platform's provisioning certification key (PCK), that one the report of the quoting
//! enclave (QE), that report the attestation key, and the attestation key signs the enclave's or
//! trust domain's report. Beside it, the TCB signer certifies which patch levels are current. Here
//! the root is ours, its private key public, and every key below it drawn at start.
//!
//! SEV-SNP has a shorter story: AMD's root (ARK) certifies an intermediate (ASK), that one the key of
//! the chip (VCEK), which signs the guest's report. Drawing RSA keys takes long, so ASK and ARK are
//! both kept, and both public; only the VCEK is drawn at start.

mod amd;
mod collateral;
mod forge;
mod pki;
mod quote;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blindai_core::{Collateral, ReportData, Tee};

use self::amd::Chip;
use self::collateral::Window;
use self::forge::Forge;
#[cfg(feature = "forge")]
pub use self::forge::{Certificate, Draft, Extension, RevocationList};
use self::pki::Pki;
use self::quote::Quoter;
use crate::{Attester, Measurement, TeeError, TeeErrorKind};

/// The private key of the simulation's trust root, PKCS#8 in PEM. It is published on purpose: what
/// it signs is worth nothing, and nobody can mistake a simulation for a protected machine.
pub const SIMULATION_ROOT_PRIVATE_KEY_KNOWN_TO_EVERYONE: &str =
    include_str!("simulation_root_public_private_key.pem");
/// The private key in the place of AMD's root, PKCS#8 in DER, published as the other one.
pub const SIMULATION_ARK_PRIVATE_KEY_KNOWN_TO_EVERYONE: &[u8] =
    include_bytes!("simulation/simulation_ark_private_key_known_to_everyone.pk8");
/// The private key in the place of AMD's intermediate, PKCS#8 in DER, published as the other two.
pub const SIMULATION_ASK_PRIVATE_KEY_KNOWN_TO_EVERYONE: &[u8] =
    include_bytes!("simulation/simulation_ask_private_key_known_to_everyone.pk8");

/// MRSIGNER of every simulated enclave. No key has this digest.
pub const SIMULATED_MRSIGNER: [u8; 32] = *b"BlindAI simulated enclave signer";
/// The family, model and platform of the simulated processor.
pub const SIMULATED_FMSPC: [u8; 6] = *b"SIMUL\0";
/// The identity of the simulated processor (PPID), the same on every machine.
pub const SIMULATED_PPID: [u8; 16] = *b"BlindAI sim PPID";
/// The identity of the simulated platform, the same on every machine.
pub const SIMULATED_PLATFORM_INSTANCE_ID: [u8; 16] = *b"BlindAI sim host";
/// The identity of the simulated AMD chip, the same on every machine.
pub const SIMULATED_CHIP_ID: [u8; 64] =
    *b"BlindAI simulated chip, the same one on every machine. No secret";

/// For how long collateral is valid by default: 30 days, like Intel's.
pub const DEFAULT_COLLATERAL_VALIDITY: Duration = Duration::from_secs(30 * 24 * 3600);

/// Where a simulation takes the time from.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// RTMR `index` (0 to 3) of every simulated trust domain: the text
/// `BlindAI simulated RTMR <index>`, padded with zeros. Nothing is extended into it.
pub fn simulated_rtmr(index: u8) -> [u8; 48] {
    quote::padded(format!("BlindAI simulated RTMR {index}").as_bytes())
}

/// What a [`Simulation`] pretends to be.
#[derive(Clone)]
pub struct SimulationOptions {
    /// The measurement in every quote. It also chooses between SGX, TDX and SEV-SNP.
    pub measurement: Measurement,
    /// SGX: the enclave's product id. Default 1.
    pub isv_prod_id: u16,
    /// SGX: the enclave's security version. Default 1.
    pub isv_svn: u16,
    /// Whether quotes say that the enclave, trust domain or guest can be debugged. Default no.
    pub debug: bool,
    /// For how long fresh collateral is valid, from a second to ten years. Default
    /// [`DEFAULT_COLLATERAL_VALIDITY`]. It is renewed when half of it has passed.
    pub collateral_validity: Duration,
    /// Default [`SystemTime::now`].
    pub clock: Clock,
}

impl SimulationOptions {
    /// The defaults, for code of this measurement.
    pub fn new(measurement: Measurement) -> Self {
        Self {
            measurement,
            isv_prod_id: 1,
            isv_svn: 1,
            debug: false,
            collateral_validity: DEFAULT_COLLATERAL_VALIDITY,
            clock: Arc::new(SystemTime::now),
        }
    }
}

/// A simulated SGX, TDX or SEV-SNP platform. See the crate's documentation for what it does not prove.
pub struct Simulation {
    measurement: Measurement,
    collateral_validity: Duration,
    clock: Clock,
    platform: Platform,
    forge: Forge,
    current: Mutex<Option<(Window, Collateral)>>,
}

/// Whose formats it speaks.
enum Platform {
    Intel(Box<Pki>, Quoter),
    Amd(Chip),
}

impl Simulation {
    /// Draws the platform's keys and lets them be certified under the simulation's root.
    ///
    /// # Errors
    /// [`TeeErrorKind::InvalidOption`] for a validity out of range, [`TeeErrorKind::Clock`] when the
    /// clock is not between 2026 and 2049.
    pub fn new(options: SimulationOptions) -> Result<Self, TeeError> {
        Self::start(options, Forge::default())
    }

    /// As [`Simulation::new`], but `change` may change what the vendor or the processor is about to
    /// sign: revoke, let expire, tell another patch level. For tests of verifiers.
    ///
    /// # Errors
    /// As [`Simulation::new`].
    #[cfg(feature = "forge")]
    pub fn forged(
        options: SimulationOptions,
        change: impl Fn(Draft<'_>) + Send + Sync + 'static,
    ) -> Result<Self, TeeError> {
        Self::start(options, Forge::new(change))
    }

    fn start(options: SimulationOptions, forge: Forge) -> Result<Self, TeeError> {
        check_validity(options.collateral_validity)?;
        let simulation = Self {
            measurement: options.measurement,
            collateral_validity: options.collateral_validity,
            platform: Platform::new(&options, &forge)?,
            clock: options.clock,
            forge,
            current: Mutex::new(None),
        };
        // Whatever can fail for good fails here and not at the first client.
        simulation.collateral()?;
        Ok(simulation)
    }

    /// Signs any 64 bytes, as real platforms do: for emulations of a kernel's interface, which get
    /// bytes and not [`ReportData`].
    ///
    /// # Errors
    /// As [`Attester::quote`].
    pub fn sign(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, TeeError> {
        match &self.platform {
            Platform::Intel(_, quoter) => quoter.quote(report_data),
            Platform::Amd(chip) => chip.report(report_data),
        }
    }
}

impl Platform {
    fn new(options: &SimulationOptions, forge: &Forge) -> Result<Self, TeeError> {
        let unsigned = match &options.measurement {
            Measurement::MrEnclave(enclave) => quote::sgx_quote(options, enclave),
            Measurement::MrTd(td) => quote::tdx_quote(options, td),
            Measurement::Launch(guest) => {
                return Ok(Self::Amd(Chip::new(options, guest, forge)?));
            }
        };
        let (pki, pck) = Pki::new(forge)?;
        let tee = options.measurement.tee();
        let quoter = Quoter::new(tee, unsigned, &pki, &pck, forge)?;
        Ok(Self::Intel(Box::new(pki), quoter))
    }
}

impl Attester for Simulation {
    fn tee(&self) -> Tee {
        self.measurement.tee()
    }

    fn quote(&self, report_data: &ReportData) -> Result<Vec<u8>, TeeError> {
        self.sign(report_data.as_bytes())
    }

    fn collateral(&self) -> Result<Option<Collateral>, TeeError> {
        let now = unix_seconds((self.clock)())?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((window, collateral)) = &*current
            && window.is_fresh(now)
        {
            return Ok(Some(collateral.clone()));
        }
        let window = Window::starting(now, self.collateral_validity)?;
        let collateral = match &self.platform {
            Platform::Intel(pki, _) => {
                collateral::issue(pki, self.tee(), &window, &self.forge)?.into()
            }
            Platform::Amd(chip) => Collateral::from(chip.collateral(&window, &self.forge)?),
        };
        *current = Some((window, collateral.clone()));
        Ok(Some(collateral))
    }

    fn is_simulated(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        let (tee, name) = (self.tee(), self.measurement.name());
        format!(
            "simulated {tee}, {name} {}: protects nothing",
            self.measurement
        )
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Simulation({})", self.describe())
    }
}

fn check_validity(validity: Duration) -> Result<(), TeeError> {
    if (MIN_VALIDITY..=MAX_VALIDITY).contains(&validity) {
        return Ok(());
    }
    Err(TeeError::new(
        TeeErrorKind::InvalidOption,
        format!("collateral cannot be valid for {validity:?}"),
        "choose between a second and ten years",
    ))
}

fn unix_seconds(time: SystemTime) -> Result<u64, TeeError> {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Ok(since.as_secs()),
        Err(_) => Err(collateral::wrong_clock("before 1970")),
    }
}

const MIN_VALIDITY: Duration = Duration::from_secs(1);
const MAX_VALIDITY: Duration = Duration::from_secs(10 * 366 * 24 * 3600);
