//! Looking at evidence, and the policy that is written from it.

mod support;

use blindai_core::{Collateral, SnpCollateral, Tee};
use blindai_verify::{Observation, Policy, RejectionCode as Code, Verification, checks, observe};

use support::rows::{ROWS, Row, load};
use support::{NOW, Server, appraise_quote, assert_code, claims, file, verify};

fn observe_row(row: &Row) -> Observation {
    let (quote, collateral) = load(row);
    observe(&quote, Some(&collateral.into()), row.2).unwrap()
}

fn value(observation: &Observation, name: &str) -> String {
    let values = observation.values();
    let found = values.into_iter().find(|(n, _)| *n == name);
    found.unwrap_or_else(|| panic!("no {name}")).1
}

fn names(policy: &Policy, observation: &Observation) -> Vec<&'static str> {
    let differences = policy.differences(observation);
    differences
        .iter()
        .map(|difference| difference.name())
        .collect()
}

/// The lines that stand in comments, as lines of the policy.
fn with_offers(policy: &str) -> String {
    let is_key = |line: &str| {
        let key = line.split(" = ").next().unwrap_or_default();
        line.contains(" = ")
            && key
                .chars()
                .all(|c| c.is_ascii_lowercase() || "_0123".contains(c))
    };
    let lines = policy.lines().map(|line| match line.strip_prefix("# ") {
        Some(offer) if is_key(offer) => offer,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn what_verifies_and_what_does_not_is_said() {
    for row in ROWS {
        let observation = observe_row(row);
        match (row.3, observation.verification()) {
            (Ok((status, advisories)), Verification::Verified(verified)) => {
                assert_eq!(verified.tcb_status(), status, "{}", row.0);
                assert_eq!(verified.advisories(), advisories, "{}", row.0);
                assert_eq!(verified.trust_root(), "Intel SGX Root CA");
                assert!(!verified.simulated() && !observation.debug());
                assert!(verified.collateral_until() > row.2);
                assert!(verified.evaluation_number() > Some(0));
            }
            (Err(Code::Debug), Verification::Verified(_)) => {
                assert!(observation.debug());
                assert!(
                    observation.to_string().contains("ON: the host"),
                    "{observation}"
                );
            }
            (Err(code), Verification::Refused { code: found, .. }) => {
                assert_eq!(*found, code, "{}", row.0);
                assert!(observation.to_string().contains("NOT VERIFIED"));
            }
            (expected, found) => panic!("{}: {expected:?}, found {found:?}", row.0),
        }
    }
}

#[test]
fn the_values_of_known_machines_are_read() {
    let sgx = file("sgx/dcapqvl_00a067110000.quote");
    let observation = observe(&sgx, None, 0).unwrap();
    assert_eq!(observation.tee(), Tee::Sgx);
    assert_eq!(*observation.verification(), Verification::NotTried);
    assert_eq!(value(&observation, "fmspc"), "00a067110000");
    // The offsets of Intel's `sgx_report_body_t`, after the 48 bytes of the header.
    for (name, at, bytes) in [
        ("misc_select", 16, 4),
        ("isv_ext_prod_id", 32, 16),
        ("attributes", 48, 16),
        ("mrenclave", 64, 32),
        ("mrsigner", 128, 32),
        ("config_id", 192, 64),
        ("isv_family_id", 304, 16),
    ] {
        let at = 48 + at;
        assert_eq!(
            value(&observation, name),
            hex::encode(&sgx[at..at + bytes]),
            "{name}"
        );
    }
    for (name, at) in [("isv_prod_id", 256), ("isv_svn", 258), ("config_svn", 260)] {
        let number = u16::from_le_bytes([sgx[48 + at], sgx[48 + at + 1]]);
        assert_eq!(value(&observation, name), number.to_string(), "{name}");
    }
    assert_eq!(observation.report_data(), &sgx[48 + 320..48 + 384]);

    let tdx = file("tdx/gotdx_v5_td15_90c06f.quote");
    let observation = observe(&tdx, None, 0).unwrap();
    assert_eq!(value(&observation, "fmspc"), "90c06f000000");
    assert_eq!(
        value(&observation, "qe_vendor_id"),
        "939a7233f79c4ca9940a0db3957f0607"
    );
    // The offsets of `sgx_report2_body_v1_5_t`, after header and body's type and size.
    for (name, at, bytes) in [
        ("tee_tcb_svn", 0, 16),
        ("mr_seam", 16, 48),
        ("mr_signer_seam", 64, 48),
        ("seam_attributes", 112, 8),
        ("td_attributes", 120, 8),
        ("xfam", 128, 8),
        ("mrtd", 136, 48),
        ("mr_config_id", 184, 48),
        ("mr_owner", 232, 48),
        ("mr_owner_config", 280, 48),
        ("rtmr0", 328, 48),
        ("rtmr3", 472, 48),
        ("tee_tcb_svn2", 584, 16),
        ("mr_service_td", 600, 48),
    ] {
        let at = 54 + at;
        assert_eq!(
            value(&observation, name),
            hex::encode(&tdx[at..at + bytes]),
            "{name}"
        );
    }
    // The certificate of a platform with several packages says these.
    for name in ["smt_enabled", "dynamic_platform", "cached_keys"] {
        assert!(["true", "false"].contains(&value(&observation, name).as_str()));
    }
}

#[test]
fn the_policy_that_is_written_accepts_what_it_was_written_from() {
    for row in ROWS.iter().filter(|row| row.3.is_ok()) {
        let (quote, collateral) = load(row);
        let observation = observe_row(row);
        let text = observation.to_policy_toml();
        for text in [text.clone(), with_offers(&text)] {
            let policy = Policy::from_toml(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            let appraise = |now| appraise_quote(&quote, &collateral, &policy, now);
            let flags =
                |name: &&str| ["smt_enabled", "dynamic_platform", "cached_keys"].contains(name);
            let differences = names(&policy, &observation);
            assert!(differences.iter().all(flags), "{}: {differences:?}", row.0);
            match appraise(row.2) {
                Ok(_) => assert!(differences.is_empty()),
                Err(rejection) => assert!(!differences.is_empty(), "{}", rejection.table()),
            }
        }
    }
}

#[test]
fn the_policy_that_is_written_accepts_nothing_else() {
    let verified = ROWS.iter().filter(|row| row.3.is_ok());
    let rows: Vec<_> = verified.collect();
    for of in &rows {
        let policy = Policy::from_toml(&observe_row(of).to_policy_toml()).unwrap();
        for other in rows.iter().filter(|other| other.0 != of.0) {
            let (quote, collateral) = load(other);
            let result = appraise_quote(&quote, &collateral, &policy, other.2);
            let rejection = result
                .err()
                .unwrap_or_else(|| panic!("{} for {}", other.0, of.0));
            // What the appraisal refuses, the differences name.
            let differences = names(&policy, &observe_row(other));
            let failed = rejection
                .checks()
                .iter()
                .filter(|check| check.code().is_some());
            for check in failed {
                assert!(differences.contains(&check.name()), "{}", check.name());
            }
        }
    }
}

#[test]
fn what_is_not_up_to_date_is_accepted_for_thirty_days() {
    let row = ROWS
        .iter()
        .find(|row| matches!(row.3, Ok(("SWHardeningNeeded", _))))
        .unwrap();
    let (quote, collateral) = load(row);
    let text = observe_row(row).to_policy_toml();
    // The row's time is 2023-07-27.
    assert_eq!(text.matches("until = \"2023-08-26\"").count(), 3, "{text}");
    assert_eq!(text.matches("TO BE JUDGED").count(), 3);
    let policy = Policy::from_toml(&text).unwrap();
    let report = appraise_quote(&quote, &collateral, &policy, row.2).unwrap();
    assert!(report.valid_until() <= row.2 + 31 * 24 * 3600);
}

#[test]
fn debug_is_never_accepted_unasked() {
    let row = ROWS.iter().find(|row| row.3 == Err(Code::Debug)).unwrap();
    let (quote, collateral) = load(row);
    let text = observe_row(row).to_policy_toml();
    let policy = Policy::from_toml(&text).unwrap();
    assert_code(
        appraise_quote(&quote, &collateral, &policy, row.2),
        Code::Debug,
    );
    assert_eq!(names(&policy, &observe_row(row)), [checks::DEBUG]);

    let accepted = text.replace("# dangerous_allow_debug", "dangerous_allow_debug");
    let policy = Policy::from_toml(&accepted).unwrap();
    appraise_quote(&quote, &collateral, &policy, row.2).unwrap();
}

#[test]
fn every_pin_and_knob_is_compared() {
    let row = ROWS
        .iter()
        .find(|row| matches!(row.3, Ok(("OutOfDate", [_, ..]))))
        .unwrap();
    let observation = observe_row(row);
    let every = with_offers(&observation.to_policy_toml());
    for (name, _) in observation.values() {
        let key = [format!("{name} = "), format!("min_{name} = ")];
        let is_line = |line: &&str| key.iter().any(|key| line.starts_with(key));
        let Some(line) = every.lines().find(is_line) else {
            continue;
        };
        // One digit of the value, inside its quotation marks.
        let other = match (line.split_once('"'), line.ends_with("false")) {
            (Some((key, value)), _) => {
                let digit = if value.starts_with('f') { '0' } else { 'f' };
                format!("{key}\"{digit}{}", &value[1..])
            }
            (None, true) => line.replace("false", "true"),
            (None, false) => {
                let (key, _) = line.split_once('=').unwrap();
                format!("{key}= 65535")
            }
        };
        let before = names(&Policy::from_toml(&every).unwrap(), &observation);
        let changed = Policy::from_toml(&every.replace(line, &other)).unwrap();
        let after = names(&changed, &observation);
        let toggled = before.contains(&name) != after.contains(&name);
        assert!(
            toggled && before.len().abs_diff(after.len()) == 1,
            "{name}: {after:?}"
        );
    }
    let strict = Policy::from_toml(&every[..every.find("[tcb]").unwrap()]).unwrap();
    let mut found = names(&strict, &observation);
    found.retain(|name| name.starts_with("tcb"));
    assert_eq!(
        found
            .iter()
            .filter(|name| **name == checks::TCB_ADVISORIES)
            .count(),
        10
    );
    assert_eq!(found[0], checks::TCB_STATUS);
    let number = every
        .lines()
        .find(|line| line.starts_with("min_evaluation"))
        .unwrap();
    let newer = every.replace(number, "min_evaluation_number = 99");
    let found = names(&Policy::from_toml(&newer).unwrap(), &observation);
    assert!(found.contains(&checks::TCB_EVALUATION));
}

#[test]
fn the_claims_add_the_configuration_when_the_quote_signs_them() {
    let server = Server::new(Tee::Tdx);
    let evidence = server.evidence(&claims());
    let collateral = Some(Collateral::from(server.collateral()));
    let observed = || observe(&evidence.quote, collateral.as_ref(), NOW).unwrap();
    let observation = observed().with_claims(&evidence.claims).unwrap();
    let policy = observation.to_policy_toml();
    let digest = claims().config_digest.unwrap().to_string();
    assert!(policy.contains(&digest), "{policy}");
    assert!(policy.contains("SIMULATED"));

    let policy = Policy::from_toml(&policy).unwrap();
    assert_eq!(names(&policy, &observation), [checks::TRUST_ROOT]);
    assert_eq!(
        names(&policy, &observed()),
        [checks::TRUST_ROOT, checks::CONFIG_DIGEST]
    );
    let accepting = policy.dangerous_accept_simulation();
    assert_eq!(accepting.differences(&observation), []);
    let binding = support::connection();
    verify(&evidence, &server.collateral(), &binding, &accepting, NOW).unwrap();

    let mut others = claims();
    others.issued_at = None;
    assert_code(
        observed().with_claims(&others.encode()),
        Code::ReportDataMismatch,
    );
}

#[test]
fn what_was_not_verified_is_written_down_as_such() {
    let quote = file("sgx/occlum_debug_00606a000000.quote");
    let snp = Collateral::Snp(SnpCollateral {
        signer: String::new(),
        issuer_chain: None,
        crl: None,
    });
    let other = observe(&quote, Some(&snp), 0).unwrap();
    assert!(matches!(
        other.verification(),
        Verification::Refused {
            code: Code::CollateralMismatch,
            ..
        }
    ));
    for observation in [other, observe(&quote, None, 0).unwrap()] {
        let text = observation.to_policy_toml();
        assert!(
            text.contains("NOT VERIFIED") && !text.contains("[tcb]"),
            "{text}"
        );
        let policy = Policy::from_toml(&text).unwrap();
        assert_eq!(names(&policy, &observation), [checks::QUOTE, checks::DEBUG]);
    }
    assert_code(observe(b"a quote", None, 0), Code::QuoteMalformed);
}
