//! Receipts: how they are asked for in a header, and what they are made of.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use blindai_core::oip::{InferRequest, InferResponse};
use blindai_core::receipt::{Deed, RECEIPT, ReceiptRequest, TensorDigest};
use blindai_core::{Code, Digest, Error, Result};
use tokio::task::JoinHandle;

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

/// Signs a receipt of what the model with this digest answered, and puts it to the answer.
///
/// # Errors
/// [`Code::InvalidRequest`] when it would be too long.
pub async fn add(
    service: &Service,
    wish: ReceiptRequest,
    inputs: Inputs,
    model: Digest,
    response: &mut InferResponse,
) -> Result<()> {
    let outputs = || TensorDigest::of_all(&response.outputs);
    let deed = Deed::Infer {
        outputs: busy(oip::size(response), outputs),
        inputs: inputs.digests().await?,
    };
    let version = response.model_version.as_deref().unwrap_or_default();
    let model = (response.model_name.parse()?, version.parse()?, model);
    response.receipt = Some(service.receipt(wish, deed, model)?.into());
    Ok(())
}

/// The inputs of a request, digested beside the model's run, which takes them away.
pub enum Inputs {
    Known(Vec<TensorDigest>),
    Coming(JoinHandle<Vec<TensorDigest>>),
}

impl Inputs {
    /// Digests small inputs at once and begins with large ones.
    pub fn of(request: &InferRequest) -> Self {
        let inputs = request.inputs.iter();
        let bytes: usize = inputs.map(|input| input.tensor.data().len()).sum();
        if bytes <= AT_ONCE_BYTES {
            return Self::Known(TensorDigest::of_all(&request.inputs));
        }
        // The bytes are shared, not copied.
        let inputs = request.inputs.clone();
        let digests = move || TensorDigest::of_all(&inputs);
        Self::Coming(tokio::task::spawn_blocking(digests))
    }

    async fn digests(self) -> Result<Vec<TensorDigest>> {
        match self {
            Self::Known(digests) => Ok(digests),
            Self::Coming(digests) => digests.await.map_err(|_| {
                let fact = "the inputs could not be digested";
                Error::new(Code::Internal, fact)
            }),
        }
    }
}

/// Digesting so much costs less than to have another thread do it.
const AT_ONCE_BYTES: usize = 64 * 1024;
