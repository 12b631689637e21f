//! The round trip of four bytes through an identity model: what the engine itself costs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use blindai_core::{DType, NamedTensor, Tensor};
use blindai_engine::{Caller, Engine, EngineOptions, ModelWriter, WorkerCommand};
use criterion::{Criterion, criterion_group, criterion_main};

fn identity(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let crate_root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let library = std::env::var_os("BLINDAI_ONNXRUNTIME").map_or_else(
        || crate_root.join("../../.cache/onnxruntime/libonnxruntime.so.1.28.0"),
        PathBuf::from,
    );
    let worker = WorkerCommand {
        program: env!("CARGO_BIN_EXE_blindai-worker").into(),
        arguments: vec![],
    };
    let engine = Engine::new(EngineOptions {
        worker,
        ..EngineOptions::new(library)
    })
    .unwrap();
    let mut upload = ModelWriter::new(1 << 20, engine.isolation()).unwrap();
    let model = std::fs::read(crate_root.join("testdata/identity_FP32.onnx")).unwrap();
    upload.write(&model).unwrap();
    let file = Arc::new(upload.finish().unwrap());
    let model = runtime.block_on(engine.load(file)).unwrap();

    let tensor = Tensor::new(DType::F32, vec![1], vec![0; 4].into()).unwrap();
    criterion.bench_function("identity, 4 bytes", |bencher| {
        bencher.iter(|| {
            let input = NamedTensor::new("x", tensor.clone());
            let run = model.run(vec![input], &[], Caller::default(), Duration::from_secs(10));
            runtime.block_on(run).unwrap()
        });
    });
}

criterion_group!(benches, identity);
criterion_main!(benches);
