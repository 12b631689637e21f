use blindai_core::{Collateral, ReportData, Tee};

use crate::TeeError;

/// The platform that signs evidence. One implementation per kind of platform; shared by all
/// connections.
pub trait Attester: Send + Sync {
    /// The kind of TEE whose quotes it emits.
    fn tee(&self) -> Tee;

    /// A fresh quote over `report_data`, as the platform gives it.
    ///
    /// # Errors
    /// When the platform cannot sign, or signed something else than it was given.
    fn quote(&self, report_data: &ReportData) -> Result<Vec<u8>, TeeError>;

    /// The collateral that the platform itself supplies, not expired and not about to. `None` where
    /// it supplies none: then somebody has to fetch it from the vendor.
    ///
    /// # Errors
    /// When it should supply one and cannot.
    fn collateral(&self) -> Result<Option<Collateral>, TeeError>;

    /// Whether the evidence protects nothing.
    fn is_simulated(&self) -> bool;

    /// One line for the log at start.
    fn describe(&self) -> String;
}
