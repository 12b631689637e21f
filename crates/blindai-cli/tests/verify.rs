//! `blindai verify` as an auditor uses it: kept evidence of real machines, judged offline.

mod support;

use std::fs;
use std::process::Output;

use blindai_core::{Collateral, ReportData};
use blindai_tee::{Attester as _, Draft, Measurement, Simulation, SimulationOptions};
use serde_json::Value;

use support::{blindai, evidence, path};

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

/// Report, the signer's certificate, time, then the lines that the policy needs beside the
/// measurement, then the code when it is refused.
type SnpRow = (
    &'static str,
    &'static str,
    u64,
    &'static str,
    Option<&'static str>,
);

const SNP_ROWS: &[SnpRow] = &[
    ("ms_milan", "ms_milan_vcek.pem", 1780000000, "", None),
    ("ms_genoa", "ms_genoa_vcek.pem", 1780000000, "", None),
    ("ms_turin", "ms_turin_vcek.pem", 1780000000, "", None),
    (
        "trustee_milan_v2",
        "trustee_milan_v2_vcek.der",
        1780000000,
        "",
        None,
    ),
    (
        "trustee_milan_v2",
        "test-vcek-invalid-legacy.der",
        1780000000,
        "",
        Some("chain-invalid"),
    ),
    (
        "trustee_milan_v2",
        "test-vcek-invalid-new.der",
        1780000000,
        "",
        Some("chain-invalid"),
    ),
    (
        "trustee_milan_vlek",
        "trustee_milan_vlek.der",
        1740000000,
        "vmpl = [1]",
        None,
    ),
    (
        "trustee_milan_vlek",
        "trustee_milan_vlek.der",
        1765500000,
        "vmpl = [1]",
        Some("certificate-expired"),
    ),
    (
        "gosev_milan_DEBUG",
        "gosev_milan_DEBUG_vcek.der",
        1780000000,
        "",
        Some("debug"),
    ),
];

#[test]
fn every_report_of_a_real_machine_has_its_verdict() {
    for (report, signer, at, lines, refused) in SNP_ROWS {
        let file = format!("snp/{report}.report");
        let policy = snp_policy(&file, lines);
        let arguments = [
            "--vcek",
            &path(&format!("snp/{signer}")),
            "--at",
            &at.to_string(),
        ];
        let verdict = verify(&file, &policy, &arguments);
        let name = format!("sev-snp {report} {signer} {at}");
        match refused {
            None => assert_trusted(&name, &verdict, "reported", &[]),
            Some(code) => assert_rejected(&name, &verdict, code),
        }
    }
}

#[test]
fn the_issuers_of_a_report_can_be_given_and_must_be_amds() {
    let (report, signer) = ("snp/ms_milan.report", path("snp/ms_milan_vcek.pem"));
    let folder = tempfile::tempdir().unwrap();
    let chain = |vendor: &str| {
        let pem = ["ask", "ark"]
            .map(|of| file(&format!("snp/{vendor}_{of}.pem")))
            .concat();
        let path = folder.path().join(vendor);
        fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let policy = snp_policy(report, "");
    let with = |chain: &str| {
        let arguments = ["--vcek", &signer, "--chain", chain, "--at", "1780000000"];
        verify(report, &policy, &arguments)
    };
    assert_eq!(with(&chain("milan")).code, 0);
    assert_eq!(with(&chain("genoa")).code, 1);
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

/// On simulated hardware: the lists that AMD has signed for real revoke nothing yet.
#[test]
fn a_revocation_list_decides_where_it_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let verdict = |revoked: Option<&'static [u64]>| {
        let options = SimulationOptions::new(Measurement::Launch([1; 48]));
        let platform = Simulation::forged(options, move |draft| {
            if let (Draft::AmdCrl(list), Some(serials)) = (draft, revoked) {
                list.revoked = serials.to_vec();
            }
        });
        let platform = platform.unwrap();
        let report = platform.quote(&ReportData::of_claims(b"")).unwrap();
        let Some(Collateral::Snp(collateral)) = platform.collateral().unwrap() else {
            panic!("not of SEV-SNP")
        };
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let report = write("report", &report);
        let signer = write("signer.pem", collateral.signer.as_bytes());
        let chain = write("chain.pem", collateral.issuer_chain.unwrap().as_bytes());
        let crl = write("crl.der", &collateral.crl.unwrap());
        let mut command = blindai();
        command.args(["verify", &report, "--simulation", "--json"]);
        command.args(["--vcek", &signer, "--chain", &chain]);
        if revoked.is_some() {
            command.args(["--crl", &crl]);
        }
        let output = command.output().unwrap();
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), json["code"].clone())
    };
    assert_eq!(verdict(Some(&[77])), (0, Value::Null));
    // The intermediate's serial number.
    assert_eq!(verdict(Some(&[77, 2])), (1, "certificate-revoked".into()));
    assert_eq!(verdict(None), (1, "crl-missing".into()));
}

#[test]
fn what_cannot_be_judged_has_exit_code_two() {
    let quote = "tdx/dcapqvl_v4_b0c06f.quote";
    let folder = tempfile::tempdir().unwrap();
    let local = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let policy_file = local("policy.toml");
    fs::write(&policy_file, policy(&file(quote))).unwrap();
    fs::write(local("empty.toml"), "").unwrap();
    fs::write(local("text"), "not evidence").unwrap();
    fs::write(local("large"), vec![0; 5 << 20]).unwrap();
    fs::write(local("cut.json"), "{\"format\":").unwrap();
    let steering = "\u{1b}[1A\u{9b}2Ktrusted\u{202e}";
    let forged = format!("{{\"{}\":1}}", steering.replace('\u{1b}', "\\u001b"));
    fs::write(local("forged.json"), forged).unwrap();
    fs::write(local("forged.toml"), format!("'{steering}' = 1")).unwrap();
    fs::write(local("cut.pem"), "-----BEGIN CERTIFICATE-----\nMII").unwrap();
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
            add(vec![quote.clone()], &["--policy", &local("none")]),
            "none",
        ),
        (
            add(vec![quote.clone()], &["--policy", &local("empty.toml")]),
            "tee",
        ),
        (
            add(vec![quote.clone()], &["--policy", &local("large")]),
            "over",
        ),
        (with(&local("none")), "cannot be read"),
        (with(&local("text")), "neither an evidence document"),
        (with(&local("large")), "over"),
        (with(&local("cut.json")), "not an evidence document"),
        (with(&local("cut.pem")), "PEM"),
        (with(&local("forged.json")), "not an evidence document"),
        (
            add(vec![quote.clone()], &["--policy", &local("forged.toml")]),
            "the policy is refused",
        ),
        (with(&quote), "--collateral FILE"),
        (
            add(with(&quote), &["--collateral", &report]),
            "not collateral",
        ),
        (
            add(with(&quote), &["--collateral", &local("large")]),
            "over",
        ),
        (add(with(&quote), &["--vcek", &collateral]), "SEV-SNP"),
        (
            add(whole.clone(), &["--at", "yesterday"]),
            "seconds since 1970",
        ),
        (add(whole.clone(), &["--nonce", "00"]), "64 hexadecimal"),
        (
            add(whole, &["--nonce", &"00".repeat(32)]),
            "carries no nonce",
        ),
    ];
    for (arguments, word) in cases {
        let output = blindai().arg("verify").args(&arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(word), "{arguments:?}: {text}");
        let steers = |c| c != '\n' && blindai_core::is_steering(c);
        assert!(!text.contains(steers), "{arguments:?}: {text:?}");
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

#[test]
fn a_reader_that_stops_changes_no_verdict() {
    let quote = "tdx/dcapqvl_v4_b0c06f.quote";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.toml");
    fs::write(&file, policy(&self::file(quote))).unwrap();
    let verify = |at: &str, to: std::process::Stdio| {
        let mut command = blindai();
        command
            .arg("verify")
            .arg(evidence(quote))
            .arg("--policy")
            .arg(&file);
        let collateral = path("collateral/tdx_b0c06f_2025-06.json");
        command.args(["--collateral", &collateral, "--at", at]);
        command.stdout(to).output().unwrap().status.code()
    };
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer.into()
    };
    assert_eq!(verify("1751600000", closed()), Some(0));
    assert_eq!(verify("1753500000", closed()), Some(1));
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    assert_eq!(verify("1751600000", full.into()), Some(2));
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
    let hex = |at: usize, len: usize| hex(&quote[at..at + len]);
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

fn snp_policy(file: &str, lines: &str) -> String {
    let measurement = hex(&self::file(file)[0x90..0xc0]);
    format!(
        "tee = ['sev-snp']\n[sev-snp]\nmeasurement = ['{measurement}']\nrequire_crl = false\n{lines}\n"
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn exceptions(status: &str, advisories: &[&str]) -> String {
    let exception = |kind: &str, name: &str| {
        format!("[[tcb.exceptions]]\n{kind} = '{name}'\nuntil = '2030-01-01'\n")
    };
    let advisories = advisories.iter().map(|id| exception("advisory", id));
    advisories.chain([exception("status", status)]).collect()
}

fn file(name: &str) -> Vec<u8> {
    fs::read(evidence(name)).unwrap()
}

fn collateral(name: &str) -> blindai_core::DcapCollateral {
    serde_json::from_slice(&file(name)).unwrap()
}
