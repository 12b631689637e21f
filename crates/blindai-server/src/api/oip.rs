//! What both spellings of the Open Inference Protocol do between decoding and encoding.

use blindai_core::oip::{
    self, EXTENSIONS, IndexEntry, InferRequest, InferResponse, ServerMetadata,
};
use blindai_core::{Code, Error, Result};

use super::busy;
use crate::access::Principal;
use crate::service::{Service, Turn};

/// Runs the model and ranks the outputs of which a classification was asked for.
pub async fn infer(
    service: &Service,
    name: &str,
    version: Option<&str>,
    request: &mut InferRequest,
    turn: Turn<'_>,
) -> Result<InferResponse> {
    let mut response = service.infer(name, version, request, turn).await?;
    if request.outputs.iter().any(|o| o.classification.is_some()) {
        busy(size(&response), || {
            oip::classify_outputs(request, &mut response)
        })?;
    }
    Ok(response)
}

/// The bytes of all outputs.
pub fn size(response: &InferResponse) -> usize {
    let outputs = response.outputs.iter();
    outputs.map(|output| output.tensor.data().len()).sum()
}

/// What the server says of itself.
pub fn server() -> ServerMetadata {
    ServerMetadata {
        name: "blindai".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: EXTENSIONS.map(str::to_owned).into(),
    }
}

/// Every version of every model that the principal may use.
pub fn index(service: &Service, principal: &Principal) -> Result<Vec<IndexEntry>> {
    let _admission = service.admit(principal)?;
    Ok(service
        .list(principal)?
        .iter()
        .map(IndexEntry::new)
        .collect())
}

/// Loads a model that is loaded, which is nothing to do: there is no repository to load others from.
///
/// # Errors
/// [`Code::ModelNotFound`]; [`Code::MethodNotAllowed`] with parameters, which bring configuration
/// and files.
pub fn load(
    service: &Service,
    principal: &Principal,
    name: &str,
    with_parameters: bool,
) -> Result<()> {
    if with_parameters {
        let fact = "a model cannot be loaded with parameters";
        return Err(upload_instead(Error::new(Code::MethodNotAllowed, fact)));
    }
    let held = service.describe(principal, name, None);
    held.map(|_| ()).map_err(upload_instead)
}

/// Unloads nothing.
///
/// # Errors
/// [`Code::MethodNotAllowed`]: models live in memory, so that to unload one would be to delete it,
/// and its owner could not load it again.
pub fn unload() -> Result<()> {
    let fact = "models are not unloaded: they are kept nowhere to be loaded from again";
    Err(Error::new(Code::MethodNotAllowed, fact)
        .with_remedy("DELETE /v1/models/{name} deletes a model"))
}

fn upload_instead(error: Error) -> Error {
    error.with_remedy("upload the model with PUT /v1/models/{name}")
}
