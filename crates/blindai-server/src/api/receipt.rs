//! Receipts: how they are asked for in a header, and what they are made of.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use blindai_core::oip::{InferRequest, InferResponse};
use blindai_core::receipt::{
    Deed, RECEIPT, RECEIPT_TENSORS, ReceiptRequest, TensorDigest, TensorHasher,
};
use blindai_core::{Code, Digest, Error, NamedTensor, Result};

use super::{busy, oip};
use crate::service::Service;

/// The receipt that a header asks for.
///
/// # Errors
/// [`Code::InvalidRequest`] for a nonce that is none.
pub fn asked(headers: &HeaderMap) -> Result<Option<ReceiptRequest>> {
    let text = headers.get(RECEIPT).map(HeaderValue::to_str);
    // What is not even text is no nonce either.
    let wish = text.map(|text| ReceiptRequest::parse(text.unwrap_or_default()));
    wish.transpose()
}

/// Puts a receipt into the header of its answer.
pub fn tell(headers: &mut HeaderMap, receipt: &[u8]) {
    let value = HeaderValue::try_from(BASE64_STANDARD.encode(receipt));
    let mut value = value.expect("base64 can stand in a header");
    // Digests of data have no place in the table of a header compression.
    value.set_sensitive(true);
    headers.insert(HeaderName::from_static(RECEIPT), value);
}

/// The inputs of a request that asks for a receipt; none of others. The bytes are shared, not copied.
///
/// # Errors
/// [`Code::InvalidRequest`] for more of them than fit into a receipt: nobody has compared them with
/// the model's yet.
pub fn inputs(request: &InferRequest) -> Result<Vec<NamedTensor>> {
    let inputs = &request.inputs;
    if request.receipt.is_none() {
        return Ok(Vec::new());
    }
    if inputs.len() > RECEIPT_TENSORS {
        let fact = format!("{} inputs do not fit into a receipt", inputs.len());
        return Err(Error::new(Code::InvalidRequest, fact).with_remedy("ask for no receipt"));
    }
    Ok(inputs.clone())
}

/// Digests tensors while the model runs, in steps between which others get their turn. Whoever
/// drops it lets go of the tensors, so that what a request holds ends with the request.
pub async fn digest(tensors: Vec<NamedTensor>) -> Vec<TensorDigest> {
    let mut digests = Vec::with_capacity(tensors.len());
    for named in tensors {
        let mut hasher = TensorHasher::new(&named.tensor);
        if named.tensor.data().len() > STEP_BYTES {
            // The model gets its inputs first.
            tokio::task::yield_now().await;
        }
        while hasher.advance(STEP_BYTES) {
            tokio::task::yield_now().await;
        }
        digests.push(TensorDigest::new(&named, hasher.finish()));
    }
    digests
}

/// Signs a receipt of what the model with this digest answered, and puts it to the answer.
///
/// # Errors
/// [`Code::InvalidRequest`] when it would be too long.
pub fn add(
    service: &Service,
    wish: ReceiptRequest,
    inputs: Vec<TensorDigest>,
    model: Digest,
    response: &mut InferResponse,
) -> Result<()> {
    let outputs = || TensorDigest::of_all(&response.outputs);
    let outputs = busy(oip::size(response), outputs);
    let version = response.model_version.as_deref().unwrap_or_default();
    let model = (response.model_name.parse()?, version.parse()?, model);
    let receipt = service.receipt(wish, Deed::Infer { inputs, outputs }, model)?;
    response.receipt = Some(receipt.into());
    Ok(())
}

/// What is digested at once: a fraction of a millisecond.
const STEP_BYTES: usize = 256 * 1024;
