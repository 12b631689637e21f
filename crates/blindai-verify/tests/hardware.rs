//! Evidence of real machines, with the verdict that each must have.

mod support;

use blindai_core::{DcapCollateral, Evidence};
use blindai_verify::{Outcome, Policy, RejectionCode as Code, checks};

use support::rows::{ROWS, Row, load};
use support::{
    appraise_quote, assert_code, collateral, connection, file, outcome, policy_pinning, verify,
};

fn row(quote: &str, collateral: &str) -> &'static Row {
    let wanted = |row: &&Row| row.0 == quote && row.1 == collateral;
    ROWS.iter().find(wanted).unwrap()
}

/// Exceptions for this status and these advisories, long enough for every row.
fn exceptions(status: &str, advisories: &[&str]) -> String {
    let exception = |what: &str, of: &str| {
        format!("[[tcb.exceptions]]\n{what} = {of:?}\nuntil = \"2030-01-01\"\n")
    };
    let advisories = advisories.iter().map(|id| exception("advisory", id));
    exception("status", status) + &advisories.collect::<String>()
}

#[test]
fn every_row_has_its_verdict() {
    for row in ROWS {
        let (quote, collateral) = load(row);
        let (status, advisories) = row.3.unwrap_or(("UpToDate", &[]));
        let policy = policy_pinning(&quote, "", &exceptions(status, advisories));
        let result = appraise_quote(&quote, &collateral, &policy, row.2);
        match (row.3, result) {
            (Ok(_), Ok(report)) => {
                assert_eq!(report.tcb_status(), status, "{}", row.0);
                assert_eq!(report.advisories(), advisories, "{}", row.0);
                assert!(!report.simulated());
                assert!(report.valid_until() > row.2);
                assert!(report.checks().iter().all(|c| c.outcome() != Outcome::Fail));
            }
            (Err(code), result) => {
                assert_code(result, code);
            }
            (Ok(_), Err(rejection)) => panic!("{}: {}", row.0, rejection.table()),
        }
    }
}

#[test]
fn what_is_not_up_to_date_needs_an_exception() {
    for row in ROWS {
        let Ok((status, advisories)) = row.3 else {
            continue;
        };
        let (quote, collateral) = load(row);
        let strict = policy_pinning(&quote, "", "");
        let result = appraise_quote(&quote, &collateral, &strict, row.2);
        if status == "UpToDate" {
            result.unwrap();
            continue;
        }
        assert_code(result, Code::TcbStatus);
        if advisories.is_empty() {
            continue;
        }
        let status_only = policy_pinning(&quote, "", &exceptions(status, &advisories[1..]));
        let result = appraise_quote(&quote, &collateral, &status_only, row.2);
        let rejection = assert_code(result, Code::TcbAdvisory);
        assert!(rejection.fact().contains(advisories[0]), "{rejection}");
    }
}

#[test]
fn an_exception_ends_and_limits_the_verdict() {
    let row = row(
        "tdx/trustee_v4_outofdate_00a06d08",
        "tdx_00a06d08_2025-10_crl2026",
    );
    let (quote, collateral) = load(row);
    let until = |date| format!("[[tcb.exceptions]]\nstatus = \"OutOfDate\"\nuntil = {date:?}\n");
    // The row's time is 2025-11-11.
    let policy = policy_pinning(&quote, "", &until("2025-11-10"));
    assert_code(
        appraise_quote(&quote, &collateral, &policy, row.2),
        Code::TcbStatus,
    );
    let policy = policy_pinning(&quote, "", &until("2025-11-11"));
    let report = appraise_quote(&quote, &collateral, &policy, row.2).unwrap();
    assert_eq!(report.valid_until(), 1_762_905_600);
}

#[test]
fn the_collateral_must_be_as_new_as_the_policy_asks() {
    let row = row("tdx/dcapqvl_v4_b0c06f", "tdx_b0c06f_2025-06");
    let (quote, collateral) = load(row);
    let appraise = |minimum: u32| {
        let policy = policy_pinning(&quote, "", &format!("min_evaluation_number = {minimum}"));
        appraise_quote(&quote, &collateral, &policy, row.2)
    };
    appraise(17).unwrap();
    assert_code(appraise(18), Code::TcbEvaluation);
}

#[test]
fn debug_is_shown_beside_the_other_checks_and_accepted_only_by_name() {
    let row = row("tdx/trustee_v4_DEBUG_50806f", "tdx_50806f_2023-06");
    let (quote, collateral) = load(row);
    let strict = policy_pinning(&quote, "", "");
    let result = appraise_quote(&quote, &collateral, &strict, row.2);
    let rejection = assert_code(result, Code::Debug);
    assert_eq!(outcome(&rejection, checks::QUOTE), Outcome::Pass);
    assert_eq!(outcome(&rejection, checks::TCB_STATUS), Outcome::Pass);
    assert_eq!(outcome(&rejection, "mrtd"), Outcome::Pass);

    let lenient = policy_pinning(&quote, "dangerous_allow_debug = true", "");
    appraise_quote(&quote, &collateral, &lenient, row.2).unwrap();

    // Also when the quote cannot be verified at all.
    let quote = file("sgx/occlum_debug_00606a000000.quote");
    let policy = policy_pinning(&quote, "", "");
    let other = self::collateral("collateral/sgx_00a067110000_2025-06.json");
    let result = appraise_quote(&quote, &other, &policy, 1751600000);
    let rejection = assert_code(result, Code::CollateralMismatch);
    assert_eq!(outcome(&rejection, checks::DEBUG), Outcome::Fail);
}

#[test]
fn other_code_is_refused_and_named() {
    let sgx = row("sgx/mc_00906ed50000", "sgx_00906ed50000_2023-07_crl2025");
    let tdx = row("tdx/dcapqvl_v4_b0c06f", "tdx_b0c06f_2025-06");
    let zeros = |bytes: usize| "00".repeat(bytes);
    let sgx_pins = format!(
        "tee = [\"sgx\"]\n[sgx]\nmrsigner = [{:?}]\nisv_prod_id = 999\nmin_isv_svn = 65535\n",
        zeros(32)
    ) + "[tcb]\nallowed = [\"SWHardeningNeeded\"]\n"
        + &exceptions("OutOfDate", &["INTEL-SA-00334", "INTEL-SA-00615"]);
    let td = zeros(48);
    let tdx_pins =
        format!("tee = [\"tdx\"]\n[tdx]\nmrtd = [{td:?}]\nrtmr1 = [{td:?}]\nrtmr2 = [{td:?}]");
    for (row, pins, code, names) in [
        (
            sgx,
            sgx_pins,
            Code::SignerMismatch,
            ["mrsigner", "isv_prod_id", "isv_svn"],
        ),
        (
            tdx,
            tdx_pins,
            Code::MeasurementMismatch,
            ["mrtd", "rtmr1", "rtmr2"],
        ),
    ] {
        let (quote, collateral) = load(row);
        let policy = Policy::from_toml(&pins).unwrap();
        let result = appraise_quote(&quote, &collateral, &policy, row.2);
        let rejection = assert_code(result, code);
        for name in names {
            assert_eq!(outcome(&rejection, name), Outcome::Fail, "{name}");
        }
    }
}

#[test]
fn another_kind_of_tee_is_refused() {
    let row = row("tdx/dcapqvl_v4_b0c06f", "tdx_b0c06f_2025-06");
    let (quote, collateral) = load(row);
    let sgx = policy_pinning(&file("sgx/mc_00906ed50000.quote"), "", "");
    assert_code(
        appraise_quote(&quote, &collateral, &sgx, row.2),
        Code::TeeNotAccepted,
    );
}

#[test]
fn a_policy_without_pins_takes_no_hardware() {
    let row = row("tdx/dcapqvl_v4_b0c06f", "tdx_b0c06f_2025-06");
    let (quote, collateral) = load(row);
    let result = appraise_quote(&quote, &collateral, &support::simulation(), row.2);
    assert_code(result, Code::TrustRootHardware);
    let result = appraise_quote(&quote, &collateral, &Policy::accept_nothing(), row.2);
    let rejection = assert_code(result, Code::MeasurementMismatch);
    assert!(
        rejection.fact().ends_with("the policy allows none"),
        "{rejection}"
    );
}

#[test]
fn a_genuine_quote_of_another_program_vouches_for_no_connection() {
    let row = row("tdx/dcapqvl_v4_b0c06f", "tdx_b0c06f_2025-06");
    let (quote, collateral) = load(row);
    let policy = policy_pinning(&quote, "", "");
    let claims = support::claims().encode();
    let evidence = Evidence { quote, claims };
    let result = verify(&evidence, &collateral, &connection(), &policy, row.2);
    let rejection = assert_code(result, Code::ReportDataMismatch);
    assert_eq!(outcome(&rejection, checks::QUOTE), Outcome::Pass);
}

#[test]
fn changed_collateral_is_refused() {
    let row = row("tdx/dcapqvl_v4_b0c06f", "tdx_b0c06f_2025-06");
    let (quote, genuine) = load(row);
    let policy = policy_pinning(&quote, "", "");
    let sgx = collateral("collateral/sgx_00a067110000_2025-06.json");
    let simulated = support::Server::new(blindai_core::Tee::Tdx).collateral();
    type Change<'a> = &'a dyn Fn(&mut DcapCollateral);
    let cases: [(Change<'_>, Code); 18] = [
        (
            &|c| c.tcb_info = c.tcb_info.replacen("OutOfDate", "UpToDate", 1),
            Code::CollateralSignature,
        ),
        (
            &|c| c.tcb_info_signature.truncate(10),
            Code::CollateralSignature,
        ),
        (
            &|c| c.qe_identity = format!("{} ", c.qe_identity),
            Code::CollateralSignature,
        ),
        (&|c| c.tcb_info = "{}".into(), Code::CollateralMalformed),
        (&|c| c.qe_identity = "[]".into(), Code::CollateralMalformed),
        (&|c| c.root_ca_crl.clear(), Code::CollateralMalformed),
        (&|c| c.pck_crl.clear(), Code::CollateralMalformed),
        (
            &|c| c.tcb_info_issuer_chain.clear(),
            Code::CollateralMalformed,
        ),
        (
            &|c| c.tcb_info.push_str(&" ".repeat(2 << 20)),
            Code::CollateralMalformed,
        ),
        (
            &|c| c.pck_crl.clone_from(&c.root_ca_crl),
            Code::CollateralMismatch,
        ),
        (
            &|c| c.pck_certificate_chain = Some(String::new()),
            Code::ChainInvalid,
        ),
        (
            &|c| {
                c.qe_identity.clone_from(&sgx.qe_identity);
                c.qe_identity_signature
                    .clone_from(&sgx.qe_identity_signature);
            },
            Code::CollateralMismatch,
        ),
        (&|c| c.clone_from(&simulated), Code::TrustRootUnknown),
        // What strangers write, and reasons repeat, decides nothing.
        (
            &|c| c.tcb_info = "{\"id\":\"TDX\",\"version\":\"CertRevoked\"}".into(),
            Code::CollateralMalformed,
        ),
        (
            &|c| c.tcb_info = "\"x: CrlExpired\"".into(),
            Code::CollateralMalformed,
        ),
        (
            &|c| c.qe_identity = "{\"version\":\"x: CertRevoked\"}".into(),
            Code::CollateralMalformed,
        ),
        (
            &|c| c.pck_certificate_chain = Some(mislabelled("CertRevoked")),
            Code::ChainInvalid,
        ),
        (
            &|c| c.tcb_info_issuer_chain = mislabelled("x: CertExpired"),
            Code::ChainInvalid,
        ),
    ];
    for (i, (change, code)) in cases.into_iter().enumerate() {
        let mut changed = genuine.clone();
        change(&mut changed);
        let result = appraise_quote(&quote, &changed, &policy, row.2);
        let rejection = result.err().unwrap_or_else(|| panic!("case {i} passed"));
        assert_eq!(rejection.code(), code, "case {i}: {}", rejection.table());
    }
}

fn mislabelled(label: &str) -> String {
    format!("-----BEGIN {label}-----\nAAAA\n-----END CERTIFICATE-----\n")
}

#[test]
fn what_is_no_quote_is_refused() {
    let row = row("tdx/dcapqvl_v4_b0c06f", "tdx_b0c06f_2025-06");
    let (quote, collateral) = load(row);
    let policy = policy_pinning(&quote, "", "");
    let oversized = [quote.as_slice(), &vec![0; 128 * 1024]].concat();
    for bytes in [
        &[],
        b"a quote".as_slice(),
        &quote[..600],
        &quote[..4000],
        &oversized,
    ] {
        let result = appraise_quote(bytes, &collateral, &policy, row.2);
        let rejection = assert_code(result, Code::QuoteMalformed);
        assert_eq!(outcome(&rejection, checks::TCB_STATUS), Outcome::Skipped);
    }
}
