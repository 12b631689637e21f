//! TDX and SEV-SNP guests through Linux's configfs-tsm (6.7 and newer).
//!
//! One makes a directory; files appear in it. What is written to `inblob` comes back signed in
//! `outblob`, and `generation` counts the writes. Nothing there is private: any process with the
//! right to write can use any entry, and an outblob that was read a moment too late answers somebody
//! else's question. So every request gets an entry of its own under a random name, the count must
//! have risen by exactly our write, and the answer's own field must hold what we asked.

mod certificates;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, fs, io, thread};

use blindai_core::{Collateral, ReportData, SnpCollateral, Tee};

use crate::{Attester, TeeError, TeeErrorKind, device, signed};

/// A TDX or SEV-SNP guest; the kernel says which.
pub struct Tsm {
    folder: PathBuf,
    tee: Tee,
    /// What the host gave beside the latest report. It may change when the firmware is updated.
    certificates: Mutex<Certificates>,
}

type Certificates = Result<Option<SnpCollateral>, TeeError>;

impl Tsm {
    /// Where Linux shows its files.
    pub const FOLDER: &str = "/sys/kernel/config/tsm/report";

    /// The guest that this process runs in.
    ///
    /// # Errors
    /// As [`Tsm::at`].
    pub fn open() -> Result<Self, TeeError> {
        Self::at(Self::FOLDER)
    }

    /// The same, with the files elsewhere. Asks for one report, over the digest of nothing: whatever
    /// can fail for good fails here and not at the first client.
    ///
    /// # Errors
    /// [`TeeErrorKind::Unsupported`] when the kernel makes no entry there or names a provider that is
    /// not known; as [`Attester::quote`] otherwise.
    pub fn at(folder: impl Into<PathBuf>) -> Result<Self, TeeError> {
        let folder = folder.into();
        let report = ask_patiently(&folder, &ReportData::of_claims(&[]))?;
        Ok(Self {
            certificates: Mutex::new(report.certificates()),
            tee: report.tee,
            folder,
        })
    }
}

impl Attester for Tsm {
    fn tee(&self) -> Tee {
        self.tee
    }

    fn quote(&self, report_data: &ReportData) -> Result<Vec<u8>, TeeError> {
        let report = ask_patiently(&self.folder, report_data)?;
        if report.tee != self.tee {
            let fact = format!("the provider changed from {} to {}", self.tee, report.tee);
            return Err(TeeError::new(TeeErrorKind::Platform, fact, INTERFERENCE));
        }
        let mut certificates = self
            .certificates
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *certificates = report.certificates();
        Ok(report.outblob)
    }

    /// SEV-SNP: the certificates that the host gave beside the latest report, if it gave any. TDX:
    /// none.
    fn collateral(&self) -> Result<Option<Collateral>, TeeError> {
        let certificates = self
            .certificates
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let found = certificates.clone()?;
        Ok(found.map(Collateral::from))
    }

    fn is_simulated(&self) -> bool {
        false
    }

    fn describe(&self) -> String {
        format!("{} guest, by {}", self.tee, self.folder.display())
    }
}

impl fmt::Debug for Tsm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tsm({}, {})", self.tee, self.folder.display())
    }
}

/// What one request gave.
struct Report {
    tee: Tee,
    outblob: Vec<u8>,
    auxblob: Vec<u8>,
}

impl Report {
    fn certificates(&self) -> Certificates {
        certificates::parse(&self.auxblob, &self.outblob)
    }
}

/// Why one request gave nothing.
struct Failure {
    error: TeeError,
    /// The firmware serves one guest after the other, and the kernel one request.
    busy: bool,
}

impl From<TeeError> for Failure {
    fn from(error: TeeError) -> Self {
        Self { error, busy: false }
    }
}

/// Asks again, in an entry of its own each time, while the kernel is busy: two seconds in all.
fn ask_patiently(folder: &Path, report_data: &ReportData) -> Result<Report, TeeError> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..ATTEMPTS {
        match ask(folder, report_data) {
            Err(failure) if failure.busy => thread::sleep(pause),
            done => return done.map_err(|failure| failure.error),
        }
        pause *= 2;
    }
    ask(folder, report_data).map_err(|failure| failure.error)
}

fn ask(folder: &Path, report_data: &ReportData) -> Result<Report, Failure> {
    let entry = Entry::make(folder)?;
    let tee = provider(&entry.line("provider")?)?;
    entry.settle_privilege()?;
    let before = entry.generation()?;
    entry.write("inblob", report_data.as_bytes())?;
    let outblob = entry.read("outblob")?;
    let auxblob = match tee {
        Tee::SevSnp => entry.read_if_there("auxblob")?,
        _ => Vec::new(),
    };
    if entry.generation()?.checked_sub(before) != Some(1) {
        return Err(platform("somebody else wrote to our entry, or our write was lost").into());
    }
    if outblob.is_empty() {
        return Err(platform("outblob is empty").into());
    }
    signed::check(tee, &outblob, report_data)?;
    Ok(Report {
        tee,
        outblob,
        auxblob,
    })
}

/// A directory of files for one request; removed at the end, however that comes.
struct Entry(PathBuf);

impl Entry {
    fn make(folder: &Path) -> Result<Self, Failure> {
        let mut name = [0; 16];
        aws_lc_rs::rand::fill(&mut name).map_err(|_| platform("no randomness"))?;
        let path = folder.join(format!("blindai-{}", hex::encode(name)));
        match fs::create_dir(&path) {
            Ok(()) => Ok(Self(path)),
            Err(error) => Err(Failure {
                busy: is_busy(&error),
                error: no_entry(folder, &error),
            }),
        }
    }

    /// A guest below the highest privilege (VMPL 0) must say so, or gets nothing.
    fn settle_privilege(&self) -> Result<(), Failure> {
        let floor = self.read_if_there("privlevel_floor")?;
        match floor.trim_ascii() {
            b"" | b"0" => Ok(()),
            floor => self.write("privlevel", floor),
        }
    }

    fn generation(&self) -> Result<u64, Failure> {
        let text = self.line("generation")?;
        let number = text.parse();
        number.map_err(|_| platform("generation is not a number").into())
    }

    fn line(&self, file: &str) -> Result<String, Failure> {
        device::read_line(&self.0.join(file)).map_err(|error| failed(file, &error))
    }

    fn read(&self, file: &str) -> Result<Vec<u8>, Failure> {
        device::read(&self.0.join(file), BLOB_BYTES).map_err(|error| failed(file, &error))
    }

    /// Empty when the kernel has no such file.
    fn read_if_there(&self, file: &str) -> Result<Vec<u8>, Failure> {
        match device::read(&self.0.join(file), BLOB_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            done => done.map_err(|error| failed(file, &error)),
        }
    }

    fn write(&self, file: &str, bytes: &[u8]) -> Result<(), Failure> {
        device::write(&self.0.join(file), bytes).map_err(|error| failed(file, &error))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // One that stays costs the kernel a page and harms nobody.
        let _ = fs::remove_dir(&self.0);
    }
}

fn provider(name: &str) -> Result<Tee, TeeError> {
    match name {
        "tdx_guest" => Ok(Tee::Tdx),
        "sev_guest" => Ok(Tee::SevSnp),
        _ => {
            let fact = format!("the kernel's provider is {name:?}");
            let remedy = "run in a TDX or SEV-SNP guest";
            Err(TeeError::new(TeeErrorKind::Unsupported, fact, remedy))
        }
    }
}

fn is_busy(error: &io::Error) -> bool {
    use io::ErrorKind::{ResourceBusy, WouldBlock};
    matches!(error.kind(), ResourceBusy | WouldBlock)
}

fn no_entry(folder: &Path, error: &io::Error) -> TeeError {
    let fact = format!("no entry can be made in {}: {error}", folder.display());
    TeeError::new(TeeErrorKind::Unsupported, fact, NO_ENTRY)
}

fn failed(file: &str, error: &io::Error) -> Failure {
    Failure {
        busy: is_busy(error),
        error: platform(format!("{file}: {error}")),
    }
}

fn platform(fact: impl Into<std::borrow::Cow<'static, str>>) -> TeeError {
    TeeError::new(TeeErrorKind::Platform, fact, INTERFERENCE)
}

const ATTEMPTS: u32 = 11;
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// The kernel's own limit is 32 KiB.
const BLOB_BYTES: usize = 64 * 1024;
const NO_ENTRY: &str = "it takes Linux 6.7 or newer in a TDX or SEV-SNP guest, configfs mounted, the \
                        module tdx_guest or sev-guest, and the right to write there";
const INTERFERENCE: &str = "try again; if it stays, look at the kernel's log, and let no other \
                            program write to these files";
