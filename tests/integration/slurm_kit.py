"""A real Slurm of one node on this machine, as root on Debian; for tests of job scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

INSTALL = "nnUNet_sam3d_test_install_slurm"  # a variable that lets the tests install Slurm with apt
PACKAGES = ("slurm-wlm", "munge", "slurmd", "slurmctld", "slurm-client")
PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged")
START_S = 60.0


def require_slurm() -> None:
    """Skips the test with the reason where Slurm cannot be run; installs it where that is asked for."""
    if os.geteuid():
        pytest.skip("starting a Slurm of one node needs root")
    missing = [name for name in PROGRAMS if not _program(name)]
    if not missing:
        return
    if not os.environ.get(INSTALL) or not shutil.which("apt-get"):
        pytest.skip(f"{', '.join(missing)} not installed; {INSTALL}=1 installs Slurm with apt where there is apt")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]):
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        if result.returncode:
            pytest.skip(f"{' '.join(command)} failed: {result.stderr.strip()[-300:]}")


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def one_node(folder: Path, cpus: int = 2) -> Iterator[dict[str, str]]:
    """Starts Slurm with everything of it in a folder; yields the variables that its commands need."""
    configuration = folder / "slurm.conf"
    for name in ("state", "spool", "run"):
        (folder / name).mkdir(parents=True)
    host = os.uname().nodename.split(".")[0]
    memory = next(int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemTotal")) // 1024 - 1024
    cores = min(cpus, os.cpu_count() or 1)
    configuration.write_text(f"""\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5,socket={folder}/run/munge.socket
CryptoType=crypto/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SwitchType=switch/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MinJobAge=3600
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
""")
    variables = {"SLURM_CONF": str(configuration)}
    environment = {**os.environ, **variables}
    commands = [
        [_program("munged"), "--foreground", *_munge_options(folder)],
        [_program("slurmctld"), "-D", "-f", str(configuration)],
        [_program("slurmd"), "-D", "-f", str(configuration), "-N", host],
    ]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for number, command in enumerate(commands):
            output = open(folder / f"daemon_{number}.log", "wb")
            daemons.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
            output.close()
            time.sleep(1)
        _wait_for_idle(environment, folder)
        yield variables
    finally:
        for daemon in reversed(daemons):  # slurmd first, it tells slurmctld
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=30)


def _munge_options(folder: Path) -> list[str]:
    """A munge of its own, with a key of its own, beside whatever the machine has."""
    key = folder / "run" / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    names = ("socket", "pid-file", "log-file", "seed-file")
    return [f"--key-file={key}", *(f"--{name}={folder}/run/munge.{name.split('-')[0]}" for name in names), "--force"]


def _wait_for_idle(environment: dict[str, str], folder: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        state = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True).stdout
        if "idle" in state:
            return
        time.sleep(0.5)
    logs = "\n".join(f"{log.name}: {log.read_text()[-800:]}" for log in sorted(folder.glob("*.log")))
    pytest.fail(f"Slurm did not come up in {START_S:.0f} s:\n{logs}")
