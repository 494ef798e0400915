#!/usr/bin/env bash
# Installs what is needed and runs linter, type checker and tests. Options are pytest's, for instance --run-slow.
. "$(dirname "$0")/install.sh" '[dev]'
"$venv/bin/ruff" check .
"$venv/bin/mypy"
exec "$venv/bin/python" -m pytest "$@"
