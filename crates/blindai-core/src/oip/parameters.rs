//! The parameters of requests, inputs and outputs: one meaning for both spellings.

use core::time::Duration;
use std::fmt;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::receipt::ReceiptRequest;
use crate::{Code, Error, Result};

/// Parameters of extensions that this server does not speak. To ignore them would be to give a wrong
/// answer: a sequence without its state, a tensor from memory that nobody can reach.
const REFUSED: [&str; 6] = [
    "sequence_id",
    "sequence_start",
    "sequence_end",
    "shared_memory_region",
    "shared_memory_offset",
    "shared_memory_byte_size",
];

/// Those that this server knows. All others are ignored, as the protocol wants it.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Parameters {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary_data_output: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary_data: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary_data_size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classification: Option<usize>,
    /// Microseconds; 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// `true` or a nonce.
    #[serde(skip)]
    pub receipt: Option<ReceiptRequest>,
    /// The first thing wrong with them.
    #[serde(skip)]
    pub problem: Option<Error>,
}

/// The value of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Bool(bool),
    Integer(i128),
    Text(String),
    /// No parameter that is known here is a longer text or has a fraction.
    Other,
}

/// The longest text that is kept: a receipt's nonce.
const TEXT_BYTES: usize = 128;

impl Parameters {
    /// Takes one parameter.
    pub fn set(&mut self, name: &str, value: Value) {
        let taken = match name {
            "binary_data_output" => value.bool().map(|v| self.binary_data_output = Some(v)),
            "binary_data" => value.bool().map(|v| self.binary_data = Some(v)),
            "binary_data_size" => value.integer().map(|v| self.binary_data_size = Some(v)),
            "classification" => value.integer().map(|v| self.classification = Some(v)),
            "timeout" => value.integer().map(|v| self.timeout = Some(v)),
            "receipt" => value.receipt().map(|v| self.receipt = v),
            _ => (!REFUSED.contains(&name) || value.is_off()).then_some(()),
        };
        if taken.is_none() && self.problem.is_none() {
            self.problem = Some(refused(name));
        }
    }

    /// The parameters, if all of them can be followed.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`]
    pub fn checked(mut self) -> Result<Self> {
        match self.problem.take() {
            Some(problem) => Err(problem),
            None => Ok(self),
        }
    }

    /// How long the caller wants to wait.
    pub fn timeout(&self) -> Option<Duration> {
        let micros = self.timeout.filter(|&micros| micros != 0);
        micros.map(Duration::from_micros)
    }
}

impl Value {
    /// A text from a stranger.
    pub fn text(text: &str) -> Self {
        match text.len() <= TEXT_BYTES {
            true => Value::Text(text.to_owned()),
            false => Value::Other,
        }
    }

    fn receipt(self) -> Option<Option<ReceiptRequest>> {
        match self {
            Value::Bool(wanted) => Some(wanted.then(ReceiptRequest::default)),
            Value::Text(text) => ReceiptRequest::parse(&text).ok().map(Some),
            _ => None,
        }
    }

    fn bool(self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    fn integer<T: TryFrom<i128>>(self) -> Option<T> {
        match self {
            Value::Integer(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// Whether the value says that the parameter is not used.
    fn is_off(&self) -> bool {
        *self == Value::Bool(false) || *self == Value::Integer(0)
    }
}

fn refused(name: &str) -> Error {
    if REFUSED.contains(&name) {
        let fact = format!("the parameter {name:?} asks for what this server does not do");
        return Error::new(Code::InvalidRequest, fact)
            .with_remedy("leave it out; the extensions offered stand in the server's metadata");
    }
    let fact = format!("the parameter {name:?} does not have the type of its extension");
    Error::new(Code::InvalidRequest, fact)
}

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ReadParameters)
    }
}

struct ReadParameters;

impl<'de> Visitor<'de> for ReadParameters {
    type Value = Parameters;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("parameters")
    }

    // One by one: what is not known is not kept.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
        let mut parameters = Parameters::default();
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            parameters.set(&name, map.next_value()?);
        }
        Ok(parameters)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReadValue)
    }
}

struct ReadValue;

impl Visitor<'_> for ReadValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a number or a Boolean")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::text(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Parameters> {
        serde_json::from_str::<Parameters>(json).unwrap().checked()
    }

    #[test]
    fn known_ones_are_taken_and_strange_ones_ignored() {
        let json = r#"{"timeout":1500,"priority":3,"x":"text","y":1.5,"binary_data":true}"#;
        let read = read(json).unwrap();
        assert_eq!(read.timeout(), Some(Duration::from_micros(1500)));
        assert_eq!(read.binary_data, Some(true));
        assert!(serde_json::from_str::<Parameters>(r#"{"x":[1]}"#).is_err());
    }

    #[test]
    fn a_receipt_is_asked_for_with_true_or_a_nonce() {
        let nonce = |json| read(json).unwrap().receipt.map(|wish| wish.to_string());
        assert_eq!(nonce(r#"{"receipt":true}"#).as_deref(), Some("true"));
        assert_eq!(nonce(r#"{"receipt":"true"}"#).as_deref(), Some("true"));
        assert_eq!(nonce(r#"{"receipt":"0a"}"#).as_deref(), Some("0a"));
        assert_eq!(nonce(r#"{"receipt":false}"#), None);
        let long = format!(r#"{{"receipt":"{}"}}"#, "0".repeat(130));
        for json in [r#"{"receipt":1}"#, r#"{"receipt":"x"}"#, &long] {
            let error = read(json).unwrap_err();
            assert_eq!(error.code(), Code::InvalidRequest, "{json}");
        }
    }

    #[test]
    fn what_would_change_the_answer_is_refused() {
        for json in [
            r#"{"sequence_id":7}"#,
            r#"{"sequence_start":true}"#,
            r#"{"shared_memory_region":"r"}"#,
            r#"{"classification":-1}"#,
            r#"{"timeout":"soon"}"#,
            r#"{"binary_data":1}"#,
        ] {
            assert_eq!(
                read(json).unwrap_err().code(),
                Code::InvalidRequest,
                "{json}"
            );
        }
        let off = read(r#"{"sequence_id":0,"sequence_end":false,"timeout":0}"#).unwrap();
        assert_eq!(off.timeout(), None);
    }
}
