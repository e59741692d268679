#!/usr/bin/env bash
# Makes .venv with this package and the versions of constraints.txt in it, unless it is there already, and activates it.
# Sourced by the other scripts. PYTHON chooses the interpreter that .venv is made with.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false

install() {
    local python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "Python 3.11 or newer is needed, and $python is $("$python" --version 2>&1)." >&2; return 1; }
    [ -x .venv/bin/python ] || "$python" -m venv .venv || return
    echo "Installing into .venv: a few minutes and about 3 GB the first time."
    .venv/bin/python -m pip install --quiet --editable '.[test]' --constraint constraints.txt || return
    cat setup.py pyproject.toml constraints.txt > .venv/installed
}

cat setup.py pyproject.toml constraints.txt | cmp --silent - .venv/installed || install || exit 1
source .venv/bin/activate
