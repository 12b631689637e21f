//! How long a verdict takes, on one thread: real evidence of each kind, with its collateral already
//! read. The targets are 2 ms for SGX and TDX, and 8 ms for SEV-SNP.

use std::hint::black_box;
use std::path::Path;

use blindai_core::{Collateral, DcapCollateral, SnpCollateral};
use blindai_verify::{Policy, appraise_quote, observe};
use criterion::{Criterion, criterion_group, criterion_main};

/// Name, quote, collateral, and a time at which both hold.
const DCAP: [(&str, &str, &str, u64); 3] = [
    (
        "sgx",
        "sgx/dcapqvl_00a067110000.quote",
        "collateral/sgx_00a067110000_2025-06.json",
        1_751_600_000,
    ),
    (
        "tdx v4",
        "tdx/dcapqvl_v4_b0c06f.quote",
        "collateral/tdx_b0c06f_2025-06.json",
        1_751_600_000,
    ),
    (
        "tdx v5",
        "tdx/gotdx_v5_td15_90c06f.quote",
        "collateral/tdx_90c06f_2026-02.json",
        1_772_700_000,
    ),
];

/// Product, and a time at which its certificates hold.
const SNP: [(&str, u64); 3] = [
    ("milan", 1_780_000_000),
    ("genoa", 1_780_000_000),
    ("turin", 1_780_000_000),
];

fn verdicts(criterion: &mut Criterion) {
    for (name, quote, collateral, now) in DCAP {
        let collateral: DcapCollateral = serde_json::from_slice(&file(collateral)).unwrap();
        bench(criterion, name, &file(quote), &collateral.into(), now);
    }
    for (product, now) in SNP {
        let signer = file(&format!("snp/ms_{product}_vcek.pem"));
        let collateral = SnpCollateral {
            signer: String::from_utf8(signer).unwrap(),
            issuer_chain: None,
            crl: None,
        };
        let report = file(&format!("snp/ms_{product}.report"));
        let name = format!("sev-snp {product}");
        bench(criterion, &name, &report, &collateral.into(), now);
    }
}

fn bench(criterion: &mut Criterion, name: &str, quote: &[u8], collateral: &Collateral, now: u64) {
    let observation = observe(quote, Some(collateral), now).unwrap();
    let policy = Policy::from_toml(&observation.to_policy_toml()).unwrap();
    criterion.bench_function(name, |bencher| {
        bencher.iter(|| appraise_quote(black_box(quote), collateral, &policy, now).unwrap());
    });
}

fn file(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/evidence");
    std::fs::read(folder.join(name)).unwrap()
}

criterion_group!(benches, verdicts);
criterion_main!(benches);
