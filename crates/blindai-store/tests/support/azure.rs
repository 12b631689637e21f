//! Containers of a server that speaks Azure's protocol: Azurite, which `tools/setup.sh azurite` installs.
#![cfg(feature = "cloud")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use object_store::azure::{
    AzureAccessKey, AzureAuthorizer, AzureCredential, MicrosoftAzureBuilder,
};
use object_store::client::{HttpRequest, HttpRequestBody};

use super::Backend;

/// Azurite's own, known to everybody.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A new container.
pub fn container(name: &str) -> Backend {
    let name = name.replace('_', "-");
    let endpoint = format!("http://{}/{ACCOUNT}", SERVER.address);
    make(&format!("{endpoint}/{name}?restype=container"));
    let backend = MicrosoftAzureBuilder::new()
        .with_endpoint(endpoint)
        .with_allow_http(true)
        .with_account(ACCOUNT)
        .with_access_key(KEY)
        .with_container_name(name);
    Arc::new(backend.build().unwrap())
}

fn make(url: &str) {
    let request = http::Request::put(url).header("content-length", "0");
    let mut request: HttpRequest = request.body(HttpRequestBody::empty()).unwrap();
    let credential = AzureCredential::AccessKey(AzureAccessKey::try_new(KEY).unwrap());
    let authorizer = AzureAuthorizer::new(&credential, ACCOUNT);
    authorizer.try_authorize(&mut request).unwrap();
    let mut head = format!(
        "PUT {} HTTP/1.1\r\n",
        request.uri().path_and_query().unwrap()
    );
    for (name, value) in request.headers() {
        head += &format!("{name}: {}\r\n", value.to_str().unwrap());
    }
    head += &format!("host: {}\r\nconnection: close\r\n\r\n", SERVER.address);
    let mut stream = TcpStream::connect(&SERVER.address).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}

struct Server {
    address: String,
    process: Child,
}

/// One for all tests of a process; the shell ends it with its standard input, and so with the process.
static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let program = format!("{root}/.cache/azurite/node_modules/.bin/azurite-blob");
    let run = "\"$0\" --inMemoryPersistence --silent --disableTelemetry --skipApiVersionCheck \
        --blobHost 127.0.0.1 --blobPort $1 & cat; kill $!";
    let process = Command::new("sh")
        .args(["-c", run, &program, &address.port().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell");
    let server = Server {
        address: address.to_string(),
        process,
    };
    for _ in 0..600 {
        if TcpStream::connect(&server.address).is_ok() {
            return server;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("Azurite does not start: run tools/setup.sh azurite");
});
