//! ONNX Runtime itself, and the only unsafe calls into it.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use blindai_core::{Code, DType, Dim, Error, Result, Signature, TensorSpec};
use half::{bf16, f16};
use ort::environment::Environment;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{DynTensorValueType, DynValue, Tensor, TensorElementType, TensorRef, ValueType};
use ort::{AsPointer as _, ep};

use super::onnx::Graph;
use super::work::Outputs;
use super::writer::Writer;
use crate::protocol::{Failure, Place, Run, Setup};

pub(super) struct Model {
    session: Session,
    signature: Signature,
    output_bytes: u64,
}

impl Model {
    pub(super) fn load(
        environment: &Environment,
        model: &[u8],
        graph: &Graph<'_>,
        setup: &Setup,
    ) -> Result<Self> {
        // The bindings panic on value types that they do not know.
        let open = || session(environment, model, graph, setup);
        let session = catch_unwind(AssertUnwindSafe(open)).map_err(|_| {
            let fact = "the model has inputs or outputs of a type that is not supported";
            Error::new(Code::ModelUnsupported, fact)
        })?;
        let session = session.map_err(|error| load_error(&error))?;
        let signature = signature(&session, graph)?;
        let output_bytes = setup.output_bytes;
        Ok(Self {
            session,
            signature,
            output_bytes,
        })
    }

    pub(super) fn signature(&self) -> &Signature {
        &self.signature
    }

    pub(super) fn run<'a>(
        &mut self,
        run: &'a Run,
        inputs: &'a [u8],
        outputs: &dyn Outputs,
        options: &RunOptions,
    ) -> Result<Vec<Place>, Failure> {
        let specs = &self.signature.inputs;
        let value = |place: &'a Place| {
            let spec = specs.get(place.index).ok_or(Failure::Other)?;
            let value = input(spec.dtype, &place.shape, place.data(inputs)?);
            let value = value.map_err(|error| run_failure(&error))?;
            Ok((Cow::Borrowed(spec.name.as_str()), value))
        };
        let values = run
            .inputs
            .iter()
            .map(value)
            .collect::<Result<Vec<_>, Failure>>()?;
        let result = self.session.run_with_options(values, options);
        let values = result.map_err(|error| run_failure(&error))?;
        let mut writer = Writer::new(outputs, self.output_bytes);
        let place = |&index: &usize| {
            let spec = self.signature.outputs.get(index).ok_or(Failure::Other)?;
            let value = values.get(&spec.name).ok_or(Failure::Output(index))?;
            write(&mut writer, index, spec.dtype, value)
        };
        run.outputs.iter().map(place).collect()
    }
}

fn session(
    environment: &Environment,
    model: &[u8],
    graph: &Graph<'_>,
    setup: &Setup,
) -> ort::Result<Session> {
    // No arena: with inputs of many lengths it takes a third more memory for a gain of under 3 %,
    // and once a caller has asked for more than there is, it refuses to grow for those who follow.
    let cpu = ep::CPU::default().with_arena_allocator(false);
    let mut builder = Session::builder(environment)?
        .with_execution_providers([cpu.build()])?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_parallel_execution(false)?
        .with_inter_threads(1)?
        .with_intra_threads(setup.threads)?
        .with_intra_op_spinning(setup.spinning)?
        // Within a run only: threads that went on spinning would keep a core from whoever reads
        // and writes the requests, and cost a small model a third of its time.
        .with_config_entry("session.force_spinning_stop", "1")?
        // One plan is kept for every size of the inputs, so there must be but one: a caller who
        // sent ever new sizes would fill the memory with them.
        .with_memory_pattern(graph.is_fixed())?
        // Or else bytes that look like its own format would be read as that, unchecked by us.
        .with_config_entry("session.load_model_format", "ONNX")?;
    builder.commit_from_memory(model)
}

fn signature(session: &Session, graph: &Graph<'_>) -> Result<Signature> {
    let mut inputs = Vec::new();
    for outlet in session.inputs() {
        inputs.push(spec("input", outlet.name(), outlet.dtype(), graph, false)?);
    }
    for initializer in session.overridable_initializers() {
        let (name, kind) = (initializer.name(), initializer.dtype());
        inputs.push(spec("input", name, kind, graph, true)?);
    }
    let outputs = session.outputs().iter();
    let outputs = outputs.map(|outlet| spec("output", outlet.name(), outlet.dtype(), graph, false));
    let outputs = outputs.collect::<Result<_>>()?;
    Ok(Signature { inputs, outputs })
}

fn spec(
    role: &str,
    name: &str,
    kind: &ValueType,
    graph: &Graph<'_>,
    optional: bool,
) -> Result<TensorSpec> {
    let unsupported = |kind: &dyn std::fmt::Display| {
        let fact = format!("{role} {name:?} is of type {kind}");
        Error::new(Code::ModelUnsupported, fact).with_remedy("only tensors can be sent")
    };
    let ValueType::Tensor {
        ty,
        shape,
        dimension_symbols,
    } = kind
    else {
        return Err(unsupported(kind));
    };
    let dtype = dtype(*ty).ok_or_else(|| unsupported(ty))?;
    let dims = shape.iter().zip(dimension_symbols.iter());
    let dim = |(size, symbol): (&i64, &String)| match usize::try_from(*size) {
        Ok(size) => Dim::Fixed(size),
        Err(_) => Dim::Symbolic(symbol.clone()),
    };
    // Without dimensions it is a scalar, or of unknown rank: only the file tells.
    let known = !shape.is_empty() || graph.has_shape(name);
    Ok(TensorSpec {
        name: name.to_owned(),
        dtype,
        shape: known.then(|| dims.map(dim).collect()),
        optional,
    })
}

fn dtype(element: TensorElementType) -> Option<DType> {
    Some(match element {
        TensorElementType::Bool => DType::Bool,
        TensorElementType::Uint8 => DType::U8,
        TensorElementType::Uint16 => DType::U16,
        TensorElementType::Uint32 => DType::U32,
        TensorElementType::Uint64 => DType::U64,
        TensorElementType::Int8 => DType::I8,
        TensorElementType::Int16 => DType::I16,
        TensorElementType::Int32 => DType::I32,
        TensorElementType::Int64 => DType::I64,
        TensorElementType::Float16 => DType::F16,
        TensorElementType::Bfloat16 => DType::BF16,
        TensorElementType::Float32 => DType::F32,
        TensorElementType::Float64 => DType::F64,
        TensorElementType::String => DType::String,
        _ => return None,
    })
}

/// A view of the shared memory as a tensor; only strings are copied.
fn input<'a>(
    dtype: DType,
    shape: &'a [usize],
    data: &'a [u8],
) -> ort::Result<SessionInputValue<'a>> {
    macro_rules! view {
        ($element:ty) => {{
            // Checked: alignment and length, and for Booleans the values.
            let elements = bytemuck::checked::try_cast_slice::<u8, $element>(data)
                .map_err(|_| ort::Error::new("misplaced input"))?;
            // An empty slice of the map would do, but its address need not be aligned.
            let elements = if elements.is_empty() { &[] } else { elements };
            TensorRef::<$element>::from_array_view((shape, elements))?.into()
        }};
    }
    Ok(match dtype {
        DType::Bool => view!(bool),
        DType::U8 => view!(u8),
        DType::U16 => view!(u16),
        DType::U32 => view!(u32),
        DType::U64 => view!(u64),
        DType::I8 => view!(i8),
        DType::I16 => view!(i16),
        DType::I32 => view!(i32),
        DType::I64 => view!(i64),
        DType::F16 => view!(f16),
        DType::BF16 => view!(bf16),
        DType::F32 => view!(f32),
        DType::F64 => view!(f64),
        DType::String => strings(shape, data)?.into(),
    })
}

/// Strings by length, since they may hold zero bytes, which the bindings refuse.
fn strings(shape: &[usize], mut data: &[u8]) -> ort::Result<Tensor<String>> {
    let count: usize = shape.iter().product();
    let mut tensor = Tensor::<String>::from_string_array((shape, &vec![""; count][..]))?;
    for index in 0..count {
        let cut = || ort::Error::new("misplaced input");
        let (length, rest) = data.split_first_chunk().ok_or_else(cut)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (string, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
        data = rest;
        let mut buffer = std::ptr::null_mut();
        let resize = ort::api().GetResizedStringTensorElementBuffer;
        // SAFETY: the value is a string tensor with more than `index` elements. The call gives a
        // buffer of `length` bytes in it, which nothing else refers to; the bytes come from
        // elsewhere, so the copy does not overlap.
        unsafe {
            let status = resize(tensor.ptr_mut(), index, length, &raw mut buffer);
            ort::Error::result_from_status(status)?;
            if !buffer.is_null() {
                std::ptr::copy_nonoverlapping(string.as_ptr(), buffer.cast(), length);
            }
        }
    }
    Ok(tensor)
}

fn write(
    writer: &mut Writer<'_>,
    index: usize,
    want: DType,
    value: &DynValue,
) -> Result<Place, Failure> {
    let tensor = value.view().downcast::<DynTensorValueType>();
    let tensor = tensor.map_err(|_| Failure::Output(index))?;
    let shape: Option<Vec<usize>> = tensor
        .shape()
        .iter()
        .map(|dim| usize::try_from(*dim).ok())
        .collect();
    let shape = shape.filter(|_| dtype(*tensor.data_type()) == Some(want));
    let shape = shape.ok_or(Failure::Output(index))?;
    let elements: usize = shape.iter().product();
    match want.size() {
        None => {
            let strings = value.try_extract_strings();
            let strings = strings.map_err(|_| Failure::Output(index))?.1;
            writer.write_strings(index, shape, &strings)
        }
        Some(_) if elements == 0 => writer.write(index, shape, &[]),
        Some(size) => {
            let bytes = elements.checked_mul(size).ok_or(Failure::Output(index))?;
            // SAFETY: the tensor lives on the CPU (there is no other provider), is not of strings,
            // has this element size and number of elements, and nothing writes to it any more.
            let data = unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), bytes) };
            writer.write(index, shape, data)
        }
    }
}

/// The message speaks of the model, which its owner sent himself: it is passed on.
fn load_error(error: &ort::Error) -> Error {
    let message = error.message();
    let code = if is_memory(message) {
        Code::ModelMemory
    } else if UNSUPPORTED.iter().any(|words| message.contains(words)) {
        Code::ModelUnsupported
    } else {
        Code::ModelInvalid
    };
    Error::new(code, format!("ONNX Runtime refuses the model: {message}"))
}

/// The message may quote tensor values: only the node is taken out of it.
fn run_failure(error: &ort::Error) -> Failure {
    let message = error.message();
    if is_memory(message) {
        return Failure::Memory;
    }
    let node = || {
        let (_, rest) = message.split_once("while running ")?;
        let (operator, rest) = rest.split_once(" node. Name:'")?;
        let (name, _) = rest.split_once('\'')?;
        Some((operator.to_owned(), name.to_owned()))
    };
    match node() {
        Some((operator, name)) => Failure::Node { operator, name },
        None => Failure::Other,
    }
}

fn is_memory(message: &str) -> bool {
    MEMORY.iter().any(|words| message.contains(words))
}

const MEMORY: [&str; 3] = [
    "bad_alloc",
    "Failed to allocate memory",
    "std::length_error",
];
const UNSUPPORTED: [&str; 5] = [
    "is not a registered function/op",
    "Could not find an implementation for",
    "Unsupported model IR version",
    "is under development",
    "No Op registered for",
];
