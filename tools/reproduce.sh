#!/usr/bin/env bash
# The release program, built so that its bytes depend on its source alone: not on the folder, the time,
# the user or the environment.
#
#   tools/reproduce.sh build FOLDER       builds this checkout, and puts `blindai` there
#   tools/reproduce.sh compare [PACKAGE]  builds the last commit twice, here and from nothing in another
#                                         folder, and compares the bytes; of a PACKAGE that is a
#                                         library, its library. `build` then has nothing left to do
#   tools/reproduce.sh commit             what `blindai --version` should call this checkout
#
# The same compiler, C compiler and linker are part of the source: the last line of `build` names them.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)

main() {
    case "${1:-}" in
        build) build "$ROOT" blindai-cli && mkdir -p "${2:?FOLDER}" &&
            cp "$(product "$ROOT" blindai-cli)" "$2/blindai" && describe "$2/blindai" ;;
        compare) compare "${2:-blindai-cli}" ;;
        commit) commit ;;
        *) sed -n '5,10s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
}

# Builds a package of the checkout in $1, with nothing of the environment but what finds the tools.
build() {
    local source=$1 package=$2 cargo_home=${CARGO_HOME:-$HOME/.cargo} name
    local maps=("$source=/blindai" "$cargo_home=/cargo")
    local rust=() c=()
    for name in "${maps[@]}"; do
        rust+=("--remap-path-prefix=$name")
        # The C of AWS-LC names its files in its errors.
        c+=("-ffile-prefix-map=$name")
    done
    (
        cd "$source"
        local separator=$'\x1f'
        env -i PATH="$PATH" HOME="$HOME" CARGO_HOME="$cargo_home" \
            ${RUSTUP_HOME:+RUSTUP_HOME="$RUSTUP_HOME"} ${RUSTUP_TOOLCHAIN:+RUSTUP_TOOLCHAIN="$RUSTUP_TOOLCHAIN"} \
            ${CARGO_BUILD_JOBS:+CARGO_BUILD_JOBS="$CARGO_BUILD_JOBS"} \
            CARGO_ENCODED_RUSTFLAGS="$(IFS=$separator; printf '%s' "${rust[*]}")" \
            CFLAGS="${c[*]}" CXXFLAGS="${c[*]}" CARGO_INCREMENTAL=0 CARGO_TARGET_DIR="$source/target/reproduce" \
            SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-0}" ZERO_AR_DATE=1 LC_ALL=C TZ=UTC \
            BLINDAI_COMMIT="${BLINDAI_COMMIT:-$(commit)}" \
            cargo build --quiet --release --locked -p "$package"
    )
    if [ "$package" = blindai-cli ]; then
        # Names of symbols end in digests that differ from folder to folder where the code does not, and
        # the linker's own digest covers the names.
        objcopy --strip-all --remove-section=.note.gnu.build-id \
            "$source/target/reproduce/release/blindai" "$(product "$source" "$package")"
    fi
}

product() {
    local folder=$1/target/reproduce package=$2
    case $package in
        blindai-cli) printf '%s' "$folder/blindai" ;;
        # Also of one that is not ours: then it stands among the dependencies. Here one of an older
        # commit may stand there, too.
        *) find "$folder/release/deps" -name "lib${package//-/_}-*.rlib" -printf '%T@ %p\n' |
            sort -n | tail -n 1 | cut -d ' ' -f 2- ;;
    esac
}

compare() {
    local package=$1 scratch stranger here there folder
    BLINDAI_COMMIT=$(commit)
    export BLINDAI_COMMIT
    case $BLINDAI_COMMIT in
        *-modified | unknown) echo "reproduce: only a commit can be compared: commit first" >&2; exit 1 ;;
    esac
    scratch=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$scratch'" EXIT
    build "$ROOT" "$package"
    # As a stranger gets it: in a folder with a longer name, without what git ignores, and with
    # today's times.
    stranger=$scratch/as/a/stranger/gets/it/in/a/folder/with/a/longer/name
    mkdir -p "$stranger"
    git -C "$ROOT" archive "$BLINDAI_COMMIT" | tar -x -m -C "$stranger"
    build "$stranger" "$package"
    here=$(product "$ROOT" "$package") there=$(product "$stranger" "$package")
    describe "$here"
    describe "$there"
    cmp "$here" "$there"
    for folder in "$ROOT" "$scratch" "${CARGO_HOME:-$HOME/.cargo}"; do
        if grep -qF "$folder" "$here" "$there"; then
            echo "reproduce: $folder stands in the product" >&2
            exit 1
        fi
    done
    echo "reproduce: $package is the same, byte by byte"
}

describe() {
    sha256sum "$1"
    echo "$(rustc --version), $(cc --version | head -n 1), $(ld --version | head -n 1)"
}

# The commit, and whether anything differs from it.
commit() {
    local name
    name=$(git -C "$ROOT" rev-parse HEAD 2>/dev/null) || { echo unknown; return; }
    if [ -n "$(git -C "$ROOT" status --porcelain)" ]; then name+=-modified; fi
    echo "$name"
}

main "$@"
