//! What both spellings of the Open Inference Protocol do between decoding and encoding.

use std::time::Instant;

use blindai_core::oip::{
    self, EXTENSIONS, IndexEntry, InferRequest, InferResponse, NO_ISOLATION, ServerMetadata,
};
use blindai_core::{Code, Digest, Error, Result};
use blindai_engine::Isolation;

use super::{busy, receipt};
use crate::access::Principal;
use crate::budget::Reservation;
use crate::service::{Service, Turn};

/// Runs the model, ranks the outputs of which a classification was asked for, and signs a receipt
/// when one was. Beside the answer comes the digest of the model that gave it.
pub async fn infer(
    service: &Service,
    name: &str,
    version: Option<&str>,
    request: &mut InferRequest,
    turn: Turn<'_>,
) -> Result<(InferResponse, Digest)> {
    let inputs = receipt::inputs(request)?;
    let wish = request.receipt.take();
    let digests = async { Ok(receipt::digest(inputs).await) };
    let run = service.infer(name, version, request, turn);
    let ((mut response, model), inputs) = tokio::try_join!(run, digests)?;
    if request.outputs.iter().any(|o| o.classification.is_some()) {
        busy(size(&response), || {
            oip::classify_outputs(request, &mut response)
        })?;
    }
    if let Some(wish) = wish {
        receipt::add(service, wish, inputs, model, &mut response)?;
    }
    Ok((response, model))
}

/// Takes room for inputs that do not stay slices of their message: together no more than a body may
/// have, and no more than is left.
pub fn room(service: &Service, held: &mut Reservation) -> impl FnMut(u64) -> Result<()> {
    let limit = service.limits().body_bytes;
    let mut taken = 0;
    move |bytes| {
        taken += bytes;
        if taken > limit {
            let fact = format!("the inputs take more bytes than limits.body_bytes, {limit}");
            return Err(Error::new(Code::BodyTooLarge, fact));
        }
        service.grow_held(held, bytes)
    }
}

/// The bytes of all outputs.
pub fn size(response: &InferResponse) -> usize {
    let outputs = response.outputs.iter();
    outputs.map(|output| output.tensor.data().len()).sum()
}

/// What the server says of itself: also that models run in its own process, where they do.
pub fn server(service: &Service) -> ServerMetadata {
    let shared = (service.isolation() == Isolation::None).then_some(NO_ISOLATION);
    ServerMetadata {
        name: "blindai".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: EXTENSIONS
            .into_iter()
            .chain(shared)
            .map(str::to_owned)
            .collect(),
    }
}

/// Every version of every model that the principal may use, or of them those that are ready.
pub fn index(service: &Service, principal: &Principal, ready: bool) -> Result<Vec<IndexEntry>> {
    let models = service.list(principal)?;
    let listed = models.iter().filter(|model| model.loaded || !ready);
    Ok(listed.map(IndexEntry::new).collect())
}

/// Brings the newest version of a model into memory, if it is not there.
///
/// # Errors
/// [`Code::ModelNotFound`]; [`Code::MethodNotAllowed`] with parameters, which bring configuration
/// and files; what keeps it from being loaded.
pub async fn load(
    service: &Service,
    principal: &Principal,
    name: &str,
    with_parameters: bool,
    deadline: Instant,
) -> Result<()> {
    if with_parameters {
        let fact = "a model cannot be loaded with parameters";
        return Err(upload_instead(Error::new(Code::MethodNotAllowed, fact)));
    }
    let loaded = service.load(principal, name, deadline).await;
    loaded.map_err(|error| match error.code() {
        Code::ModelNotFound => upload_instead(error),
        _ => error,
    })
}

/// Lets a model leave memory that can be read again.
///
/// # Errors
/// [`Code::ModelNotFound`]; [`Code::MethodNotAllowed`] when it lives in memory only, so that to unload
/// it would be to delete it, and its owner could not load it again.
pub fn unload(service: &Service, principal: &Principal, name: &str) -> Result<()> {
    if service.unload(principal, name)? {
        return Ok(());
    }
    let fact = "the model is not unloaded: it is kept nowhere to be loaded from again";
    Err(Error::new(Code::MethodNotAllowed, fact)
        .with_remedy("DELETE /v1/models/{name} deletes a model"))
}

fn upload_instead(error: Error) -> Error {
    error.with_remedy("upload the model with PUT /v1/models/{name}")
}
