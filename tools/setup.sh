#!/usr/bin/env bash
# Installs what the build and the tests need beside Rust and Python: a C compiler, a virtual
# environment with pinned packages, and the ONNX Runtime library. Does nothing, quickly, when all is
# there. `setup.sh test` installs what the tests need besides: verifiers that are not ours, from npm,
# and the clients of KServe. `setup.sh azurite` installs Microsoft's emulation of Azure's storage, which
# is larger than all of that, for `make soak`.
set -euo pipefail
cd "$(dirname "$0")/.."

main() {
    local goal=${1:-build}
    debian_packages
    rust
    python
    virtual_environment
    .cache/venv/bin/python tools/onnxruntime.py
    if [ "$goal" = test ]; then
        node_packages
        kserve_client
    fi
    if [ "$goal" = azurite ]; then azurite; fi
}

fail() {
    echo "setup: $1" >&2
    exit 1
}

# Installs the Debian packages that are missing, if we may.
debian_packages() {
    local missing=()
    command -v cc >/dev/null || missing+=(build-essential)
    python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
    [ "$goal" = build ] || { command -v node && command -v npm; } >/dev/null || missing+=(nodejs npm)
    # The tests' emulated devices are file systems in user space; root mounts them without help.
    [ "$goal" != test ] || [ "$(id -u)" = 0 ] || command -v fusermount3 >/dev/null || missing+=(fuse3)
    [ ${#missing[@]} -eq 0 ] && return
    command -v apt-get >/dev/null || fail "please install what Debian calls ${missing[*]}"
    [ "$(id -u)" = 0 ] || fail "please run: sudo apt-get install -y ${missing[*]}"
    apt-get update -qq && apt-get install -y -qq "${missing[@]}"
}

rust() {
    local least found
    least=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    found=$(rustc --version 2>/dev/null | cut -d' ' -f2) || true
    { [ -n "$found" ] && command -v cargo >/dev/null; } ||
        fail "please install Rust $least or newer from https://rustup.rs"
    printf '%s\n' "$least" "$found" | sort -CV ||
        fail "Rust $least or newer is needed, this is $found: rustup update"
}

# The range is that of the pinned packages.
python() {
    python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' ||
        fail "Python 3.11 to 3.13 is needed as python3, this is $(python3 --version 2>&1)"
}

virtual_environment() {
    local venv=.cache/venv
    local pinned=(tools/requirements-test.txt examples/requirements.txt)
    cat "${pinned[@]}" | cmp -s - $venv/.requirements && return
    # One that was interrupted while it was made has a Python, but no pip.
    $venv/bin/python -m pip --version >/dev/null 2>&1 || python3 -m venv --clear $venv
    $venv/bin/python -m pip install --quiet --disable-pip-version-check "${pinned[@]/#/-r}"
    cat "${pinned[@]}" >$venv/.requirements
}

node_packages() {
    local pinned=tests/independent modules=.cache/independent
    cmp -s $pinned/package-lock.json $modules/.installed && return
    mkdir -p $modules
    cp $pinned/package*.json $modules
    (cd $modules && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
    cp $pinned/package-lock.json $modules/.installed
}

azurite() {
    local folder=.cache/azurite wanted=azurite@3.37.0
    [ "$(cat $folder/.installed 2>/dev/null)" = $wanted ] && return
    rm -rf $folder
    npm install --prefix $folder --ignore-scripts --no-audit --no-fund --loglevel=error $wanted
    echo $wanted > $folder/.installed
}

# In an environment of its own: its packages do not agree with those of the tests.
kserve_client() {
    local pinned=tools/requirements-kserve-client.txt venv=.cache/kserve-client
    cmp -s $pinned $venv/.requirements && return
    python3 -m venv --clear $venv
    $venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
        --only-binary :all: -r $pinned
    cp $pinned $venv/.requirements
}

main "$@"
