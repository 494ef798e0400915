"""The trained models of the integration tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

FILE = Path(__file__).parents[1] / "integration" / "conftest.py"
_spec = importlib.util.spec_from_file_location("integration_fixtures", FILE)
assert _spec is not None and _spec.loader is not None
_module = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

raw_datasets, planned, trained = _module.raw_datasets, _module.planned, _module.trained
