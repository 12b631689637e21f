use core::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Room;
use super::json::{self, Few, Flat};
use super::parameters::Parameters;
use crate::receipt::ReceiptRequest;
use crate::{Code, DType, Error, NamedTensor, Result, Tensor};

/// The HTTP header that says how many bytes of the body are JSON; the rest are tensors.
pub const HEADER_LENGTH: &str = "inference-header-content-length";

/// A request to run a model.
#[derive(Clone, Debug, PartialEq)]
pub struct InferRequest {
    /// Comes back with the answer.
    pub id: Option<String>,
    pub inputs: Vec<NamedTensor>,
    /// Empty for all of the model's outputs.
    pub outputs: Vec<RequestedOutput>,
    /// How outputs come that say nothing themselves.
    pub format: OutputFormat,
    /// How long the caller will wait, from when the request has arrived; `None` for as long as the
    /// server lets him.
    pub timeout: Option<Duration>,
    /// Whether the caller wants a receipt. In our own requests a header says so.
    pub receipt: Option<ReceiptRequest>,
}

impl InferRequest {
    /// A request for all outputs, as raw bytes.
    pub fn new(inputs: Vec<NamedTensor>) -> Self {
        Self {
            id: None,
            inputs,
            outputs: Vec::new(),
            format: OutputFormat::Binary,
            timeout: None,
            receipt: None,
        }
    }

    /// How this output is to be written.
    pub fn format_of(&self, output: &str) -> OutputFormat {
        let format = self.wanted(output).and_then(|wanted| wanted.format);
        format.unwrap_or(self.format)
    }

    /// How many of this output's best elements are wanted instead of all of them.
    pub fn classification_of(&self, output: &str) -> Option<usize> {
        self.wanted(output)?.classification
    }

    /// The names of the outputs that are asked for; empty for all.
    pub fn output_names(&self) -> Vec<String> {
        self.outputs
            .iter()
            .map(|wanted| wanted.name.clone())
            .collect()
    }

    fn wanted(&self, output: &str) -> Option<&RequestedOutput> {
        self.outputs.iter().find(|wanted| wanted.name == output)
    }
}

/// An output that the caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedOutput {
    pub name: String,
    pub format: Option<OutputFormat>,
    /// Only so many of its best elements, as texts `value:index`.
    pub classification: Option<usize>,
}

impl RequestedOutput {
    /// An output as it is, in the format of the request.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            format: None,
            classification: None,
        }
    }
}

/// Whether a tensor travels as JSON numbers or as raw bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputFormat {
    Json,
    Binary,
}

/// A model's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct InferResponse {
    pub id: Option<String>,
    pub model_name: String,
    pub model_version: Option<String>,
    pub outputs: Vec<NamedTensor>,
    /// The receipt, where it goes with the message.
    pub receipt: Option<Bytes>,
}

impl InferResponse {
    /// The receipt as a parameter of the answer: base64.
    pub(super) fn receipt_text(&self) -> Option<String> {
        let receipt = self.receipt.as_ref()?;
        Some(BASE64_STANDARD.encode(receipt))
    }
}

/// A message ready to be sent: the parts follow each other in the body.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The value of [`HEADER_LENGTH`]; `None` when the body is JSON alone.
    pub header_length: Option<usize>,
    pub parts: Vec<Bytes>,
}

impl Encoded {
    /// The length of the body in bytes.
    pub fn len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// Never: there is always a header.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// More inputs or outputs than any model has: each takes more memory here than in the message.
pub(super) const TENSORS: usize = 4096;
/// Sizes in a shape; a tensor may have 64.
pub(super) const SIZES: usize = 65;

/// Reads a request. Tensors that do not come as raw bytes take room beside the body; so do the
/// texts, which are no longer than the JSON is.
///
/// # Errors
/// [`Code::InvalidRequest`] for a body that is not of the protocol, [`Code::InputDType`] and
/// [`Code::InputData`] for tensors that are not what they claim, and what `room` says.
pub fn decode_request(
    body: Bytes,
    header_length: Option<usize>,
    room: Room<'_>,
) -> Result<InferRequest> {
    let (header, mut tensors) = split_body(body, header_length)?;
    let wire: WireRequest<&RawValue> = parse(&header)?;
    let inputs = read_tensors(wire.inputs.0, &mut tensors, room)?;
    let outputs = wire.outputs.map(|outputs| outputs.0).unwrap_or_default();
    let parameters = wire.parameters.unwrap_or_default().checked()?;
    Ok(InferRequest {
        id: wire.id,
        inputs,
        outputs: outputs
            .into_iter()
            .map(read_output)
            .collect::<Result<_>>()?,
        timeout: parameters.timeout(),
        format: format(parameters.binary_data_output.unwrap_or(false)),
        receipt: parameters.receipt,
    })
}

/// Writes a request; its tensors go as raw bytes.
pub fn encode_request(request: &InferRequest) -> Encoded {
    let header = WireRequest::<Flat<'_>> {
        id: request.id.clone(),
        parameters: Some(Parameters {
            binary_data_output: Some(request.format == OutputFormat::Binary),
            timeout: request.timeout.map(micros),
            ..Parameters::default()
        }),
        inputs: Few(request.inputs.iter().map(binary_tensor).collect()),
        outputs: (!request.outputs.is_empty())
            .then(|| Few(request.outputs.iter().map(write_output).collect())),
    };
    let header = json::write(&header, &mut |_| Ok(())).expect("there is room without end");
    with_tensors(header, request.inputs.iter().map(|t| &t.tensor))
}

/// Reads an answer.
///
/// # Errors
/// [`Code::InvalidRequest`] and [`Code::InputData`], as for requests.
pub fn decode_response(body: Bytes, header_length: Option<usize>) -> Result<InferResponse> {
    let (header, mut tensors) = split_body(body, header_length)?;
    let wire: WireResponse<&RawValue> = parse(&header)?;
    Ok(InferResponse {
        id: wire.id,
        model_name: wire.model_name,
        model_version: wire.model_version,
        outputs: read_tensors(wire.outputs.0, &mut tensors, &mut |_| Ok(()))?,
        receipt: None,
    })
}

/// Writes an answer, each output as `format` says. What is written as JSON takes room.
///
/// # Errors
/// [`Code::OutputNotJson`] for a NaN or an infinity in an output that is wanted as JSON, and what
/// `room` says.
pub fn encode_response(
    response: &InferResponse,
    format: impl Fn(&str) -> OutputFormat,
    room: Room<'_>,
) -> Result<Encoded> {
    let (mut outputs, mut raw) = (Vec::new(), Vec::new());
    for output in &response.outputs {
        match format(&output.name) {
            OutputFormat::Json => outputs.push(json_tensor(output)?),
            OutputFormat::Binary => {
                outputs.push(binary_tensor(output));
                raw.push(&output.tensor);
            }
        }
    }
    let header = WireResponse {
        model_name: response.model_name.clone(),
        model_version: response.model_version.clone(),
        id: response.id.clone(),
        parameters: response.receipt_text().map(|receipt| Told { receipt }),
        outputs: Few(outputs),
    };
    let header = json::write(&header, room)?;
    Ok(with_tensors(header, raw.into_iter()))
}

/// `D` is a tensor in JSON: as a text where it is read, as itself where it is written.
#[derive(Serialize, Deserialize)]
struct WireRequest<D> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parameters: Option<Parameters>,
    inputs: Few<WireTensor<D>, TENSORS>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outputs: Option<Few<WireOutput, TENSORS>>,
}

#[derive(Serialize, Deserialize)]
struct WireResponse<D> {
    model_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    parameters: Option<Told>,
    outputs: Few<WireTensor<D>, TENSORS>,
}

/// The parameters of an answer.
#[derive(Serialize)]
struct Told {
    receipt: String,
}

#[derive(Serialize, Deserialize)]
struct WireTensor<D> {
    name: String,
    shape: Few<usize, SIZES>,
    datatype: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parameters: Option<Parameters>,
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    data: Option<D>,
}

#[derive(Serialize, Deserialize)]
struct WireOutput {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parameters: Option<Parameters>,
}

fn split_body(body: Bytes, header_length: Option<usize>) -> Result<(Bytes, Bytes)> {
    let length = header_length.unwrap_or(body.len());
    if length > body.len() {
        let fact = format!("{HEADER_LENGTH} is {length}, the body has {}", body.len());
        return Err(Error::new(Code::InvalidRequest, fact));
    }
    Ok((body.slice(..length), body.slice(length..)))
}

// The parser's own message may quote the body; only the position is safe to repeat.
fn parse<'a, T: Deserialize<'a>>(header: &'a [u8]) -> Result<T> {
    serde_json::from_slice(header).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let what = match error.classify() {
            serde_json::error::Category::Data => "is not of the Open Inference Protocol",
            _ => "is not JSON",
        };
        let fact = format!("the body {what}, at line {line} column {column}");
        Error::new(Code::InvalidRequest, fact)
    })
}

fn read_tensors(
    wire: Vec<WireTensor<&RawValue>>,
    raw: &mut Bytes,
    room: Room<'_>,
) -> Result<Vec<NamedTensor>> {
    let tensors = wire.into_iter();
    let tensors = tensors.map(|tensor| read_tensor(tensor, raw, room));
    let tensors = tensors.collect::<Result<_>>()?;
    if !raw.is_empty() {
        let fact = format!("{} bytes follow the last tensor", raw.len());
        return Err(Error::new(Code::InvalidRequest, fact));
    }
    Ok(tensors)
}

fn read_tensor(
    wire: WireTensor<&RawValue>,
    raw: &mut Bytes,
    room: Room<'_>,
) -> Result<NamedTensor> {
    let name = wire.name;
    let dtype = read_dtype(&name, &wire.datatype)?;
    let size = wire.parameters.unwrap_or_default().checked()?;
    let size = size.binary_data_size;
    let data = match (wire.data, size) {
        (Some(data), None) => json::read_elements(dtype, data, room).map_err(|e| at(&name, e))?,
        (None, Some(size)) if size <= raw.len() => raw.split_to(size),
        (None, Some(size)) => {
            let fact = format!("{name:?} announces {size} bytes, {} are left", raw.len());
            return Err(Error::new(Code::InvalidRequest, fact));
        }
        _ => {
            let fact = format!("{name:?} needs either data or binary_data_size");
            return Err(Error::new(Code::InvalidRequest, fact));
        }
    };
    let tensor = Tensor::new(dtype, wire.shape.0, data).map_err(|e| at(&name, e))?;
    Ok(NamedTensor { name, tensor })
}

/// The type of a tensor, by its name on the wire.
pub(super) fn read_dtype(tensor: &str, name: &str) -> Result<DType> {
    DType::parse(name).ok_or_else(|| {
        let known: Vec<_> = DType::ALL.iter().map(|dtype| dtype.as_str()).collect();
        let fact = format!("input {tensor:?} has the unknown type {name:?}");
        Error::new(Code::InputDType, fact).with_remedy(format!("use one of {}", known.join(", ")))
    })
}

/// The error, with the tensor it speaks of.
pub(super) fn at(name: &str, error: Error) -> Error {
    let fact = format!("tensor {name:?}: {}", error.fact());
    Error::new(error.code(), fact).with_remedy(error.remedy().to_owned())
}

fn read_output(wire: WireOutput) -> Result<RequestedOutput> {
    let parameters = wire.parameters.unwrap_or_default().checked()?;
    Ok(requested(wire.name, &parameters))
}

/// An output of this name, as its parameters want it. To classify into none means not to.
pub(super) fn requested(name: String, parameters: &Parameters) -> RequestedOutput {
    RequestedOutput {
        name,
        format: parameters.binary_data.map(format),
        classification: parameters.classification.filter(|&count| count != 0),
    }
}

fn write_output(output: &RequestedOutput) -> WireOutput {
    let parameters = Parameters {
        binary_data: output.format.map(|format| format == OutputFormat::Binary),
        classification: output.classification,
        ..Parameters::default()
    };
    WireOutput {
        name: output.name.clone(),
        parameters: (parameters != Parameters::default()).then_some(parameters),
    }
}

fn micros(timeout: Duration) -> u64 {
    u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX)
}

fn format(binary: bool) -> OutputFormat {
    if binary {
        OutputFormat::Binary
    } else {
        OutputFormat::Json
    }
}

fn binary_tensor(tensor: &NamedTensor) -> WireTensor<Flat<'_>> {
    WireTensor {
        parameters: Some(Parameters {
            binary_data_size: Some(tensor.tensor.data().len()),
            ..Parameters::default()
        }),
        ..described(tensor)
    }
}

fn json_tensor(tensor: &NamedTensor) -> Result<WireTensor<Flat<'_>>> {
    json::check_finite(&tensor.tensor).map_err(|e| at(&tensor.name, e))?;
    Ok(WireTensor {
        data: Some(Flat(&tensor.tensor)),
        ..described(tensor)
    })
}

fn described(tensor: &NamedTensor) -> WireTensor<Flat<'_>> {
    WireTensor {
        name: tensor.name.clone(),
        shape: Few(tensor.tensor.shape().to_vec()),
        datatype: tensor.tensor.dtype().as_str().to_owned(),
        parameters: None,
        data: None,
    }
}

fn with_tensors<'a>(header: Bytes, raw: impl Iterator<Item = &'a Tensor>) -> Encoded {
    let length = header.len();
    let mut parts = vec![header];
    parts.extend(raw.map(|tensor| tensor.data().clone()));
    Encoded {
        header_length: (parts.len() > 1).then_some(length),
        parts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(encoded: &Encoded) -> Bytes {
        encoded.parts.concat().into()
    }

    fn floats() -> NamedTensor {
        let data = [1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes());
        let data: Vec<u8> = data.collect();
        NamedTensor::new(
            "x",
            Tensor::new(DType::F32, vec![1, 2], data.into()).unwrap(),
        )
    }

    #[test]
    fn requests_round_trip_as_raw_bytes() {
        let words = Tensor::from_strings(vec![2], &["a", "ü"]).unwrap();
        let mut request = InferRequest::new(vec![floats(), NamedTensor::new("w", words)]);
        request.id = Some("7".into());
        request.timeout = Some(Duration::from_micros(1500));
        request.outputs = vec![
            RequestedOutput {
                format: Some(OutputFormat::Json),
                classification: Some(3),
                ..RequestedOutput::new("y")
            },
            RequestedOutput::new("z"),
        ];
        let encoded = encode_request(&request);
        let decoded =
            decode_request(join(&encoded), encoded.header_length, &mut |_| Ok(())).unwrap();
        assert_eq!(decoded, request);
    }

    #[test]
    fn responses_round_trip_in_both_formats() {
        let response = InferResponse {
            id: None,
            model_name: "m".into(),
            model_version: Some("1".into()),
            outputs: vec![floats()],
            receipt: None,
        };
        for format in [OutputFormat::Json, OutputFormat::Binary] {
            let encoded = encode_response(&response, |_| format, &mut |_| Ok(())).unwrap();
            let decoded = decode_response(join(&encoded), encoded.header_length).unwrap();
            assert_eq!(decoded, response);
        }
    }

    #[test]
    fn json_data_may_be_nested_or_flat() {
        for data in ["[[1.5,-2]]", "[1.5,-2.0]"] {
            let body = format!(
                r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1,2],"data":{data}}}]}}"#
            );
            let request = decode_request(body.into(), None, &mut |_| Ok(())).unwrap();
            assert_eq!(request.inputs, [floats()]);
            assert_eq!(request.format_of("y"), OutputFormat::Json);
        }
    }

    #[test]
    fn malformed_bodies_are_refused_without_being_quoted() {
        let tensor = |rest: &str| format!(r#"{{"inputs":[{{"name":"x","shape":[1],{rest}}}]}}"#);
        let cases = [
            ("MARK".to_owned(), None, Code::InvalidRequest),
            (
                r#"{"inputs":"MARK"}"#.to_owned(),
                None,
                Code::InvalidRequest,
            ),
            ("{}".to_owned(), None, Code::InvalidRequest),
            ("{}".to_owned(), Some(9), Code::InvalidRequest),
            (
                tensor(r#""datatype":"FP31","data":[1]"#),
                None,
                Code::InputDType,
            ),
            (
                tensor(r#""datatype":"INT8","data":[300]"#),
                None,
                Code::InputData,
            ),
            (
                tensor(r#""datatype":"INT8","data":["MARK"]"#),
                None,
                Code::InputData,
            ),
            (
                tensor(r#""datatype":"INT8","data":[1,2]"#),
                None,
                Code::InputData,
            ),
            (tensor(r#""datatype":"INT8""#), None, Code::InvalidRequest),
            (
                tensor(r#""datatype":"INT8","parameters":{"binary_data_size":5}"#),
                None,
                Code::InvalidRequest,
            ),
        ];
        for (body, header_length, code) in cases {
            let error =
                decode_request(body.clone().into(), header_length, &mut |_| Ok(())).unwrap_err();
            assert_eq!(error.code(), code, "{body}: {error}");
            assert!(!error.to_string().contains("MARK"), "{error}");
        }
    }

    #[test]
    fn lists_are_no_longer_than_any_model_needs() {
        let output = r#"{"name":""}"#;
        let input = r#"{"name":"x","datatype":"INT8","shape":[0],"data":[]}"#;
        let flat = format!(
            r#"{{"name":"x","datatype":"INT8","shape":[{}0],"data":[]}}"#,
            "0,".repeat(SIZES)
        );
        let many = |element: &str, count: usize| vec![element; count].join(",");
        let request = |inputs: &str, outputs: &str| {
            let body = format!(r#"{{"inputs":[{inputs}],"outputs":[{outputs}]}}"#);
            decode_request(body.into(), None, &mut |_| Ok(()))
        };
        assert!(request(&many(input, TENSORS), &many(output, TENSORS)).is_ok());
        for refused in [
            request(&many(input, TENSORS + 1), output),
            request(input, &many(output, TENSORS + 1)),
            request(&flat, output),
        ] {
            assert_eq!(refused.unwrap_err().code(), Code::InvalidRequest);
        }
    }

    #[test]
    fn bytes_after_the_last_tensor_are_refused() {
        let encoded = encode_request(&InferRequest::new(vec![floats()]));
        let mut body = join(&encoded).to_vec();
        body.push(0);
        let error =
            decode_request(body.into(), encoded.header_length, &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.code(), Code::InvalidRequest);
    }

    #[test]
    fn a_nan_cannot_be_json() {
        let nan = Tensor::new(DType::F32, vec![], f32::NAN.to_le_bytes().to_vec().into());
        let response = InferResponse {
            id: None,
            model_name: "m".into(),
            model_version: None,
            outputs: vec![NamedTensor::new("y", nan.unwrap())],
            receipt: None,
        };
        let error =
            encode_response(&response, |_| OutputFormat::Json, &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.code(), Code::OutputNotJson);
        assert!(encode_response(&response, |_| OutputFormat::Binary, &mut |_| Ok(())).is_ok());
    }
}
