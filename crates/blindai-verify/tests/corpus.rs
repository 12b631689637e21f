//! The inputs that fuzzing kept, through the same functions, with an ordinary compiler.

#[path = "../../../fuzz/src/lib.rs"]
mod fuzz;

use std::path::{Path, PathBuf};

fn replay(target: fn(&[u8]), name: &str, evidence: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut folders = vec![root.join("fuzz/corpus").join(name)];
    folders.extend(
        evidence
            .iter()
            .map(|name| root.join("testdata/evidence").join(name)),
    );
    for folder in folders {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
        let files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        let files = files.iter().filter(|path| path.is_file());
        let replayed = files
            .map(|path| target(&std::fs::read(path).unwrap()))
            .count();
        assert!(replayed > 0, "{folder:?} is empty");
    }
}

#[test]
fn quotes() {
    replay(fuzz::quote, "quote", &["sgx", "tdx"]);
}

#[test]
fn reports() {
    replay(fuzz::report, "report", &["snp"]);
}

#[test]
fn certificates() {
    replay(fuzz::certificate, "certificate", &["ratls"]);
}

#[test]
fn claims() {
    replay(fuzz::claims, "claims", &[]);
}

#[test]
fn receipts() {
    replay(fuzz::receipt, "receipt", &[]);
}

#[test]
fn policies() {
    replay(fuzz::policy, "policy", &[]);
}

#[test]
fn documents() {
    replay(fuzz::document, "document", &[]);
}

#[test]
fn grpc_messages() {
    replay(fuzz::grpc, "grpc", &[]);
}

#[test]
fn http_requests() {
    replay(fuzz::http, "http", &[]);
}

#[test]
fn messages_of_0_3() {
    replay(fuzz::legacy, "legacy", &[]);
}
