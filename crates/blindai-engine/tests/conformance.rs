//! What every engine must do, over the public API only. Where tract does otherwise, the test says so.

#[macro_use]
mod support;

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use blindai_core::{Code, DType, Dim, EngineKind, NamedTensor, Tensor};
use blindai_engine::{Caller, Engine, EngineOptions};
use support::*;

in_processes_and_threads! {
    everywhere:
        every_type_and_every_rank_comes_back_unchanged,
        several_inputs_outputs_defaults_and_sizes,
        what_does_not_fit_the_signature_is_refused,
        a_failure_names_the_node_and_not_the_values,
        files_that_are_no_models_are_refused_and_say_why,
        names_for_people_are_short_and_few_and_leave_terminals_alone,
        a_flipped_bit_never_takes_the_engine_down,
        between_two_nodes_a_word_is_enough,
        outputs_are_limited;
    where_a_node_can_be_interrupted:
        an_endless_model_ends_at_the_deadline,
        a_dropped_future_cancels,
        requests_queue_and_the_queue_ends,
        models_do_not_wait_for_each_other;
    in_processes:
        a_crash_costs_one_request,
        memory_is_limited,
        memory_is_limited_where_the_request_says_how_much;
}

async fn every_type_and_every_rank_comes_back_unchanged(on: On) {
    let engine = Engine::new(options(on)).unwrap();
    for &dtype in DType::ALL {
        let file = model_file(&model_bytes(&format!("identity_{dtype}")));
        if (on.kind, dtype) == (EngineKind::Tract, DType::BF16) {
            // It has no such type.
            let error = engine.load(file).await.unwrap_err();
            assert_eq!(error.code(), Code::ModelUnsupported, "{error}");
            assert!(
                error.fact().contains("\"x\" is of type BFLOAT16"),
                "{error}"
            );
            continue;
        }
        let model = engine.load(file).await;
        let model = model.unwrap_or_else(|error| panic!("{dtype}: {error}"));
        assert_eq!(model.signature().inputs[0].dtype, dtype);
        assert_eq!(model.signature().inputs[0].shape, None);
        let shapes: [&[usize]; 6] = [&[], &[1], &[2, 3], &[0], &[4, 0, 2], &[1, 1, 2, 1, 3]];
        for shape in shapes {
            let input = NamedTensor::new("x", some_tensor(dtype, shape));
            let outputs = run(&model, vec![input.clone()]).await.unwrap();
            assert_eq!(outputs.len(), 1);
            assert_eq!(outputs[0].name, "y");
            assert_eq!(outputs[0].tensor, input.tensor, "{dtype} {shape:?}");
        }
    }
}

/// Not all alike, and with patterns (NaN, zero bytes in strings, the largest integers) that must
/// survive.
fn some_tensor(dtype: DType, shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let Some(size) = dtype.size() else {
        let strings: Vec<_> = ["", "é\0\u{1f916}", "tail\0"]
            .into_iter()
            .cycle()
            .take(count)
            .collect();
        return Tensor::from_strings(shape.to_vec(), &strings).unwrap();
    };
    let byte = |i: usize| match dtype {
        DType::Bool => (i % 2) as u8,
        _ => 0xff - (i * 7 % 251) as u8,
    };
    let data: Vec<u8> = (0..count * size).map(byte).collect();
    Tensor::new(dtype, shape.to_vec(), data.into()).unwrap()
}

async fn several_inputs_outputs_defaults_and_sizes(on: On) {
    let model = load(on, "two_by_two").await;
    let signature = model.signature();
    let names: Vec<_> = signature
        .inputs
        .iter()
        .map(|spec| (&*spec.name, spec.optional))
        .collect();
    assert_eq!(names, [("a", false), ("b", false), ("scale", true)]);
    let batch = Dim::Symbolic("batch".into());
    assert_eq!(signature.inputs[0].shape, Some(vec![batch, Dim::Fixed(3)]));

    for batch in [1, 5, 2] {
        let values: Vec<f32> = (0..batch * 3).map(|i| i as f32).collect();
        let inputs = vec![
            f32s("b", &[batch, 3], &values),
            f32s("a", &[batch, 3], &values),
        ];
        let outputs = run(&model, inputs).await.unwrap();
        let twice: Vec<f32> = values.iter().map(|value| value * 2.0).collect();
        let tenfold: Vec<f32> = values.iter().map(|value| value * 10.0).collect();
        assert_eq!(outputs[0], f32s("sum", &[batch, 3], &twice));
        assert_eq!(outputs[1], f32s("scaled", &[batch, 3], &tenfold));
    }

    let a = f32s("a", &[1, 3], &[1.0, 2.0, 3.0]);
    let b = f32s("b", &[1, 3], &[0.0; 3]);
    let inputs = vec![a, b, f32s("scale", &[1], &[3.0])];
    let wanted = ["scaled".to_owned()];
    let answer = model.run(inputs, &wanted, Caller::default(), PATIENCE);
    let answer = answer.await.unwrap();
    assert_eq!(answer.outputs, [f32s("scaled", &[1, 3], &[3.0, 6.0, 9.0])]);
}

async fn what_does_not_fit_the_signature_is_refused(on: On) {
    let options = EngineOptions {
        input_bytes: 4096,
        output_bytes: 4096,
        ..options(on)
    };
    let model = load_with(options, "two_by_two").await;
    let good = || vec![f32s("a", &[1, 3], &[0.0; 3]), f32s("b", &[1, 3], &[0.0; 3])];
    let with = |name: &str, tensor: NamedTensor| {
        let mut inputs = good();
        inputs.retain(|input| input.name != name);
        inputs.push(tensor);
        inputs
    };
    let large = f32s("a", &[400, 3], &[0.0; 1200]);
    let cases = [
        (vec![], Code::InputMissing),
        (with("", f32s("z", &[1], &[0.0])), Code::InputUnknown),
        (with("a", i64s("a", &[1, 3], &[0; 3])), Code::InputDType),
        (with("a", f32s("a", &[1, 4], &[0.0; 4])), Code::InputShape),
        (with("a", f32s("a", &[3], &[0.0; 3])), Code::InputShape),
        (with("a", large), Code::BodyTooLarge),
    ];
    for (inputs, code) in cases {
        assert_eq!(run(&model, inputs).await.unwrap_err().code(), code);
    }
    for (outputs, code) in [
        (&["nope"][..], Code::OutputUnknown),
        (&["sum", "sum"], Code::InvalidRequest),
    ] {
        let outputs: Vec<_> = outputs.iter().map(|name| (*name).to_owned()).collect();
        let answer = model.run(good(), &outputs, Caller::default(), PATIENCE);
        assert_eq!(answer.await.unwrap_err().code(), code);
    }
    run(&model, good()).await.unwrap();
}

async fn a_failure_names_the_node_and_not_the_values(on: On) {
    let model = load(on, "gather").await;
    let inputs = |index| {
        vec![
            f32s("data", &[2], &[1.0, 2.0]),
            i64s("index", &[1], &[index]),
        ]
    };
    let error = run(&model, inputs(918_273)).await.unwrap_err();
    assert_eq!(error.code(), Code::ModelFailed);
    assert!(error.fact().contains("\"pick\" (Gather)"), "{error}");
    assert!(!error.to_string().contains("918273"), "{error}");
    assert_eq!(
        run(&model, inputs(1)).await.unwrap(),
        [f32s("y", &[1], &[2.0])]
    );
}

async fn files_that_are_no_models_are_refused_and_say_why(on: On) {
    let engine = Engine::new(options(on)).unwrap();
    let whole = model_bytes("two_by_two");
    let mut ort_format = vec![0; 64];
    ort_format[4..8].copy_from_slice(b"ORTM");
    let cases = [
        (vec![], Code::ModelInvalid, "no graph"),
        (
            b"GIF89a, not a model at all".to_vec(),
            Code::ModelInvalid,
            "not ONNX",
        ),
        (
            whole[..whole.len() / 2].to_vec(),
            Code::ModelInvalid,
            "cut short",
        ),
        (
            whole[..whole.len() - 1].to_vec(),
            Code::ModelInvalid,
            "cut short",
        ),
        (ort_format, Code::ModelUnsupported, "own format"),
        (
            model_bytes("external"),
            Code::ModelUnsupported,
            "\"weights\"",
        ),
        (
            model_bytes("external_disguised"),
            Code::ModelInvalid,
            "not ONNX",
        ),
        (
            model_bytes("external_in_branch"),
            Code::ModelUnsupported,
            "\"weights\"",
        ),
        (
            model_bytes("external_in_function"),
            Code::ModelUnsupported,
            "\"weights\"",
        ),
        (
            model_bytes("sequence_output"),
            Code::ModelUnsupported,
            "\"y\" is a sequence",
        ),
        (
            model_bytes("custom_operator"),
            Code::ModelUnsupported,
            "Frobnicate",
        ),
        (
            model_bytes("function_bomb"),
            Code::ModelInvalid,
            "functions expanded",
        ),
    ];
    for (bytes, code, words) in cases {
        let error = engine.load(model_file(&bytes)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.fact().contains(words), "{error}");
    }
}

async fn names_for_people_are_short_and_few_and_leave_terminals_alone(on: On) {
    let engine = Engine::new(options(on)).unwrap();
    let load = async |names: &[String]| engine.load(model_file(&with_inputs(names))).await;
    let model = load(&["größe".into(), "n".repeat(512)]).await.unwrap();
    assert_eq!(model.signature().inputs.len(), 3);
    let many: Vec<_> = (0..600).map(|i| format!("{i:0500}")).collect();
    let cases = [
        (
            &["\u{1b}[2J".to_owned()][..],
            "\"\\u{1b}[2J\", holds control",
        ),
        (&["n".repeat(513)], "longer than 512 bytes"),
        (&many, "over 262144 bytes"),
    ];
    for (names, words) in cases {
        let error = load(names).await.unwrap_err();
        assert_eq!(error.code(), Code::ModelUnsupported, "{error}");
        assert!(error.fact().contains(words), "{error}");
    }
}

/// The identity, with more inputs.
fn with_inputs(names: &[String]) -> Vec<u8> {
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut field = vec![number << 3 | 2];
        let mut length = content.len();
        while length > 0x7f {
            field.push(length as u8 | 0x80);
            length >>= 7;
        }
        field.push(length as u8);
        [&field, content].concat()
    }
    let float = field(1, &[8, 1]);
    let value = |name: &str| [field(1, name.as_bytes()), field(2, &float)].concat();
    let identity = [field(1, b"x"), field(2, b"y"), field(4, b"Identity")].concat();
    let mut graph = [field(1, &identity), field(2, b"identity")].concat();
    for name in std::iter::once("x").chain(names.iter().map(String::as_str)) {
        graph.extend(field(11, &value(name)));
    }
    graph.extend(field(12, &value("y")));
    let versions = [vec![8, 8], field(8, &[16, 17])].concat();
    [versions, field(7, &graph)].concat()
}

async fn a_flipped_bit_never_takes_the_engine_down(on: On) {
    let engine = Engine::new(options(on)).unwrap();
    let whole = model_bytes("two_by_two");
    let mut refused = 0;
    for position in (0..whole.len()).step_by(whole.len() / 40) {
        let mut bytes = whole.clone();
        bytes[position] ^= 1 << (position % 8);
        match engine.load(model_file(&bytes)).await {
            // A name, say: the model is another, but a model.
            Ok(_) => {}
            Err(error) => {
                assert_ne!(error.code(), Code::Internal, "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
    engine.load(model_file(&whole)).await.unwrap();
}

async fn a_crash_costs_one_request(on: On) {
    let model = load(on, "div").await;
    let inputs = |a, b| vec![i64s("a", &[1], &[a]), i64s("b", &[1], &[b])];
    // ONNX Runtime dies of the division. tract panics, which its worker survives; and of what kills
    // ONNX Runtime, it gives the quotient modulo 2^64.
    let (a, b, code) = match on.kind {
        EngineKind::OnnxRuntime => (i64::MIN, -1, Code::WorkerCrashed),
        EngineKind::Tract => (1, 0, Code::ModelFailed),
    };
    for _ in 0..2 {
        let error = run(&model, inputs(a, b)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        let outputs = run(&model, inputs(42, -2)).await.unwrap();
        assert_eq!(outputs, [i64s("y", &[1], &[-21])]);
    }
}

async fn an_endless_model_ends_at_the_deadline(on: On) {
    let slow = Slow::on(on);
    let model = load(on, slow.model).await;
    let worker = pid(&model);
    let error = run_within(&model, slow.endless(), Duration::from_millis(300)).await;
    assert_eq!(error.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(run(&model, slow.quick(3)).await.unwrap(), slow.answer(3));
    // tract cannot be interrupted within a node; then its worker is killed.
    let word_was_enough = pid(&model) == worker;
    assert!(word_was_enough || on.kind == EngineKind::Tract);
}

async fn between_two_nodes_a_word_is_enough(on: On) {
    let options = EngineOptions {
        grace: PATIENCE,
        ..options(on)
    };
    let model = load_with(options, "chain").await;
    let worker = pid(&model);
    let large = vec![f32s("x", &[1 << 22], &vec![0.0; 1 << 22])];
    let error = run_within(&model, large, Duration::from_millis(100)).await;
    assert_eq!(error.unwrap_err().code(), Code::DeadlineExceeded);
    let outputs = run(&model, vec![f32s("x", &[1], &[0.0])]).await.unwrap();
    assert_eq!(outputs, [f32s("y", &[1], &[0.0])]);
    assert_eq!(pid(&model), worker);
}

async fn a_dropped_future_cancels(on: On) {
    let slow = Slow::on(on);
    let model = load(on, slow.model).await;
    let endless = run(&model, slow.endless());
    assert!(
        tokio::time::timeout(Duration::from_millis(200), endless)
            .await
            .is_err()
    );
    // Were it still running, this would wait for long.
    assert_eq!(run(&model, slow.quick(1)).await.unwrap(), slow.answer(1));
}

fn with_little_memory(on: On) -> Engine {
    let options = EngineOptions {
        memory_bytes: 64 << 20,
        output_bytes: 1 << 20,
        ..options(on)
    };
    Engine::new(options).unwrap()
}

async fn memory_is_limited(on: On) {
    let engine = with_little_memory(on);
    let inside = engine
        .load(model_file(&model_bytes("outer")))
        .await
        .unwrap();
    let square = |side: usize| vec![f32s("x", &[side], &vec![0.0; side])];
    for side in [1 << 14, 1 << 20, 1 << 23] {
        let error = run(&inside, square(side)).await.unwrap_err();
        assert_eq!(error.code(), Code::ModelMemory, "{error}");
        let outputs = run(&inside, square(1 << 10)).await.unwrap();
        assert_eq!(outputs, [f32s("y", &[], &[0.0])]);
    }
}

async fn outputs_are_limited(on: On) {
    let engine = with_little_memory(on);
    let square = |side: usize| vec![f32s("x", &[side], &vec![0.0; side])];
    let outside = engine.load(model_file(&model_bytes("outer_out"))).await;
    let outside = outside.unwrap();
    let error = run(&outside, square(1 << 10)).await.unwrap_err();
    assert_eq!(error.code(), Code::ModelMemory, "{error}");
    assert!(error.fact().contains("outputs"), "{error}");
    let outputs = run(&outside, square(1 << 9)).await.unwrap();
    assert_eq!(outputs, [f32s("y", &[1 << 9, 1 << 9], &[0.0; 1 << 18])]);
}

async fn memory_is_limited_where_the_request_says_how_much(on: On) {
    let engine = with_little_memory(on);
    let inside = engine.load(model_file(&model_bytes("fill"))).await;
    if on.kind == EngineKind::Tract {
        // Sizes that a request computes are beyond it.
        let error = inside.unwrap_err();
        assert_eq!(error.code(), Code::ModelUnsupported, "{error}");
        assert!(
            error
                .fact()
                .contains("\"fill\" (operator \"ConstantOfShape\")"),
            "{error}"
        );
        return;
    }
    let inside = inside.unwrap();
    let shape = |floats: i64| vec![i64s("shape", &[1], &[floats])];
    for floats in [1 << 28, 1 << 40, 1 << 61] {
        let error = run(&inside, shape(floats)).await.unwrap_err();
        assert!(
            [Code::ModelMemory, Code::ModelFailed].contains(&error.code()),
            "{error}"
        );
        assert_eq!(
            run(&inside, shape(1 << 20)).await.unwrap(),
            [f32s("y", &[], &[0.0])]
        );
    }
    let error = run(&inside, shape(1 << 28)).await.unwrap_err();
    assert_eq!(error.code(), Code::ModelMemory, "{error}");

    let outside = engine
        .load(model_file(&model_bytes("fill_out")))
        .await
        .unwrap();
    let error = run(&outside, shape(1 << 20)).await.unwrap_err();
    assert_eq!(error.code(), Code::ModelMemory, "{error}");
    assert!(error.fact().contains("outputs"), "{error}");
    let outputs = run(&outside, shape(1 << 18)).await.unwrap();
    assert_eq!(outputs, [f32s("y", &[1 << 18], &[0.0; 1 << 18])]);
}

/// Such a shape can only be computed, which tract does not take.
#[tokio::test(flavor = "multi_thread")]
async fn an_output_of_absurdly_many_dimensions_is_refused() {
    let model = load(EngineKind::OnnxRuntime, "any_rank").await;
    let worker = pid(&model);
    let shape = |dims: usize| vec![i64s("shape", &[dims], &vec![1; dims])];
    let error = run(&model, shape(100_000)).await.unwrap_err();
    assert_eq!(error.code(), Code::ModelMemory, "{error}");
    run(&model, shape(3)).await.unwrap();
    assert_eq!(pid(&model), worker);
}

async fn requests_queue_and_the_queue_ends(on: On) {
    let options = EngineOptions {
        queue: 2,
        ..options(on)
    };
    let slow = Slow::on(on);
    let model = load_with(options, slow.model).await;
    let mut endless = Box::pin(run(&model, slow.endless()));
    let mut waiting = [1, 2].map(|rounds| Box::pin(run(&model, slow.quick(rounds))));
    // Each is in its place after one step: the first in the worker, the others in the queue.
    step(&mut endless).await;
    for waiting in &mut waiting {
        step(waiting).await;
    }
    let error = run(&model, slow.quick(3)).await.unwrap_err();
    assert_eq!(error.code(), Code::TooManyRequests);
    drop(endless);
    for (waiting, rounds) in waiting.into_iter().zip([1, 2]) {
        assert_eq!(waiting.await.unwrap(), slow.answer(rounds));
    }
    run(&model, slow.quick(3)).await.unwrap();
}

/// Polls once a future that is not to end yet.
async fn step(future: &mut (impl Future + Unpin)) {
    let step =
        |context: &mut Context<'_>| Poll::Ready(Pin::new(&mut *future).poll(context).is_pending());
    assert!(poll_fn(step).await);
}

async fn models_do_not_wait_for_each_other(on: On) {
    let engine = Engine::new(options(on)).unwrap();
    let slow = Slow::on(on);
    let busy = engine.load(model_file(&model_bytes(slow.model)));
    let busy = busy.await.unwrap();
    let free = engine
        .load(model_file(&model_bytes("gather")))
        .await
        .unwrap();
    let quick = vec![f32s("data", &[2], &[1.0, 2.0]), i64s("index", &[1], &[0])];
    tokio::select! {
        _ = run(&busy, slow.endless()) => panic!("an endless model ended"),
        answer = run(&free, quick) => assert_eq!(answer.unwrap(), [f32s("y", &[1], &[1.0])]),
    }
}

#[cfg(feature = "tract")]
#[tokio::test(flavor = "multi_thread")]
async fn tract_refuses_by_name_what_it_would_compute_wrongly_or_not_at_all() {
    let engine = Engine::new(options(EngineKind::Tract)).unwrap();
    let cases = [
        ("loop", "operator \"Loop\""),
        (
            "quantised",
            "operator \"QuantizeLinear\" of a quantised model",
        ),
        ("function_relu", "function \"Relu\", named as an operator"),
        (
            "microsoft_relu",
            "operator \"Relu\" of domain \"com.microsoft\"",
        ),
    ];
    for (name, words) in cases {
        let error = engine.load(model_file(&model_bytes(name))).await;
        let error = error.unwrap_err();
        assert_eq!(error.code(), Code::ModelUnsupported, "{error}");
        assert!(error.fact().starts_with(words), "{error}");
    }
}

/// Clients see no difference. What they see of large models is compared end to end.
#[cfg(feature = "tract")]
#[tokio::test(flavor = "multi_thread")]
async fn both_engines_say_the_same_of_a_model() {
    let ours = Engine::new(options(EngineKind::Tract)).unwrap();
    let theirs = Engine::new(options(EngineKind::OnnxRuntime)).unwrap();
    for name in [
        "two_by_two",
        "gather",
        "div",
        "scan",
        "chain",
        "outer",
        "outer_out",
    ] {
        let file = model_file(&model_bytes(name));
        let ours = ours.load(file.clone()).await.unwrap();
        let theirs = theirs.load(file).await.unwrap();
        assert_eq!(ours.signature(), theirs.signature(), "{name}");
    }
}

#[cfg(feature = "tract")]
#[tokio::test(flavor = "multi_thread")]
async fn more_shapes_than_plans_are_kept() {
    let model = load(EngineKind::Tract, "two_by_two").await;
    for batch in (1..=40).chain([1, 40]) {
        let values = vec![1.0; batch * 3];
        let inputs = vec![
            f32s("a", &[batch, 3], &values),
            f32s("b", &[batch, 3], &values),
        ];
        let outputs = run(&model, inputs).await.unwrap();
        assert_eq!(outputs[0], f32s("sum", &[batch, 3], &vec![2.0; batch * 3]));
    }
}
