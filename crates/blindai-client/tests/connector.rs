//! Connections for programs that bring their own protocol: to whom they are given, and until when.

mod support;

use std::io::ErrorKind as Io;
use std::sync::Arc;

use blindai_client::{Connection, Connector, ErrorKind, Protocol};
use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const REQUEST: &[u8] = b"GET /v2/health/ready HTTP/1.1\r\nhost: x\r\n\r\n";

struct Setting {
    server: Arc<Server>,
    connector: Connector,
    time: Time,
}

impl Setting {
    async fn new() -> Self {
        let time = Time::now();
        let server = Server::honest(&Identity::new(MEASUREMENT, &time)).await;
        let connector = Connector::new(&server.address, options(&time)).unwrap();
        Self {
            server,
            connector,
            time,
        }
    }

    /// Another server takes the place of the one that was verified.
    fn replace(&self, measurement: [u8; 32]) {
        let identity = Identity::new(measurement, &self.time);
        self.server.become_identity(&identity);
    }

    fn handshakes(&self) -> usize {
        self.server.handshakes.lock().unwrap().len()
    }

    async fn open(&self) -> Connection {
        self.connector.open(Protocol::Http1).await.unwrap()
    }

    async fn refused(&self) -> &'static str {
        let refused = self.connector.open(Protocol::Http1).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Attestation, "{refused}");
        refused.code()
    }
}

async fn speak(connection: &mut Connection) {
    connection.write_all(REQUEST).await.unwrap();
    connection.flush().await.unwrap();
    let mut answer = [0; 15];
    connection.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
}

async fn assert_mute(connection: &mut Connection) {
    let write = connection.write(REQUEST).await.unwrap_err();
    let read = connection.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(
        (write.kind(), read.kind()),
        (Io::PermissionDenied, Io::PermissionDenied)
    );
}

#[tokio::test]
async fn nobody_is_called_before_the_server_was_verified() {
    let setting = Setting::new().await;
    assert_eq!(setting.refused().await, "not-verified");
    assert_eq!(setting.handshakes(), 0);

    setting.connector.attest().await.unwrap();
    speak(&mut setting.open().await).await;
    assert_eq!(setting.server.attestations(), 1);
}

#[tokio::test]
async fn nobody_is_called_after_a_verification_that_failed() {
    let setting = Setting::new().await;
    setting.replace([0x22; 32]);
    let refused = setting.connector.attest().await.unwrap_err();
    assert_eq!(refused.code(), "measurement-mismatch");
    let before = setting.handshakes();
    assert_eq!(setting.refused().await, "measurement-mismatch");
    assert_eq!(setting.handshakes(), before);
    assert_eq!(setting.server.user_requests(), [""; 0]);
}

#[tokio::test]
async fn open_connections_end_when_a_verification_fails_and_do_not_come_back() {
    let setting = Setting::new().await;
    setting.connector.attest().await.unwrap();
    let mut connection = setting.open().await;
    speak(&mut connection).await;
    let distrusted = connection.distrusted();

    setting.server.attest_with(|_| b"no evidence".to_vec());
    setting.connector.attest().await.unwrap_err();
    distrusted.await;
    assert_mute(&mut connection).await;
    assert_eq!(setting.refused().await, "evidence-malformed");
    let trust = setting.connector.trust().borrow().clone();
    assert!(trust.report().is_none());
    assert_eq!(trust.failure().unwrap().at, setting.time.seconds());

    setting.replace(MEASUREMENT);
    setting.connector.attest().await.unwrap();
    assert_mute(&mut connection).await;
    speak(&mut setting.open().await).await;
}

#[tokio::test]
async fn who_waits_for_an_answer_is_woken_when_a_verification_fails() {
    let setting = Setting::new().await;
    setting.connector.attest().await.unwrap();
    let mut connection = setting.open().await;
    let waiting = tokio::spawn(async move { connection.read(&mut [0; 1]).await });
    tokio::task::yield_now().await;
    setting.server.attest_with(|_| b"no evidence".to_vec());
    setting.connector.attest().await.unwrap_err();
    let woken = waiting.await.unwrap().unwrap_err();
    assert_eq!(woken.kind(), Io::PermissionDenied);
}

#[tokio::test]
async fn a_server_with_a_new_key_is_verified_anew_and_the_old_connection_ends() {
    let setting = Setting::new().await;
    let first = setting.connector.attest().await.unwrap();
    let mut old = setting.open().await;
    setting.replace(MEASUREMENT);
    let (mut one, mut other) = tokio::join!(setting.open(), setting.open());
    assert_eq!(setting.server.attestations(), 2, "one for each key");
    speak(&mut one).await;
    speak(&mut other).await;
    old.distrusted().await;
    assert_mute(&mut old).await;
    let second = setting.connector.report().unwrap();
    assert_ne!(
        first.claims().tls_spki_sha256,
        second.claims().tls_spki_sha256
    );
}

#[tokio::test]
async fn a_server_that_was_replaced_by_other_code_gets_no_byte() {
    let setting = Setting::new().await;
    setting.connector.attest().await.unwrap();
    let mut old = setting.open().await;
    setting.replace([0x22; 32]);
    assert_eq!(setting.refused().await, "measurement-mismatch");
    assert_mute(&mut old).await;
    assert_eq!(setting.refused().await, "measurement-mismatch");
    assert_eq!(setting.server.user_requests(), [""; 0]);
}

#[tokio::test]
async fn nothing_is_sent_on_a_report_that_has_ended() {
    let setting = Setting::new().await;
    setting.connector.attest().await.unwrap();
    let mut connection = setting.open().await;
    setting.time.advance(LIFETIME_SECONDS - 1);
    speak(&mut connection).await;
    setting.time.advance(1);
    assert_mute(&mut connection).await;
    assert_eq!(setting.refused().await, "report-expired");

    // The same key is proved anew: so its connections are, too.
    setting.connector.attest().await.unwrap();
    speak(&mut setting.open().await).await;
}

#[tokio::test]
async fn a_server_that_does_not_speak_the_protocol_is_no_server() {
    let setting = Setting::new().await;
    setting.connector.attest().await.unwrap();
    let refused = setting.connector.open(Protocol::Http2).await.unwrap_err();
    assert_eq!(refused.code(), "protocol-refused");
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_not_trusted() {
    let time = Time::now();
    let connector = Connector::new("127.0.0.1:1", options(&time)).unwrap();
    let refused = connector.attest().await.unwrap_err();
    assert_eq!(refused.code(), "connect-failed");
    assert!(connector.report().is_err());
    assert!(Connector::new("https://x", options(&time)).is_err());
}
