#!/usr/bin/env bash
# Installs what is needed and runs linter, type checker and tests. Options are pytest's, for instance --run-slow.
extras='[dev]'
. "$(dirname "$0")/install.sh"
"$venv/bin/ruff" check .
"$venv/bin/mypy"
# Two at a time, the longest first; "-n 0" runs them one after the other. A test that hangs fails and shows where.
exec "$venv/bin/python" -m pytest -n 2 --no-loadscope-reorder --timeout 1200 "$@"
