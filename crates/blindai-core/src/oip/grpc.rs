//! The messages of `inference.GRPCInferenceService`, whose schema is `proto/inference.proto` of this
//! crate. Raw tensors stay slices of the message that brought them.

use bytes::Bytes;

use super::message::{SIZES, TENSORS, at, read_dtype, requested};
use super::parameters::{self, Parameters};
use super::protobuf::{Fields, Message, Value, each_varint, malformed, text};
use super::{InferRequest, InferResponse, OutputFormat, RequestedOutput, Room};
use crate::{Code, DType, Error, NamedTensor, Result, Tensor};

/// The model that a message speaks of; empty for all where a method takes all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelId {
    pub name: String,
    pub version: Option<String>,
}

/// `ModelInferRequest`.
#[derive(Clone, Debug, PartialEq)]
pub struct InferCall {
    pub model: ModelId,
    pub request: InferRequest,
}

/// Reads a message whose first field is a model's name and whose second its version.
///
/// # Errors
/// [`Code::InvalidRequest`]
pub fn decode_model(message: Bytes) -> Result<ModelId> {
    let mut model = ModelId::default();
    for field in Fields::of(message) {
        model.take(field?)?;
    }
    Ok(model)
}

/// Reads `RepositoryModelLoadRequest`: the model's name, and whether it brings parameters.
///
/// # Errors
/// [`Code::InvalidRequest`]
pub fn decode_load(message: Bytes) -> Result<(String, bool)> {
    let (mut name, mut parameters) = (String::new(), false);
    for field in Fields::of(message) {
        match field? {
            (2, Value::Bytes(value)) => name = text(&value)?,
            (3, _) => parameters = true,
            _ => {}
        }
    }
    Ok((name, parameters))
}

/// Reads `RepositoryIndexRequest`: whether only what is ready is asked for.
///
/// # Errors
/// [`Code::InvalidRequest`]
pub fn decode_index(message: Bytes) -> Result<bool> {
    let mut ready = false;
    for field in Fields::of(message) {
        if let (2, Value::Varint(flag)) = field? {
            ready = flag != 0;
        }
    }
    Ok(ready)
}

/// Reads `ModelInferRequest`. Typed contents take room beside the message: a number of eight bytes may
/// be one in it.
///
/// # Errors
/// As for JSON.
pub fn decode_infer(message: Bytes, room: Room<'_>) -> Result<InferCall> {
    let mut wire = WireInfer::default();
    for field in Fields::of(message) {
        wire.take(field?)?;
    }
    let parameters = wire.parameters.checked()?;
    let request = InferRequest {
        id: (!wire.id.is_empty()).then_some(wire.id),
        inputs: read_inputs(wire.inputs, wire.raw, room)?,
        outputs: wire.outputs,
        format: OutputFormat::Binary,
        timeout: parameters.timeout(),
        receipt: parameters.receipt,
    };
    Ok(InferCall {
        model: wire.model,
        request,
    })
}

/// Writes `ModelInferRequest`, its inputs as raw contents. Outputs are not named: all are answered.
pub fn encode_infer_request(model: &ModelId, inputs: &[NamedTensor]) -> Bytes {
    Message::of(|m| {
        m.text(1, &model.name);
        m.text(2, model.version.as_deref().unwrap_or_default());
        inputs.iter().for_each(|input| describe(input, 5, m));
        let raw = inputs.iter().map(|input| input.tensor.data());
        raw.for_each(|data| m.element(7, data));
    })
}

/// Writes `ModelInferResponse`; its parts follow each other.
pub fn encode_infer(response: &InferResponse) -> Vec<Bytes> {
    parts(response, |m| write_head(response, m))
}

/// Writes `ModelStreamInferResponse` with an answer, which is the only one to its request.
pub fn encode_stream_infer(response: &InferResponse) -> Vec<Bytes> {
    let mut inner = parts(response, |m| {
        write_head(response, m);
        m.message(4, |m| {
            m.text(1, "triton_final_response");
            m.message(2, |m| m.flag(1, true));
        });
    });
    let length = inner.iter().map(Bytes::len).sum();
    inner.insert(0, Message::of(|m| m.announce(2, length)));
    inner
}

/// Writes `ModelStreamInferResponse` with an error, and the id of the request that it answers.
pub fn encode_stream_error(error: &Error, id: Option<&str>) -> Bytes {
    Message::of(|m| {
        m.text(1, &error.to_string());
        m.message(2, |m| m.text(3, id.unwrap_or_default()));
    })
}

/// The id of a `ModelInferRequest`, as far as it can be read.
pub fn request_id(message: Bytes) -> Option<String> {
    let fields = Fields::of(message).map_while(Result::ok);
    let ids = fields.filter_map(|field| match field {
        (3, Value::Bytes(id)) => text(&id).ok(),
        _ => None,
    });
    ids.last()
}

/// Writes a message whose only field is a Boolean: `ServerLiveResponse` and its like.
pub fn encode_flag(value: bool) -> Bytes {
    Message::of(|m| m.flag(1, value))
}

impl ModelId {
    fn take(&mut self, field: (u32, Value)) -> Result<()> {
        match field {
            (1, Value::Bytes(name)) => self.name = text(&name)?,
            (2, Value::Bytes(version)) => {
                self.version = Some(text(&version)?).filter(|version| !version.is_empty());
            }
            _ => {}
        }
        Ok(())
    }
}

#[derive(Default)]
struct WireInfer {
    model: ModelId,
    id: String,
    parameters: Parameters,
    inputs: Vec<WireInput>,
    outputs: Vec<RequestedOutput>,
    raw: Vec<Bytes>,
}

impl WireInfer {
    fn take(&mut self, field: (u32, Value)) -> Result<()> {
        match field {
            (3, Value::Bytes(id)) => self.id = text(&id)?,
            (4, Value::Bytes(entry)) => read_parameter(&mut self.parameters, entry)?,
            (5, Value::Bytes(input)) => push(&mut self.inputs, read_input(input)?)?,
            (6, Value::Bytes(output)) => push(&mut self.outputs, read_output(output)?)?,
            (7, Value::Bytes(raw)) => push(&mut self.raw, raw)?,
            field => self.model.take(field)?,
        }
        Ok(())
    }
}

#[derive(Default)]
struct WireInput {
    name: String,
    datatype: String,
    shape: Vec<usize>,
    contents: Option<Bytes>,
}

fn push<T>(list: &mut Vec<T>, element: T) -> Result<()> {
    if list.len() == TENSORS {
        let fact = format!("the request has more than {TENSORS} tensors");
        return Err(Error::new(Code::InvalidRequest, fact));
    }
    list.push(element);
    Ok(())
}

fn read_input(message: Bytes) -> Result<WireInput> {
    let mut input = WireInput::default();
    let mut parameters = Parameters::default();
    for field in Fields::of(message) {
        match field? {
            (1, Value::Bytes(name)) => input.name = text(&name)?,
            (2, Value::Bytes(datatype)) => input.datatype = text(&datatype)?,
            (3, sizes) => read_shape(&mut input.shape, sizes)?,
            (4, Value::Bytes(entry)) => read_parameter(&mut parameters, entry)?,
            (5, Value::Bytes(contents)) if input.contents.is_none() => {
                input.contents = Some(contents);
            }
            // To merge them is the rule of the wire, and no writer's habit.
            (5, _) => return Err(malformed()),
            _ => {}
        }
    }
    parameters.checked()?;
    Ok(input)
}

fn read_shape(shape: &mut Vec<usize>, sizes: Value) -> Result<()> {
    each_varint(sizes, |size| {
        let size = usize::try_from(size as i64);
        let size = size.map_err(|_| Error::new(Code::InputData, "a shape has a negative size"))?;
        if shape.len() == SIZES {
            return Err(Error::new(
                Code::InputData,
                "a shape has too many dimensions",
            ));
        }
        shape.push(size);
        Ok(())
    })
}

fn read_output(message: Bytes) -> Result<RequestedOutput> {
    let mut name = String::new();
    let mut parameters = Parameters::default();
    for field in Fields::of(message) {
        match field? {
            (1, Value::Bytes(value)) => name = text(&value)?,
            (2, Value::Bytes(entry)) => read_parameter(&mut parameters, entry)?,
            _ => {}
        }
    }
    Ok(requested(name, &parameters.checked()?))
}

/// An entry of a map: 1 is its key, 2 an `InferParameter`.
fn read_parameter(parameters: &mut Parameters, entry: Bytes) -> Result<()> {
    let (mut name, mut value) = (String::new(), parameters::Value::Other);
    for field in Fields::of(entry) {
        match field? {
            (1, Value::Bytes(key)) => name = text(&key)?,
            (2, Value::Bytes(parameter)) => value = read_value(parameter)?,
            _ => {}
        }
    }
    parameters.set(&name, value);
    Ok(())
}

fn read_value(parameter: Bytes) -> Result<parameters::Value> {
    let mut value = parameters::Value::Other;
    for field in Fields::of(parameter) {
        value = match field? {
            (1, Value::Varint(flag)) => parameters::Value::Bool(flag != 0),
            (2, Value::Varint(number)) => parameters::Value::Integer((number as i64).into()),
            (3, Value::Bytes(value)) => parameters::Value::text(&text(&value)?),
            (5, Value::Varint(number)) => parameters::Value::Integer(number.into()),
            _ => value,
        };
    }
    Ok(value)
}

fn read_inputs(
    inputs: Vec<WireInput>,
    raw: Vec<Bytes>,
    room: Room<'_>,
) -> Result<Vec<NamedTensor>> {
    if raw.is_empty() {
        let read = |input| read_tensor(input, |dtype, input| typed(dtype, input, room));
        return inputs.into_iter().map(read).collect();
    }
    if raw.len() != inputs.len() || inputs.iter().any(|input| input.contents.is_some()) {
        let (raw, inputs) = (raw.len(), inputs.len());
        let fact = format!("there are {raw} raw_input_contents for {inputs} inputs");
        return Err(Error::new(Code::InvalidRequest, fact)
            .with_remedy("send one for each input and no contents, or contents in every input"));
    }
    let pairs = inputs.into_iter().zip(raw);
    let tensors = pairs.map(|(input, raw)| read_tensor(input, |_, _| Ok(raw)));
    tensors.collect()
}

fn read_tensor(
    mut input: WireInput,
    data: impl FnOnce(DType, &WireInput) -> Result<Bytes>,
) -> Result<NamedTensor> {
    let dtype = read_dtype(&input.name, &input.datatype)?;
    let data = data(dtype, &input).map_err(|error| at(&input.name, error))?;
    let shape = std::mem::take(&mut input.shape);
    let tensor = Tensor::new(dtype, shape, data).map_err(|error| at(&input.name, error))?;
    Ok(NamedTensor::new(input.name, tensor))
}

/// `InferTensorContents` as the bytes of a tensor.
fn typed(dtype: DType, input: &WireInput, room: Room<'_>) -> Result<Bytes> {
    let wanted = field_of(dtype)?;
    let contents = input.contents.clone().unwrap_or_default();
    let size = measure(dtype, wanted, contents.clone())?;
    room(size)?;
    let mut data = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    for field in Fields::of(contents) {
        match field? {
            (number, value) if number == wanted => read_elements(dtype, value, &mut data)?,
            (_, Value::Bytes(none)) if none.is_empty() => {}
            (number, _) => {
                let fact = format!("{dtype} contents come in field {wanted}, not in {number}");
                return Err(Error::new(Code::InputData, fact));
            }
        }
    }
    Ok(data.into())
}

/// The bytes that the elements in field `wanted` take as a tensor.
fn measure(dtype: DType, wanted: u32, contents: Bytes) -> Result<u64> {
    let mut bytes = 0;
    for field in Fields::of(contents) {
        let (number, value) = field?;
        if number == wanted {
            bytes += match (dtype, dtype.size(), value) {
                (_, None, Value::Bytes(element)) => 4 + element.len(),
                (DType::F32 | DType::F64, _, Value::Bytes(packed)) => packed.len(),
                // Of each number the last byte has no mark.
                (_, Some(size), Value::Bytes(packed)) => {
                    size * packed.iter().filter(|&byte| byte >> 7 == 0).count()
                }
                (_, size, _) => size.unwrap_or(0),
            };
        }
    }
    Ok(bytes as u64)
}

/// The field of `InferTensorContents` for elements of this type.
fn field_of(dtype: DType) -> Result<u32> {
    match dtype {
        DType::Bool => Ok(1),
        DType::I8 | DType::I16 | DType::I32 => Ok(2),
        DType::I64 => Ok(3),
        DType::U8 | DType::U16 | DType::U32 => Ok(4),
        DType::U64 => Ok(5),
        DType::F32 => Ok(6),
        DType::F64 => Ok(7),
        DType::String => Ok(8),
        DType::F16 | DType::BF16 => {
            let fact = format!("the protocol has no contents of {dtype}");
            Err(Error::new(Code::InputData, fact).with_remedy("send them as raw_input_contents"))
        }
    }
}

fn read_elements(dtype: DType, value: Value, data: &mut Vec<u8>) -> Result<()> {
    let mut push = |element: &[u8]| {
        data.extend_from_slice(element);
        Ok(())
    };
    match (dtype, value) {
        (DType::F32, Value::Fixed32(element)) => push(&element),
        (DType::F64, Value::Fixed64(element)) => push(&element),
        (DType::F32 | DType::F64, Value::Bytes(packed)) => push(&packed),
        (DType::String, Value::Bytes(element)) => {
            push(
                &u32::try_from(element.len())
                    .map_err(|_| malformed())?
                    .to_le_bytes(),
            )?;
            push(&element)
        }
        (DType::F32 | DType::F64 | DType::String, _) => Err(malformed()),
        (dtype, value) => each_varint(value, |number| match integer(dtype, number) {
            Some((bytes, size)) => push(&bytes[..size]),
            None => {
                let fact = format!("an element is out of the range of {dtype}");
                Err(Error::new(Code::InputData, fact))
            }
        }),
    }
}

/// The little-endian bytes of an integer, and how many of them count; `None` when it does not fit.
fn integer(dtype: DType, number: u64) -> Option<([u8; 8], usize)> {
    // Fields of 32 bits hold as much of what was sent.
    let (signed, unsigned) = (number as i32, number as u32);
    let fits = match dtype {
        DType::Bool => number <= 1,
        DType::I8 => i8::try_from(signed).is_ok(),
        DType::I16 => i16::try_from(signed).is_ok(),
        DType::U8 => u8::try_from(unsigned).is_ok(),
        DType::U16 => u16::try_from(unsigned).is_ok(),
        _ => true,
    };
    let size = dtype.size().filter(|_| fits)?;
    Some((number.to_le_bytes(), size))
}

fn write_head(response: &InferResponse, m: &mut Message) {
    m.text(1, &response.model_name);
    m.text(2, response.model_version.as_deref().unwrap_or_default());
    m.text(3, response.id.as_deref().unwrap_or_default());
    if let Some(receipt) = response.receipt_text() {
        m.message(4, |m| {
            m.text(1, "receipt");
            m.message(2, |m| m.text(3, &receipt));
        });
    }
}

/// What `head` writes, the outputs, and their bytes as they are.
fn parts(response: &InferResponse, head: impl FnOnce(&mut Message)) -> Vec<Bytes> {
    let described = Message::of(|m| {
        head(m);
        let outputs = response.outputs.iter();
        outputs.for_each(|output| describe(output, 5, m));
    });
    let raw = response.outputs.iter().map(|output| output.tensor.data());
    let raw = raw.flat_map(|data| [Message::of(|m| m.announce(6, data.len())), data.clone()]);
    std::iter::once(described).chain(raw).collect()
}

/// A tensor without its bytes, as the field of this number.
fn describe(NamedTensor { name, tensor }: &NamedTensor, number: u32, m: &mut Message) {
    m.message(number, |m| {
        m.text(1, name);
        m.text(2, tensor.dtype().as_str());
        m.integers(3, tensor.shape().iter().map(|&size| size as i64));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: u64 = 1 << 10;

    fn input(m: &mut Message, datatype: &str, shape: &[i64], contents: impl Fn(&mut Message)) {
        m.message(5, |m| {
            m.text(1, "x");
            m.text(2, datatype);
            m.integers(3, shape.iter().copied());
            m.message(5, contents);
        });
    }

    fn decode(write: impl FnOnce(&mut Message)) -> Result<InferCall> {
        decode_within(Message::of(write), ROOM)
    }

    /// The inputs take exactly the room that was asked for.
    fn decode_within(message: Bytes, room: u64) -> Result<InferCall> {
        let mut left = room;
        let call = decode_infer(message, &mut |bytes| match left.checked_sub(bytes) {
            Some(less) => {
                left = less;
                Ok(())
            }
            None => Err(Error::new(Code::BodyTooLarge, "no room")),
        })?;
        let copied = |input: &&NamedTensor| left < room && !input.tensor.data().is_empty();
        let inputs = call.request.inputs.iter().filter(copied);
        let held: usize = inputs.map(|input| input.tensor.data().len()).sum();
        assert_eq!(held as u64, room - left);
        Ok(call)
    }

    fn typed_as(datatype: &str, field: u32, numbers: &[i64]) -> Result<Bytes> {
        let shape = [numbers.len() as i64];
        let call = decode(|m| {
            input(m, datatype, &shape, |m| {
                m.integers(field, numbers.iter().copied());
            });
        })?;
        Ok(call.request.inputs[0].tensor.data().clone())
    }

    fn code<T: std::fmt::Debug>(result: Result<T>) -> Code {
        result.unwrap_err().code()
    }

    #[test]
    fn what_a_client_writes_is_read() {
        let model = ModelId {
            name: "m".into(),
            version: Some("2".into()),
        };
        let input = |name: &str, data: &'static [u8]| {
            let tensor = Tensor::new(DType::U8, vec![1, data.len()], Bytes::from_static(data));
            NamedTensor::new(name, tensor.unwrap())
        };
        let inputs = [input("x", &[1, 2]), input("y", &[])];
        let call = decode_within(encode_infer_request(&model, &inputs), 0).unwrap();
        assert_eq!(call.model, model);
        assert_eq!(call.request.inputs, inputs);
    }

    #[test]
    fn a_request_is_read_whole() {
        let message = Message::of(|m| {
            m.text(1, "m");
            m.text(2, "3");
            m.text(3, "id");
            m.message(4, |m| {
                m.text(1, "timeout");
                m.message(2, |m| m.integer(2, 1500));
            });
            m.message(5, |m| {
                m.text(1, "x");
                m.text(2, "UINT8");
                m.integers(3, [2]);
            });
            m.message(6, |m| {
                m.text(1, "y");
                m.message(2, |m| {
                    m.text(1, "classification");
                    m.message(2, |m| m.integer(2, 5));
                });
            });
            m.element(7, &[8, 9]);
        });
        let call = decode_within(message.clone(), 0).unwrap();
        assert_eq!(
            (&*call.model.name, call.model.version.as_deref()),
            ("m", Some("3"))
        );
        assert_eq!(call.request.id, request_id(message.clone()));
        assert_eq!(
            call.request.timeout,
            Some(std::time::Duration::from_micros(1500))
        );
        assert_eq!(call.request.classification_of("y"), Some(5));
        let data = call.request.inputs[0].tensor.data();
        assert_eq!(data[..], [8, 9]);
        // Not a copy.
        assert!(message.as_ptr_range().contains(&data.as_ptr()));
    }

    #[test]
    fn typed_contents_are_little_endian() {
        assert_eq!(typed_as("INT8", 2, &[-1, 2]).unwrap()[..], [0xff, 2]);
        assert_eq!(typed_as("INT16", 2, &[-2]).unwrap()[..], [0xfe, 0xff]);
        assert_eq!(typed_as("UINT16", 4, &[258]).unwrap()[..], [2, 1]);
        assert_eq!(typed_as("INT64", 3, &[-1]).unwrap()[..], [0xff; 8]);
        assert_eq!(typed_as("BOOL", 1, &[1, 0]).unwrap()[..], [1, 0]);
        let texts = decode(|m| input(m, "BYTES", &[1], |m| m.element(8, b"ab"))).unwrap();
        assert_eq!(texts.request.inputs[0].tensor.data()[..], *b"\x02\0\0\0ab");
        let floats = decode(|m| input(m, "FP32", &[1], |m| m.element(6, &[0, 0, 0x80, 0x3f])));
        let floats = floats.unwrap();
        assert_eq!(
            floats.request.inputs[0].tensor.data()[..],
            1f32.to_le_bytes()
        );
    }

    #[test]
    fn contents_that_do_not_fit_are_refused() {
        for (datatype, field, numbers) in [
            ("INT8", 2, [300]),
            ("UINT8", 4, [256]),
            ("UINT8", 2, [1]),
            ("BOOL", 1, [2]),
            ("FP16", 6, [1]),
        ] {
            let result = typed_as(datatype, field, &numbers);
            assert_eq!(code(result), Code::InputData, "{datatype}");
        }
        assert_eq!(code(typed_as("FP31", 6, &[1])), Code::InputDType);
        let negative = decode(|m| input(m, "INT8", &[-1], |_| {}));
        assert_eq!(code(negative), Code::InputData);
    }

    #[test]
    fn a_short_message_does_not_become_a_large_tensor() {
        let zeros = [0; ROOM as usize / 8 + 1];
        assert!(typed_as("INT64", 3, &zeros[1..]).is_ok());
        assert_eq!(code(typed_as("INT64", 3, &zeros)), Code::BodyTooLarge);
        // Nor many of them.
        let half = &zeros[..ROOM as usize / 16 + 1];
        let two = decode(|m| {
            for _ in 0..2 {
                let shape = [half.len() as i64];
                input(m, "INT64", &shape, |m| m.integers(3, half.iter().copied()));
            }
        });
        assert_eq!(code(two), Code::BodyTooLarge);
        let sizes = [1; 70];
        let deep = decode(|m| input(m, "INT8", &sizes, |m| m.integers(2, [1])));
        assert_eq!(code(deep), Code::InputData);
        let many = decode(|m| (0..=TENSORS).for_each(|_| m.element(5, b"")));
        assert_eq!(code(many), Code::InvalidRequest);
    }

    #[test]
    fn an_index_may_be_of_what_is_ready() {
        for (flag, ready) in [(0, false), (1, true)] {
            let message = Message::of(|m| {
                m.text(1, "all");
                m.integer(2, flag);
            });
            assert_eq!(decode_index(message).unwrap(), ready);
        }
        assert!(!decode_index(Bytes::new()).unwrap());
    }

    #[test]
    fn answers_are_parts_that_are_not_joined() {
        let data = Bytes::from_static(&[1, 2, 3]);
        let tensor = Tensor::new(DType::U8, vec![3], data.clone()).unwrap();
        let response = InferResponse {
            id: Some("7".into()),
            model_name: "m".into(),
            model_version: Some("1".into()),
            outputs: vec![NamedTensor::new("y", tensor)],
            receipt: Some(Bytes::from_static(b"abc")),
        };
        let parts = encode_infer(&response);
        assert!(parts.iter().any(|part| part.as_ptr() == data.as_ptr()));
        let message = Bytes::from(parts.concat());
        assert_eq!(decode_model(message.clone()).unwrap().name, "m");
        assert_eq!(request_id(message.clone()).as_deref(), Some("7"));
        let mut fields = Fields::of(message.clone()).map(Result::unwrap);
        let (_, Value::Bytes(parameter)) = fields.find(|(number, _)| *number == 4).unwrap() else {
            panic!("a parameter is a message")
        };
        assert!(parameter.ends_with(b"YWJj"));
        let last = Fields::of(message.clone()).last().unwrap().unwrap();
        assert_eq!(last, (6, Value::Bytes(data)));
        // In a stream it is the second field of another message.
        let stream = Bytes::from(encode_stream_infer(&response).concat());
        let (number, _) = Fields::of(stream).next().unwrap().unwrap();
        assert_eq!(number, 2);
    }
}
