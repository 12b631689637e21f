//! `blindai verify` as an auditor uses it: kept evidence of real machines, judged offline.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

#[path = "../../blindai-verify/tests/support/rows.rs"]
mod rows;

#[test]
fn every_quote_of_a_real_machine_has_its_verdict() {
    for row in rows::ROWS {
        let (name, collateral, at, expected) = row;
        let file = format!("{name}.quote");
        let (status, advisories) = expected.unwrap_or(("UpToDate", &[]));
        let policy = policy(&rows::load(row).0) + &exceptions(status, advisories);
        let collateral = path(&format!("collateral/{collateral}.json"));
        let arguments = ["--collateral", &collateral, "--at", &at.to_string()];
        let verdict = verify(&file, &policy, &arguments);
        match expected {
            Ok(_) => assert_trusted(&file, &verdict, status, advisories),
            Err(code) => assert_rejected(&file, &verdict, code.as_str()),
        }
    }
}

fn assert_trusted(name: &str, verdict: &Verdict, status: &str, advisories: &[&str]) {
    let Verdict { code, json, text } = verdict;
    assert_eq!(*code, 0, "{name}: {text}");
    assert_eq!(json["verdict"], "trusted", "{name}");
    assert_eq!(json["subject"], "quote", "{name}");
    assert_eq!(json["tcb_status"], status, "{name}");
    assert_eq!(json["advisories"], Value::from(advisories), "{name}");
    let mut checks = json["checks"].as_array().unwrap().iter();
    assert!(checks.all(|check| check["outcome"] != "fail"), "{name}");
    assert!(name.starts_with(json["tee"].as_str().unwrap()), "{name}");
    assert!(
        !json["measurements"].as_object().unwrap().is_empty(),
        "{name}"
    );
}

fn assert_rejected(name: &str, verdict: &Verdict, reason: &str) {
    let Verdict { code, json, text } = verdict;
    assert_eq!(*code, 1, "{name}: {text}");
    assert_eq!(json["verdict"], "rejected", "{name}");
    assert_eq!(json["code"], reason, "{name}: {text}");
    let mut checks = json["checks"].as_array().unwrap().iter();
    let failed = checks.find(|check| check["outcome"] == "fail").unwrap();
    assert_eq!(failed["code"], reason, "{name}");
    // What it says of itself is shown all the same.
    assert!(name.starts_with(json["tee"].as_str().unwrap()), "{name}");
    assert!(
        !json["measurements"].as_object().unwrap().is_empty(),
        "{name}"
    );
    for key in ["name", "detail", "remedy"] {
        assert!(failed[key].is_string(), "{name}: {key}");
    }
    assert!(
        text.starts_with(&format!("blindai: {reason}: ")),
        "{name}: {text}"
    );
}

#[test]
fn what_cannot_be_judged_has_exit_code_two() {
    let quote = "tdx/dcapqvl_v4_b0c06f.quote";
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let policy_file = path("policy.toml");
    fs::write(&policy_file, policy(&file(quote))).unwrap();
    fs::write(path("empty.toml"), "").unwrap();
    fs::write(path("text"), "not evidence").unwrap();
    fs::write(path("large"), vec![0; 5 << 20]).unwrap();
    fs::write(path("cut.json"), "{\"format\":").unwrap();
    fs::write(path("cut.pem"), "-----BEGIN CERTIFICATE-----\nMII").unwrap();
    let [quote, collateral, report] = [
        quote,
        "collateral/tdx_b0c06f_2025-06.json",
        "sgx/mc_00906ed50000.quote",
    ]
    .map(|name| evidence(name).to_str().unwrap().to_owned());
    let with = |file: &str| vec![file.to_owned(), "--policy".into(), policy_file.clone()];
    let add = |mut all: Vec<String>, more: &[&str]| {
        all.extend(more.iter().map(|&word| word.to_owned()));
        all
    };
    let whole = add(with(&quote), &["--collateral", &collateral]);
    let cases = [
        (vec![quote.clone()], "no policy"),
        (
            add(vec![quote.clone()], &["--policy", &path("none")]),
            "none",
        ),
        (
            add(vec![quote.clone()], &["--policy", &path("empty.toml")]),
            "tee",
        ),
        (
            add(vec![quote.clone()], &["--policy", &path("large")]),
            "over",
        ),
        (with(&path("none")), "cannot be read"),
        (with(&path("text")), "neither an evidence document"),
        (with(&path("large")), "over"),
        (with(&path("cut.json")), "not an evidence document"),
        (with(&path("cut.pem")), "PEM"),
        (with(&quote), "--collateral FILE"),
        (
            add(with(&quote), &["--collateral", &report]),
            "not collateral",
        ),
        (add(with(&quote), &["--collateral", &path("large")]), "over"),
        (add(with(&quote), &["--vcek", &collateral]), "SEV-SNP"),
        (
            add(whole.clone(), &["--at", "yesterday"]),
            "seconds since 1970",
        ),
        (add(whole.clone(), &["--nonce", "00"]), "64 hexadecimal"),
        (add(whole, &["--nonce", &"00".repeat(32)]), "no claims"),
    ];
    for (arguments, word) in cases {
        let output = blindai().arg("verify").args(&arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(word), "{arguments:?}: {text}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn foreign_certificates_are_judged_by_their_contents() {
    for name in ["gramine-cert", "intel-sgxsdk-cert", "rats-tls-cert"] {
        let certificate = format!("ratls/{name}.pem");
        let other = evidence("collateral/sgx_00a067110000_2025-06.json");
        let arguments = [
            "--collateral",
            other.to_str().unwrap(),
            "--at",
            "1751600000",
        ];
        let policy = policy(&file("sgx/mc_00906ed50000.quote"));
        let Verdict { code, json, text } = verify(&certificate, &policy, &arguments);
        assert_eq!(code, 1, "{name}: {text}");
        assert_eq!(json["subject"], "certificate", "{name}");
        assert_eq!(check(&json, "tls_key")["outcome"], "pass", "{name}: {text}");
        assert_eq!(check(&json, "debug")["outcome"], "fail", "{name}: {text}");
    }
}

#[test]
fn a_person_gets_a_table() {
    let quote = "tdx/dcapqvl_v4_b0c06f.quote";
    let collateral = evidence("collateral/tdx_b0c06f_2025-06.json");
    let arguments = [
        "--collateral",
        collateral.to_str().unwrap(),
        "--at",
        "1751600000",
    ];
    let output = run(quote, &policy(&file(quote)), &arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("a quote of TDX, version 4 alone"), "{text}");
    assert!(
        text.contains("quote verified, no connection · tdx · UpToDate"),
        "{text}"
    );
    assert!(
        text.lines()
            .any(|line| line.trim().starts_with("pass     trust_root")),
        "{text}"
    );
    assert!(
        text.lines()
            .any(|line| line.trim().starts_with("skipped  ")),
        "{text}"
    );
}

/// Exit code, standard output, standard error.
struct Verdict {
    code: i32,
    json: Value,
    text: String,
}

fn verify(file: &str, policy: &str, arguments: &[&str]) -> Verdict {
    let output = run(file, policy, &[arguments, &["--json"]].concat());
    let text = String::from_utf8(output.stderr).unwrap();
    let json = serde_json::from_slice(&output.stdout);
    let json = json.unwrap_or_else(|error| panic!("{file}: {error}: {text}"));
    let code = output.status.code().unwrap();
    Verdict { code, json, text }
}

fn run(file: &str, policy: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.toml");
    fs::write(&path, policy).unwrap();
    let mut command = blindai();
    command
        .arg("verify")
        .arg(evidence(file))
        .arg("--policy")
        .arg(path);
    command.args(arguments).output().unwrap()
}

fn check<'a>(json: &'a Value, name: &str) -> &'a Value {
    let checks = json["checks"].as_array().unwrap().iter();
    let mut found = checks.filter(|check| check["name"] == name);
    found
        .next()
        .unwrap_or_else(|| panic!("no check {name} in {json}"))
}

/// Pins what the quote says, read at the offsets that Intel documents and by no code of ours.
fn policy(quote: &[u8]) -> String {
    let hex = |at: usize, len: usize| {
        let bytes = quote[at..at + len].iter();
        bytes.map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    if quote[4] == 0 {
        format!("tee = ['sgx']\n[sgx]\nmrenclave = ['{}']\n", hex(112, 32))
    } else {
        let body = if quote[0] == 5 { 54 } else { 48 };
        let [mrtd, rtmr1, rtmr2] = [136, 376, 424].map(|at| hex(body + at, 48));
        format!(
            "tee = ['tdx']\n[tdx]\nmrtd = ['{mrtd}']\nrtmr1 = ['{rtmr1}']\nrtmr2 = ['{rtmr2}']\n"
        )
    }
}

fn exceptions(status: &str, advisories: &[&str]) -> String {
    let exception = |kind: &str, name: &str| {
        format!("[[tcb.exceptions]]\n{kind} = '{name}'\nuntil = '2030-01-01'\n")
    };
    let advisories = advisories.iter().map(|id| exception("advisory", id));
    advisories.chain([exception("status", status)]).collect()
}

fn blindai() -> Command {
    Command::new(env!("CARGO_BIN_EXE_blindai"))
}

fn evidence(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/evidence");
    root.join(name)
}

fn path(name: &str) -> String {
    evidence(name).to_str().unwrap().to_owned()
}

fn file(name: &str) -> Vec<u8> {
    fs::read(evidence(name)).unwrap()
}

fn collateral(name: &str) -> blindai_core::DcapCollateral {
    serde_json::from_slice(&file(name)).unwrap()
}
