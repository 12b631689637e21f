//! The verbs over real connections, and connections that break.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use blindai_client::{
    Client, Digest, ErrorKind, ModelName, ModelPins, PreparedRequest, Token, Upload, blocking,
};
use blindai_core::{Code, Error, Kind};
use support::*;
use tokio::runtime::Runtime;

async fn connected() -> (Arc<Server>, Client) {
    let time = Time::now();
    let server = Server::honest(&Identity::new(MEASUREMENT, &time)).await;
    let client = Client::connect(&server.address, options(&time))
        .await
        .unwrap();
    (server, client)
}

fn name() -> ModelName {
    "m".parse().unwrap()
}

#[tokio::test]
async fn tensors_come_back_on_one_connection() {
    let (server, client) = connected().await;
    for length in [0, 1, 100_000, 3_000_000] {
        let sent = request(vec![7; length]);
        let got = client.infer(&name(), None, &sent).await.unwrap();
        assert_eq!(got.outputs, sent.inputs);
    }
    assert!(client.ready().await.unwrap());
    assert_eq!(server.handshakes.lock().unwrap().len(), 1);
    assert_eq!(server.user_requests()[0], "POST /v2/models/m/infer");
}

#[tokio::test]
async fn a_token_is_sent_with_each_request_to_a_verified_server_only() {
    let time = Time::now();
    let identity = Identity::new(MEASUREMENT, &time);
    let server = Server::honest(&identity).await;
    let token = Token::from_random(&[7; 32]);
    let options = || options(&time).token(token.clone());
    let client = Client::connect(&server.address, options()).await.unwrap();
    client
        .infer(&name(), None, &request(vec![7]))
        .await
        .unwrap();
    client.ready().await.unwrap();
    client.attest().await.unwrap();
    client
        .upload(Upload::bytes(&name(), vec![7u8]))
        .await
        .unwrap();
    let sent = server.authorizations.lock().unwrap().clone();
    let requests = server.requests.lock().unwrap().clone();
    for (request, sent) in requests.iter().zip(&sent) {
        // Evidence is asked for before anything is known of who is there.
        let wanted = format!("Bearer {}", token.expose());
        let wanted = (!request.contains("/v1/attestation")).then_some(wanted);
        assert_eq!(*sent, wanted, "{request}");
    }
    assert!(sent.iter().flatten().count() >= 3);
    assert!(!format!("{:?}", options()).contains("blindai_"));

    let other = Server::honest(&Identity::new([0x22; 32], &time)).await;
    let refused = Client::connect(&other.address, options()).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Attestation);
    assert_eq!(*other.authorizations.lock().unwrap(), [None]);
}

#[tokio::test]
async fn a_prepared_request_is_sent_any_number_of_times() {
    let (server, client) = connected().await;
    let sent = request(vec![7; 1000]);
    let prepared = PreparedRequest::new(&name(), None, &sent);
    for _ in 0..3 {
        let got = client.infer_prepared(&prepared).await.unwrap();
        assert_eq!(got.outputs, sent.inputs);
    }
    assert_eq!(server.user_requests(), ["POST /v2/models/m/infer"; 3]);
    // Tensors are nobody's business but the server's.
    assert!(format!("{prepared:?}").ends_with(" bytes)"));
}

/// The server of these tests does not know the header, as one of another version would not.
#[tokio::test]
async fn a_server_that_does_not_say_what_answered_is_not_believed() {
    let (_server, client) = connected().await;
    let sent = request(vec![1]);
    let digest = Some(Digest::of(b"model"));
    let pinned = client.accepting(ModelPins::digest(&name(), digest));
    let prepared = PreparedRequest::new(&name(), None, &sent);
    for refused in [
        pinned.infer(&name(), None, &sent).await,
        pinned.infer_prepared(&prepared).await,
    ] {
        assert_eq!(refused.unwrap_err().code(), "model-not-accepted");
    }
    let upload = pinned.upload(Upload::bytes(&name(), vec![1])).await;
    assert_eq!(upload.unwrap_err().code(), "model-not-accepted");
    // What it was made of, and models of other names, are as before.
    client.infer(&name(), None, &sent).await.unwrap();
    let other = client.accepting(ModelPins::digest(&"other".parse().unwrap(), digest));
    other.infer(&name(), None, &sent).await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_are_not_kept() {
    let time = Time::now();
    let server = Server::honest(&Identity::new(MEASUREMENT, &time)).await;
    let none = options(&time).idle_connections(0);
    let client = Client::connect(&server.address, none).await.unwrap();
    for _ in 0..2 {
        client
            .infer(&name(), None, &request(vec![1]))
            .await
            .unwrap();
    }
    assert_eq!(server.handshakes.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn versions_stand_in_the_path() {
    let (server, client) = connected().await;
    let version = "7".parse().unwrap();
    client
        .infer(&name(), Some(&version), &request(vec![1]))
        .await
        .unwrap();
    client.delete(&name(), Some(&version)).await.unwrap();
    let upload = Upload::bytes(&name(), vec![1]).version(version);
    client.upload(upload).await.unwrap();
    assert_eq!(
        server.user_requests(),
        [
            "POST /v2/models/m/versions/7/infer",
            "DELETE /v1/models/m/versions/7",
            "PUT /v1/models/m/versions/7",
        ]
    );
}

#[tokio::test]
async fn concurrent_requests_take_their_own_connections() {
    let (server, client) = connected().await;
    let calls = (0..8u8).map(|i| {
        let client = client.clone();
        tokio::spawn(async move {
            let sent = request(vec![i; 1000]);
            let got = client.infer(&name(), None, &sent).await.unwrap();
            assert_eq!(got.outputs, sent.inputs);
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    assert_eq!(server.attestations(), 1, "one proof covers the pool");
}

#[tokio::test]
async fn the_servers_error_comes_through_and_the_connection_stays() {
    let (server, client) = connected().await;
    let error = Error::new(Code::InputShape, "input \"x\" takes the shape [2], got [1]");
    server.errors.lock().unwrap().push_back(error.clone());
    let got = client
        .infer(&name(), None, &request(vec![1]))
        .await
        .unwrap_err();
    assert_eq!(got.kind(), ErrorKind::Server(Kind::InvalidInput));
    assert_eq!(got.server_error(), Some(&error));
    assert_eq!(got.request_id(), Some("r1"));
    client
        .infer(&name(), None, &request(vec![1]))
        .await
        .unwrap();
    assert_eq!(server.handshakes.lock().unwrap().len(), 1);

    let missing = client.model(&name(), None).await.unwrap_err();
    assert_eq!(missing.code(), "model-not-found");
}

#[tokio::test]
async fn a_request_on_a_connection_that_died_idle_is_repeated_once() {
    let (server, client) = connected().await;
    server.hang_up.store(true, Ordering::SeqCst);
    client
        .infer(&name(), None, &request(vec![1]))
        .await
        .unwrap();
    assert_eq!(server.handshakes.lock().unwrap().len(), 2);
    assert_eq!(server.attestations(), 1, "the same key needs no new proof");
}

#[tokio::test]
async fn a_file_is_uploaded_with_progress_and_checked() {
    let (server, client) = connected().await;
    let model = vec![3; 5_000_001];
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &model).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let progress = {
        let seen = seen.clone();
        Arc::new(move |sent, total| seen.lock().unwrap().push((sent, total)))
    };
    let upload = Upload::file(&name(), file.path()).progress(progress);
    let info = client.upload(upload).await.unwrap();
    assert_eq!(info.digest, Digest::of(&model));
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert!(seen.is_sorted() && seen.len() > 10);
    assert_eq!(seen.last(), Some(&(5_000_001, 5_000_001)));

    server.lie_about_digest.store(true, Ordering::SeqCst);
    let upload = Upload::bytes(&name(), model);
    let error = client.upload(upload).await.unwrap_err();
    assert_eq!(error.code(), "digest-mismatch");
}

#[tokio::test]
async fn an_early_refusal_is_read_while_the_upload_goes_on() {
    let (server, client) = connected().await;
    server.refuse_uploads.store(true, Ordering::SeqCst);
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 28).unwrap();
    for i in 0..20 {
        // Some servers close at once, others read on.
        server.read_on.store(i % 4 == 0, Ordering::SeqCst);
        let sent = Arc::new(AtomicU64::new(0));
        let progress = {
            let sent = sent.clone();
            Arc::new(move |now, _| sent.store(now, Ordering::SeqCst))
        };
        let upload = Upload::file(&name(), file.path()).progress(progress);
        let error = client.upload(upload).await.unwrap_err();
        assert_eq!(error.code(), "model-too-large", "{error}");
        assert_eq!(error.fact(), "over 1000 bytes");
        let sent = sent.load(Ordering::SeqCst);
        assert!(sent < 1 << 28, "the rest was still sent");
    }
    client.models().await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_none_is_a_local_error() {
    let (server, client) = connected().await;
    let upload = Upload::file(&name(), "/nonexistent/model.onnx");
    let error = client.upload(upload).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Local);
    assert_eq!(error.code(), "file-unreadable");
    assert!(error.fact().contains("/nonexistent/model.onnx"));
    assert_eq!(server.user_requests(), [""; 0]);
}

#[tokio::test]
async fn an_answer_over_the_limit_is_refused() {
    let time = Time::now();
    let server = Server::honest(&Identity::new(MEASUREMENT, &time)).await;
    let options = options(&time).max_response_bytes(1000);
    let client = Client::connect(&server.address, options).await.unwrap();
    client
        .infer(&name(), None, &request(vec![1; 100]))
        .await
        .unwrap();
    let error = client
        .infer(&name(), None, &request(vec![1; 1000]))
        .await
        .unwrap_err();
    assert_eq!(error.code(), "response-too-large");
}

#[tokio::test]
async fn nobody_at_the_address_is_a_connection_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = Client::connect(&address, options(&Time::now()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert_eq!(error.code(), "connect-failed");
    assert!(error.fact().contains(&address));
}

#[test]
fn the_blocking_client_serves_several_threads() {
    let runtime = Runtime::new().unwrap();
    let time = Time::now();
    let server = runtime.block_on(Server::honest(&Identity::new(MEASUREMENT, &time)));
    let client = blocking::Client::connect(&server.address, options(&time)).unwrap();
    std::thread::scope(|scope| {
        for i in 0..4u8 {
            let client = client.clone();
            scope.spawn(move || {
                for _ in 0..20 {
                    let sent = request(vec![i; 64]);
                    let got = client.infer(&name(), None, &sent).unwrap();
                    assert_eq!(got.outputs, sent.inputs);
                }
            });
        }
    });
    let info = client
        .upload(Upload::bytes(&name(), vec![9; 1000]))
        .unwrap();
    assert_eq!(info.size_bytes, 1000);

    let inside = runtime.block_on(async { client.models() }).unwrap_err();
    assert_eq!(inside.code(), "inside-runtime");
    runtime.block_on(async { drop(client) });
}
