//! The command line as a person uses it: a server of its own, verified, a model uploaded and run.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use serde_json::Value;

struct Server {
    child: Child,
    address: String,
    folder: tempfile::TempDir,
}

impl Server {
    fn start(tee: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (attested, public) = (free_port(), free_port());
        let config = folder.path().join("blindai.toml");
        let text = format!(
            "[listen]\nattested = '127.0.0.1:{attested}'\npublic = '127.0.0.1:{public}'\n\
             [engine]\nonnxruntime = '{}'\n[limits]\ndrain_seconds = 5\n[log]\nrequests = true\n",
            library().display()
        );
        fs::write(&config, text).unwrap();
        let child = blindai()
            .args(["serve", &format!("--simulation={tee}"), "--config"])
            .arg(&config)
            .current_dir(folder.path())
            .stderr(fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let address = format!("127.0.0.1:{attested}");
        let mut server = Self {
            child,
            address,
            folder,
        };
        server.wait_until_trusted();
        server
    }

    fn wait_until_trusted(&mut self) {
        let patience = Instant::now() + Duration::from_secs(60);
        while Instant::now() < patience {
            let attest = self.run(&["attest", &self.address, "--simulation"]);
            if attest.status.success() {
                return;
            }
            if self.child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the server did not start: {}", self.log());
    }

    fn run(&self, arguments: &[&str]) -> Output {
        blindai()
            .args(arguments)
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }

    /// A client command that must succeed, as JSON.
    fn json(&self, arguments: &[&str]) -> Value {
        let common = ["--server", &self.address, "--simulation", "--json"];
        let output = self.run(&[arguments, &common].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {text}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn stop(mut self) -> (ExitStatus, String) {
        let pid = self.child.id().to_string();
        Command::new("kill").arg(pid).status().unwrap();
        let status = self.child.wait().unwrap();
        (status, self.log())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_program_says_what_it_was_built_from() {
    let said = |argument| {
        let output = blindai().arg(argument).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let version = concat!("blindai ", env!("CARGO_PKG_VERSION"));
    assert_eq!(said("-V").trim_end(), version);
    let lines = said("--version");
    let lines: Vec<_> = lines.lines().collect();
    let commit = option_env!("BLINDAI_COMMIT").unwrap_or("unknown");
    assert_eq!(lines[..2], [version, &format!("commit   {commit}")]);
    assert!(lines[2].starts_with("engines  onnxruntime"));
}

#[test]
fn a_model_is_uploaded_run_and_deleted() {
    let server = Server::start("sgx");
    let model = identity();
    let info = server.json(&[
        "models",
        "upload",
        model.to_str().unwrap(),
        "--name",
        "echo",
    ]);
    assert_eq!(info["version"], "1");
    let input = info["signature"]["inputs"][0]["name"].as_str().unwrap();

    let x = [1.5f32, -2.0, 0.25];
    write_npy(&server.folder.path().join("x.npy"), &x);
    let input = format!("{input}=x.npy");
    let arguments = ["infer", "echo", "--input", &input, "--output-dir", "out"];
    let answer = server.json(&arguments);
    let file = answer["outputs"][0]["file"].as_str().unwrap();
    let output = fs::read(server.folder.path().join(file)).unwrap();
    let expected: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    assert!(output.ends_with(&expected));

    assert_eq!(
        server.json(&["models", "list"])["models"][0]["name"],
        "echo"
    );
    assert_eq!(
        server.json(&["models", "show", "echo"])["digest"],
        info["digest"]
    );
    server.json(&["models", "delete", "echo"]);
    assert_eq!(
        server.json(&["models", "list"])["models"],
        Value::Array(vec![])
    );

    // What holds the keys leaves no core dump.
    let limits = format!("/proc/{}/limits", server.child.id());
    let limits = fs::read_to_string(limits).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let core: Vec<_> = core.unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"]);

    let (status, log) = server.stop();
    assert!(status.success(), "{log}");
    assert!(!log.contains("echo"), "a model's name is in the log: {log}");
}

#[test]
fn a_client_that_brings_its_own_collateral_takes_no_other() {
    let server = Server::start("sgx");
    server.json(&["attest", "--save", "evidence.json"]);
    let kept = fs::read(server.folder.path().join("evidence.json")).unwrap();
    let kept: Value = serde_json::from_slice(&kept).unwrap();
    let write = |name: &str, text: String| fs::write(server.folder.path().join(name), text);
    write("own.json", kept["collateral"].to_string()).unwrap();
    write("broken.json", "{}".to_owned()).unwrap();

    let attest = ["attest", &server.address];
    let list = ["models", "list", "--server", &server.address];
    let infer = [
        &["infer", "none", "--input", "x=x.npy", "--output-dir", "out"],
        &["--server", &server.address][..],
    ];
    write_npy(&server.folder.path().join("x.npy"), &[1.0]);
    for (command, trusted) in [
        (&attest[..], ""),
        (&list, ""),
        // As far as the server, which has no such model.
        (&infer.concat(), "model-not-found"),
    ] {
        let with = |source| [command, &["--simulation", "--collateral", source]].concat();
        let output = server.run(&with("own.json"));
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), trusted.is_empty(), "{text}");
        assert!(text.contains(trusted), "{command:?}: {text}");
        for (source, code) in [
            ("broken.json", "collateral-unreadable"),
            ("none.json", "collateral-not-found"),
        ] {
            let output = server.run(&with(source));
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{command:?}: {text}");
            assert!(text.contains(code), "{command:?}: {text}");
        }
    }
}

#[test]
fn a_simulated_server_is_refused_unless_asked_for_by_name() {
    let server = Server::start("tdx");
    let policy = server.folder.path().join("policy.toml");
    let zeros = "00".repeat(48);
    let pins = ["mrtd", "rtmr1", "rtmr2"].map(|name| format!("{name} = ['{zeros}']"));
    let pins = pins.join("\n");
    fs::write(&policy, format!("tee = ['tdx']\n[tdx]\n{pins}\n")).unwrap();
    let refused = server.run(&[
        "attest",
        &server.address,
        "--policy",
        "policy.toml",
        "--json",
    ]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{text}");
    let answer: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!(answer["verdict"], "rejected");
    assert!(text.contains("BlindAI Simulation Root"), "{text}");

    let nothing = server.run(&["attest", &server.address]);
    let text = String::from_utf8_lossy(&nothing.stderr);
    assert_eq!(nothing.status.code(), Some(1), "{text}");
    assert!(text.contains("BlindAI Simulation Root"), "{text}");

    let trusted = server.run(&["attest", &server.address, "--simulation", "--json"]);
    let answer: Value = serde_json::from_slice(&trusted.stdout).unwrap();
    assert_eq!(
        (&answer["verdict"], &answer["tee"]),
        (&"trusted".into(), &"tdx".into())
    );
    let text = String::from_utf8_lossy(&trusted.stderr);
    assert!(text.contains("protects nothing"), "{text}");
}

#[test]
fn kept_evidence_gives_the_same_verdict_without_the_server() {
    keeps_its_verdict("sgx", "mrenclave");
}

#[test]
fn kept_reports_of_guests_give_the_same_verdict_without_the_server() {
    keeps_its_verdict("sev-snp", "measurement");
}

fn keeps_its_verdict(tee: &str, measurement: &str) {
    let server = Server::start(tee);
    let trusted = server.json(&["attest", "--save", "evidence.json"]);
    assert_eq!(trusted["subject"], "connection");
    fs::write(server.folder.path().join("policy.toml"), POLICY).unwrap();
    let attest = [
        "attest",
        &server.address,
        "--policy",
        "policy.toml",
        "--json",
    ];
    let rejected = server.run(&[&attest[..], &["--save", "rejected.json"]].concat());
    let rejected: Value = serde_json::from_slice(&rejected.stdout).unwrap();
    assert_eq!(
        rejected["measurements"][measurement],
        trusted["measurements"][measurement]
    );

    let folder = server.folder.path().to_owned();
    let document = fs::read_to_string(folder.join("evidence.json")).unwrap();
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["seen"]["nonce"], trusted["claims"]["nonce"]);
    let at = document["seen"]["at"].to_string();
    let verify = |arguments: &[&str]| {
        let output = server.run(&[&["verify", "--json"], arguments].concat());
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), json)
    };
    let again = |file, at| verify(&[file, "--at", at, "--simulation"]);
    let (code, mut later) = again("evidence.json", &at);
    assert_eq!((code, &later["subject"]), (0, &"document".into()));
    assert_eq!(later["seen"], document["seen"]);
    let added = later.as_object_mut().unwrap();
    added.retain(|key, _| !["seen", "taken_for"].contains(&key.as_str()));
    later["subject"] = trusted["subject"].clone();
    assert_eq!(later, trusted);

    let (code, json) = again("evidence.json", "4102444800");
    assert_eq!((code, &json["verdict"]), (1, &"rejected".into()));
    let (code, json) = verify(&["rejected.json", "--policy", "policy.toml", "--at", &at]);
    assert_eq!((code, &json["code"]), (1, &rejected["code"]));
    let other = "00".repeat(32);
    let nonce = [
        "evidence.json",
        "--at",
        &at,
        "--simulation",
        "--nonce",
        &other,
    ];
    assert_eq!(verify(&nonce).1["code"], "nonce-mismatch");

    let policy = ["policy", "init", "--from", "evidence.json", "--at", &at];
    let policy = server.run(&policy);
    let warning = String::from_utf8_lossy(&policy.stderr);
    assert!(warning.contains("SIMULATED"), "{warning}");
    fs::write(folder.join("own.toml"), &policy.stdout).unwrap();
    let own = ["evidence.json", "--policy", "own.toml", "--at", &at];
    assert_eq!(verify(&own).1["code"], "trust-root-simulation");
    let (code, pinned) = verify(&[&own[..], &["--simulation"]].concat());
    assert_eq!(code, 0, "{pinned}");

    let key = signature_key();
    fs::write(folder.join("key.pem"), key).unwrap();
    let attested = server.json(&["attest", "--ear", "ear.jwt", "--ear-key", "key.pem"]);
    let token = fs::read_to_string(folder.join("ear.jwt")).unwrap();
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap());
    let claims: Value = serde_json::from_slice(&claims.unwrap()).unwrap();
    // Accepted by name here, and nobody who reads the token will take it for hardware.
    assert_eq!(claims["ear_status"], "contraindicated");
    assert_eq!(claims["exp"], attested["valid_until"]);
    let nonce = claims["submods"][tee]["eat_nonce"].as_str().unwrap();
    let nonce = BASE64_URL_SAFE_NO_PAD.decode(nonce).unwrap();
    let digits: String = nonce.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(attested["claims"]["nonce"], digits);
}

fn signature_key() -> String {
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let der = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).unwrap();
    pem::encode(&pem::Pem::new("PRIVATE KEY", der.as_ref()))
}

/// Another program than the server.
const POLICY: &str = "tee = ['sgx']\n[sgx]\n\
    mrenclave = ['0000000000000000000000000000000000000000000000000000000000000000']\n";

#[test]
fn what_cannot_run_says_so_in_one_line() {
    let cases: [(&[&str], i32, &str); 4] = [
        (&["serve", "--config", "/nonexistent"], 3, "/nonexistent"),
        (&["serve"], 6, "--simulation"),
        (
            &["models", "list", "--server", "127.0.0.1:1", "--simulation"],
            2,
            "127.0.0.1:1",
        ),
        (
            &["models", "list", "--policy", "/nonexistent"],
            2,
            "/nonexistent",
        ),
    ];
    for (arguments, code, word) in cases {
        let output = blindai()
            .args(arguments)
            .env("BLINDAI_ONNXRUNTIME", library())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(word), "{arguments:?}: {text}");
        assert_eq!(text.trim().lines().count(), 1, "{text}");
    }
}

fn blindai() -> Command {
    Command::new(env!("CARGO_BIN_EXE_blindai"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn library() -> PathBuf {
    let pinned = root().join(".cache/onnxruntime/libonnxruntime.so.1.28.0");
    std::env::var_os("BLINDAI_ONNXRUNTIME").map_or(pinned, PathBuf::from)
}

fn identity() -> PathBuf {
    root().join("crates/blindai-engine/testdata/identity_FP32.onnx")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn write_npy(path: &Path, values: &[f32]) {
    use npyz::WriterBuilder as _;
    let file = fs::File::create(path).unwrap();
    let mut writer = npyz::WriteOptions::new()
        .default_dtype()
        .shape(&[values.len() as u64])
        .writer(file)
        .begin_nd()
        .unwrap();
    writer.extend(values.iter().copied()).unwrap();
    writer.finish().unwrap();
}
