#!/bin/sh
# Makes the virtual environment .venv, or mends it, and installs this checkout with its packages.
#   PYTHON=python3.12      the interpreter; by default the newest suitable one on the path
#   GPU=1 or GPU=0         PyTorch with CUDA or its CPU build; by default whether there is an NVIDIA driver decides
#   WHEELHOUSE=wheelhouse  a folder of wheels (make wheelhouse), and no network
# With --check it only tells whether the environment that is there has a suitable Python and pip.
set -eu
cd "$(dirname "$0")/.."
newest=14 # of Python 3: the versions that were tried

is_suitable="
import sys, sysconfig
version = '%d.%d' % sys.version_info[:2]
if not (3, 11) <= sys.version_info[:2] <= (3, $newest):
    sys.exit(f'{sys.executable} is Python {version}: 3.11 to 3.$newest are suitable. Name one: make PYTHON=python3.12')
if sysconfig.get_config_var('Py_GIL_DISABLED'):
    sys.exit(f'{sys.executable} is a free-threaded Python, which nobody has tried. Name another: make PYTHON=python3.12')"
has_venv="
try:
    import ensurepip
except ImportError:
    sys.exit(f'{sys.executable} has no venv. Install it, on Debian and Ubuntu with: apt install python3-venv')"
identity="
import sys
print(sys.base_prefix, *sys.version_info)"

is_whole() { .venv/bin/python -c "import pip$is_suitable" >/dev/null 2>&1; }
is_another() { [ "$("$1" -c "$identity")" != "$(.venv/bin/python -c "$identity")" ]; }
find_python() {
    for name in $(seq -f 'python3.%g' $newest -1 11) python3; do
        if "$name" -c "$is_suitable$has_venv" 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "No suitable Python: install 3.11 to 3.$newest, on Debian and Ubuntu with: apt install python3 python3-venv" >&2
    python3 -c "$is_suitable$has_venv"
    return 1
}

if [ "${1:-}" = --check ]; then
    is_whole
    exit
fi
if ! is_whole || { [ -n "${PYTHON:-}" ] && is_another "$PYTHON"; }; then
    python=${PYTHON:-$(find_python)}
    "$python" -c "$is_suitable$has_venv"
    "$python" -m venv --clear .venv
fi
install() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        ${WHEELHOUSE:+--no-index --find-links "$WHEELHOUSE"} "$@"
}

version=$(sed -n 's/^torch==//p' constraints.txt)
has_driver() { [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null; }
has_torch() { .venv/bin/python -m pip show --quiet torch 2>/dev/null; }
has_cpu_build() { install --dry-run --no-deps "torch==$version+cpu" >/dev/null 2>&1; }

build=
case "${GPU:-}$(uname)" in
0Linux) build="torch==$version+cpu" ;;
1Linux) build="torch!=$version+cpu" ;;
Linux)
    if has_driver || has_torch; then
        :
    elif has_cpu_build; then
        build="torch==$version+cpu"
    else
        echo "Here is no NVIDIA driver, and no index that pip knows has PyTorch's CPU build (0.2 GB)."
        echo "Its CUDA build comes instead: 3 GB to fetch, 6 GB on disk. To have the CPU build, stop this and run:"
        echo "    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make install GPU=0"
    fi
    ;;
esac
install -c constraints.txt -e ".[dev]" ${build:+"$build"}
