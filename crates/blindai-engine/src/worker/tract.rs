//! tract: inference in Rust, for those who want no C++ in what they trust.
//!
//! It computes fast only where every dimension is known, so a model has one plan for each
//! combination of input shapes that it meets, and the last few are kept.

mod check;
mod nodes;
mod signature;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use blindai_core::{Code, DType, Error, Result, Signature};
use half::f16;
use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::multithread::Executor;
use tract_onnx::prelude::{
    Arc, DatumType, Framework as _, InferenceFact, InferenceModel, InferenceModelExt as _,
    IntoTValue as _, Node, OutletId, RunOptions, TValue, TVec, Tensor, TractError, TractResult,
    TypedFact, TypedOp,
};
use tract_onnx::tract_core::internal::{EvalContext, Fact as _, OpState, SimplePlan};
use tract_onnx::tract_core::plan;
use tract_onnx::tract_hir::ops::source::Source;

use super::onnx::Graph;
use super::work::Outputs;
use super::writer::Writer;
use crate::MODEL_THREAD;
use crate::protocol::{Failure, Place, Run, Setup};
use nodes::Nodes;

type Plan = SimplePlan<TypedFact, Box<dyn TypedOp>>;

pub(super) struct Model {
    /// With every initializer a constant, also those that a request may replace.
    parsed: InferenceModel,
    /// Where each input of the signature enters.
    inputs: Vec<OutletId>,
    signature: Signature,
    nodes: Nodes,
    plans: Plans,
    options: RunOptions,
    output_bytes: u64,
}

impl Model {
    pub(super) fn load(model: &[u8], graph: &Graph<'_>, setup: &Setup) -> Result<Self> {
        let loaded = guard(|| Self::parse(model, graph, setup));
        let mut loaded = loaded.unwrap_or_else(|failure| Err(panicked(&failure)))?;
        if let Some(inputs) = loaded.fixed_inputs() {
            // What cannot be computed is said to the owner, not to the first who asks.
            let built = loaded.plan(&inputs).map(|_| ());
            built.map_err(|failure| panicked(&failure))?;
        }
        Ok(loaded)
    }

    pub(super) fn signature(&self) -> &Signature {
        &self.signature
    }

    pub(super) fn run(
        &mut self,
        run: &Run,
        inputs: &[u8],
        outputs: &dyn Outputs,
        stop: &AtomicBool,
    ) -> Result<Vec<Place>, Failure> {
        let mut given: Vec<&Place> = run.inputs.iter().collect();
        given.sort_by_key(|place| place.index);
        let shapes = given
            .iter()
            .map(|place| (place.index, place.shape.clone()))
            .collect();
        let plan = self.plan(&shapes)?;
        let value = |place: &&Place| {
            let spec = self.signature.inputs.get(place.index);
            let dtype = spec.ok_or(Failure::Other)?.dtype;
            let data = place.data(inputs)?;
            input(dtype, &place.shape, data).ok_or(Failure::Other)
        };
        let values = guard(|| given.iter().map(value).collect::<Result<TVec<_>, _>>())??;
        let values = self.compute(&plan, values, stop)?;
        let mut writer = Writer::new(outputs, self.output_bytes);
        let place = |&index: &usize| {
            let spec = self.signature.outputs.get(index).ok_or(Failure::Other)?;
            let value = values.get(index).ok_or(Failure::Output(index))?;
            guard(|| write(&mut writer, index, spec.dtype, value))?
        };
        run.outputs.iter().map(place).collect()
    }

    fn parse(model: &[u8], graph: &Graph<'_>, setup: &Setup) -> Result<Self> {
        let onnx = tract_onnx::onnx()
            .with_ignore_output_shapes(true)
            .with_ignore_value_info(true);
        let invalid = |_| Error::new(Code::ModelInvalid, "the file is cut short, or not ONNX");
        let proto: ModelProto = onnx.proto_model_for_read(&mut &*model).map_err(invalid)?;
        check::check(&proto, graph)?;
        let nodes = Nodes::new(&proto);
        let refused = |error| nodes.refusal(&error);
        let parsed = onnx.parse(&proto, None).map_err(refused)?;
        if let Some(name) = parsed.unresolved_inputs.first() {
            let fact = format!("nothing in the model gives {name:?}");
            return Err(Error::new(Code::ModelInvalid, fact));
        }
        let signature = signature::signature(&proto, &parsed.model)?;
        let outlet = |name: &str| parsed.outlets_by_name.get(name).copied();
        let inputs = signature.inputs.iter().map(|spec| outlet(&spec.name));
        let inputs = inputs.collect::<Option<_>>();
        Ok(Self {
            inputs: inputs.ok_or_else(|| Error::new(Code::ModelInvalid, "an input is missing"))?,
            parsed: parsed.model,
            signature,
            nodes,
            plans: Plans::new(model.len() as u64, setup.memory_bytes),
            options: options(setup.threads),
            output_bytes: setup.output_bytes,
        })
    }

    /// The shapes of the inputs that must be given, where the model leaves none of them open.
    fn fixed_inputs(&self) -> Option<Shapes> {
        let inputs = self.signature.inputs.iter().enumerate();
        let required = inputs.filter(|(_, spec)| !spec.optional);
        let fixed = required.map(|(index, spec)| Some((index, signature::fixed(spec)?)));
        fixed.collect()
    }

    fn plan(&mut self, shapes: &Shapes) -> Result<Arc<Plan>, Failure> {
        if let Some(plan) = self.plans.get(shapes) {
            return Ok(plan);
        }
        let built = guard(|| self.build(shapes));
        let plan = self.settle(built)?;
        self.plans.put(shapes.clone(), plan.clone());
        Ok(plan)
    }

    fn build(&self, shapes: &Shapes) -> TractResult<Arc<Plan>> {
        let mut model = self.parsed.clone();
        let mut sources = Vec::with_capacity(shapes.len());
        for (index, shape) in shapes {
            let outlet = self.inputs[*index];
            let dtype = datum_type(self.signature.inputs[*index].dtype);
            let dtype = dtype.ok_or_else(|| TractError::msg("no such type"))?;
            // An initializer that the request replaces is a constant up to here.
            model.node_mut(outlet.node).op = Box::new(Source);
            let shape: &[usize] = shape;
            model.set_outlet_fact(outlet, InferenceFact::dt_shape(dtype, shape))?;
            sources.push(outlet);
        }
        model.set_input_outlets(&sources)?;
        Plan::new_with_options(model.into_optimized()?, &self.options)
    }

    fn compute(
        &mut self,
        plan: &Arc<Plan>,
        inputs: TVec<TValue>,
        stop: &AtomicBool,
    ) -> Result<TVec<TValue>, Failure> {
        let running = Cell::new(None);
        let computed = guard(|| {
            let eval = |context: &EvalContext<'_>,
                        state: Option<&mut (dyn OpState + 'static)>,
                        node: &Node<TypedFact, Box<dyn TypedOp>>,
                        inputs: TVec<TValue>| {
                running.set(Some(node.id));
                if stop.load(Ordering::Relaxed) {
                    return Err(TractError::msg("stopped"));
                }
                let values = plan::eval(context, state, node, inputs)?;
                check_facts(context, node, &values)?;
                Ok(values)
            };
            // A new state each time: the last one's tensors are gone with it.
            plan.spawn()?.run_plan_with_eval(inputs, eval)
        });
        let name = |id: usize| plan.model().nodes().get(id).map(|node| node.name.as_str());
        match computed {
            Ok(Ok(values)) => Ok(values),
            Err(Failure::Memory) => Err(self.short_of_memory()),
            _ => Err(self.nodes.failure_at(running.get().and_then(name))),
        }
    }

    fn settle<T>(&mut self, built: Result<TractResult<T>, Failure>) -> Result<T, Failure> {
        match built {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.nodes.failure_of(&error)),
            Err(Failure::Memory) => Err(self.short_of_memory()),
            Err(failure) => Err(failure),
        }
    }

    /// Plans hold copies of the weights: without them the next request has more room.
    fn short_of_memory(&mut self) -> Failure {
        self.plans.clear();
        Failure::Memory
    }
}

/// By index into the signature's inputs; an input that is not there keeps its default.
type Shapes = Vec<(usize, Vec<usize>)>;

/// The plans that were used last, the latest at the end.
struct Plans {
    kept: Vec<(Shapes, Arc<Plan>)>,
    most: usize,
}

impl Plans {
    /// Each holds its own copy of the weights: all together may fill half of the memory.
    fn new(model_bytes: u64, memory_bytes: u64) -> Self {
        let fit = memory_bytes / 2 / model_bytes.max(1);
        let most = fit.clamp(1, MOST_PLANS) as usize;
        let kept = Vec::new();
        Self { kept, most }
    }

    fn get(&mut self, shapes: &Shapes) -> Option<Arc<Plan>> {
        let found = self.kept.iter().position(|(kept, _)| kept == shapes)?;
        self.kept[found..].rotate_left(1);
        self.kept.last().map(|(_, plan)| plan.clone())
    }

    fn put(&mut self, shapes: Shapes, plan: Arc<Plan>) {
        if self.kept.len() >= self.most {
            self.kept.remove(0);
        }
        self.kept.push((shapes, plan));
    }

    fn clear(&mut self) {
        self.kept.clear();
    }
}

const MOST_PLANS: u64 = 16;

fn options(threads: usize) -> RunOptions {
    let executor = match threads {
        0 | 1 => Executor::SingleThread,
        threads => Executor::multithread_with_name(threads, MODEL_THREAD),
    };
    RunOptions {
        executor: Some(executor),
        ..RunOptions::default()
    }
}

/// tract panics on what it does not expect, and where memory ends.
fn guard<T>(act: impl FnOnce() -> T) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(act)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        // The text may quote tensor values: it goes nowhere.
        match text {
            Some(text) if MEMORY.iter().any(|words| text.contains(words)) => Failure::Memory,
            _ => Failure::Other,
        }
    })
}

const MEMORY: [&str; 2] = ["failed to allocate", "capacity overflow"];

/// Why a model is not loaded, when only a failure tells.
fn panicked(failure: &Failure) -> Error {
    match failure {
        Failure::Memory => Error::new(Code::ModelMemory, "the model does not fit its memory"),
        Failure::Node { operator, name } => nodes::refused_at(operator, name),
        _ => Error::new(Code::ModelUnsupported, nodes::REFUSED),
    }
}

/// What comes out of a node must be what the plan was made for: with anything else the nodes that
/// follow would read other elements than they should.
fn check_facts(
    context: &EvalContext<'_>,
    node: &Node<TypedFact, Box<dyn TypedOp>>,
    values: &[TValue],
) -> TractResult<()> {
    for (outlet, value) in node.outputs.iter().zip(values) {
        let used = !outlet.successors.is_empty();
        if used && !outlet.fact.matches(value, Some(context.symbols))? {
            return Err(TractError::msg("a node gave something else than it should"));
        }
    }
    Ok(())
}

fn datum_type(dtype: DType) -> Option<DatumType> {
    Some(match dtype {
        DType::Bool => DatumType::Bool,
        DType::U8 => DatumType::U8,
        DType::U16 => DatumType::U16,
        DType::U32 => DatumType::U32,
        DType::U64 => DatumType::U64,
        DType::I8 => DatumType::I8,
        DType::I16 => DatumType::I16,
        DType::I32 => DatumType::I32,
        DType::I64 => DatumType::I64,
        DType::F16 => DatumType::F16,
        DType::F32 => DatumType::F32,
        DType::F64 => DatumType::F64,
        DType::String => DatumType::String,
        DType::BF16 => return None,
    })
}

/// A copy of the shared memory as a tensor.
fn input(dtype: DType, shape: &[usize], data: &[u8]) -> Option<TValue> {
    macro_rules! copy {
        ($element:ty) => {{
            // Checked: alignment and length, and for Booleans the values.
            let elements = bytemuck::checked::try_cast_slice::<u8, $element>(data).ok()?;
            Tensor::from_shape(shape, elements).ok()?
        }};
    }
    let tensor = match dtype {
        DType::Bool => copy!(bool),
        DType::U8 => copy!(u8),
        DType::U16 => copy!(u16),
        DType::U32 => copy!(u32),
        DType::U64 => copy!(u64),
        DType::I8 => copy!(i8),
        DType::I16 => copy!(i16),
        DType::I32 => copy!(i32),
        DType::I64 => copy!(i64),
        DType::F16 => copy!(f16),
        DType::F32 => copy!(f32),
        DType::F64 => copy!(f64),
        DType::String => strings(shape, data)?,
        DType::BF16 => return None,
    };
    Some(tensor.into_tvalue())
}

fn strings(shape: &[usize], mut data: &[u8]) -> Option<Tensor> {
    let mut strings = Vec::new();
    while !data.is_empty() {
        let (length, rest) = data.split_first_chunk()?;
        let length = u32::from_le_bytes(*length) as usize;
        let (string, rest) = rest.split_at_checked(length)?;
        strings.push(String::from_utf8(string.to_vec()).ok()?);
        data = rest;
    }
    let tensor = tract_onnx::prelude::tensor1(&strings);
    tensor.into_shape(shape).ok()
}

fn write(
    writer: &mut Writer<'_>,
    index: usize,
    want: DType,
    value: &TValue,
) -> Result<Place, Failure> {
    let wrong = || Failure::Output(index);
    let shape = value.shape().to_vec();
    // Integers that may have been dimensions have a type of their own inside.
    let value = match value.datum_type() {
        DatumType::TDim => value.cast_to::<i64>().map_err(|_| wrong())?,
        _ => std::borrow::Cow::Borrowed(&**value),
    };
    if Some(value.datum_type()) != datum_type(want) {
        return Err(wrong());
    }
    let plain = value.try_as_plain_ram().map_err(|_| wrong())?;
    match want {
        DType::String => {
            let strings = plain.as_slice::<String>().map_err(|_| wrong())?;
            writer.write_strings(index, shape, strings)
        }
        _ => writer.write(index, shape, plain.as_bytes()),
    }
}
