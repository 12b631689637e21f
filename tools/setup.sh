#!/usr/bin/env bash
# Installs what the build and the tests need beside Rust: a C compiler, a virtual environment with
# pinned packages, and the ONNX Runtime library. Does nothing, quickly, when all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

need() { # need COMMAND... : the Debian packages that are missing, installed if we may
    local missing=()
    command -v cc >/dev/null || missing+=(build-essential)
    python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "setup: please install: ${missing[*]}" >&2
        exit 1
    fi
    apt-get update -qq && apt-get install -y -qq "${missing[@]}"
}

need
command -v cargo >/dev/null || { echo "setup: please install Rust from https://rustup.rs" >&2; exit 1; }

venv=.cache/venv
stamp=$venv/.requirements
if ! cmp -s tools/requirements-test.txt "$stamp"; then
    mkdir -p .cache
    [ -x $venv/bin/python ] || python3 -m venv $venv
    $venv/bin/python -m pip install --quiet --disable-pip-version-check -r tools/requirements-test.txt
    cp tools/requirements-test.txt "$stamp"
fi
$venv/bin/python tools/onnxruntime.py
