#!/usr/bin/env bash
# The same file and the same vectors on other instruction sets, under QEMU's user mode: x86 without VNNI, SSE only, and
# arm64 processors. Every quantized tensor must hold the codes that the integer reference computes here.
#
#   benchmarks/cross_isa.sh [--samples N] [--machines haswell,cortex-a53,...] [--json] MODEL.onnx [MODEL2.onnx ...]
#
# Needs an x86-64 Debian (Ubuntu keeps arm64 packages in another archive) with qemu-user, a Python in which gdfq-export
# is installed (PYTHON; the repository's .venv by default), and a network the first time: an arm64 root (Python from the
# system's own package sources, onnxruntime and numpy from the Python package index) is unpacked into CROSS_ISA_CACHE,
# some 250 MB. Nothing else is changed on the system, and root is not needed.
# Exit codes: 0 exact, 1 not exact, 2 the command line is wrong, 4 something is missing.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cache="${CROSS_ISA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/gdfq-export/cross-isa}"

fail() {
    echo "cross_isa.sh: $1" >&2
    exit "${2:-4}"
}

need() {
    command -v "$1" >/dev/null || fail "$1 is missing: $2"
}

[ $# -gt 0 ] || fail "give one or more ONNX files" 2
if [ "$1" = --help ] || [ "$1" = -h ]; then
    sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
fi
python="${PYTHON:-$root/.venv/bin/python}"
[ -x "$(command -v "$python")" ] || fail "no Python at $python: run scripts/test once, or set PYTHON to one that has gdfq-export"
"$python" -c "import gdfq_export.runtime_checks" 2>/dev/null || fail "$python has no gdfq-export: pip install -e $root"
[ "$(uname -m)" = x86_64 ] || fail "the native machine must be x86-64, this one is $(uname -m)"
need qemu-x86_64 "apt-get install qemu-user"
need qemu-aarch64 "apt-get install qemu-user"

# The arm64 packages are resolved and fetched by an apt with a state of its own: no foreign architecture is added to the
# system, and no package is installed on it.
fetch_packages() {
    need apt-get "this step needs Debian or Ubuntu; or put an arm64 root with python3 into $1"
    need dpkg-deb "this step needs Debian or Ubuntu"
    local apt="$cache/apt"
    mkdir -p "$apt/lists/partial" "$apt/archives/partial"
    : >"$apt/status"
    local options=(
        -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=
        -o Dir::State="$apt" -o Dir::State::Lists="$apt/lists" -o Dir::State::status="$apt/status"
        -o Dir::Cache="$apt" -o Dir::Cache::archives="$apt/archives" -o Debug::NoLocking=1
    )
    apt-get "${options[@]}" update || echo "some package sources have no arm64; going on with the others" >&2
    apt-get "${options[@]}" install -y --download-only --no-install-recommends python3 libstdc++6 >/dev/null ||
        fail "apt-get finds no arm64 packages of python3 (see above)"
    local package
    for package in "$apt"/archives/*.deb; do
        dpkg-deb -x "$package" "$1"
    done
}

# The same onnxruntime as here, and the numpy that goes with the root's Python.
fetch_wheels() {
    local version
    version="$("$python" -c 'import onnxruntime; print(onnxruntime.__version__)')"
    rm -rf "$1/opt/site"
    "$python" -m pip install --quiet --disable-pip-version-check --target "$1/opt/site" --only-binary=:all: \
        --python-version "$(basename "$(readlink "$1/usr/bin/python3")" | sed s/python//)" --implementation cp \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
        --platform manylinux2014_aarch64 "onnxruntime==$version" ||
        fail "pip finds no arm64 wheel of onnxruntime $version for the Python of $1"
    echo "$version" >"$1/opt/onnxruntime-version"
}

arm="$cache/arm64"
if [ ! -e "$arm/usr/bin/python3" ]; then
    echo "making an arm64 root in $arm" >&2
    rm -rf "$arm.part" && mkdir -p "$arm.part"
    fetch_packages "$arm.part"
    mv "$arm.part" "$arm"
fi
if [ "$(cat "$arm/opt/onnxruntime-version" 2>/dev/null)" != "$("$python" -c 'import onnxruntime; print(onnxruntime.__version__)')" ]; then
    fetch_wheels "$arm"
fi

exec "$("$python" -c 'import sys; print(sys.executable)')" "$root/benchmarks/cross_isa.py" --arm-root "$arm" "$@"
