//! Who is computed when, and with whom.

mod support;

use std::sync::Arc;
use std::time::Duration;

use blindai_core::{Code, EngineKind, NamedTensor, Result};
use blindai_engine::{Answer, Batching, Caller, Engine, EngineOptions, LoadedModel};
use support::*;
use tokio::task::JoinHandle;

/// Waits for its batch to be full, for as long as a test may take.
fn together(max_rows: usize) -> EngineOptions {
    EngineOptions {
        batching: Some(Batching {
            max_rows,
            max_delay: PATIENCE,
            across_callers: true,
        }),
        ..options(EngineKind::OnnxRuntime)
    }
}

/// Takes together what waits when the worker is free.
fn without_delay() -> EngineOptions {
    let mut options = together(64);
    options.batching.as_mut().unwrap().max_delay = Duration::ZERO;
    options
}

async fn load_shared(options: EngineOptions, name: &str) -> Arc<LoadedModel> {
    Arc::new(load_with(options, name).await)
}

fn ask(
    model: &Arc<LoadedModel>,
    caller: u64,
    inputs: Vec<NamedTensor>,
) -> JoinHandle<Result<Answer>> {
    let model = model.clone();
    tokio::spawn(async move { model.run(inputs, &[], Caller(caller), PATIENCE).await })
}

fn divide(a: &[i64], b: &[i64]) -> Vec<NamedTensor> {
    vec![i64s("b", &[b.len()], b), i64s("a", &[a.len()], a)]
}

fn quotients(y: &[i64]) -> Vec<NamedTensor> {
    vec![i64s("y", &[y.len()], y)]
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_computed_together_and_each_gets_its_own_rows() {
    let model = load_shared(together(6), "div").await;
    let asked = [
        ask(&model, 1, divide(&[10, 20, 30], &[10, 10, 10])),
        ask(&model, 2, divide(&[8], &[2])),
        ask(&model, 3, divide(&[9, 7], &[-3, 7])),
    ];
    let expected = [&[1, 2, 3][..], &[4], &[-3, 1]];
    for (asked, expected) in asked.into_iter().zip(expected) {
        let answer = asked.await.unwrap().unwrap();
        assert_eq!(answer.outputs, quotients(expected));
        assert_eq!(answer.stages.batch, 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_kills_the_worker_takes_nobody_with_him() {
    let model = load_shared(together(3), "div").await;
    let good = [1, 2].map(|n| ask(&model, n, divide(&[6 * n as i64], &[2])));
    let bad = ask(&model, 3, divide(&[i64::MIN], &[-1]));
    for (n, good) in [1, 2].into_iter().zip(good) {
        assert_eq!(good.await.unwrap().unwrap().outputs, quotients(&[3 * n]));
    }
    let error = bad.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::WorkerCrashed, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_does_not_keep_its_rows_is_computed_request_by_request() {
    let model = load_shared(together(4), "fewer_rows").await;
    let asked = [
        ask(&model, 1, vec![i64s("x", &[2], &[5, 5])]),
        ask(&model, 2, vec![i64s("x", &[2], &[7, 5])]),
    ];
    for (asked, expected) in asked.into_iter().zip([&[5][..], &[5, 7]]) {
        let answer = asked.await.unwrap().unwrap();
        assert_eq!(answer.outputs, quotients(expected));
        assert_eq!(answer.stages.batch, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strictly_no_two_callers_meet() {
    let mut options = without_delay();
    options.batching.as_mut().unwrap().across_callers = false;
    let model = load_shared(options, "div").await;
    let asked: Vec<_> = (0..40)
        .map(|n| (n, ask(&model, n as u64 % 2, divide(&[n * 2], &[2]))))
        .collect();
    let mut batches = Vec::new();
    for (n, asked) in asked {
        let answer = asked.await.unwrap().unwrap();
        assert_eq!(answer.outputs, quotients(&[n]));
        batches.push(answer.stages.batch);
    }
    // Each caller had 20, so no batch of one caller can hold more.
    assert!(batches.iter().all(|batch| *batch <= 20), "{batches:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_in_another_dimension_or_output_is_not_joined() {
    let model = load_shared(without_delay(), "two_by_two").await;
    let input = |rows: usize| {
        let zeros = vec![1.0; rows * 3];
        vec![f32s("a", &[rows, 3], &zeros), f32s("b", &[rows, 3], &zeros)]
    };
    let asked: Vec<_> = (1..8)
        .map(|rows| (rows, ask(&model, 0, input(rows))))
        .collect();
    for (rows, asked) in asked {
        let answer = asked.await.unwrap().unwrap();
        assert_eq!(answer.outputs[0].tensor.shape(), [rows, 3]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_does_not_keep_the_others_waiting() {
    let model = load_shared(together(2), "div").await;
    let gone = ask(&model, 1, divide(&[1], &[1]));
    tokio::time::sleep(Duration::from_millis(20)).await;
    gone.abort();
    let stays = ask(&model, 2, divide(&[6], &[2]));
    assert_eq!(stays.await.unwrap().unwrap().outputs, quotients(&[3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_again_is_computed_with_the_others_again() {
    let mut options = without_delay();
    options.batching.as_mut().unwrap().max_rows = 4 * ROWS;
    let model = load_shared(options, "chain").await;
    let asking = [0, 1, 1, 2].map(|away| {
        let model = model.clone();
        tokio::spawn(async move {
            let mut batches = Vec::new();
            for _ in 0..6 {
                let x = vec![f32s("x", &[ROWS], &vec![0.5; ROWS])];
                let answer = model.run(x, &[], Caller(0), PATIENCE).await.unwrap();
                batches.push(answer.stages.batch);
                tokio::time::sleep(Duration::from_millis(away)).await;
            }
            batches
        })
    });
    let mut batches = Vec::new();
    for asking in asking {
        batches.push(asking.await.unwrap());
    }
    // Otherwise the first to be back is computed alone and the others after him, for ever.
    assert!(
        batches.iter().flatten().any(|batch| *batch == 4),
        "{batches:?}"
    );
}

/// Four times that take a tenth of a second and more.
const ROWS: usize = 100_000;

#[tokio::test(flavor = "multi_thread")]
async fn several_workers_compute_at_the_same_time() {
    let options = EngineOptions {
        workers: 2,
        ..options(EngineKind::OnnxRuntime)
    };
    let model = load_shared(options, "loop").await;
    assert_eq!(model.status().workers, 2);
    let rounds = |n| vec![i64s("rounds", &[], &[n]), f32s("start", &[1], &[0.0])];
    let endless = ask(&model, 1, rounds(1 << 62));
    let quick = ask(&model, 2, rounds(1));
    quick.await.unwrap().unwrap();
    endless.abort();
    let _ = endless.await;
    ask(&model, 2, rounds(1)).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_take_turns() {
    let model = load_shared(options(EngineKind::OnnxRuntime), "loop").await;
    let rounds = |n| vec![i64s("rounds", &[], &[n]), f32s("start", &[1], &[0.0])];
    let endless = ask(&model, 0, rounds(1 << 62));
    while model.status().running == 0 {
        tokio::task::yield_now().await;
    }
    let (ended, mut order) = tokio::sync::mpsc::unbounded_channel();
    let queue = |caller: u64| {
        let (model, ended) = (model.clone(), ended.clone());
        let queued = model.status().queued;
        let request = model.clone();
        tokio::spawn(async move {
            request
                .run(rounds(1), &[], Caller(caller), PATIENCE)
                .await
                .unwrap();
            ended.send(caller).unwrap();
        });
        async move {
            while model.status().queued == queued {
                tokio::task::yield_now().await;
            }
        }
    };
    for caller in [1, 1, 1, 2] {
        queue(caller).await;
    }
    endless.abort();
    let mut served = Vec::new();
    for _ in 0..4 {
        served.push(order.recv().await.unwrap());
    }
    assert_eq!(
        served.iter().position(|caller| *caller == 2),
        Some(1),
        "{served:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_worker_was_killed_from_outside_is_computed_again() {
    let model = load_shared(options(EngineKind::OnnxRuntime), "loop").await;
    let rounds = vec![
        i64s("rounds", &[], &[50_000_000]),
        f32s("start", &[1], &[0.0]),
    ];
    let long = ask(&model, 1, rounds);
    while model.status().running == 0 {
        tokio::task::yield_now().await;
    }
    let kill = || {
        let worker = rustix::process::Pid::from_raw(pid(&model) as i32).unwrap();
        rustix::process::kill_process(worker, rustix::process::Signal::KILL).unwrap();
    };
    kill();
    while model.status().restarts == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // It runs again; that it would end by itself takes too long to wait for.
    assert_eq!(model.status().running, 1);
    assert!(!long.is_finished());
    assert_eq!(model.status().crashes, 0);
    // But not for ever: a model can have its worker look as if it was killed.
    kill();
    let error = long.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::WorkerCrashed, "{error}");
    assert_eq!(model.status().crashes, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_bear_a_warm_up_is_loaded_all_the_same() {
    let engine = Engine::new(options(EngineKind::OnnxRuntime)).unwrap();
    // Its indices are out of range for what is made up.
    let model = engine
        .load(model_file(&model_bytes("gather")))
        .await
        .unwrap();
    let inputs = vec![f32s("data", &[2], &[1.0, 2.0]), i64s("index", &[1], &[1])];
    assert_eq!(
        run(&model, inputs).await.unwrap(),
        [f32s("y", &[1], &[2.0])]
    );
}
