//! Which models a client accepts: told to the server with each request that names one, and compared
//! with what the server says.

use blindai_core::pins::{MODEL, MODELS, ModelPins};
use blindai_core::{Code, Digest, Error, ModelInfo, ModelName, ModelVersion};
use http::{HeaderName, HeaderValue};

use crate::ClientError;
use crate::http1::{Answer, Head};

impl Head {
    /// Says which models of this name are accepted, when not all are.
    pub fn accept(&mut self, models: &ModelPins, name: &ModelName) {
        let about = models.about(name);
        if !about.is_empty() {
            self.headers
                .push((HeaderName::from_static(MODELS), header(&about)));
        }
    }
}

/// Models as a header names them.
pub(crate) fn header(models: &ModelPins) -> HeaderValue {
    let value = HeaderValue::try_from(models.to_string());
    value.expect("names and digests can stand in a header")
}

/// Checks what the server says that a model is.
pub(crate) fn check_info(models: &ModelPins, info: ModelInfo) -> Result<ModelInfo, ClientError> {
    models.accept_model(&info)?;
    Ok(info)
}

/// Checks which model has answered. A server that does not compare would not say it either.
pub(crate) fn check_answer(
    models: &ModelPins,
    name: &ModelName,
    version: Option<&str>,
    answer: &Answer,
) -> Result<(), ClientError> {
    if models.about(name).is_empty() {
        return Ok(());
    }
    let digest = told_digest(answer);
    let version: Option<ModelVersion> = version.and_then(|version| version.parse().ok());
    let (Some(digest), Some(version)) = (digest, version) else {
        let fact = format!("the server does not say which model answered as {name}");
        let error = Error::new(Code::ModelNotAccepted, fact);
        return Err(error
            .with_remedy("use a server of this client's version")
            .into());
    };
    Ok(models.accept(name, &version, &digest)?)
}

/// The digest of the model that answered, as the server says it where models are accepted by theirs.
pub(crate) fn told_digest(answer: &Answer) -> Option<Digest> {
    let told = answer.headers().get(MODEL).map(HeaderValue::to_str);
    told.and_then(|told| told.ok()?.parse().ok())
}
