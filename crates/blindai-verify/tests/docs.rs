//! The page on verification, held to the code.

use std::collections::BTreeMap;

use blindai_verify::{RejectionCode, checks};

const PAGE: &str = include_str!("../../../docs/verification.md");

/// The rows of the first table that begins with this line, as trimmed cells.
fn table(page: &'static str, header: &str) -> Vec<Vec<&'static str>> {
    let after = page.split_once(header);
    let (_, after) = after.unwrap_or_else(|| panic!("no table {header}"));
    let rows = after
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let cells = |row: &'static str| row.trim_matches('|').split(" | ").map(str::trim).collect();
    rows.map(cells).collect()
}

#[test]
fn every_code_stands_there_with_its_remedy_and_no_other() {
    let rows = table(PAGE, "| code | what it means | what to do |");
    let written: BTreeMap<_, _> = rows.iter().map(|row| (row[0], row[2])).collect();
    assert_eq!(written.len(), rows.len(), "a code stands there twice");
    let known = RejectionCode::ALL.iter().map(|code| {
        let remedy = Some(code.remedy()).filter(|remedy| !remedy.is_empty());
        (format!("`{}`", code.as_str()), remedy.unwrap_or("—"))
    });
    let known: Vec<_> = known.collect();
    for (code, remedy) in &known {
        assert_eq!(written.get(code.as_str()), Some(remedy), "{code}");
    }
    assert_eq!(
        written.len(),
        known.len(),
        "a code stands there that is none"
    );
    for row in &rows {
        assert!(!row[1].is_empty(), "{} says nothing", row[0]);
    }
}

#[test]
fn every_check_of_a_receipt_stands_on_its_page() {
    let page = include_str!("../../../docs/receipts.md");
    let rows = table(page, "| check | passes when | code when it does not |");
    for check in [
        checks::RECEIPT,
        checks::RECEIPT_KEY,
        checks::RECEIPT_SIGNATURE,
        checks::RECEIPT_KIND,
        checks::RECEIPT_TIME,
        checks::RECEIPT_SERVER,
        checks::RECEIPT_CONFIG,
        checks::RECEIPT_NONCE,
        checks::RECEIPT_MODEL,
        checks::RECEIPT_MODEL_ACCEPTED,
        checks::RECEIPT_INPUT,
        checks::RECEIPT_OUTPUT,
    ] {
        let name = format!("`{check}`");
        assert!(rows.iter().any(|row| row[0].contains(&name)), "{check}");
    }
    let codes = RejectionCode::ALL.iter().map(|code| code.as_str());
    for code in codes.filter(|code| code.starts_with("receipt-")) {
        let name = format!("`{code}`");
        assert!(rows.iter().any(|row| row[2].contains(&name)), "{code}");
    }
}

#[test]
fn every_check_of_every_table_stands_there() {
    let header = "| check | passes when | what it does not prove |";
    let mut rows = table(PAGE, header);
    let (_, after) = PAGE.split_once(header).expect("the first table");
    rows.extend(table(after, header));
    for check in [
        checks::TEE,
        checks::TRUST_ROOT,
        checks::QUOTE,
        checks::DEBUG,
        checks::TCB_STATUS,
        checks::TCB_ADVISORIES,
        checks::TCB_EVALUATION,
        checks::CLAIMS,
        checks::REPORT_DATA,
        checks::TLS_KEY,
        checks::NONCE,
        checks::VALIDITY,
        checks::CONFIG_DIGEST,
        checks::CERTIFICATE_CHAIN,
        checks::CERTIFICATE_TCB,
        checks::CERTIFICATE_CHIP,
        checks::CPU,
        checks::REVOCATION,
        checks::GUEST_POLICY,
        checks::MIGRATION_AGENT,
        checks::SMT,
        checks::ABI,
        checks::VMPL,
        checks::REPORTED_TCB,
        checks::COMMITTED_TCB,
        checks::LAUNCH_TCB,
        checks::PLATFORM_INFO,
    ] {
        let name = format!("`{check}`");
        assert!(rows.iter().any(|row| row[0].contains(&name)), "{check}");
    }
}
