//! Buckets of a server that speaks S3: moto, which `tools/setup.sh test` installs.
#![cfg(feature = "cloud")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;

use super::Backend;

/// A new bucket.
pub fn bucket(name: &str) -> Backend {
    let name = name.replace('_', "-");
    let address = &SERVER.address;
    request(address, &format!("PUT /{name}")).expect("moto makes a bucket");
    let backend = AmazonS3Builder::new()
        .with_endpoint(format!("http://{address}"))
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name(name)
        .with_access_key_id("test")
        .with_secret_access_key("test");
    Arc::new(backend.build().unwrap())
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
    let program = "import sys, threading, os\n\
        from moto.server import main\n\
        end = lambda: (sys.stdin.read(), os._exit(0))\n\
        threading.Thread(target=end, daemon=True).start()\n\
        main(['-H', '127.0.0.1', '-p', sys.argv[1]])";
    let process = Command::new(format!("{root}/.cache/venv/bin/python"))
        .args(["-c", program, &port.to_string()])
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
