//! The protocol of BlindAI 0.3: its two services, one on each port.
//!
//! It knows no models by name: one runs what one sent. So that nobody runs somebody else's by
//! accident, each connection remembers what it sent ([`LastSent`]).
//!
//! Who a client says that it is stands in every message. It is neither read nor kept.

mod held;
mod run;
mod send;
mod signature;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use blindai_core::legacy::{self as messages, Answer, Payload, Piece, SgxEvidence, write_text};
use blindai_core::{Code, Collateral, Error, EvidenceDocument, Result, Tee};
use bytes::Bytes;

use super::grpc::{Call, refuse, respond};
use crate::budget::Reservation;
use crate::identity::Share;
use crate::service::Service;

pub use held::LastSent;
use held::Uploads;

/// Of the attested port: models and data.
pub fn exchange(enabled: bool) -> Router<Arc<Service>> {
    let any = "/securedexchange.Exchange/{method}";
    if !enabled {
        return Router::new().route(any, post(switched_off));
    }
    Router::new()
        .route(any, post(unknown))
        .route("/securedexchange.Exchange/SendModel", post(send_model))
        .route("/securedexchange.Exchange/RunModel", post(run_model))
        .layer(Extension(Arc::<Uploads>::default()))
}

/// Of the public port: the certificate of the other one, and the evidence.
pub fn attestation(enabled: bool) -> Router<Arc<Service>> {
    let any = "/untrusted.Attestation/{method}";
    if !enabled {
        return Router::new().route(any, post(switched_off));
    }
    Router::new()
        .route(any, post(unknown))
        .route("/untrusted.Attestation/GetServerInfo", post(server_info))
        .route("/untrusted.Attestation/GetCertificate", post(certificate))
        .route(
            "/untrusted.Attestation/GetSgxQuoteWithCollateral",
            post(sgx_quote),
        )
        .layer(Extension(Share::default()))
}

async fn send_model(
    Extension(uploads): Extension<Arc<Uploads>>,
    Extension(last): Extension<LastSent>,
    mut call: Call,
) -> Response {
    respond(send::send(&mut call, &uploads, &last).await)
}

async fn run_model(
    Extension(uploads): Extension<Arc<Uploads>>,
    Extension(last): Extension<LastSent>,
    mut call: Call,
) -> Response {
    respond(run::run(&mut call, &uploads, &last).await)
}

async fn server_info(call: Call) -> Response {
    call.tell_anybody(|_| Ok(write_text(PROTOCOL.as_bytes())))
        .await
}

async fn certificate(call: Call) -> Response {
    call.tell_anybody(|service| Ok(write_text(&service.certificate())))
        .await
}

async fn sgx_quote(Extension(share): Extension<Share>, call: Call) -> Response {
    let document = call.service.attest(None, &share).await;
    call.tell_anybody(|service| sgx_evidence(&document?, &service.certificate()))
        .await
}

async fn unknown(_: Call) -> Response {
    let fact = "the protocol of BlindAI 0.3 has no such method here";
    refuse(Error::new(Code::MethodNotAllowed, fact))
}

async fn switched_off(_: Call) -> Response {
    let fact = "the protocol of BlindAI 0.3 is switched off";
    refuse(Error::new(Code::MethodNotAllowed, fact).with_remedy("set legacy.enabled"))
}

fn sgx_evidence(document: &[u8], certificate: &[u8]) -> Result<Bytes> {
    let unreadable = |error: blindai_core::EvidenceError| internal(error.to_string());
    let document = EvidenceDocument::from_json(document).map_err(unreadable)?;
    if document.tee != Tee::Sgx {
        let fact = format!(
            "this server runs in {}, BlindAI 0.3 knows SGX",
            document.tee
        );
        return Err(Error::new(Code::MethodNotAllowed, fact).with_remedy(USE_TODAYS));
    }
    let Some(Collateral::Dcap(collateral)) = &document.collateral else {
        let fact = "the server has no collateral beside its quote";
        return Err(Error::new(Code::NotReady, fact).with_remedy(USE_TODAYS));
    };
    let evidence = SgxEvidence {
        quote: document.quote(),
        collateral,
        certificate,
    };
    Ok(evidence.write())
}

/// The first piece of a request, and the room it takes.
async fn first_piece<P: Piece>(call: &mut Call) -> Result<(P, Bytes, Reservation)> {
    let (message, room) = call.next(PIECE_BYTES).await?.ok_or_else(|| {
        let fact = "the call has no message: there is nothing to send";
        Error::new(Code::InvalidRequest, fact)
    })?;
    let (head, data) = P::read(message)?;
    Ok((head, data, room))
}

/// The data of the next piece, which must say of itself what the first one said.
async fn next_piece<P: Piece>(call: &mut Call, first: &P) -> Result<Option<(Bytes, Reservation)>> {
    let Some((message, room)) = call.next(PIECE_BYTES).await? else {
        return Ok(None);
    };
    let (head, data) = P::read(message)?;
    if head != *first {
        let fact = "a piece says something else of the request than the first piece";
        return Err(Error::new(Code::InvalidRequest, fact)
            .with_remedy("repeat the fields beside the data as they are"));
    }
    Ok(Some((data, room)))
}

/// The reply with this answer, signed if that is wanted.
fn reply(service: &Service, sign: bool, nonce: Bytes, answer: Answer) -> Bytes {
    let issued_at = SystemTime::now().duration_since(UNIX_EPOCH);
    let payload = Payload {
        issued_at: issued_at.unwrap_or_default(),
        nonce,
        answer,
    };
    let payload = payload.write();
    match sign {
        true => messages::write_reply(&payload, &service.sign(&payload)),
        false => messages::write_reply(&payload, &[]),
    }
}

fn internal(fact: impl AsRef<str>) -> Error {
    Error::new(Code::Internal, fact)
}

/// The version that clients of 0.3 look for.
const PROTOCOL: &str = "0.3.1";
/// The largest piece: what libraries of gRPC take of a message, unless they are told otherwise.
/// Clients of 0.3 send 32 KiB at a time.
const PIECE_BYTES: u64 = 4 << 20;
const USE_TODAYS: &str = "use a client of today, which verifies every kind of TEE";
