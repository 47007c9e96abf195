#!/usr/bin/env bash
# Makes .venv with pinned dependencies and checks that MuJoCo can render. Quick when there is nothing to do.
set -euo pipefail
cd "$(dirname "$0")/.."

UV_VERSION=0.13.9
STAMP=.venv/setup-stamp
state=$(cat pyproject.toml constraints.txt scripts/setup.sh | sha256sum | cut -d' ' -f1)
[ "$(cat "$STAMP" 2>/dev/null || true)" = "$state" ] && exit 0

fail() {
  printf 'setup: error: %s\n' "$*" >&2
  exit 1
}

# install_system WHAT PACKAGE...: with apt-get where that is permitted, else says what to type.
install_system() {
  local what=$1 command="apt-get install -y ${*:2}"
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: $what missing, running: $command"
    (apt-get update -q && DEBIAN_FRONTEND=noninteractive $command -q) </dev/null && return
  fi
  fail "$what missing. Type: sudo apt-get update && sudo $command; then run the same make command again."
}

is_python_312() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1; }

# A runnable Python 3.12: on the path (pyenv's shim may be there and not run), else one of pyenv's own.
find_python() {
  local candidate
  for candidate in python3.12 python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python; do
    if is_python_312 "$candidate"; then
      echo "$candidate"
      return
    fi
  done
}

make_environment() {
  local python
  python=$(find_python)
  if [ -n "$python" ] && "$python" -m venv --clear .venv 2>/dev/null; then
    return
  fi
  rm -rf .venv
  local uv
  uv=$(command -v uv || true)
  if [ -z "$uv" ] && python3 -m venv .uv 2>/dev/null && .uv/bin/pip install -q "uv==$UV_VERSION"; then
    uv=.uv/bin/uv
  fi
  [ -n "$uv" ] && "$uv" venv -q --seed --python 3.12 .venv && return
  fail "Python 3.12 with its venv module was not found and could not be fetched." \
    "Type: sudo apt-get install -y python3.12 python3.12-venv (or: pyenv install 3.12); then run this again."
}

is_python_312 .venv/bin/python || make_environment
if [ -z "$(command -v c++)" ]; then
  install_system "a C++ compiler (LIBERO builds one small dependency)" build-essential
fi
if ! .venv/bin/python -m uv --version 2>/dev/null | grep -q " $UV_VERSION"; then
  .venv/bin/python -m ensurepip -q 2>/dev/null || true
  .venv/bin/python -m pip install -q --disable-pip-version-check "uv==$UV_VERSION"
fi
# Compiled once here: where PYTHONDONTWRITEBYTECODE is set, every process would compile 4,700 modules anew, for ten seconds.
.venv/bin/python -m uv pip install -p .venv/bin/python -c constraints.txt --compile-bytecode -e ".[libero,libero-assets,pi,multi_task_dit,peft,metaworld,pusht,aloha,filters,async,ray,dev]"

renders() { .venv/bin/python -c 'from lerobot_smoothvla.envs.assets import require_gl; require_gl()' 2>/dev/null; }
if ! renders || ! .venv/bin/python -c 'import cv2' 2>/dev/null; then
  install_system "OpenGL for rendering" libegl1 libgl1 libgl1-mesa-dri libosmesa6 libglib2.0-0
fi
if [ -z "$(command -v chromium || command -v chromium-browser || command -v google-chrome)" ]; then
  (install_system "a browser (tests look at the report's pages in it)" chromium) ||
    echo "setup: going on without a browser: only those tests need it." >&2
fi
.venv/bin/python -c 'import cv2
from lerobot_smoothvla.envs.assets import prepare_libero, require_gl
print("setup: LIBERO assets in", prepare_libero(), "rendered by", require_gl())'
echo "$state" >"$STAMP"
