//! The verifier asks nothing of its surroundings: no file, no socket, no clock, no environment.

use std::path::Path;
use std::process::Command;

/// Crates that talk to a system, or to what runs WebAssembly.
const SYSTEM: &[&str] = &[
    "async-std",
    "getrandom",
    "hyper",
    "js-sys",
    "libc",
    "memmap2",
    "mio",
    "nix",
    "openssl",
    "reqwest",
    "rustix",
    "rustls",
    "socket2",
    "tempfile",
    "tokio",
    "ureq",
    "walkdir",
    "wasi",
    "wasm-bindgen",
    "windows-sys",
];

/// Those of the standard library.
const STANDARD: &[&str] = &[
    "std::env",
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::time",
];

fn dependencies(target: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--edges=normal",
            "--prefix=none",
            "--format={lib}",
        ])
        .args(["--package=blindai-verify", "--target", target])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let names = String::from_utf8(output.stdout).unwrap();
    names.lines().map(|name| name.replace('_', "-")).collect()
}

#[test]
fn no_dependency_talks_to_a_system() {
    for target in ["x86_64-unknown-linux-gnu", "wasm32-unknown-unknown"] {
        let found = dependencies(target);
        assert!(
            found.iter().any(|name| name == "dcap-qvl"),
            "{target}: {found:?}"
        );
        let system = found.iter().find(|name| SYSTEM.contains(&name.as_str()));
        assert_eq!(system, None, "{target}");
    }
}

#[test]
fn where_there_is_no_c_nothing_needs_it() {
    let found = dependencies("wasm32-unknown-unknown");
    assert!(
        !found.iter().any(|name| name.starts_with("aws-lc")),
        "{found:?}"
    );
}

#[test]
fn no_source_of_ours_talks_to_a_system() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src"), root.join("../blindai-core/src")];
    let mut read = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                let product = source.split("#[cfg(test)]").next().unwrap();
                let word = STANDARD.iter().find(|word| product.contains(*word));
                assert_eq!(word, None, "{}", path.display());
                read += 1;
            }
        }
    }
    assert!(read > 20, "{read}");
}
