#!/bin/bash
set -euo pipefail
cd '/results/Dataset220_KiTS/the scripts'
submitted=()
trap '[ $? -eq 0 ] || [ ${#submitted[@]} -eq 0 ] || scancel "${submitted[@]}"' EXIT
submit() { number=$(sbatch --parsable "$@"); number=${number%%;*}; submitted+=("$number"); }

submit Dataset220_KiTS__Original.sbatch
job0=$number
echo "$job0" Dataset220_KiTS__Original
submit --kill-on-invalid-dep=yes --dependency=aftercorr:$job0 Dataset220_KiTS__DualPath.sbatch
job1=$number
echo "$job1" Dataset220_KiTS__DualPath
submit --kill-on-invalid-dep=yes --dependency=afterok:$job0:$job1 Dataset220_KiTS__accumulate.sbatch
job2=$number
echo "$job2" Dataset220_KiTS__accumulate
