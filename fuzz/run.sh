#!/usr/bin/env bash
# Runs each fuzz target for so many seconds (default: 60), from the kept corpus and the evidence of
# real machines. New inputs stay in fuzz/target/found; a crash ends it and stays in fuzz/artifacts.
# Needs a nightly compiler and cargo-fuzz (`cargo install cargo-fuzz --locked`).
#
#   fuzz/run.sh [seconds]
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
found=${CARGO_TARGET_DIR:-fuzz/target}/found
declare -A seeds=([quote]="sgx tdx" [report]=snp)

cargo +nightly fuzz build --fuzz-dir fuzz
for target in quote report certificate claims receipt policy document grpc http store legacy; do
    echo "== $target, $seconds s"
    mkdir -p "$found/$target"
    folders=("$found/$target" "fuzz/corpus/$target")
    for seed in ${seeds[$target]:-}; do folders+=("testdata/evidence/$seed"); done
    cargo +nightly fuzz run --fuzz-dir fuzz "$target" "${folders[@]}" -- \
        -max_total_time="$seconds" -max_len=32768 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1
done
