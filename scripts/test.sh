#!/usr/bin/env bash
# Installs what is needed and runs linter, type checker and tests. Options are pytest's, for instance --run-slow.
extras='[dev]'
. "$(dirname "$0")/install.sh"
"$venv/bin/ruff" check .
"$venv/bin/mypy"
exec "$venv/bin/python" -m pytest "$@"
