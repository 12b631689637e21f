//! Reports of real machines with SEV-SNP, with the verdict that each must have.

mod support;

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use blindai_core::{CMW_OID, Collateral, Evidence, RA_TLS_OID, ReportData, SnpCollateral, Tee};
use blindai_tee::{Attester as _, Draft, Measurement, Simulation, SimulationOptions};
use blindai_verify::{
    Binding, Outcome, Policy, QuoteReport, Rejection, RejectionCode as Code, Verification,
    VerifiedReport, appraise_quote, checks, observe, read_certificate, verify,
};
use p384::Scalar;
use p384::elliptic_curve::PrimeField as _;
use rcgen::{CertificateParams, CustomExtension, KeyPair, PublicKeyData as _};
use sha2::{Digest as _, Sha256};

use support::{NOW, assert_code, claims, connection, file, outcome, simulation};

/// A report with its signer's certificate, and a time when that was valid.
#[derive(Clone, Copy)]
struct Machine {
    report: &'static str,
    signer: &'static str,
    now: u64,
}

const fn machine(report: &'static str, signer: &'static str, now: u64) -> Machine {
    Machine {
        report,
        signer,
        now,
    }
}

const MILAN: Machine = machine("ms_milan", "ms_milan_vcek.pem", 1_780_000_000);
const GENOA: Machine = machine("ms_genoa", "ms_genoa_vcek.pem", 1_780_000_000);
const TURIN: Machine = machine("ms_turin", "ms_turin_vcek.pem", 1_780_000_000);
const MILAN_V2: Machine = machine(
    "trustee_milan_v2",
    "trustee_milan_v2_vcek.der",
    1_780_000_000,
);
/// Asked for at VMPL 1; its patch level is behind the committed one.
const VLEK: Machine = machine(
    "trustee_milan_vlek",
    "trustee_milan_vlek.der",
    1_740_000_000,
);
const DEBUG: Machine = machine(
    "gosev_milan_DEBUG",
    "gosev_milan_DEBUG_vcek.der",
    1_780_000_000,
);
/// Of the report: what the signature covers, and where the signature ends.
const SIGNED: usize = 0x2a0;
const BAD_MEASUREMENT: &str = "ab";

impl Machine {
    fn report(self) -> Vec<u8> {
        file(&format!("snp/{}.report", self.report))
    }

    fn collateral(self) -> SnpCollateral {
        SnpCollateral {
            signer: certificate(self.signer),
            issuer_chain: None,
            crl: None,
        }
    }

    /// A policy that pins the launch measurement and asks for no revocation list, with more lines.
    fn policy(self, lines: &str) -> Policy {
        self.policy_with("", lines)
    }

    fn policy_with(self, top: &str, lines: &str) -> Policy {
        let measurement = hex::encode(&self.report()[0x90..0xc0]);
        Policy::from_toml(&format!(
            "tee = [\"sev-snp\"]\n{top}\n[sev-snp]\nmeasurement = [{measurement:?}]\n\
             require_crl = false\n{lines}"
        ))
        .unwrap()
    }

    fn appraise(self, policy: &Policy) -> Result<QuoteReport, Rejection> {
        appraise(&self.report(), self.collateral(), policy, self.now)
    }

    fn with(self, lines: &str) -> Result<QuoteReport, Rejection> {
        self.appraise(&self.policy(lines))
    }
}

fn appraise(
    report: &[u8],
    collateral: SnpCollateral,
    policy: &Policy,
    now: u64,
) -> Result<QuoteReport, Rejection> {
    appraise_quote(report, &Collateral::Snp(collateral), policy, now)
}

fn certificate(name: &str) -> String {
    let bytes = file(&format!("snp/{name}"));
    match name.ends_with(".der") {
        true => to_pem(bytes),
        false => String::from_utf8(bytes).unwrap(),
    }
}

fn to_pem(der: Vec<u8>) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der))
}

fn detail<'a>(report: &'a QuoteReport, name: &str) -> &'a str {
    let check = report.checks().iter().find(|check| check.name() == name);
    check.unwrap().detail()
}

#[test]
fn machines_of_each_generation_verify() {
    for (machine, root, cpu) in [
        (MILAN, "AMD ARK-Milan", "Milan"),
        (GENOA, "AMD ARK-Genoa", "Genoa"),
        (TURIN, "AMD ARK-Turin", "Turin"),
        (MILAN_V2, "AMD ARK-Milan", "Milan, as the certificate says"),
    ] {
        let report = machine.with("").unwrap_or_else(|r| panic!("{}", r.table()));
        assert_eq!((report.tee(), report.trust_root()), (Tee::SevSnp, root));
        assert!(!report.simulated());
        assert_eq!(report.tcb_status(), "reported");
        assert!(detail(&report, checks::CPU).starts_with(cpu));
        let bytes = machine.report();
        let measurement = hex::encode(&bytes[0x90..0xc0]);
        assert_eq!(report.measurement("measurement"), Some(&measurement[..]));
        let host_data = ("host_data", hex::encode(&bytes[0xc0..0xe0]));
        assert!(report.details().contains(&host_data));
        assert!(report.valid_until() > machine.now);
    }
}

#[test]
fn the_chain_may_come_along() {
    let mut collateral = MILAN.collateral();
    collateral.issuer_chain = Some(certificate("milan_ask.pem") + &certificate("milan_ark.pem"));
    appraise(
        &MILAN.report(),
        collateral.clone(),
        &MILAN.policy(""),
        MILAN.now,
    )
    .unwrap();
    collateral.issuer_chain = Some(certificate("milan_ask.pem"));
    appraise(&MILAN.report(), collateral, &MILAN.policy(""), MILAN.now).unwrap();
}

#[test]
fn the_providers_key_verifies_in_its_time_and_at_its_level() {
    let lines = "vmpl = [0, 1]";
    let report = VLEK.with(lines).unwrap();
    let provider = detail(&report, checks::CERTIFICATE_CHIP);
    assert!(provider.contains("amazonaws.com"), "{provider}");
    assert_eq!(report.valid_until(), 1_765_404_861);

    assert_code(VLEK.with(""), Code::Vmpl);
    let at = |now| Machine { now, ..VLEK }.with(lines);
    at(1_765_404_861).unwrap();
    assert_code(at(1_765_404_862), Code::CertificateExpired);
    assert_code(at(1_733_868_860), Code::CertificateNotYetValid);
}

#[test]
fn invalid_certificates_of_the_chip_are_refused() {
    for signer in ["test-vcek-invalid-legacy.der", "test-vcek-invalid-new.der"] {
        let rejection = assert_code(Machine { signer, ..MILAN_V2 }.with(""), Code::ChainInvalid);
        for name in [
            checks::CERTIFICATE_CHAIN,
            checks::CERTIFICATE_TCB,
            checks::CERTIFICATE_CHIP,
            checks::QUOTE,
        ] {
            assert_eq!(outcome(&rejection, name), Outcome::Fail, "{name}");
        }
    }
}

#[test]
fn debug_is_refused_unless_asked_for_by_name() {
    assert_code(DEBUG.with(""), Code::Debug);
    let policy = DEBUG.policy_with("dangerous_allow_debug = true", "");
    let report = DEBUG.appraise(&policy).unwrap();
    assert!(detail(&report, checks::DEBUG).starts_with("ON"));
}

#[test]
fn certificates_of_others_are_refused() {
    let signed_by = |signer| Machine { signer, ..MILAN }.with("");
    // Another chip of the same product, another product, another kind of key, no key at all.
    let other_chip = assert_code(signed_by(MILAN_V2.signer), Code::CollateralMismatch);
    assert_eq!(
        outcome(&other_chip, checks::CERTIFICATE_CHIP),
        Outcome::Fail
    );
    assert_eq!(outcome(&other_chip, checks::QUOTE), Outcome::Fail);
    let other_product = assert_code(signed_by(GENOA.signer), Code::CollateralMismatch);
    assert_eq!(outcome(&other_product, checks::CPU), Outcome::Fail);
    let provider = Machine {
        now: VLEK.now,
        ..MILAN
    };
    let provider = Machine {
        signer: VLEK.signer,
        ..provider
    }
    .with("");
    assert_code(provider, Code::CollateralMismatch);
    assert_code(signed_by("milan_ask.pem"), Code::CollateralMalformed);
    let renamed = certificate(MILAN.signer).replace("CERTIFICATE", "KEY");
    let collateral = SnpCollateral {
        signer: renamed,
        ..MILAN.collateral()
    };
    let renamed = appraise(&MILAN.report(), collateral, &MILAN.policy(""), MILAN.now);
    assert_code(renamed, Code::CollateralMalformed);
    // Two, where one belongs.
    assert_code(signed_by("milan_asvk_ark.pem"), Code::CollateralMalformed);
}

#[test]
fn chains_of_others_are_refused() {
    let with_chain = |chain: String| {
        let collateral = SnpCollateral {
            issuer_chain: Some(chain),
            ..MILAN.collateral()
        };
        appraise(&MILAN.report(), collateral, &MILAN.policy(""), MILAN.now)
    };
    let [ask, ark, genoa_ask, genoa_ark] = [
        "milan_ask.pem",
        "milan_ark.pem",
        "genoa_ask.pem",
        "genoa_ark.pem",
    ]
    .map(certificate);
    assert_code(with_chain(genoa_ask + &genoa_ark), Code::ChainInvalid);
    assert_code(
        with_chain(certificate("milan_asvk_ark.pem")),
        Code::ChainInvalid,
    );
    assert_code(with_chain(ark.clone()), Code::ChainInvalid);
    assert_code(with_chain(ask.clone() + &genoa_ark), Code::TrustRootUnknown);
    assert_code(with_chain(ask.repeat(5)), Code::CollateralMalformed);
    // The issuer's own key and name, not signed by the root.
    let mut unsigned = pem::parse(&ask).unwrap().into_contents();
    *unsigned.last_mut().unwrap() ^= 1;
    assert_code(with_chain(to_pem(unsigned)), Code::TrustRootUnknown);
    assert_code(with_chain(String::new()), Code::CollateralMalformed);
    assert_code(with_chain("x".repeat(1 << 20)), Code::CollateralMalformed);
}

#[test]
fn a_revocation_list_is_required_by_default() {
    let measurement = hex::encode(&MILAN.report()[0x90..0xc0]);
    let text = format!("tee = [\"sev-snp\"]\n[sev-snp]\nmeasurement = [{measurement:?}]");
    let rejection = MILAN.appraise(&Policy::from_toml(&text).unwrap());
    assert_code(rejection, Code::CrlMissing);
    let report = MILAN.with("").unwrap();
    let checks = report.checks().iter();
    let revocation = checks.filter(|check| check.name() == checks::REVOCATION);
    let outcomes: Vec<_> = revocation.map(|check| check.outcome()).collect();
    assert_eq!(outcomes, [Outcome::Skipped]);
}

#[test]
fn each_line_of_the_policy_is_held_to() {
    let text = |at: std::ops::Range<usize>| hex::encode(&MILAN.report()[at]);
    let host_data = format!("host_data = [{:?}]", text(0xc0..0xe0));
    let id_key = format!("id_key_digest = [{:?}]", text(0xe0..0x110));
    let family = format!("family_id = [{:?}]", text(0x10..0x20));
    let image = format!("image_id = [{:?}]", text(0x20..0x30));
    let chip = format!("chip_id = [{:?}]", text(0x1a0..0x1e0));
    for line in [
        &host_data[..],
        &id_key,
        &family,
        &image,
        &chip,
        "min_guest_svn = 2",
        "min_abi = \"0.31\"",
        "dangerous_allow_migration_agent = true",
        "platform_info = { value = \"2000000000000000\", mask = \"2000000000000000\" }",
        "guest_policy = { value = \"0000030000000000\", mask = \"0000ff0000000000\" }",
        "[sev-snp.min_reported_tcb.milan]\nbootloader = 4\ntee = 0\nsnp = 24\nmicrocode = 219",
        "[sev-snp.min_committed_tcb.milan]\nmicrocode = 219\n[sev-snp.min_committed_tcb.turin]\nfmc = 9",
    ] {
        MILAN
            .with(line)
            .unwrap_or_else(|r| panic!("{line}: {}", r.table()));
    }
    let other = |bytes: usize| format!("[{:?}]", "ab".repeat(bytes));
    for (line, code) in [
        (format!("host_data = {}", other(32)), Code::SetupMismatch),
        (
            format!("id_key_digest = {}", other(48)),
            Code::SignerMismatch,
        ),
        (
            format!("author_key_digest = {}", other(48)),
            Code::SignerMismatch,
        ),
        (format!("family_id = {}", other(16)), Code::SignerMismatch),
        (format!("image_id = {}", other(16)), Code::SignerMismatch),
        (format!("chip_id = {}", other(64)), Code::HardwareMismatch),
        ("min_guest_svn = 3".into(), Code::SignerMismatch),
        // SMT off; no ciphertext hiding; SMT not allowed.
        (
            "platform_info = { value = \"0000000000000000\", mask = \"0100000000000000\" }".into(),
            Code::HardwareMismatch,
        ),
        (
            "platform_info = { value = \"1000000000000000\", mask = \"1000000000000000\" }".into(),
            Code::HardwareMismatch,
        ),
        (
            "guest_policy = { value = \"0000000000000000\", mask = \"0000010000000000\" }".into(),
            Code::SetupMismatch,
        ),
        ("min_abi = \"0.32\"".into(), Code::GuestPolicy),
        ("min_abi = \"1.0\"".into(), Code::GuestPolicy),
        ("forbid_smt = true".into(), Code::GuestPolicy),
        ("vmpl = [1, 2, 3]".into(), Code::Vmpl),
        (
            "[sev-snp.min_reported_tcb.milan]\nbootloader = 5".into(),
            Code::TcbMinimum,
        ),
        (
            "[sev-snp.min_reported_tcb.milan]\ntee = 1".into(),
            Code::TcbMinimum,
        ),
        (
            "[sev-snp.min_reported_tcb.milan]\nsnp = 25".into(),
            Code::TcbMinimum,
        ),
        (
            "[sev-snp.min_committed_tcb.milan]\nmicrocode = 220".into(),
            Code::TcbMinimum,
        ),
        (
            "[sev-snp.min_reported_tcb.genoa]\nsnp = 0".into(),
            Code::TcbMinimum,
        ),
    ] {
        assert_code(MILAN.with(&line), code);
    }
}

#[test]
fn the_parts_of_a_turins_patch_level_have_places_of_their_own() {
    let least = |part: &str, version| {
        TURIN.with(&format!(
            "[sev-snp.min_reported_tcb.turin]\n{part} = {version}"
        ))
    };
    for (part, version) in [
        ("fmc", 1),
        ("bootloader", 1),
        ("tee", 1),
        ("snp", 4),
        ("microcode", 81),
    ] {
        least(part, version).unwrap();
        assert_code(least(part, version + 1), Code::TcbMinimum);
    }
    // The provider's key vouches for an older level than the committed one.
    let provider = |level| {
        VLEK.with(&format!(
            "vmpl = [1]\n[sev-snp.{level}.milan]\nmicrocode = 218"
        ))
    };
    assert_code(provider("min_reported_tcb"), Code::TcbMinimum);
    provider("min_committed_tcb").unwrap();
}

/// What a policy with these lines says of a guest that was started at microcode 80, on a machine that
/// has 84 by now.
fn started_before_an_update(lines: &str) -> Result<VerifiedReport, Rejection> {
    let guest = Simulated::new(|draft| {
        if let Draft::Report(report) = draft {
            report[0x1f7] = 80;
        }
    });
    let measurement = "01".repeat(48);
    let text = format!("tee = [\"sev-snp\"]\n[sev-snp]\nmeasurement = [{measurement:?}]\n{lines}");
    guest.verify(
        &Policy::from_toml(&text)
            .unwrap()
            .dangerous_accept_simulation(),
    )
}

#[test]
fn a_guest_that_was_started_on_old_firmware_is_refused_where_a_minimum_is_named() {
    let least =
        |key: &str, version: u8| format!("[sev-snp.min_{key}_tcb.genoa]\nmicrocode = {version}\n");
    let verdict = started_before_an_update("").unwrap();
    assert!(
        verdict
            .details()
            .contains(&("launch_tcb", "0a00000000001750".into()))
    );
    started_before_an_update(&least("launch", 80)).unwrap();
    for key in ["launch", "committed", "reported"] {
        let refused = started_before_an_update(&least(key, 81));
        let rejection = assert_code(refused, Code::TcbMinimum);
        assert_eq!(outcome(&rejection, checks::LAUNCH_TCB), Outcome::Fail);
    }
    // Its own minimum, where there is one; otherwise that of what cannot be gone behind.
    let committed = least("committed", 84);
    started_before_an_update(&(least("launch", 80) + &committed)).unwrap();
    let reported = least("reported", 84);
    started_before_an_update(&(least("committed", 80) + &reported)).unwrap();
}

#[test]
fn the_signer_of_the_identity_stands_in_for_the_measurement() {
    let text = |at: std::ops::Range<usize>| hex::encode(&MILAN.report()[at]);
    let signed = |version| {
        Policy::from_toml(&format!(
            "tee = [\"sev-snp\"]\n[sev-snp]\nrequire_crl = false\nid_key_digest = [{:?}]\n\
             family_id = [{:?}]\nimage_id = [{:?}]\nmin_guest_svn = {version}",
            text(0xe0..0x110),
            text(0x10..0x20),
            text(0x20..0x30)
        ))
        .unwrap()
    };
    MILAN.appraise(&signed(2)).unwrap();
    assert_code(MILAN.appraise(&signed(3)), Code::SignerMismatch);
}

#[test]
fn another_measurement_or_kind_of_tee_is_refused() {
    let other = BAD_MEASUREMENT.repeat(48);
    let text =
        format!("tee = [\"sev-snp\"]\n[sev-snp]\nrequire_crl = false\nmeasurement = [{other:?}]");
    let policy = Policy::from_toml(&text).unwrap();
    assert_code(MILAN.appraise(&policy), Code::MeasurementMismatch);
    let enclave = BAD_MEASUREMENT.repeat(32);
    let text = format!("tee = [\"sgx\"]\n[sgx]\nmrenclave = [{enclave:?}]");
    let sgx = Policy::from_toml(&text).unwrap();
    assert_code(MILAN.appraise(&sgx), Code::TeeNotAccepted);
    assert_code(MILAN.appraise(&simulation()), Code::TrustRootHardware);
    let nothing = MILAN.appraise(&Policy::accept_nothing()).unwrap_err();
    assert_eq!(outcome(&nothing, "measurement"), Outcome::Fail);
}

#[test]
fn what_is_no_report_is_refused() {
    let report = MILAN.report();
    let policy = MILAN.policy("");
    let appraise = |bytes: &[u8]| appraise(bytes, MILAN.collateral(), &policy, MILAN.now);
    for end in 0..report.len() {
        assert_code(appraise(&report[..end]), Code::CollateralMismatch);
    }
    assert_code(
        appraise(&[&report[..], &[0]].concat()),
        Code::CollateralMismatch,
    );
    for version in [0, 1, 4, 6, 255] {
        let mut changed = report.clone();
        changed[0] = version;
        assert_code(appraise(&changed), Code::QuoteUnsupported);
    }
    // Algorithm; masked key; keys of unknown kinds; no key.
    for (at, value) in [(0x34, 0), (0x34, 2), (0x48, 2), (0x48, 8), (0x48, 0x1c)] {
        let mut changed = report.clone();
        changed[at] = value;
        assert_code(appraise(&changed), Code::QuoteUnsupported);
    }
    let sgx = file("sgx/dcapqvl_00a067110000.quote");
    assert_code(appraise(&sgx), Code::CollateralMismatch);
    let dcap = Collateral::Dcap(support::collateral(
        "collateral/sgx_00a067110000_2025-06.json",
    ));
    let mixed = appraise_quote(&report, &dcap, &policy, MILAN.now);
    assert_code(mixed, Code::CollateralMismatch);
}

#[test]
fn no_flipped_bit_of_a_report_is_accepted() {
    let (report, policy) = (MILAN.report(), MILAN.policy(""));
    for at in 0..report.len() {
        let mut changed = report.clone();
        changed[at] ^= 1 << (at % 8);
        let rejection = appraise(&changed, MILAN.collateral(), &policy, MILAN.now)
            .err()
            .unwrap_or_else(|| panic!("byte {at:#x} may be changed"));
        let read = !matches!(
            rejection.code(),
            Code::QuoteMalformed | Code::QuoteUnsupported | Code::CollateralMismatch
        );
        // Whatever else is wrong with it, the signature does not hold.
        if read && at < SIGNED {
            assert_eq!(outcome(&rejection, checks::QUOTE), Outcome::Fail, "{at:#x}");
        }
    }
}

#[test]
fn the_signature_of_a_report_has_a_second_form() {
    let (mut report, policy) = (MILAN.report(), MILAN.policy(""));
    // The number s, least significant byte first.
    let bytes = &mut report[0x2e8..0x318];
    bytes.reverse();
    let s = Scalar::from_repr((&*bytes).try_into().unwrap()).unwrap();
    bytes.copy_from_slice(&(-s).to_repr());
    bytes.reverse();
    assert_ne!(report, MILAN.report());
    appraise(&report, MILAN.collateral(), &policy, MILAN.now).unwrap();
}

#[test]
fn no_flipped_bit_of_a_certificate_is_accepted() {
    let der = pem::parse(MILAN.collateral().signer)
        .unwrap()
        .into_contents();
    let (report, policy) = (MILAN.report(), MILAN.policy(""));
    for at in 0..der.len() {
        let mut changed = der.clone();
        changed[at] ^= 1 << (at % 8);
        let collateral = SnpCollateral {
            signer: to_pem(changed),
            ..MILAN.collateral()
        };
        let result = appraise(&report, collateral, &policy, MILAN.now);
        assert!(result.is_err(), "byte {at:#x} may be changed");
    }
}

#[test]
fn a_report_without_our_claims_is_bound_to_nothing() {
    let evidence = Evidence {
        quote: MILAN.report(),
        claims: claims().encode(),
    };
    let collateral = Collateral::Snp(MILAN.collateral());
    let rejection = verify(
        &evidence,
        &collateral,
        &connection(),
        &MILAN.policy(""),
        MILAN.now,
    );
    assert_code(rejection, Code::ReportDataMismatch);
}

#[test]
fn policies_that_name_no_code_do_not_compile() {
    let (digest, id) = ("ab".repeat(48), "ab".repeat(16));
    let signer = format!(
        "id_key_digest = [{digest:?}]\nfamily_id = [{id:?}]\nimage_id = [{id:?}]\nmin_guest_svn = 1\n"
    );
    let section =
        |lines: &str| Policy::from_toml(&format!("tee = [\"sev-snp\"]\n[sev-snp]\n{lines}"));
    section(&signer).unwrap();
    section(&signer.replace("id_key", "author_key")).unwrap();
    let zeros = format!("id_key_digest = [{:?}]\n", "0".repeat(96));
    let measured = format!("measurement = [{digest:?}]\n");
    section(&measured).unwrap();
    for (lines, word) in [
        (String::new(), "sev-snp.measurement is missing"),
        ("measurement = []".into(), "sev-snp.measurement"),
        ("min_guest_svn = 1".into(), "sev-snp.measurement is missing"),
        (signer.replace("min_guest_svn = 1", ""), "min_guest_svn"),
        (
            signer.replace(&format!("family_id = [{id:?}]"), ""),
            "family_id",
        ),
        (
            signer.replace(&digest, &"0".repeat(96)),
            "must not be zeros",
        ),
        (format!("{measured}{zeros}"), "must not be zeros"),
        (
            format!("{measured}chip_id = [{:?}]", "0".repeat(128)),
            "must not be zeros",
        ),
        (format!("{measured}vmpl = []"), "sev-snp.vmpl"),
        (format!("{measured}vmpl = [4]"), "sev-snp.vmpl"),
        (format!("{measured}min_abi = \"1\""), "sev-snp.min_abi"),
        (format!("{measured}forbid_smt = 1"), "sev-snp.forbid_smt"),
        (
            format!("{measured}[sev-snp.min_reported_tcb]"),
            "names no version",
        ),
        (
            format!("{measured}[sev-snp.min_reported_tcb.milan]"),
            "names no version",
        ),
        (
            format!(
                "{measured}[sev-snp.min_reported_tcb.milan]\nsnp = 1\n\
                 [sev-snp.min_reported_tcb.genoa]\n[sev-snp.min_committed_tcb.turin]"
            ),
            "sev-snp.min_reported_tcb.genoa names no version; \
             sev-snp.min_committed_tcb.turin names no version",
        ),
        (
            format!("{measured}[sev-snp.min_reported_tcb.milan]\nfmc = 1"),
            "milan.fmc is not a known key",
        ),
        (
            format!("{measured}[sev-snp.min_reported_tcb.rome]\nsnp = 1"),
            "rome is not a known key",
        ),
        (
            format!("{measured}[sev-snp.min_committed_tcb.milan]\nsnp = 256"),
            "milan.snp",
        ),
    ] {
        let problems = section(&lines).unwrap_err().problems().join("; ");
        assert!(problems.contains(word), "{lines}: {problems}");
    }
}

/// A written policy after a person judged what it does not accept by itself.
fn judged(text: &str) -> Policy {
    let text = text
        .replace("\n# require_crl = false", "\nrequire_crl = false")
        .replace("\n# vmpl = ", "\nvmpl = ");
    Policy::from_toml(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
}

#[test]
fn a_policy_written_from_a_report_accepts_it_once_its_weak_lines_are_judged() {
    for machine in [MILAN, GENOA, TURIN, MILAN_V2, VLEK] {
        let collateral = Collateral::Snp(machine.collateral());
        let seen = observe(&machine.report(), Some(&collateral), machine.now).unwrap();
        let Verification::Verified(verified) = seen.verification() else {
            panic!("{seen}")
        };
        assert_eq!(verified.tcb_status(), "reported");
        let text = seen.to_policy_toml();
        let strict = Policy::from_toml(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
        let rejection = assert_code(machine.appraise(&strict), Code::CrlMissing);
        let at_zero = outcome(&rejection, checks::VMPL) == Outcome::Pass;
        assert_eq!(at_zero, machine.report != VLEK.report);
        let weak = match at_zero {
            true => &[checks::REVOCATION][..],
            false => &[checks::REVOCATION, checks::VMPL],
        };
        let differences = strict.differences(&seen);
        let names: Vec<_> = differences.iter().map(|d| d.name()).collect();
        assert_eq!(names, weak);
        // The oldest interface, too, where the guest accepts any.
        let to_judge = weak.len() + text.matches("\n# min_abi = \"0.0\"").count();
        assert_eq!(text.matches("TO BE JUDGED").count(), to_judge);

        let policy = judged(&text);
        machine
            .appraise(&policy)
            .unwrap_or_else(|r| panic!("{}", r.table()));
        assert_eq!(policy.differences(&seen), []);
        assert!(text.contains("min_reported_tcb.") && text.contains("min_launch_tcb."));
    }
}

#[test]
fn unverified_evidence_weakens_no_policy() {
    let mut report = VLEK.report();
    report[0x08..0x0a].fill(0);
    for vmpl in [1, u32::MAX] {
        report[0x30..0x34].copy_from_slice(&vmpl.to_le_bytes());
        let text = observe(&report, None, VLEK.now).unwrap().to_policy_toml();
        let policy = Policy::from_toml(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
        assert_code(VLEK.appraise(&policy), Code::CrlMissing);
        for weak in ["require_crl = ", "vmpl = ", "min_abi = "] {
            assert!(!text.lines().any(|line| line.starts_with(weak)), "{text}");
        }
    }
}

#[test]
fn what_a_written_policy_offers_holds_too() {
    for machine in [MILAN, TURIN, VLEK] {
        let seen = observe(&machine.report(), None, machine.now).unwrap();
        let text = seen.to_policy_toml();
        let offers = text.lines().filter_map(|line| line.strip_prefix("# "));
        let is_pin = |line: &&str| {
            let key = line.split(" = ").next().unwrap_or_default();
            line.contains(" = ") && !key.contains(' ') && key != "forbid_smt"
        };
        let offers: Vec<_> = offers.filter(is_pin).collect();
        assert!(offers.len() >= 3, "{text}");
        let (head, tables) = text.split_once("[sev-snp.min_reported").unwrap();
        let text = format!("{head}{}\n[sev-snp.min_reported{tables}", offers.join("\n"));
        let policy = Policy::from_toml(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
        machine
            .appraise(&policy)
            .unwrap_or_else(|r| panic!("{}", r.table()));
    }
}

#[test]
fn what_changed_between_machines_is_told() {
    let seen = |machine: Machine| {
        let collateral = Collateral::Snp(machine.collateral());
        observe(&machine.report(), Some(&collateral), machine.now).unwrap()
    };
    let policy = judged(&seen(MILAN).to_policy_toml());
    let names = |machine| {
        let differences = policy.differences(&seen(machine));
        differences.iter().map(|d| d.name()).collect::<Vec<_>>()
    };
    // The same image on another product.
    let levels = [
        checks::REPORTED_TCB,
        checks::COMMITTED_TCB,
        checks::LAUNCH_TCB,
    ];
    assert_eq!(names(GENOA), levels);
    let provider = [
        "measurement",
        "host_data",
        checks::ABI,
        checks::VMPL,
        checks::REPORTED_TCB,
    ];
    assert_eq!(names(VLEK), provider);
    let old = names(DEBUG);
    assert!(
        old.contains(&checks::DEBUG) && old.contains(&"measurement"),
        "{old:?}"
    );

    let debug = seen(DEBUG).to_policy_toml();
    assert!(
        debug.contains("\n# dangerous_allow_debug = true"),
        "{debug}"
    );
    let unverified = observe(&TURIN.report(), None, TURIN.now).unwrap();
    assert_eq!(*unverified.verification(), Verification::NotTried);
    // The CPU says which product it is.
    assert!(
        unverified
            .to_policy_toml()
            .contains("min_reported_tcb.turin]\nfmc = 1\n")
    );
    let wrong = Collateral::Snp(GENOA.collateral());
    let wrong = observe(&MILAN.report(), Some(&wrong), MILAN.now).unwrap();
    let refused =
        |code| matches!(wrong.verification(), Verification::Refused { code: c, .. } if *c == code);
    assert!(refused(Code::CollateralMismatch), "{wrong}");
}

/// A simulated guest whose vendor or processor may say something else than it should.
struct Simulated {
    evidence: Evidence,
    collateral: SnpCollateral,
}

impl Simulated {
    fn new(change: impl Fn(Draft<'_>) + Send + Sync + 'static) -> Self {
        let mut options = SimulationOptions::new(Measurement::Launch([1; 48]));
        options.clock = Arc::new(|| UNIX_EPOCH + Duration::from_secs(NOW));
        let attester = Simulation::forged(options, change).unwrap();
        let claims = claims().encode();
        let quote = attester.quote(&ReportData::of_claims(&claims)).unwrap();
        let Some(Collateral::Snp(collateral)) = attester.collateral().unwrap() else {
            panic!("no collateral of SEV-SNP")
        };
        let evidence = Evidence { quote, claims };
        Self {
            evidence,
            collateral,
        }
    }

    fn verify(&self, policy: &Policy) -> Result<VerifiedReport, Rejection> {
        let collateral = Collateral::Snp(self.collateral.clone());
        verify(&self.evidence, &collateral, &connection(), policy, NOW)
    }
}

#[test]
fn the_simulation_is_accepted_only_by_name() {
    let guest = Simulated::new(|_| {});
    let report = guest.verify(&simulation()).unwrap();
    assert!(report.simulated() && report.trust_root().contains("protects nothing"));
    let policy = |byte: &str| {
        let text = format!(
            "tee = [\"sev-snp\"]\n[sev-snp]\nmeasurement = [{:?}]",
            byte.repeat(48)
        );
        Policy::from_toml(&text).unwrap()
    };
    assert_code(guest.verify(&policy("01")), Code::TrustRootSimulation);
    let by_name = |byte| policy(byte).dangerous_accept_simulation();
    guest.verify(&by_name("01")).unwrap();
    assert_code(guest.verify(&by_name("02")), Code::MeasurementMismatch);
    let nothing = guest.verify(&Policy::accept_nothing());
    assert_code(nothing, Code::TrustRootSimulation);
}

/// What the ARK, the ASK, the chip or the guest's owner says, and the code that it leads to.
type Bad = (fn(Draft<'_>), Code);

macro_rules! says {
    ($kind:ident, $draft:ident => $change:expr, $code:ident) => {
        (
            |draft| {
                if let Draft::$kind($draft) = draft {
                    $change;
                }
            },
            Code::$code,
        )
    };
}

#[test]
fn signed_statements_that_are_bad_are_refused() {
    let bad: &[Bad] = &[
        says!(AmdCrl, list => list.revoked = vec![7, 2], CertificateRevoked),
        says!(AmdCrl, list => list.revoked = vec![0], CertificateRevoked),
        says!(AmdCrl, list => list.next_update = NOW - 1, CrlExpired),
        says!(AmdCrl, list => list.this_update = NOW + 1, CollateralNotYetValid),
        says!(Vcek, vcek => vcek.not_after = NOW - 1, CertificateExpired),
        says!(Vcek, vcek => vcek.not_before = NOW + 1, CertificateNotYetValid),
        says!(Ask, ask => ask.not_after = NOW - 1, CertificateExpired),
        says!(Ask, ask => ask.not_before = NOW + 1, CertificateNotYetValid),
        says!(Ask, ask => ask.extensions.remove(0), ChainInvalid),
        says!(Ask, ask => ask.extensions.remove(1), ChainInvalid),
        says!(Ask, ask => ask.extensions[0].value = vec![0x30, 0], ChainInvalid),
        says!(Ask, ask => ask.extensions[1].oid = vec![2, 5, 29, 99], ChainInvalid),
        says!(Vcek, vcek => vcek.extensions[0].critical = true, ChainInvalid),
        // Product, patch level, chip; missing, twice, of another value.
        says!(Vcek, vcek => vcek.extensions.remove(1), CollateralMalformed),
        says!(Vcek, vcek => vcek.extensions[1].value = b"\x16\x04Rome".to_vec(), CollateralMalformed),
        says!(Vcek, vcek => vcek.extensions[1].value = b"\x16\x05Turin".to_vec(), CollateralMalformed),
        says!(Vcek, vcek => vcek.extensions[1].value = b"\x16\x05Milan".to_vec(), CollateralMismatch),
        says!(Vcek, vcek => vcek.extensions.remove(8), CollateralMalformed),
        says!(Vcek, vcek => vcek.extensions.push(vcek.extensions[8].clone()), CollateralMalformed),
        says!(Vcek, vcek => vcek.extensions[4].value = vec![2, 1, 1], CollateralMismatch),
        says!(Vcek, vcek => vcek.extensions[9].value = vec![2, 1, 1], CollateralMismatch),
        says!(Vcek, vcek => vcek.extensions[10].value[0] ^= 1, CollateralMismatch),
        says!(Vcek, vcek => vcek.extensions.remove(10), CollateralMismatch),
        says!(Vcek, vcek => vcek.extensions[10].oid = vec![1, 3, 6, 1, 4, 1, 3704, 1, 5], CollateralMismatch),
        // Signing key VLEK; masked chip id; migration; an unknown bit; VMPL of the host; debug.
        says!(Report, report => report[0x48] = 4, CollateralMismatch),
        says!(Report, report => report[0x1a0..0x1e0].fill(0), CollateralMismatch),
        says!(Report, report => report[0x0a] |= 4, GuestPolicy),
        says!(Report, report => report[0x0b] |= 4, GuestPolicy),
        says!(Report, report => report[0x0f] |= 0x80, GuestPolicy),
        says!(Report, report => report[0x30..0x34].fill(0xff), Vmpl),
        says!(Report, report => report[0x0a] |= 8, Debug),
        says!(Report, report => report[0x188] = 0x1a, CollateralMismatch),
    ];
    for (i, (change, code)) in bad.iter().enumerate() {
        let rejection = Simulated::new(*change).verify(&simulation());
        let rejection = rejection.err().unwrap_or_else(|| panic!("{i} is trusted"));
        assert_eq!(rejection.code(), *code, "{i}: {}", rejection.table());
    }
}

#[test]
fn both_spellings_of_the_chips_id_are_read_and_no_third() {
    let spelled = |change: fn(&mut Vec<u8>)| {
        let guest = Simulated::new(move |draft| {
            if let Draft::Vcek(vcek) = draft {
                change(&mut vcek.extensions[10].value);
            }
        });
        guest.verify(&simulation())
    };
    spelled(|id| id.splice(0..0, [4, 64]).for_each(drop)).unwrap();
    for third in [
        (|id| id.splice(0..0, [3, 64]).for_each(drop)) as fn(&mut Vec<u8>),
        |id| id.push(0),
        |id| id.truncate(8),
        |id| id.splice(0..0, [4, 66, 4, 64]).for_each(drop),
    ] {
        assert_code(spelled(third), Code::CollateralMismatch);
    }
}

#[test]
fn a_revocation_list_must_be_whole_and_the_roots() {
    let guest = Simulated::new(|_| {});
    let with = |crl: Option<Vec<u8>>| {
        let collateral = SnpCollateral {
            crl,
            ..guest.collateral.clone()
        };
        let evidence = guest.evidence.clone();
        Simulated {
            evidence,
            collateral,
        }
        .verify(&simulation())
    };
    let crl = guest.collateral.crl.clone().unwrap();
    let verdict = with(Some(crl.clone())).unwrap();
    assert!(verdict.valid_until() <= NOW + 30 * 24 * 3600);
    assert_code(with(None), Code::CrlMissing);
    for at in 0..crl.len() {
        let mut changed = crl.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(with(Some(changed)).is_err(), "byte {at:#x} may be changed");
    }
    assert_code(
        with(Some(crl[..crl.len() - 1].to_vec())),
        Code::CollateralMalformed,
    );
    assert_code(
        with(Some([&crl[..], &[0]].concat())),
        Code::CollateralMalformed,
    );
    assert_code(with(Some(vec![0x30; 1 << 20])), Code::CollateralMalformed);
    // Of the simulation's root, for a machine of AMD's.
    let collateral = SnpCollateral {
        crl: Some(crl),
        ..MILAN.collateral()
    };
    let other = appraise(&MILAN.report(), collateral, &MILAN.policy(""), MILAN.now);
    assert_code(other, Code::CollateralMismatch);
}

#[test]
fn a_certificate_carries_the_report_once() {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut claims = claims();
    claims.tls_spki_sha256 = Sha256::digest(key.subject_public_key_info()).into();
    let claims = claims.encode();
    let mut options = SimulationOptions::new(Measurement::Launch([1; 48]));
    options.clock = Arc::new(|| UNIX_EPOCH + Duration::from_secs(NOW));
    let attester = Simulation::new(options).unwrap();
    let quote = attester.quote(&ReportData::of_claims(&claims)).unwrap();
    let evidence = Evidence { quote, claims };
    let certificate = |oids: &[&[u64]]| {
        let (_, value) = evidence.to_extension();
        let mut params = CertificateParams::default();
        let extension = |oid: &&[u64]| CustomExtension::from_oid_content(oid, value.clone());
        params.custom_extensions = oids.iter().map(extension).collect();
        params.self_signed(&key).unwrap().der().to_vec()
    };
    let read = read_certificate(&certificate(&[CMW_OID])).unwrap();
    read.check_binding().unwrap();
    let binding = Binding {
        tls_spki_sha256: Some(read.tls_spki_sha256()),
        nonce: None,
    };
    let collateral = attester.collateral().unwrap().unwrap();
    verify(read.evidence(), &collateral, &binding, &simulation(), NOW).unwrap();
    for oids in [&[][..], &[CMW_OID, RA_TLS_OID], &[RA_TLS_OID]] {
        assert_code(
            read_certificate(&certificate(oids)),
            Code::CertificateMalformed,
        );
    }
}
