#!/usr/bin/env bash
# Installs the package and runs its main job on generated CTs. Options are those of "nnUNetv2_sam3d demo".
. "$(dirname "$0")/install.sh"
exec "$venv/bin/nnUNetv2_sam3d" demo "$@"
