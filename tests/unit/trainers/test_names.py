"""Trainers by nnU-Net's own search."""

from __future__ import annotations

import sys
import types

import pytest

from nnunetv2_sam3d.trainers.names import trainer_class


class Lazy(types.ModuleType):
    """Imports another module when it is asked for its file, as some of transformers' do."""

    def __getattr__(self, name: str) -> str:
        if name == "__file__":
            sys.modules.setdefault(f"{self.__name__}.other", types.ModuleType(f"{self.__name__}.other"))
        raise AttributeError(name)


def test_modules_that_import_others_do_not_stop_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer_class("nnUNetTrainer_SAM3DFull")  # what this imports asks all modules, too
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    sys.modules["a_lazy_module"] = Lazy("a_lazy_module")
    assert trainer_class.__wrapped__("nnUNetTrainer_SAM3DFull").__name__ == "nnUNetTrainer_SAM3DFull"
    assert "a_lazy_module.other" in sys.modules
    with pytest.raises(ValueError, match="knows no trainer 'nnUNetTrainer_Absent'"):
        trainer_class.__wrapped__("nnUNetTrainer_Absent")
