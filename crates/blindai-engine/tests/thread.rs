//! Workers that are threads of this process: what is as in a process of their own, and what is lost.

mod support;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use blindai_core::{Code, EngineKind, NamedTensor, Tensor};
use blindai_engine::{
    Batching, Caller, Engine, EngineOptions, Isolation, MODEL_THREAD, ModelFile, ModelWriter,
};
use support::*;
use tokio::sync::{Mutex, MutexGuard};

#[tokio::test(flavor = "multi_thread")]
async fn a_model_in_ordinary_memory_answers_and_is_counted() {
    let _alone = alone().await;
    for kind in kinds() {
        let engine = Engine::new(options(On::thread(kind))).unwrap();
        let barriers = engine.barriers().await.unwrap();
        assert!(!barriers.process && barriers.to_string().starts_with("none: "));
        let file = in_memory("two_by_two");
        let size = file.size_bytes();
        let model = engine.load(file).await.unwrap();
        let values = [1.0, 2.0, 3.0];
        let inputs = vec![f32s("a", &[1, 3], &values), f32s("b", &[1, 3], &values)];
        let outputs = run(&model, inputs).await.unwrap();
        assert_eq!(outputs[0], f32s("sum", &[1, 3], &[2.0, 4.0, 6.0]));
        assert_eq!(model.worker_pids(), [0]);
        assert_eq!(model.status().resident_bytes, size);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strings_and_empty_tensors_go_through_ordinary_memory() {
    let _alone = alone().await;
    for kind in kinds() {
        let engine = Engine::new(options(On::thread(kind))).unwrap();
        let model = engine.load(in_memory("identity_BYTES")).await.unwrap();
        for strings in [&["é\0", "", "tail"][..], &[]] {
            let tensor = Tensor::from_strings(vec![strings.len()], strings).unwrap();
            let input = NamedTensor::new("x", tensor.clone());
            let outputs = run(&model, vec![input]).await.unwrap();
            assert_eq!(outputs[0].tensor, tensor);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_computed_together_by_several_threads() {
    let _alone = alone().await;
    let options = EngineOptions {
        workers: 2,
        batching: Some(Batching {
            max_rows: 4,
            max_delay: Duration::from_secs(1),
            across_callers: true,
        }),
        ..options(On::thread(EngineKind::OnnxRuntime))
    };
    let engine = Engine::new(options).unwrap();
    let model = Arc::new(engine.load(in_memory("div")).await.unwrap());
    let asked = (1..=8).map(|number| {
        let model = model.clone();
        tokio::spawn(async move {
            let inputs = vec![i64s("a", &[1], &[number * 10]), i64s("b", &[1], &[10])];
            let caller = Caller(number as u64);
            (number, model.run(inputs, &[], caller, PATIENCE).await)
        })
    });
    let mut batches = Vec::new();
    for asked in asked.collect::<Vec<_>>() {
        let (number, answer) = asked.await.unwrap();
        let answer = answer.unwrap();
        assert_eq!(answer.outputs, [i64s("y", &[1], &[number])]);
        batches.push(answer.stages.batch);
    }
    // Two that gather have no room for eight. Whoever is done first may begin another with what comes
    // late, and then nobody fills his.
    assert!(batches.contains(&4), "{batches:?}");
    assert_eq!(model.worker_pids(), [0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_model_leaves_no_thread() {
    let _alone = alone().await;
    for kind in kinds() {
        let engine = Engine::new(options(On::thread(kind))).unwrap();
        let model = engine.load(in_memory("chain")).await.unwrap();
        assert!(model_threads() > 0);
        // While it computes, in more nodes than anybody waits for.
        let large = vec![f32s("x", &[1 << 22], &vec![0.0; 1 << 22])];
        let error = run_within(&model, large, Duration::from_millis(50)).await;
        assert_eq!(error.unwrap_err().code(), Code::DeadlineExceeded);
        drop(model);
        for _ in 0..PATIENCE.as_millis() {
            if model_threads() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(model_threads(), 0, "{kind}");
    }
}

#[cfg(feature = "tract")]
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_costs_one_request() {
    let _alone = alone().await;
    let model = load(On::thread(EngineKind::Tract), "div").await;
    let inputs = |a, b| vec![i64s("a", &[1], &[a]), i64s("b", &[1], &[b])];
    let error = run(&model, inputs(1, 0)).await.unwrap_err();
    assert_eq!(error.code(), Code::ModelFailed, "{error}");
    let outputs = run(&model, inputs(42, -2)).await.unwrap();
    assert_eq!(outputs, [i64s("y", &[1], &[-21])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_for_a_thread_is_not_handed_to_a_process() {
    let _alone = alone().await;
    let engine = Engine::new(options(EngineKind::OnnxRuntime)).unwrap();
    let error = engine.load(in_memory("two_by_two")).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal, "{error}");
}

/// What the documentation says that one request can do here.
#[test]
fn a_crash_ends_the_process() {
    let me = std::env::current_exe().unwrap();
    let ended = Command::new(me)
        .args(["--exact", "divide_until_the_process_ends", "--ignored"])
        .output()
        .unwrap();
    assert_eq!(ended.status.signal(), Some(8), "SIGFPE: {ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it ends the process"]
async fn divide_until_the_process_ends() {
    let model = load(On::thread(EngineKind::OnnxRuntime), "div").await;
    let inputs = vec![i64s("a", &[1], &[i64::MIN]), i64s("b", &[1], &[-1])];
    let _ = run(&model, inputs).await;
}

/// The tests look at the threads of the process, so there is one at a time.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

fn kinds() -> Vec<EngineKind> {
    match blindai_engine::TRACT {
        true => vec![EngineKind::OnnxRuntime, EngineKind::Tract],
        false => vec![EngineKind::OnnxRuntime],
    }
}

fn in_memory(name: &str) -> Arc<ModelFile> {
    let mut writer = ModelWriter::new(1 << 30, Isolation::None).unwrap();
    writer.write(&model_bytes(name)).unwrap();
    Arc::new(writer.finish().unwrap())
}

fn model_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    let names = tasks.filter_map(|task| name(task.ok()?));
    names.filter(|name| name.trim_end() == MODEL_THREAD).count()
}
