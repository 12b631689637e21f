//! Buckets of a server that speaks S3 and, translated, Google's protocol: moto, which
//! `tools/setup.sh test` installs.
#![cfg(feature = "cloud")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use object_store::ClientOptions;
use object_store::aws::AmazonS3Builder;
use object_store::gcp::GoogleCloudStorageBuilder;

use super::Backend;

/// A new bucket of Amazon's.
pub fn s3(name: &str) -> Backend {
    let name = format!("s3-{}", name.replace('_', "-"));
    make(&name);
    let backend = AmazonS3Builder::new()
        .with_endpoint(format!("http://{}", SERVER.address))
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name(name)
        .with_access_key_id("test")
        .with_secret_access_key("test");
    Arc::new(backend.build().unwrap())
}

/// A new bucket of Google's.
pub fn gcs(name: &str) -> Backend {
    // Google's client escapes hyphens, which moto does not understand in a bucket's name.
    let name = format!("gcs{}", name.replace('_', ""));
    make(&name);
    let account = serde_json::json!({
        "gcs_base_url": format!("http://{}", SERVER.address),
        "disable_oauth": true,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    });
    let backend = GoogleCloudStorageBuilder::new()
        .with_service_account_key(account.to_string())
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_bucket_name(name);
    Arc::new(backend.build().unwrap())
}

fn make(name: &str) {
    let made = request(&SERVER.address, &format!("PUT /{name}"));
    made.expect("moto makes a bucket");
}

struct Server {
    address: String,
    process: Child,
}

/// One for all tests of a process; it ends with its standard input, and so with the process.
static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/moto_server.py");
    let process = Command::new(format!("{root}/.cache/venv/bin/python"))
        .args([program, &port.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("tools/setup.sh test installs Python packages");
    let address = format!("127.0.0.1:{port}");
    let mut server = Server { address, process };
    while request(&server.address, "GET /").is_none() {
        let ended = server.process.try_wait().unwrap();
        assert!(
            ended.is_none(),
            "moto does not start: run tools/setup.sh test"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    server
});

fn request(address: &str, line: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    let request = format!(
        "{line} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.1 200").then_some(answer)
}
