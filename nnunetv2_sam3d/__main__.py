"""``python -m nnunetv2_sam3d``: the command ``nnUNetv2_sam3d``."""

from nnunetv2_sam3d.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
