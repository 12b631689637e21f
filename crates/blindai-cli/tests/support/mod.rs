//! The program and the evidence of real machines that its tests judge.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Evidence of a real machine, with what it takes to verify it. Values of arguments but times are
/// names of files.
#[derive(Clone, Copy)]
pub struct Kept {
    pub file: &'static str,
    pub arguments: &'static [(&'static str, &'static str)],
}

/// `UpToDate`.
pub const TDX: Kept = Kept {
    file: "tdx/dcapqvl_v4_b0c06f.quote",
    arguments: &[
        ("--collateral", "collateral/tdx_b0c06f_2025-06.json"),
        ("--at", "1751600000"),
    ],
};
/// `SWHardeningNeeded`.
pub const SGX: Kept = Kept {
    file: "sgx/mc_00906ed50000.quote",
    arguments: &[
        (
            "--collateral",
            "collateral/sgx_00906ed50000_2023-07_crl2025.json",
        ),
        ("--at", "1690480000"),
    ],
};
/// Without a revocation list.
pub const SNP: Kept = Kept {
    file: "snp/ms_milan.report",
    arguments: &[("--vcek", "snp/ms_milan_vcek.pem"), ("--at", "1780000000")],
};

impl Kept {
    /// The policy that is written from it, and the warnings.
    pub fn init(self) -> (String, String) {
        let mut command = blindai();
        command
            .args(["policy", "init", "--from"])
            .arg(evidence(self.file));
        let output = self.output(&mut command);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{}: {text}", self.file);
        (String::from_utf8(output.stdout).unwrap(), text)
    }

    /// Exit code and answer of `verify` or `diff`, under this policy.
    pub fn run(self, verb: &str, arguments: &[&str], policy: &str) -> (i32, Value) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("policy.toml");
        std::fs::write(&file, policy).unwrap();
        let mut command = blindai();
        match verb {
            "verify" => command.arg("verify").arg("--policy").arg(file),
            _ => command.args(["policy", verb]).arg(file),
        };
        command.arg(evidence(self.file)).args(arguments);
        let output = self.output(&mut command);
        let text = String::from_utf8(output.stdout).unwrap();
        let answer = match arguments.contains(&"--json") {
            true => serde_json::from_str(&text)
                .unwrap_or_else(|_| panic!("{text}: {}", String::from_utf8_lossy(&output.stderr))),
            false => text.into(),
        };
        (output.status.code().unwrap(), answer)
    }

    fn output(self, command: &mut Command) -> Output {
        for (name, value) in self.arguments {
            command.arg(name);
            match *name {
                "--at" => command.arg(value),
                _ => command.arg(evidence(value)),
            };
        }
        command.output().unwrap()
    }
}

pub fn blindai() -> Command {
    Command::new(env!("CARGO_BIN_EXE_blindai"))
}

pub fn evidence(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/evidence");
    root.join(name)
}

pub fn path(name: &str) -> String {
    evidence(name).to_str().unwrap().to_owned()
}
