//! What the tests of the engine share.

// No test file uses all of it.
#![allow(dead_code, unused_macros)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use blindai_core::{DType, EngineKind, NamedTensor, Result, Tensor};
use blindai_engine::{
    Caller, Engine, EngineOptions, Isolation, LoadedModel, ModelFile, ModelWriter, WorkerCommand,
};

/// Long enough for every run that is to succeed.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn onnxruntime() -> PathBuf {
    let path = std::env::var_os("BLINDAI_ONNXRUNTIME").map_or_else(
        || in_crate("../../.cache/onnxruntime/libonnxruntime.so.1.28.0"),
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "ONNX Runtime is not at {}: run tools/onnxruntime.py, or set BLINDAI_ONNXRUNTIME",
        path.display()
    );
    path
}

/// Makes a test of each function for each engine.
macro_rules! on_every_engine {
    ($($test:ident),* $(,)?) => {
        mod onnxruntime {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::EngineKind::OnnxRuntime.into()).await;
            })*
        }
        #[cfg(feature = "tract")]
        mod tract {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::EngineKind::Tract.into()).await;
            })*
        }
    };
}

/// As `on_every_engine`, also with workers that are threads of the test, where that applies.
macro_rules! in_processes_and_threads {
    (
        everywhere: $($everywhere:ident),*;
        where_a_node_can_be_interrupted: $($interrupting:ident),*;
        in_processes: $($bounding:ident),*;
    ) => {
        on_every_engine!($($everywhere,)* $($interrupting,)* $($bounding,)*);
        mod onnxruntime_in_a_thread {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $everywhere() {
                super::$everywhere(super::On::thread(super::EngineKind::OnnxRuntime)).await;
            })*
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $interrupting() {
                super::$interrupting(super::On::thread(super::EngineKind::OnnxRuntime)).await;
            })*
        }
        #[cfg(feature = "tract")]
        mod tract_in_a_thread {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $everywhere() {
                super::$everywhere(super::On::thread(super::EngineKind::Tract)).await;
            })*
        }
    };
}

/// What runs a model, and as what.
#[derive(Clone, Copy, Debug)]
pub struct On {
    pub kind: EngineKind,
    pub isolation: Isolation,
}

impl On {
    pub fn thread(kind: EngineKind) -> Self {
        let isolation = Isolation::None;
        Self { kind, isolation }
    }
}

impl From<EngineKind> for On {
    fn from(kind: EngineKind) -> Self {
        let isolation = Isolation::default();
        Self { kind, isolation }
    }
}

/// Two compute threads everywhere, so that results and failures do not depend on the machine. For
/// tract without the library, as an operator has it who wants no C++.
pub fn options(on: impl Into<On>) -> EngineOptions {
    let On { kind, isolation } = on.into();
    let defaults = match kind {
        EngineKind::OnnxRuntime => EngineOptions::new(onnxruntime()),
        EngineKind::Tract => EngineOptions::tract(),
    };
    EngineOptions {
        worker: WorkerCommand {
            program: env!("CARGO_BIN_EXE_blindai-worker").into(),
            arguments: vec![],
        },
        threads: 2,
        isolation,
        ..defaults
    }
}

/// A model that one request keeps busy for longer than any test waits, and others not at all. tract
/// has no `Loop`; a `Scan` over many elements is the longest node it runs.
pub struct Slow {
    pub model: &'static str,
    on: EngineKind,
}

impl Slow {
    pub fn on(on: impl Into<On>) -> Self {
        let on = on.into().kind;
        let model = match on {
            EngineKind::OnnxRuntime => "loop",
            EngineKind::Tract => "scan",
        };
        Self { model, on }
    }

    pub fn endless(&self) -> Vec<NamedTensor> {
        match self.on {
            EngineKind::OnnxRuntime => self.quick(1 << 62),
            EngineKind::Tract => self.quick(1 << 25),
        }
    }

    pub fn quick(&self, rounds: usize) -> Vec<NamedTensor> {
        let start = f32s("start", &[1], &[0.0]);
        let rounds = match self.on {
            EngineKind::OnnxRuntime => i64s("rounds", &[], &[rounds as i64]),
            EngineKind::Tract => {
                let rounds = Tensor::new(DType::U8, vec![rounds], vec![0; rounds].into());
                NamedTensor::new("rounds", rounds.unwrap())
            }
        };
        vec![rounds, start]
    }

    pub fn answer(&self, rounds: usize) -> Vec<NamedTensor> {
        let last = match self.on {
            EngineKind::OnnxRuntime => 0.0,
            EngineKind::Tract => rounds as f32,
        };
        vec![f32s("y", &[1], &[last])]
    }
}

pub fn model_bytes(name: &str) -> Vec<u8> {
    std::fs::read(in_crate("testdata").join(format!("{name}.onnx"))).unwrap()
}

pub fn model_file(bytes: &[u8]) -> Arc<ModelFile> {
    let mut writer = ModelWriter::new(1 << 30, Isolation::default()).unwrap();
    writer.write(bytes).unwrap();
    Arc::new(writer.finish().unwrap())
}

pub async fn load_with(options: EngineOptions, name: &str) -> LoadedModel {
    let engine = Engine::new(options).unwrap();
    engine.load(model_file(&model_bytes(name))).await.unwrap()
}

pub async fn load(on: impl Into<On>, name: &str) -> LoadedModel {
    load_with(options(on), name).await
}

/// Runs for all outputs.
pub async fn run(model: &LoadedModel, inputs: Vec<NamedTensor>) -> Result<Vec<NamedTensor>> {
    run_within(model, inputs, PATIENCE).await
}

pub async fn run_within(
    model: &LoadedModel,
    inputs: Vec<NamedTensor>,
    deadline: Duration,
) -> Result<Vec<NamedTensor>> {
    let answer = model.run(inputs, &[], Caller::default(), deadline).await;
    answer.map(|answer| answer.outputs)
}

/// The process id of the only worker.
pub fn pid(model: &LoadedModel) -> u32 {
    model.worker_pids()[0]
}

pub fn f32s(name: &str, shape: &[usize], values: &[f32]) -> NamedTensor {
    let data: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    NamedTensor::new(
        name,
        Tensor::new(DType::F32, shape.to_vec(), data.into()).unwrap(),
    )
}

pub fn i64s(name: &str, shape: &[usize], values: &[i64]) -> NamedTensor {
    let data: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    NamedTensor::new(
        name,
        Tensor::new(DType::I64, shape.to_vec(), data.into()).unwrap(),
    )
}

fn in_crate(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}
