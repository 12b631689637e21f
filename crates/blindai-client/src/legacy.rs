//! Signed answers, over the protocol of BlindAI 0.3. Its messages go in ordinary requests: the
//! connections are those of every other verb.

use blindai_core::legacy::{RunModel, SendModel, read_reply};
use blindai_core::{Code, Error, api};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use percent_encoding::percent_decode_str;

use crate::http1::{Answer, Head};
use crate::{Client, ClientError};

/// What a server says, as it signed it. Nothing is verified.
#[derive(Clone, Debug)]
pub struct SignedAnswer {
    /// [`Payload`](blindai_core::legacy::Payload), encoded.
    pub payload: Bytes,
    /// Ed25519, over the payload's bytes.
    pub signature: Bytes,
}

impl Client {
    /// Asks the server to vouch for a model that it holds; the request says for which.
    ///
    /// # Errors
    /// Of kind `Server` when it holds another one or none, when the model has another input or output
    /// than the request says, and with [`Code::MethodNotAllowed`] when it does not speak BlindAI 0.3.
    pub async fn vouch(&self, request: &SendModel) -> Result<SignedAnswer, ClientError> {
        let message = framed(&request.write(&[]));
        self.legacy("SendModel", &request.model_name, vec![message])
            .await
    }

    /// Runs a model that the request names, on a CBOR list of numbers.
    ///
    /// # Errors
    /// As for [`Client::infer`], and as for [`Client::vouch`].
    pub async fn run_signed(
        &self,
        request: &RunModel,
        list: &Bytes,
    ) -> Result<SignedAnswer, ClientError> {
        let pieces = list.chunks(PIECE_BYTES);
        let messages = pieces.map(|piece| framed(&request.write(piece)));
        self.legacy("RunModel", &request.model.name, messages.collect())
            .await
    }

    async fn legacy(
        &self,
        method: &str,
        model: &str,
        messages: Vec<Bytes>,
    ) -> Result<SignedAnswer, ClientError> {
        let path = format!("/securedexchange.Exchange/{method}");
        let mut head = Head::new(Method::POST, path);
        head.headers.push((header::CONTENT_TYPE, GRPC));
        head.accept(self.accepted(), &model.parse()?);
        let answer = self.repeatable(&head, &messages).await?;
        let message = only_message(answer)?;
        let reply = read_reply(message);
        let (payload, signature) =
            reply.map_err(|error| ClientError::response_invalid(error.fact()))?;
        Ok(SignedAnswer { payload, signature })
    }
}

/// The message of an answer, or why there is none.
fn only_message(answer: Answer) -> Result<Bytes, ClientError> {
    if !answer.status().is_success() {
        return Err(ClientError::refused(answer.status(), &answer.body));
    }
    // An answer that ends well says so behind its message, which HTTP/1.1 leaves out.
    let status = answer.headers().get(STATUS);
    if status.is_some_and(|status| status != "0") {
        let id = text(answer.headers(), api::REQUEST_ID);
        return Err(ClientError::told(refusal(answer.headers()), id));
    }
    let mut body = answer.body;
    let whole = body.first_chunk::<PREFIX_BYTES>().is_some_and(|prefix| {
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
        prefix[0] == 0 && body.len() - PREFIX_BYTES == length as usize
    });
    match whole {
        true => Ok(body.split_off(PREFIX_BYTES)),
        false => Err(ClientError::response_invalid("it is not one message")),
    }
}

/// The error in the headers of a refusal.
fn refusal(headers: &HeaderMap) -> Error {
    let code = text(headers, "blindai-code").and_then(Code::parse);
    let said = text(headers, "grpc-message").unwrap_or_default();
    let said = percent_decode_str(said).decode_utf8_lossy();
    let Some(code) = code else {
        let fact = format!("the server refused: {said}");
        return Error::new(Code::Internal, fact);
    };
    let said = said.strip_prefix(code.as_str()).unwrap_or(&said);
    let said = said.strip_prefix(": ").unwrap_or(said);
    match said.rsplit_once(" · ") {
        Some((fact, remedy)) => Error::new(code, fact).with_remedy(remedy.to_owned()),
        None => Error::new(code, said),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn framed(message: &[u8]) -> Bytes {
    // A piece and its head are far below 4 GiB.
    let length = (message.len() as u32).to_be_bytes();
    [&[0], &length[..], message].concat().into()
}

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const PREFIX_BYTES: usize = 5;
const PIECE_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_read_from_its_headers() {
        let headers = |message: &'static str| {
            HeaderMap::from_iter([
                (
                    HeaderName::from_static("blindai-code"),
                    HeaderValue::from_static("input-shape"),
                ),
                (
                    HeaderName::from_static("grpc-message"),
                    HeaderValue::from_static(message),
                ),
            ])
        };
        let error = refusal(&headers(
            "input-shape: 100 %25 %C2%B7 too much %C2%B7 reshape",
        ));
        assert_eq!(error.code(), Code::InputShape);
        assert_eq!(error.fact(), "100 % · too much");
        assert_eq!(error.remedy(), "reshape");
        assert_eq!(
            refusal(&headers("nothing of ours")).fact(),
            "nothing of ours"
        );
        assert_eq!(refusal(&HeaderMap::new()).code(), Code::Internal);
    }
}
