//! Quotes of real machines, with the verdict that each must have.

use blindai_core::DcapCollateral;
use blindai_verify::RejectionCode as Code;

use super::{collateral, file};

/// Quote, collateral, time, then either the TCB status with the advisories, or the code.
pub type Row = (
    &'static str,
    &'static str,
    u64,
    Result<(&'static str, &'static [&'static str]), Code>,
);

pub const ROWS: &[Row] = &[
    (
        "sgx/dcapqvl_00a067110000",
        "sgx_00a067110000_2025-06",
        1751600000,
        Ok((
            "ConfigurationAndSWHardeningNeeded",
            &["INTEL-SA-00289", "INTEL-SA-00615"],
        )),
    ),
    (
        "sgx/mc_00906ed50000",
        "sgx_00906ed50000_2023-07_crl2025",
        1690480000,
        Ok(("SWHardeningNeeded", &["INTEL-SA-00334", "INTEL-SA-00615"])),
    ),
    (
        "sgx/mc_00906ed50000",
        "sgx_00906ed50000_2023-07_crl-expired",
        1690480000,
        Err(Code::CrlExpired),
    ),
    (
        "tdx/dcapqvl_v4_b0c06f",
        "tdx_b0c06f_2025-06",
        1751600000,
        Ok(("UpToDate", &[])),
    ),
    (
        "tdx/dcapqvl_v4_b0c06f",
        "tdx_b0c06f_2025-06",
        1753500000,
        Err(Code::CollateralExpired),
    ),
    (
        "tdx/dcapqvl_v4_b0c06f",
        "tdx_b0c06f_2025-06",
        1750000000,
        Err(Code::CollateralNotYetValid),
    ),
    (
        "tdx/dcapqvl_v4_b0c06f",
        "tdx_90c06f_2026-02",
        1772700000,
        Err(Code::CollateralMismatch),
    ),
    (
        "tdx/dcapqvl_v5_td15ex_b0c06f",
        "tdx_b0c06f_2026-10",
        1792700000,
        Ok(("UpToDate", &[])),
    ),
    (
        "tdx/dcapqvl_v5_nomatch_90c06f",
        "tdx_90c06f_2026-02",
        1772700000,
        Err(Code::TcbUnknown),
    ),
    (
        "tdx/gotdx_v5_td15_90c06f",
        "tdx_90c06f_2026-02",
        1772700000,
        Ok(("UpToDate", &[])),
    ),
    (
        "tdx/dcaprs_v4_gcp_00806f",
        "tdx_00806f_2024-09_crl2025",
        1727240000,
        Ok(("UpToDate", &[])),
    ),
    (
        "tdx/dcaprs_v4_gcp_00806f",
        "tdx_00806f_2026-01",
        1770800000,
        Ok((
            "OutOfDate",
            &[
                "INTEL-SA-00960",
                "INTEL-SA-00982",
                "INTEL-SA-00986",
                "INTEL-SA-01010",
                "INTEL-SA-01036",
                "INTEL-SA-01076",
                "INTEL-SA-01079",
                "INTEL-SA-01099",
                "INTEL-SA-01103",
                "INTEL-SA-01111",
            ],
        )),
    ),
    (
        "tdx/gotdx_v4_gcp_cos113_00806f",
        "tdx_00806f_2026-01",
        1770800000,
        Ok((
            "OutOfDate",
            &[
                "INTEL-SA-01010",
                "INTEL-SA-01036",
                "INTEL-SA-01076",
                "INTEL-SA-01079",
                "INTEL-SA-01099",
                "INTEL-SA-01103",
                "INTEL-SA-01111",
            ],
        )),
    ),
    (
        "tdx/flashbots_v4_gcp_00806f_2025",
        "tdx_00806f_2026-01",
        1770800000,
        Ok(("UpToDate", &[])),
    ),
    (
        "tdx/flashbots_v4_gcp_00806f_2026",
        "tdx_00806f_2026-06",
        1784100000,
        Ok(("UpToDate", &[])),
    ),
    (
        "tdx/flashbots_v4_azure_90c06f_2026",
        "tdx_90c06f_2026-06",
        1782200000,
        Ok(("UpToDate", &[])),
    ),
    (
        "tdx/trustee_v4_DEBUG_50806f",
        "tdx_50806f_2023-06",
        1687930000,
        Err(Code::Debug),
    ),
    (
        "tdx/trustee_v4_outofdate_00a06d08",
        "tdx_00a06d08_2025-10_crl2026",
        1762890000,
        Ok(("OutOfDate", &[])),
    ),
    (
        "tdx/trustee_v4_azure_no_septve_00806f",
        "tdx_00806f_2024-09_crl2025",
        1727240000,
        Err(Code::TdAttributes),
    ),
    (
        "tdx/dcapqvl_near_v4_20a06f",
        "tdx_20a06f_2025-09",
        1758000000,
        Ok(("UpToDate", &[])),
    ),
];

pub fn load(row: &Row) -> (Vec<u8>, DcapCollateral) {
    let quote = file(&format!("{}.quote", row.0));
    (quote, collateral(&format!("collateral/{}.json", row.1)))
}
