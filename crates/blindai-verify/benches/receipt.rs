//! How long a receipt takes to make, digests and signature, and to verify, on one thread: of an
//! inference whose input and output have so many bytes each.

use std::hint::black_box;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use blindai_core::receipt::{Deed, ReceiptNonce, SignedStatement, Statement, TensorDigest};
use blindai_core::{DType, Digest, NamedTensor, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};

fn receipts(criterion: &mut Criterion) {
    let key = Ed25519KeyPair::generate().unwrap();
    for bytes in [4, 600_000] {
        let tensors = [tensor("x", bytes), tensor("y", bytes)];
        criterion.bench_function(&format!("make, {bytes} bytes"), |bencher| {
            bencher.iter(|| make(black_box(&tensors), &key));
        });
    }
    let receipt = make(&[tensor("x", 4), tensor("y", 4)], &key);
    criterion.bench_function("read", |bencher| {
        bencher.iter(|| SignedStatement::decode(black_box(&receipt)).unwrap());
    });
}

fn make([x, y]: &[NamedTensor; 2], key: &Ed25519KeyPair) -> Vec<u8> {
    let statement = Statement {
        deed: Deed::Infer {
            inputs: TensorDigest::of_all(std::slice::from_ref(x)),
            outputs: TensorDigest::of_all(std::slice::from_ref(y)),
        },
        model_name: "identity".parse().unwrap(),
        model_version: "1".parse().unwrap(),
        model_digest: Digest::of(b"model"),
        nonce: ReceiptNonce::from_bytes(&[1; 32]),
        issued_at: 1_800_000_000,
        config_digest: Digest::of(b"config"),
        replica: [2; 32],
        server_version: "0.1.0".to_owned(),
    };
    let sign = |bytes: &[u8]| key.sign(bytes).as_ref().to_vec();
    statement.sign(key.public_key().as_ref(), sign).unwrap()
}

fn tensor(name: &str, bytes: usize) -> NamedTensor {
    let tensor = Tensor::new(DType::U8, vec![bytes], vec![7; bytes].into());
    NamedTensor::new(name, tensor.unwrap())
}

criterion_group!(benches, receipts);
criterion_main!(benches);
