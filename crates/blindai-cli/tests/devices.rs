//! The whole path: a device of the kernel, emulated; a server on it, which finds it where it is on
//! hardware; a client that verifies. The paths are real because the server gets a mount namespace of
//! its own, in which the emulation lies there.

#[path = "../../blindai-tee/tests/emulator/mod.rs"]
mod emulator;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use blindai_core::Collateral;
use blindai_tee::{Attester as _, Measurement, Simulation, SimulationOptions};
use emulator::{gramine, tsm};
use serde_json::Value;

#[test]
fn an_enclave_under_gramine_is_found_and_verified() {
    let enclave = gramine::Gramine::mount(platform(Measurement::MrEnclave([0xab; 32])));
    let collateral = enclave.tree.platform().collateral().unwrap();
    let server = Server::start(ENCLAVE, enclave.path(), "auto", collateral.as_ref());
    let answer = server.trusted();
    assert_eq!(answer["tee"], "sgx");
    assert_eq!(answer["measurements"]["mrenclave"], "ab".repeat(32));
    enclave.tree.set(gramine::Fault::Intruder);
    server.gives_no_evidence();
}

/// From emulated quotes to outputs and a receipt, in one process, with no system calls but Gramine's.
#[test]
fn an_enclave_under_gramine_serves_with_the_system_calls_that_there_are() {
    let enclave = gramine::Gramine::mount(platform(Measurement::MrEnclave([0xab; 32])));
    let collateral = enclave.tree.platform().collateral().unwrap();
    let (device, collateral) = (enclave.path(), collateral.as_ref());
    let alone = "isolation = 'none'\n";
    let server = Server::start_with(ENCLAVE, device, "gramine", collateral, alone, LIKE_GRAMINE);
    assert_eq!(
        server.trusted()["measurements"]["mrenclave"],
        "ab".repeat(32)
    );
    let values = [1.5f32, -2.0, 3.25].map(f32::to_le_bytes).concat();
    let x = npy(&values);
    fs::write(server.folder.path().join("x.npy"), x).unwrap();
    server.client(&["models", "upload", IDENTITY, "--name", "same"]);
    let ask = ["infer", "same", "--input", "x=x.npy", "--output-dir", "out"];
    server.client(&[&ask[..], &["--receipt", "receipt.cbor"]].concat());
    let y = fs::read(server.folder.path().join("out/y.npy")).unwrap();
    assert!(y.ends_with(&values), "{y:?}");
    assert!(server.folder.path().join("receipt.cbor").exists());
    server.client(&["models", "delete", "same"]);
    enclave.tree.set(gramine::Fault::Intruder);
    server.gives_no_evidence();
}

#[test]
fn with_worker_processes_no_server_starts_under_gramine() {
    let enclave = gramine::Gramine::mount(platform(Measurement::MrEnclave([0xab; 32])));
    for isolation in ["process", "filtered"] {
        let more = format!("isolation = '{isolation}'\n");
        let (child, _folder) = spawn(
            ENCLAVE,
            enclave.path(),
            "gramine",
            None,
            &more,
            LIKE_GRAMINE,
        );
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{text}");
        assert!(text.contains("core dumps cannot be turned off"), "{text}");
    }
}

#[test]
fn a_trust_domain_is_found_and_verified() {
    let guest = tsm::Tsm::mount(platform(Measurement::MrTd([0xcd; 48])));
    let collateral = guest.tree.platform().collateral().unwrap();
    let server = Server::start(GUEST, guest.path(), "auto", collateral.as_ref());
    let answer = server.trusted();
    assert_eq!(answer["tee"], "tdx");
    assert_eq!(answer["measurements"]["mrtd"], "cd".repeat(48));
    guest.tree.set(tsm::Fault::Swapped);
    server.gives_no_evidence();
    assert_eq!(guest.tree.entries_left(), 0);
}

#[test]
fn a_guest_is_verified_with_the_certificates_of_its_host() {
    let platform = platform(Measurement::Launch([0xef; 48]));
    let Some(Collateral::Snp(collateral)) = platform.collateral().unwrap() else {
        panic!("the collateral of SEV-SNP");
    };
    let guest = tsm::Tsm::mount_with(platform, tsm::host_table(&collateral));
    let server = Server::start(GUEST, guest.path(), "tsm", None);
    let answer = server.trusted();
    assert_eq!(answer["tee"], "sev-snp");
    assert_eq!(answer["measurements"]["measurement"], "ef".repeat(48));
    guest.tree.set(tsm::Fault::EmptyOutblob);
    server.gives_no_evidence();
    assert_eq!(guest.tree.entries_left(), 0);
}

#[test]
fn a_tee_that_was_named_is_not_replaced_by_another() {
    let guest = tsm::Tsm::mount(platform(Measurement::MrTd([0xcd; 48])));
    let (child, folder) = spawn(GUEST, guest.path(), "gramine", None, "", &[]);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{text}");
    assert!(text.contains("/dev/attestation/attestation_type"), "{text}");
    assert!(text.contains("run the server under gramine-sgx"), "{text}");
    drop(folder);
}

#[test]
fn models_are_sealed_by_the_key_of_the_device() {
    let enclave = gramine::Gramine::mount(platform(Measurement::MrEnclave([0xab; 32])));
    let collateral = enclave.tree.platform().collateral().unwrap();
    let device = enclave.path();
    let collateral = collateral.as_ref();
    let mut server = Server::start_with(ENCLAVE, device, "auto", collateral, STORE, &[]);
    let mut line = String::new();
    while !line.trim().starts_with("store ") {
        line.clear();
        assert_ne!(server.log.read_line(&mut line).unwrap(), 0);
    }
    assert!(line.contains("sealed to sgx mrenclave"), "{line}");
    let store = server.folder.path().join("store");
    let manifest = store.join("manifest-00000000000000000001");
    assert!(fs::read(manifest).unwrap().starts_with(b"BlindAI store\0"));
}

#[test]
fn a_trust_domain_has_no_key_and_says_so() {
    let guest = tsm::Tsm::mount(platform(Measurement::MrTd([0xcd; 48])));
    let (child, folder) = spawn(GUEST, guest.path(), "tsm", None, STORE, &[]);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{text}");
    assert!(
        text.contains("no-sealing-key: tdx has no sealing key"),
        "{text}"
    );
    assert!(!folder.path().join("store").exists());
}

const STORE: &str = "[store]\nlocation = 'store'\n";

struct Server {
    child: Child,
    /// Kept open: a server that cannot write its log ends.
    log: BufReader<ChildStderr>,
    address: String,
    folder: tempfile::TempDir,
}

impl Server {
    fn start(
        namespace: &str,
        device: &Path,
        provider: &str,
        collateral: Option<&Collateral>,
    ) -> Self {
        Self::start_with(namespace, device, provider, collateral, "", &[])
    }

    fn start_with(
        namespace: &str,
        device: &Path,
        provider: &str,
        collateral: Option<&Collateral>,
        more: &str,
        launcher: &[&str],
    ) -> Self {
        let (mut child, folder) = spawn(namespace, device, provider, collateral, more, launcher);
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let address = attested_address(&mut log);
        Self {
            child,
            log,
            address,
            folder,
        }
    }

    fn attest(&self) -> (Option<i32>, Vec<u8>, String) {
        let output = Command::new(BLINDAI)
            .args(["attest", &self.address, "--simulation", "--json"])
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), output.stdout, text)
    }

    /// What the command does as a client, which must succeed.
    fn client(&self, arguments: &[&str]) {
        let output = Command::new(BLINDAI)
            .args(arguments)
            .args(["--server", &self.address, "--simulation"])
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {text}");
    }

    fn trusted(&self) -> Value {
        let (code, answer, text) = self.attest();
        assert_eq!(code, Some(0), "{text}");
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["verdict"], "trusted", "{text}");
        answer
    }

    fn gives_no_evidence(&self) {
        let (code, _, text) = self.attest();
        assert_ne!(code, Some(0), "{text}");
        assert!(!text.contains("panicked"), "{text}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the server, by `launcher`, where `namespace` puts the device. `more` goes on in `[engine]`.
fn spawn(
    namespace: &str,
    device: &Path,
    provider: &str,
    collateral: Option<&Collateral>,
    more: &str,
    launcher: &[&str],
) -> (Child, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut config = format!(
        "[listen]\nattested = '127.0.0.1:0'\npublic = '127.0.0.1:0'\n\
         [tee]\nprovider = '{provider}'\n"
    );
    if let Some(collateral) = collateral {
        let json = serde_json::to_vec(collateral).unwrap();
        fs::write(folder.path().join("collateral.json"), json).unwrap();
        config += "[collateral]\nsource = 'collateral.json'\n";
    }
    config += &format!("[engine]\nonnxruntime = '{}'\n", library().display());
    config += more;
    fs::write(folder.path().join("blindai.toml"), config).unwrap();
    let child = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-ec", namespace])
        .arg(device)
        .args(launcher)
        .args([BLINDAI, "serve", "--config", "blindai.toml"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    (child, folder)
}

/// What the server says when it is ready: `attested port  127.0.0.1:50051  all data and models`.
fn attested_address(log: &mut BufReader<ChildStderr>) -> String {
    let mut seen = String::new();
    while log.read_line(&mut seen).unwrap() > 0 {
        let line = seen.lines().last().unwrap();
        if let Some(rest) = line.trim().strip_prefix("attested port") {
            return rest.split_whitespace().next().unwrap().to_owned();
        }
    }
    let _ = log.read_to_string(&mut seen);
    panic!("the server did not start: {seen}");
}

fn platform(measurement: Measurement) -> Simulation {
    Simulation::new(SimulationOptions::new(measurement)).unwrap()
}

fn library() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let pinned = root.join(".cache/onnxruntime/libonnxruntime.so.1.28.0");
    std::env::var_os("BLINDAI_ONNXRUNTIME").map_or(pinned, PathBuf::from)
}

/// A file of numpy's with these floats, in one dimension.
fn npy(values: &[u8]) -> Vec<u8> {
    let head = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}",
        values.len() / 4
    );
    let mut file = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    file.extend(format!("{head:<117}\n").bytes());
    file.extend(values);
    file
}

const BLINDAI: &str = env!("CARGO_BIN_EXE_blindai");
const LIKE_GRAMINE: &[&str] = &[
    "python3",
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/like_gramine.py"),
];
const IDENTITY: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../blindai-engine/testdata/identity_FP32.onnx"
);

/// A guest: its kernel's configfs holds the device ($0).
const GUEST: &str = "\
    mount -t tmpfs none /sys/kernel
    mkdir -p /sys/kernel/config/tsm/report
    mount --bind \"$0\" /sys/kernel/config/tsm/report
    exec \"$@\"";

/// An enclave: beside the devices that every program has, /dev holds the one ($0) of Gramine.
const ENCLAVE: &str = "\
    mkdir dev
    mount -t tmpfs none dev
    for device in null zero random urandom; do
        : > dev/$device
        mount --bind /dev/$device dev/$device
    done
    mkdir dev/attestation dev/shm
    mount --bind \"$0\" dev/attestation
    mount --rbind dev /dev
    exec \"$@\"";
