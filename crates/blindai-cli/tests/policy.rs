//! `blindai policy`: a policy is written from evidence, accepts it, and tells what changed.

mod support;

use std::fs;

use serde_json::Value;

use support::{Kept, SGX, SNP, TDX, blindai, evidence, path};

#[test]
fn a_policy_from_evidence_accepts_it() {
    for kept in [TDX, SGX, SNP] {
        let (policy, warning) = kept.init();
        assert!(policy.contains("# "), "{policy}");
        let judged = policy.contains("TO BE JUDGED");
        assert_eq!(warning.starts_with("NOTE: "), judged, "{warning}");
        assert!(!warning.contains("WARNING"), "{warning}");
        let policy = policy.replace("\n# require_crl = false", "\nrequire_crl = false");
        let (code, verdict) = kept.run("verify", &["--json"], &policy);
        assert_eq!(code, 0, "{}: {verdict}", kept.file);
    }
}

#[test]
fn a_policy_from_evidence_without_a_revocation_list_refuses_it_until_judged() {
    let (policy, warning) = SNP.init();
    assert!(policy.contains("TO BE JUDGED"), "{policy}");
    assert!(warning.contains("TO BE JUDGED"), "{warning}");
    let (code, verdict) = SNP.run("verify", &["--json"], &policy);
    assert_eq!((code, &verdict["code"]), (1, &"crl-missing".into()));
}

#[test]
fn what_changed_is_told() {
    let (policy, _) = TDX.init();
    let (code, same) = TDX.run("diff", &["--json"], &policy);
    assert_eq!((code, &same["differences"]), (0, &Value::Array(vec![])));

    let mrtd = same["observation"]["values"]["mrtd"].as_str().unwrap();
    let other = policy.replace(mrtd, &"ab".repeat(48));
    let (code, changed) = TDX.run("diff", &["--json"], &other);
    let [difference] = changed["differences"].as_array().unwrap().as_slice() else {
        panic!("{changed}")
    };
    assert_eq!(code, 1);
    assert_eq!(difference["name"], "mrtd");
    assert_eq!(difference["seen"], mrtd);
    assert!(difference["policy"].as_str().unwrap().contains("abab"));
    let (code, text) = TDX.run("diff", &[], &other);
    assert_eq!(code, 1);
    assert!(text.as_str().unwrap().contains("mrtd"), "{text}");
}

#[test]
fn what_is_not_verified_is_said() {
    let file = evidence(TDX.file);
    let init = |arguments: &[&str]| {
        let mut command = blindai();
        let command = command.args(["policy", "init", "--from"]).arg(&file);
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(init(&[]).starts_with("WARNING: the evidence NOT VERIFIED"));
    let collateral = path("collateral/tdx_b0c06f_2025-06.json");
    let expired = init(&["--collateral", &collateral, "--at", "1753500000"]);
    assert!(expired.contains("collateral-expired"), "{expired}");

    let debug = Kept {
        file: "tdx/trustee_v4_DEBUG_50806f.quote",
        arguments: &[
            ("--collateral", "collateral/tdx_50806f_2023-06.json"),
            ("--at", "1687930000"),
        ],
    };
    let (policy, warning) = debug.init();
    assert!(warning.contains("debug is on"), "{warning}");
    let (code, verdict) = debug.run("verify", &["--json"], &policy);
    assert_eq!((code, &verdict["code"]), (1, &"debug".into()));
}

#[test]
fn a_launch_measurement_is_computed_from_files() {
    let firmware = path("../firmware/ovmf_AmdSev_suffix.bin");
    let measure = |arguments: &[&str]| {
        let mut command = blindai();
        command.args(["policy", "measure", "sev-snp", "--vcpus", "1"]);
        command.args(arguments).output().unwrap()
    };
    let guest = ["--ovmf", &firmware, "--vcpu-type", "EPYC-v4"];
    let with = |arguments: &[&str]| measure(&[&guest, arguments].concat());
    let kernel = [
        "--kernel",
        "/dev/null",
        "--append",
        "console=ttyS0 loglevel=7",
    ];
    let output = with(&kernel);
    // The answer of the crate sev 8.0.0 to the same question.
    let want = "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), want);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let firmware_only = with(&[]);
    assert!(firmware_only.status.success());
    let warning = String::from_utf8(firmware_only.stderr).unwrap();
    assert!(warning.contains("firmware only"), "{warning}");
    assert_eq!(warning.lines().count(), 1);
    let debug_swap = with(&[&kernel[..], &["--guest-features", "0x21"]].concat());
    assert!(debug_swap.stdout.starts_with(b"803f691094946e42"));
    let refused = [
        (with(&["--append", "x"]), "--kernel"),
        (with(&["--guest-features", "0y1"]), "decimal"),
        (with(&["--kernel", "/nonexistent"]), "/nonexistent"),
        (
            measure(&["--ovmf", &firmware, "--vcpu-type", "Pentium"]),
            "EPYC-Milan",
        ),
        (
            measure(&["--ovmf", "/dev/null", "--vcpu-type", "EPYC"]),
            "cannot",
        ),
    ];
    for (output, word) in refused {
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{word}: {text}");
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn a_folder_holds_collateral_by_platform() {
    let folder = tempfile::tempdir().unwrap();
    let (policy, _) = TDX.init();
    let quote = fs::read(evidence(TDX.file)).unwrap();
    let name = blindai_collateral::file_name(&quote).unwrap();
    let from = evidence("collateral/tdx_b0c06f_2025-06.json");
    fs::copy(from, folder.path().join(name)).unwrap();
    let kept = |folder: &str| {
        let file = folder.to_owned() + "/policy.toml";
        fs::write(&file, &policy).unwrap();
        let mut command = blindai();
        command.arg("verify").arg(evidence(TDX.file));
        command.args([
            "--policy",
            &file,
            "--collateral",
            folder,
            "--at",
            "1751600000",
        ]);
        command.output().unwrap().status.code()
    };
    assert_eq!(kept(folder.path().to_str().unwrap()), Some(0));
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(kept(empty.path().to_str().unwrap()), Some(2));
}
