"""The text of Slurm's scripts, compared with golden files; tests/integration runs such scripts on a real Slurm.

`UPDATE_GOLDEN=1 pytest tests/unit/experiment/test_slurm.py` writes the files anew.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_sam3d.experiment.slurm_jobs import write_scripts
from nnunetv2_sam3d.experiment.slurm_scripts import (
    SlurmJob,
    check_template,
    options_in,
    parse_options,
    script,
    script_name,
    submission,
)

GOLDEN = Path(__file__).parent / "slurm_scripts"
COMMAND = ("/opt/env/bin/nnUNetv2_sam3d", "crossval", "-d", "Dataset220_KiTS", "--trainers")
TEMPLATE = """\
#!/bin/bash
#SBATCH --account=radiology
#SBATCH --gres=gpu:a100:1
module load cuda/12.4
source "/opt/my env/bin/activate"
"""
FIRST = SlurmJob(
    name="Dataset220_KiTS__Original",
    command=(*COMMAND, "Original", "--devices", "cuda", "--no-accumulate"),
    logs="/results/Dataset220_KiTS/my logs",
    folds=(0, 1, 2, 3, 4),
    options={"gres": "gpu:1", "cpus-per-task": "12", "mem": "64G", "time": "24:00:00", "exclusive": ""},
    environment={"nnUNet_results": "/results", "nnUNet_raw": "/raw data's"},
    max_tasks=2,
)
SECOND = SlurmJob(
    name="Dataset220_KiTS__DualPath",
    command=(*COMMAND, "DualPath", "--devices", "cuda", "--no-accumulate"),
    logs="/results/logs",
    folds=(1, 3),
    after=(FIRST.name,),
    template=TEMPLATE,
)
LAST = SlurmJob(
    name="Dataset220_KiTS__accumulate",
    command=(*COMMAND, "Original", "DualPath", "--devices", "cpu", "--folds", "0", "1", "2", "3", "4"),
    logs="/results/logs",
    after=(FIRST.name, SECOND.name),
)
TEXTS = {script_name(job): script(job) for job in (FIRST, SECOND, LAST)} | {
    "submit.sh": submission((FIRST, SECOND, LAST), "/results/Dataset220_KiTS/the scripts")
}


@pytest.mark.parametrize("name", TEXTS)
def test_golden_files(name: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(TEXTS[name])
    assert TEXTS[name] == (GOLDEN / name).read_text()


@pytest.mark.parametrize("name", TEXTS)
def test_bash_reads_them(name: str) -> None:
    subprocess.run(["bash", "-n"], input=TEXTS[name], text=True, check=True)


FAKE_SBATCH = """#!/bin/bash
echo "sbatch $*" >> {log}
[[ "$*" == *accumulate* && -n "${{FAIL:-}}" ]] && exit 1
echo "$(wc -l < {log});cluster"
"""


@pytest.mark.parametrize("fails", [False, True])
def test_submission_passes_job_numbers_on(fails: bool, tmp_path: Path) -> None:
    """With programs in sbatch's place: this test sees what would be submitted, also when Slurm refuses the last job."""
    log = tmp_path / "log"
    (tmp_path / "sbatch").write_text(FAKE_SBATCH.format(log=log))
    (tmp_path / "scancel").write_text(f'#!/bin/bash\necho "scancel $*" >> {log}\n')
    for name in ("sbatch", "scancel"):
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **({"FAIL": "1"} if fails else {})}
    text = submission((FIRST, SECOND, LAST), str(tmp_path))
    done = subprocess.run(["bash"], input=text, text=True, env=environment, capture_output=True)
    lines = log.read_text().splitlines()
    assert lines[:3] == [
        f"sbatch --parsable {FIRST.name}.sbatch",
        f"sbatch --parsable --kill-on-invalid-dep=yes --dependency=aftercorr:1 {SECOND.name}.sbatch",
        f"sbatch --parsable --kill-on-invalid-dep=yes --dependency=afterok:1:2 {LAST.name}.sbatch",
    ]
    assert lines[3:] == (["scancel 1 2"] if fails else [])
    assert (done.returncode != 0) is fails


def test_options() -> None:
    assert parse_options(["partition=gpu", "--mem=64G", "exclusive"]) == {
        "partition": "gpu", "mem": "64G", "exclusive": "",
    }  # fmt: skip
    for wrong in ("array=0-9", "dependency=afterok:1", "time 3", "mem=1G\n#SBATCH --uid=0", "-p=gpu"):
        with pytest.raises(ValueError):
            parse_options([wrong])


@pytest.mark.parametrize(
    "name", ["$(touch ran)", "`touch ran`", '"; touch ran; "', "'; touch ran; '", "a b", "\\", "$ran"]
)
def test_names_do_not_run(name: str, tmp_path: Path) -> None:
    """Of a data set and of plans, which are names of folders and files."""
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text('#!/bin/sh\necho "$@" >> sbatch_was_told\necho 1\n')
    sbatch.chmod(0o755)
    job = SlurmJob(
        f"Dataset001_{name}__Full", ("true", name), str(tmp_path / name), folds=(0,), options={"comment": name}
    )
    submit = write_scripts([job, replace(job, name="last", after=(job.name,))], tmp_path / "scripts" / name)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(submit)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"1 {job.name}", "1 last"]
    body = (submit.parent / script_name(job)).read_text()
    done = subprocess.run(["bash", "-c", body.replace("trap", ": trap")], cwd=tmp_path, capture_output=True, text=True)
    assert not list(tmp_path.rglob("ran"))
    for line in body.splitlines():  # as sbatch reads them
        if line.startswith("#SBATCH"):
            assert len(shlex.split(line, comments=False)) == 2, line


@pytest.mark.parametrize("place", ["name", "logs", "options"])
def test_line_ends_are_refused(place: str) -> None:
    value: Any = {"comment": "a\nrm"} if place == "options" else "a\nrm"
    with pytest.raises(ValueError, match="line end"):
        script(replace(FIRST, **{place: value}))


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("#SBATCH --array=0-99", "array"),
        ("#SBATCH --mem=4G --output /tmp/x", "output"),
        ("#SBATCH -J mine", "job-name"),
        ("#SBATCH -omine.log", "output"),
        ("#SBATCH\t-a 1", "array"),
        ("#SBATCH --signal=KILL", "signal"),
    ],
)
def test_templates_that_replace_what_the_scripts_set(line: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"^line 2, .*: the scripts set --{option} themselves"):
        check_template(f"module load cuda\n{line}\n")


def test_templates_that_are_fine() -> None:
    check_template(TEMPLATE)
    check_template("#SBATCH --comment=my-array # --array=1\n#SBATCH -p gpu -A x --mail-user=a-o@b.c\n# --array\n")
    with pytest.raises(ValueError, match="^line 1 holds a zero byte"):
        check_template("\0ELF")


def test_short_options_of_a_template() -> None:
    """They count like the long ones."""
    assert options_in("#SBATCH -c 12 -G 1 -p gpu\n#SBATCH --mem=4G # -J x\necho --gres\n") == {
        "cpus-per-task", "gpus", "mem",
    }  # fmt: skip
