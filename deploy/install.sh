#!/usr/bin/env bash
# Installs this checkout on a clean Debian 13, as root: Debian's packages, the user `ctclip`, and .venv by `make install`.
# The container image and `make test-fresh` run this script. GPU=1 adds the C compiler that Triton's kernels need.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(ca-certificates git make python3 python3-venv)
if [ "${GPU:-0}" = 1 ]; then
    packages+=(gcc libc6-dev python3-dev)
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet --quiet
apt-get install --quiet --quiet --yes --no-install-recommends "${packages[@]}" >/dev/null
apt-get distclean

id ctclip >/dev/null 2>&1 || useradd --create-home --uid "${USER_ID:-1000}" ctclip
install --directory --owner ctclip --group ctclip "${CTCLIP_DATA_ROOT:-/data}"
chown --recursive ctclip: .
runuser --user ctclip -- env HOME=/home/ctclip make install ${GPU:+GPU="$GPU"}
