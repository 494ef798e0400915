# Sourced by demo.sh and test.sh: makes .venv in the checkout (or in $VENV) and installs the package into it.
# $extras may name extras of the package, for instance '[dev]'.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VENV:-.venv}
if [ ! -x "$venv/bin/python" ]; then
  "${PYTHON:-python3.11}" -m venv "$venv"
fi
# What was installed is noted, so that a second start needs neither time nor a connection.
wanted="${extras:-} $(cat setup.cfg setup.py scripts/constraints.txt | cksum)"
if [ "$(cat "$venv/installed${extras:-}" 2>/dev/null)" != "$wanted" ]; then
  echo "installing into $venv (PyTorch makes that several GB; some minutes) ..."
  "$venv/bin/python" -m pip install --quiet --upgrade pip 'setuptools>=70.1'
  "$venv/bin/python" -m pip install --quiet -c scripts/constraints.txt -e ".${extras:-}"
  echo "$wanted" > "$venv/installed${extras:-}"
fi
