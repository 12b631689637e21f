use blindai_core::legacy::{Answer, Datum, ModelChoice, RunModel, numbers};
use blindai_core::oip::{InferRequest, RequestedOutput};
use blindai_core::{Code, Digest, Error, ModelInfo, NamedTensor, Result, Shape, Tensor};
use bytes::Bytes;

use super::held::{LastSent, Uploads};
use super::signature::{first_output, only_input, settle_shape};
use super::{first_piece, internal, next_piece, reply};
use crate::access::{Principal, Right};
use crate::api::busy;
use crate::api::coding::{Coding, Decoder};
use crate::api::grpc::{self, Call};
use crate::budget::Reservation;
use crate::service::{Service, Turn};

/// `RunModel`: runs the model that this connection sent last; when it sent none, the one that was
/// sent last over any connection.
pub async fn run(call: &mut Call, uploads: &Uploads, last: &LastSent) -> Result<grpc::Answer> {
    let service = call.service.clone();
    let principal = call.known(Right::Use)?.clone();
    let admission = service.admit(&principal)?;
    let (head, list, mut held) = receive(call, &service).await?;
    let (info, shape) = match head.model.name.is_empty() {
        true => sent(&service, &principal, uploads, last)?,
        false => named(&service, &principal, &head.model)?,
    };
    let mut request = request(&service, &info, &shape, &list, &mut held)?;
    let (name, version) = (info.name.as_str(), info.version.as_str());
    let turn = Turn {
        principal: &principal,
        deadline: call.deadline(),
    };
    let response = service.infer(name, Some(version), &mut request, turn);
    let (response, digest) = response.await?;
    let output = response.outputs.first();
    let output = &output.ok_or_else(|| internal("there is no output"))?.tensor;
    service.grow_held(&mut held, COPIES * numbers::list_bytes(output))?;
    let message = busy(output.data().len(), || {
        let answer = answer(&head, digest, &list, output)?;
        Ok(reply(&service, head.sign, head.nonce, answer))
    })?;
    grpc::Answer::holding(message, admission, held)
}

async fn receive(call: &mut Call, service: &Service) -> Result<(RunModel, Bytes, Reservation)> {
    let (head, first, _room) = first_piece::<RunModel>(call).await?;
    let limit = service.limits().body_bytes;
    let mut input = Decoder::new(service, Coding::Identity, None, limit)?;
    input.push(&first)?;
    while let Some((data, _room)) = next_piece(call, &head).await? {
        input.push(&data)?;
    }
    let (input, held) = input.finish()?;
    Ok((head, input, held))
}

/// The list as the input that the model takes, and a wish for its first output.
fn request(
    service: &Service,
    info: &ModelInfo,
    shape: &[usize],
    list: &[u8],
    held: &mut Reservation,
) -> Result<InferRequest> {
    let input = only_input(&info.signature)?;
    service.grow_held(held, numbers::tensor_bytes(list, input.dtype))?;
    let tensor = busy(list.len(), || numbers::to_tensor(list, input.dtype, shape))?;
    let mut request = InferRequest::new(vec![NamedTensor::new(&input.name, tensor)]);
    let output = first_output(&info.signature)?;
    request.outputs = vec![RequestedOutput::new(&output.name)];
    Ok(request)
}

fn answer(head: &RunModel, model: Digest, list: &[u8], output: &Tensor) -> Result<Answer> {
    Ok(Answer::Run {
        output: numbers::from_tensor(output)?,
        datum_output: Datum::of(output.dtype()).unwrap_or_default(),
        input_hash: head.sign.then(|| Digest::of(list)),
        model_hash: head.sign.then_some(model),
    })
}

fn sent(
    service: &Service,
    principal: &Principal,
    uploads: &Uploads,
    last: &LastSent,
) -> Result<(ModelInfo, Shape)> {
    let sent = last.get().or_else(|| uploads.newest()).ok_or_else(|| {
        let fact = "no model was sent over the protocol of BlindAI 0.3";
        Error::new(Code::ModelNotFound, fact).with_remedy("call upload_model first")
    })?;
    let (name, version) = (sent.model.name.as_str(), sent.model.version.as_str());
    let (info, _) = service
        .describe(principal, name, Some(version))
        .map_err(|error| error.with_remedy("it was deleted: call upload_model again"))?;
    Ok((info, sent.shape))
}

fn named(
    service: &Service,
    principal: &Principal,
    choice: &ModelChoice,
) -> Result<(ModelInfo, Shape)> {
    let version = Some(choice.version.as_str()).filter(|version| !version.is_empty());
    let (info, _) = service.describe(principal, &choice.name, version)?;
    let shape = settle_shape(only_input(&info.signature)?, &choice.input_fact)?;
    Ok((info, shape))
}

/// How often the output stands in memory while the reply is written: as a list, in its payload, in
/// that of the reply, and in the reply.
const COPIES: u64 = 4;
