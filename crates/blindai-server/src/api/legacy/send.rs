use std::cmp::Ordering;

use blindai_core::legacy::{Answer, SendModel};
use blindai_core::{Code, Digest, Error, ModelInfo, ModelName, Result, Shape};
use bytes::Bytes;

use super::held::{LastSent, Uploads};
use super::signature::{check_datum, first_output, only_input, settle_shape};
use super::{first_piece, next_piece, reply};
use crate::access::{Principal, Right};
use crate::api::grpc::{self, Call};
use crate::service::Service;

/// `SendModel`: stores a model, or vouches for one that is held already.
pub async fn send(call: &mut Call, uploads: &Uploads, last: &LastSent) -> Result<grpc::Answer> {
    let service = call.service.clone();
    let principal = call.known(Right::Manage)?.clone();
    let _admission = service.admit_upload(&principal)?;
    call.allow(service.limits().upload());
    let (head, data, room) = first_piece::<SendModel>(call).await?;
    let digest = match &head.held {
        Some((digest, version)) => find(&service, &principal, &head, *digest, version)?,
        None => {
            let (info, new) = receive(call, &service, &principal, &head, data).await?;
            let shape = check(&info, &head);
            if shape.is_err() && new {
                undo(&service, &principal, &info).await;
            }
            let shape = shape?;
            let sent = uploads.note(&service, &info, new, shape);
            last.set(sent.clone());
            let replaced = uploads.delete_replaced(&service, &principal, &sent.model);
            replaced.await;
            info.digest
        }
    };
    drop(room);
    let answer = Answer::Upload {
        model_hash: head.sign.then_some(digest),
        input_fact: if head.sign { head.input_fact } else { vec![] },
    };
    Ok(reply(&service, head.sign, head.nonce, answer).into())
}

/// The digest of a model that is held, if it is the one that the caller means.
fn find(
    service: &Service,
    principal: &Principal,
    head: &SendModel,
    digest: Digest,
    version: &str,
) -> Result<Digest> {
    let (info, _) = service.describe(principal, &head.model_name, Some(version))?;
    if info.digest != digest {
        let fact = format!(
            "the caller means {digest}, the server holds {}",
            info.digest
        );
        return Err(Error::new(Code::DigestMismatch, fact));
    }
    check(&info, head).map(|_| digest)
}

// Piece by piece into the model file: the model is never held as a whole.
async fn receive(
    call: &mut Call,
    service: &Service,
    principal: &Principal,
    head: &SendModel,
    first: Bytes,
) -> Result<(ModelInfo, bool)> {
    let name = model_name(&head.model_name);
    let mut incoming = service.begin_upload(principal, &name, Some(head.length))?;
    let mut received = first.len() as u64;
    incoming.write(&first)?;
    while let Some((data, _room)) = next_piece(call, head).await? {
        received += data.len() as u64;
        if received > head.length {
            break;
        }
        incoming.write(&data)?;
    }
    let length = head.length;
    match received.cmp(&length) {
        Ordering::Equal => service.upload(&name, None, None, incoming).await,
        Ordering::Less => {
            let fact = format!("the model ended after {received} of {length} bytes");
            Err(Error::new(Code::BodyIncomplete, fact))
        }
        Ordering::Greater => {
            let fact = format!("the model has more bytes than its length, {length}");
            Err(Error::new(Code::InvalidRequest, fact))
        }
    }
}

/// Checks what was declared of the model, and answers the shape of its input.
fn check(info: &ModelInfo, head: &SendModel) -> Result<Shape> {
    let input = only_input(&info.signature)?;
    check_datum("input", input, head.datum)?;
    check_datum("output", first_output(&info.signature)?, head.datum_output)?;
    settle_shape(input, &head.input_fact)
}

async fn undo(service: &Service, principal: &Principal, info: &ModelInfo) {
    let (name, version) = (info.name.as_str(), info.version.as_str());
    // Somebody may have deleted it in the meantime, which is as well.
    let _ = service.delete(principal, name, Some(version)).await;
}

/// Clients of 0.3 send the name of a file, which may be anything.
fn model_name(sent: &str) -> ModelName {
    let allowed = |c: char| match c {
        c if c.is_ascii_alphanumeric() || "._-".contains(c) => c,
        _ => '_',
    };
    let name: String = sent.trim_start_matches('.').chars().map(allowed).collect();
    let name = name.get(..NAME_BYTES).unwrap_or(&name);
    let unnamed = || UNNAMED.parse().expect("a name");
    name.parse().unwrap_or_else(|_| unnamed())
}

const NAME_BYTES: usize = 128;
const UNNAMED: &str = "unnamed";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_of_a_file_becomes_a_name_of_a_model() {
        let long = "x".repeat(200);
        for (sent, name) in [
            ("model.onnx", "model.onnx"),
            ("my model (1).onnx", "my_model__1_.onnx"),
            ("../ü", "__"),
            ("..", UNNAMED),
            ("", UNNAMED),
            (long.as_str(), &long[..128]),
        ] {
            assert_eq!(model_name(sent).as_str(), name, "{sent}");
        }
    }
}
