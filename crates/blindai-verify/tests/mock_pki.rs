//! What no public set of evidence has: platforms and vendors whose signatures hold and whose
//! statements are bad. Each goes through the code of production, for a connection and by itself.

mod support;

use blindai_core::{Collateral, Evidence, ReportData, Tee};
use blindai_tee::{
    Attester as _, Certificate, Draft, Extension, Measurement, Simulation, SimulationOptions,
};
use blindai_verify::{
    Policy, QuoteReport, Rejection, RejectionCode as Code, VerifiedReport, appraise_quote, verify,
};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use support::{NOW, assert_code, claims, connection, simulation};

const INTEL: &[Tee] = &[Tee::Sgx, Tee::Tdx];
const AMD: &[Tee] = &[Tee::SevSnp];
const ENDED: u64 = NOW - 1;
const STARTS: u64 = NOW + 1000;

/// How something bad comes about, in words and in deed.
type Bad = (&'static str, fn(Draft<'_>));

/// A change of one thing that a vendor or processor is about to sign.
macro_rules! change {
    ($kind:ident, $draft:ident => $change:expr) => {
        (
            concat!(stringify!($kind), ": ", stringify!($change)),
            |draft| {
                if let Draft::$kind($draft) = draft {
                    $change;
                }
            },
        )
    };
}

#[test]
fn unchanged_platforms_are_trusted() {
    for tee in [Tee::Sgx, Tee::Tdx, Tee::SevSnp] {
        let platform = Platform::new(tee, |_| {});
        assert!(platform.verify(&simulation()).unwrap().simulated());
        assert_eq!(platform.appraise(&simulation()).unwrap().tee(), tee);
    }
}

#[test]
fn revoked_certificates_are_refused() {
    refuses(
        INTEL,
        Code::CertificateRevoked,
        &[
            change!(PckCrl, l => l.revoked.push(PCK)),
            change!(RootCrl, l => l.revoked.push(PLATFORM_CA)),
            change!(RootCrl, l => l.revoked.push(TCB_SIGNER)),
        ],
    );
    refuses(
        AMD,
        Code::CertificateRevoked,
        &[
            change!(AmdCrl, l => l.revoked.push(VCEK)),
            change!(AmdCrl, l => l.revoked = vec![77, ASK]),
        ],
    );
}

#[test]
fn a_revocation_of_others_changes_nothing() {
    for tee in [INTEL, AMD].concat() {
        let others = |draft: Draft<'_>| match draft {
            Draft::PckCrl(list) | Draft::RootCrl(list) | Draft::AmdCrl(list) => {
                list.revoked = vec![77, 78];
            }
            _ => {}
        };
        Platform::new(tee, others).verify(&simulation()).unwrap();
    }
}

#[test]
fn what_has_ended_is_refused() {
    refuses(
        INTEL,
        Code::CertificateExpired,
        &[
            change!(Pck, c => c.not_after = ENDED),
            change!(PlatformCa, c => c.not_after = ENDED),
            change!(TcbSigner, c => c.not_after = ENDED),
        ],
    );
    refuses(
        INTEL,
        Code::CrlExpired,
        &[
            change!(RootCrl, l => l.next_update = ENDED),
            change!(PckCrl, l => l.next_update = ENDED),
        ],
    );
    refuses(
        INTEL,
        Code::CollateralExpired,
        &[
            change!(TcbInfo, i => i["nextUpdate"] = date(ENDED)),
            change!(QeIdentity, i => i["nextUpdate"] = date(ENDED)),
        ],
    );
    refuses(
        AMD,
        Code::CertificateExpired,
        &[
            change!(Vcek, c => c.not_after = ENDED),
            change!(Ask, c => c.not_after = ENDED),
        ],
    );
    refuses(
        AMD,
        Code::CrlExpired,
        &[change!(AmdCrl, l => l.next_update = ENDED)],
    );
}

#[test]
fn what_has_not_begun_is_refused() {
    refuses(
        INTEL,
        Code::CertificateNotYetValid,
        &[
            change!(Pck, c => c.not_before = STARTS),
            change!(PlatformCa, c => c.not_before = STARTS),
            change!(TcbSigner, c => c.not_before = STARTS),
        ],
    );
    refuses(
        INTEL,
        Code::CollateralNotYetValid,
        &[
            change!(TcbInfo, i => i["issueDate"] = date(STARTS)),
            change!(QeIdentity, i => i["issueDate"] = date(STARTS)),
        ],
    );
    refuses(
        AMD,
        Code::CertificateNotYetValid,
        &[
            change!(Vcek, c => c.not_before = STARTS),
            change!(Ask, c => c.not_before = STARTS),
        ],
    );
    refuses(
        AMD,
        Code::CollateralNotYetValid,
        &[change!(AmdCrl, l => l.this_update = STARTS)],
    );
}

/// Kept evidence is verified at the time of its making with a list of today: a list that is newer
/// than the time of verification knows more, not less.
#[test]
fn intels_revocation_lists_of_later_are_heeded() {
    for tee in INTEL {
        let later = |draft: Draft<'_>| match draft {
            Draft::PckCrl(list) | Draft::RootCrl(list) => list.this_update = STARTS,
            _ => {}
        };
        Platform::new(*tee, later).verify(&simulation()).unwrap();
        let revoking = move |draft: Draft<'_>| {
            if let Draft::PckCrl(list) = draft {
                (list.this_update, list.revoked) = (STARTS, vec![PCK]);
            }
        };
        let revoked = Platform::new(*tee, revoking).verify(&simulation());
        assert_code(revoked, Code::CertificateRevoked);
    }
}

#[test]
fn another_quoting_enclave_is_refused() {
    refuses(
        INTEL,
        Code::QuotingEnclave,
        &[
            change!(QeReport, r => r[MRSIGNER] ^= 1),
            change!(QeReport, r => r[ISV_PROD_ID] ^= 4),
            change!(QeReport, r => r[ISV_SVN] = 7),
            change!(QeReport, r => r[MISCSELECT] = 1),
            change!(QeReport, r => r[ATTRIBUTES] |= 2),
            change!(QeIdentity, i => i["mrsigner"] = json!("00".repeat(32))),
            change!(QeIdentity, i => i["isvprodid"] = json!(9)),
            change!(QeIdentity, i => i["tcbLevels"][0]["tcb"]["isvsvn"] = json!(9)),
        ],
    );
    refuses(
        INTEL,
        Code::QuoteSignature,
        &[change!(QeReport, r => r[REPORT_DATA] ^= 1)],
    );
}

#[test]
fn collateral_of_other_platforms_is_refused() {
    refuses(
        INTEL,
        Code::CollateralMismatch,
        &[change!(TcbInfo, i => i["fmspc"] = json!("00A067110000"))],
    );
    refuses(
        &[Tee::Tdx],
        Code::CollateralMismatch,
        &[
            change!(TcbInfo, i => i["id"] = json!("SGX")),
            change!(QeIdentity, i => i["id"] = json!("QE")),
        ],
    );
    refuses(
        &[Tee::Sgx],
        Code::CollateralMismatch,
        &[
            change!(TcbInfo, i => i["id"] = json!("TDX")),
            change!(QeIdentity, i => i["id"] = json!("TD_QE")),
        ],
    );
}

#[test]
fn certificates_of_another_ca_are_refused() {
    for tee in INTEL {
        let (one, other) = (Platform::new(*tee, |_| {}), Platform::new(*tee, |_| {}));
        let (Collateral::Dcap(own), Collateral::Dcap(others)) =
            (&one.collateral, &other.collateral)
        else {
            panic!("{tee}")
        };
        let (mut namesake, mut root, mut signer) = (own.clone(), own.clone(), own.clone());
        namesake.pck_crl = others.pck_crl.clone();
        root.pck_crl = own.root_ca_crl.clone();
        signer.tcb_info_issuer_chain = others.tcb_info_issuer_chain.clone();
        for (collateral, code) in [
            (namesake, Code::ChainInvalid),
            (root, Code::CollateralMismatch),
            (signer, Code::CollateralSignature),
        ] {
            let with = Platform {
                collateral: collateral.into(),
                ..one.clone()
            };
            with.refused("another CA", &simulation(), code);
        }
    }
}

#[test]
fn debug_is_refused() {
    refuses(
        &[Tee::Sgx],
        Code::Debug,
        &[change!(Report, r => r[QUOTE_HEADER + ATTRIBUTES] |= 2)],
    );
    refuses(
        &[Tee::Tdx],
        Code::Debug,
        &[
            change!(Report, r => r[TD_ATTRIBUTES] |= 1),
            change!(Report, r => r[TD_ATTRIBUTES] |= 1 << 4),
        ],
    );
    refuses(
        AMD,
        Code::Debug,
        &[change!(Report, r => r[GUEST_POLICY + 2] |= 1 << 3)],
    );
}

#[test]
fn weak_attributes_of_a_td_are_refused() {
    refuses(
        &[Tee::Tdx],
        Code::TdAttributes,
        &[
            change!(Report, r => r[TD_ATTRIBUTES + 3] &= !(1 << 4)),
            change!(Report, r => r[TD_ATTRIBUTES + 3] |= 1 << 5),
        ],
    );
    refuses(
        &[Tee::Tdx],
        Code::TdxModule,
        &[change!(Report, r => r[MR_SIGNER_SEAM] = 1)],
    );
}

#[test]
fn a_platform_below_every_patch_level_is_refused() {
    refuses(
        INTEL,
        Code::TcbUnknown,
        &[
            change!(TcbInfo, i => level(i)["tcb"]["pcesvn"] = json!(14)),
            change!(TcbInfo, i => level(i)["tcb"]["sgxtcbcomponents"][0]["svn"] = json!(4)),
        ],
    );
    refuses(
        &[Tee::Tdx],
        Code::TcbUnknown,
        &[change!(TcbInfo, i => level(i)["tcb"]["tdxtcbcomponents"][2]["svn"] = json!(4))],
    );
}

#[test]
fn the_worst_status_counts() {
    refuses(
        INTEL,
        Code::TcbStatus,
        &[change!(QeIdentity, i => level(i)["tcbStatus"] = json!("OutOfDate"))],
    );
    refuses(
        INTEL,
        Code::TcbRevoked,
        &[change!(QeIdentity, i => level(i)["tcbStatus"] = json!("Revoked"))],
    );
    refuses(
        &[Tee::Tdx],
        Code::TcbStatus,
        &[
            change!(TcbInfo, i => level(&mut i["tdxModuleIdentities"][0])["tcbStatus"] = json!("OutOfDate")),
        ],
    );
    refuses(
        &[Tee::Tdx],
        Code::TcbRevoked,
        &[
            change!(TcbInfo, i => level(&mut i["tdxModuleIdentities"][0])["tcbStatus"] = json!("Revoked")),
        ],
    );
}

#[test]
fn certificates_of_other_chips_are_refused() {
    refuses(
        AMD,
        Code::CollateralMismatch,
        &[
            // Another patch level: of the certificate, of the report.
            change!(Vcek, c => vendor(c, &[3, 1]).value = vec![2, 1, 9]),
            change!(Vcek, c => vendor(c, &[3, 2]).value = vec![2, 1, 9]),
            change!(Vcek, c => vendor(c, &[3, 3]).value = vec![2, 1, 9]),
            change!(Vcek, c => vendor(c, &[3, 8]).value = vec![2, 1, 9]),
            change!(Report, r => r[REPORTED_TCB + 7] += 1),
            // Another chip, none, a product of another family, a key of another kind.
            change!(Vcek, c => vendor(c, &[4]).value[0] ^= 1),
            change!(Report, r => r[CHIP_ID] ^= 1),
            change!(Report, r => r[CHIP_ID..CHIP_ID + 64].fill(0)),
            change!(Vcek, c => vendor(c, &[2]).value = b"\x16\x05Milan".to_vec()),
            change!(Vcek, c => c.extensions.retain(|e| !e.oid.ends_with(&[3704, 1, 4]))),
            change!(Report, r => r[KEY_INFO] |= 1 << 2),
        ],
    );
    refuses(
        AMD,
        Code::CollateralMalformed,
        &[
            change!(Vcek, c => vendor(c, &[3, 8]).value = vec![2, 2, 1, 0]),
            change!(Vcek, c => c.extensions.retain(|e| !e.oid.ends_with(&[3, 8]))),
            change!(Vcek, c => c.extensions.retain(|e| !e.oid.ends_with(&[3704, 1, 2]))),
            change!(Vcek, c => c.extensions.extend_from_within(2..3)),
        ],
    );
    refuses(
        AMD,
        Code::ChainInvalid,
        &[
            change!(Vcek, c => vendor(c, &[1]).critical = true),
            change!(Ask, c => c.extensions.clear()),
        ],
    );
}

#[test]
fn the_key_of_another_chip_is_refused() {
    let (one, other) = (
        Platform::new(Tee::SevSnp, |_| {}),
        Platform::new(Tee::SevSnp, |_| {}),
    );
    let with = Platform {
        collateral: other.collateral,
        ..one
    };
    with.refused("another VCEK", &simulation(), Code::QuoteSignature);
}

#[test]
fn guests_that_others_can_read_are_refused() {
    refuses(
        AMD,
        Code::GuestPolicy,
        &[
            change!(Report, r => r[GUEST_POLICY + 2] |= 1 << 2),
            change!(Report, r => r[GUEST_POLICY + 7] = 1),
        ],
    );
    refuses(AMD, Code::Vmpl, &[change!(Report, r => r[VMPL] = 1)]);
}

/// What a policy allows by name is trusted and told; anything else that is not up to date is not.
#[test]
fn each_tcb_status_is_what_the_policy_says_of_it() {
    let statuses = [
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
    ];
    for (tee, status) in INTEL
        .iter()
        .flat_map(|tee| statuses.map(|status| (*tee, status)))
    {
        let platform = Platform::at_level(tee, status, &["INTEL-SA-00001", "INTEL-SA-00002"]);
        platform.refused(status, &simulation(), Code::TcbStatus);
        let allowed = format!("[tcb]\nallowed = [{status:?}]");
        platform.refused(status, &platform.pinned(&allowed), Code::TcbAdvisory);
        let excepted = format!("{allowed}{}", except(&["INTEL-SA-00001"]));
        platform.refused(status, &platform.pinned(&excepted), Code::TcbAdvisory);
        let excepted = format!("{allowed}{}", except(&["INTEL-SA-00001", "INTEL-SA-00002"]));
        let report = platform.verify(&platform.pinned(&excepted)).unwrap();
        assert_eq!(report.tcb_status(), status);
        assert_eq!(report.advisories(), ["INTEL-SA-00001", "INTEL-SA-00002"]);
    }
}

#[test]
fn open_advisories_are_refused_although_up_to_date() {
    for tee in INTEL {
        let platform = Platform::at_level(*tee, "UpToDate", &["INTEL-SA-00001"]);
        platform.refused("advisory", &simulation(), Code::TcbAdvisory);
        let excepted = platform.pinned(&format!("[tcb]{}", except(&["INTEL-SA-00001"])));
        assert_eq!(platform.verify(&excepted).unwrap().tcb_status(), "UpToDate");
    }
}

#[test]
fn a_revoked_patch_level_is_refused_and_no_policy_can_allow_it() {
    for tee in INTEL {
        let platform = Platform::at_level(*tee, "Revoked", &[]);
        platform.refused("revoked level", &simulation(), Code::TcbRevoked);
    }
    assert!(
        Policy::from_toml(&format!(
            "tee = [\"sgx\"]\n{SGX_PINS}[tcb]\nallowed = [\"Revoked\"]"
        ))
        .is_err()
    );
}

fn refuses(tees: &[Tee], code: Code, table: &[Bad]) {
    for (tee, (name, change)) in tees
        .iter()
        .flat_map(|tee| table.iter().map(move |bad| (tee, bad)))
    {
        Platform::new(*tee, *change).refused(name, &simulation(), code);
    }
}

/// A simulated server whose vendor or processor may say something else than it should.
#[derive(Clone)]
struct Platform {
    evidence: Evidence,
    collateral: Collateral,
}

impl Platform {
    fn new(tee: Tee, change: impl Fn(Draft<'_>) + Send + Sync + 'static) -> Self {
        let measurement = match tee {
            Tee::Sgx => Measurement::MrEnclave([1; 32]),
            Tee::Tdx => Measurement::MrTd([1; 48]),
            Tee::SevSnp => Measurement::Launch([1; 48]),
        };
        let mut options = SimulationOptions::new(measurement);
        options.clock = Arc::new(|| UNIX_EPOCH + Duration::from_secs(NOW));
        let attester = Simulation::forged(options, change).unwrap();
        let claims = claims().encode();
        let quote = attester.quote(&ReportData::of_claims(&claims)).unwrap();
        let collateral = attester.collateral().unwrap().unwrap();
        let evidence = Evidence { quote, claims };
        Self {
            evidence,
            collateral,
        }
    }

    /// On the patch level of this status and these advisories.
    fn at_level(tee: Tee, status: &'static str, advisories: &'static [&str]) -> Self {
        Self::new(tee, move |draft| {
            if let Draft::TcbInfo(info) = draft {
                level(info)["tcbStatus"] = json!(status);
                level(info)["advisoryIDs"] = json!(advisories);
            }
        })
    }

    fn verify(&self, policy: &Policy) -> Result<VerifiedReport, Rejection> {
        verify(&self.evidence, &self.collateral, &connection(), policy, NOW)
    }

    fn appraise(&self, policy: &Policy) -> Result<QuoteReport, Rejection> {
        appraise_quote(&self.evidence.quote, &self.collateral, policy, NOW)
    }

    #[track_caller]
    fn refused(&self, name: &str, policy: &Policy, code: Code) {
        let results = [self.verify(policy).err(), self.appraise(policy).err()];
        for rejection in results {
            let rejection = rejection.unwrap_or_else(|| panic!("{name} is trusted"));
            assert_eq!(rejection.code(), code, "{name}: {}", rejection.table());
        }
    }

    /// A policy for the code of this server of SGX or TDX, with what it says of the patch level.
    fn pinned(&self, tcb: &str) -> Policy {
        let (tee, pins) = match self.evidence.quote[4] {
            0 => ("sgx", SGX_PINS.to_owned()),
            _ => ("tdx", tdx_pins()),
        };
        let text = format!("tee = [{tee:?}]\n{pins}{tcb}");
        Policy::from_toml(&text)
            .unwrap()
            .dangerous_accept_simulation()
    }
}

fn tdx_pins() -> String {
    let [kernel, disk] = [1, 2].map(|index| hex::encode(blindai_tee::simulated_rtmr(index)));
    let mrtd = "01".repeat(48);
    format!("[tdx]\nmrtd = [{mrtd:?}]\nrtmr1 = [{kernel:?}]\nrtmr2 = [{disk:?}]\n")
}

fn level(tcb_info: &mut Value) -> &mut Value {
    &mut tcb_info["tcbLevels"][0]
}

/// The extension of AMD's that has this name below AMD's own.
fn vendor<'a>(certificate: &'a mut Certificate, name: &[u64]) -> &'a mut Extension {
    let oid = [&[1, 3, 6, 1, 4, 1, 3704, 1], name].concat();
    let found = certificate.extensions.iter_mut().find(|e| e.oid == oid);
    found.unwrap_or_else(|| panic!("no {name:?}"))
}

fn except(advisories: &[&str]) -> String {
    let exception = |id| format!("\n[[tcb.exceptions]]\nadvisory = {id:?}\nuntil = \"2027-12-31\"");
    advisories.iter().map(exception).collect()
}

fn date(seconds: u64) -> Value {
    let date = chrono::DateTime::from_timestamp(seconds as i64, 0).unwrap();
    json!(date.format("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// The serial numbers that the simulation gives.
const PLATFORM_CA: u64 = 1;
const TCB_SIGNER: u64 = 2;
const PCK: u64 = 3;
const VCEK: u64 = 0;
const ASK: u64 = 2;

const QUOTE_HEADER: usize = 48;
/// In the report of an enclave.
const MISCSELECT: usize = 16;
const ATTRIBUTES: usize = 48;
const MRSIGNER: usize = 128;
const ISV_PROD_ID: usize = 256;
const ISV_SVN: usize = 258;
const REPORT_DATA: usize = 320;
/// In the quote of a TD.
const MR_SIGNER_SEAM: usize = QUOTE_HEADER + 16 + 48;
const TD_ATTRIBUTES: usize = MR_SIGNER_SEAM + 48 + 8;
/// In the report of SEV-SNP.
const GUEST_POLICY: usize = 0x08;
const VMPL: usize = 0x30;
const KEY_INFO: usize = 0x48;
const REPORTED_TCB: usize = 0x180;
const CHIP_ID: usize = 0x1a0;
const SGX_PINS: &str =
    "[sgx]\nmrenclave = [\"0101010101010101010101010101010101010101010101010101010101010101\"]\n";
