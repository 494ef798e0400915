"""Runs steps: in dependency order, one on each device at a time, with one display, until all are finished."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from filelock import FileLock, Timeout

from nnunetv2_sam3d.children import Child
from nnunetv2_sam3d.experiment.devices import Device, share_of_cores
from nnunetv2_sam3d.experiment.progress import Progress
from nnunetv2_sam3d.experiment.steps import Step, StepCosts

POLL_S = 0.1
PATIENCE_S = 8.0  # that a command has to end in when it is asked to
SHOWN_FAILURES = 3


def run_steps(steps: Sequence[Step], environment: Mapping[str, str], devices: Sequence[Device]) -> None:
    """Runs what is missing.

    A step that fails takes the steps after it with it; the others are still run.

    Args:
        steps: in any order.
        environment: of the commands.
        devices: as many steps run at the same time.

    Raises:
        RuntimeError: if commands fail or leave no result; names the logs and shows their last lines.
    """
    waiting = list(steps)
    failures: list[str] = []
    running: dict[int, _Running] = {}
    seen: set[Step] = set()
    with Progress(len(steps), len(devices)) as progress:

        def drop(step: Step, outcome: str, slot: int | None = None) -> None:
            """Ends a step without result, and what comes after it."""
            progress.end(slot, step.label, outcome)
            for follower in [other for other in waiting if step in other.after]:
                if follower in waiting:
                    waiting.remove(follower)
                    drop(follower, f"not run, since {step.label} has no result")

        try:
            while waiting or running:
                busy = {*waiting, *(job.step for job in running.values())}
                ready = [step for step in waiting if not busy.intersection(step.after)]
                looked_at = [step for step in ready if step not in seen]
                seen.update(looked_at)
                if before := [step for step in looked_at if step.finished]:
                    for step in before:
                        waiting.remove(step)
                        progress.end(None, step.label, "finished before")
                    continue
                free = [slot for slot in range(len(devices)) if slot not in running]
                at_once = len(running) + min(len(free), len(ready))
                for slot, step in zip(free, ready, strict=False):
                    waiting.remove(step)
                    try:
                        running[slot] = _Running(step, devices[slot], share_of_cores(environment, at_once))
                    except (OSError, Timeout) as error:
                        failures.append(f"{step.label}: {_reason(step, error)}")
                        drop(step, "could not be started")
                        continue
                    progress.start(slot, step.label, step.epochs)
                    for file in running[slot].set_aside:
                        progress.say(f"{step.label}: a damaged checkpoint was renamed to {file}")
                for slot, job in list(running.items()):
                    progress.epoch(slot, job.epoch())
                    if (status := job.poll()) is None:
                        continue
                    del running[slot]
                    if status or not job.step.finished:
                        failures.append(job.failure(status))
                        drop(job.step, "FAILED", slot)
                    else:
                        progress.end(slot, job.step.label, "finished")
                progress.refresh()
                if running:
                    time.sleep(POLL_S)
        finally:  # Ctrl-C: the commands and their workers go too
            for job in running.values():
                job.ask_to_end()
            for job in running.values():
                job.end()
    if failures:
        more = f"\nand {len(failures) - SHOWN_FAILURES} more" if len(failures) > SHOWN_FAILURES else ""
        raise RuntimeError(
            "\n".join(failures[:SHOWN_FAILURES])
            + f"{more}\nFinished steps are kept; run the same command again to go on."
        )


def _reason(step: Step, error: Exception) -> str:
    if isinstance(error, Timeout):
        return f"another process is at it; {step.log} is its log. Wait for it, or stop it first."
    return f"{shlex.join(step.command)} could not be started: {error}"


class _Running:
    """A command that runs on a device, its output in the log."""

    def __init__(self, step: Step, device: Device, environment: Mapping[str, str]) -> None:
        self.step = step
        step.log.parent.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(step.log.with_suffix(".lock"))
        self.lock.acquire(timeout=0)
        self.began = time.monotonic()
        self.status: int | None = None
        self.last_epoch = 0
        self.set_aside = step.set_damaged_checkpoints_aside()
        self.command = [*step.arguments(), *(device.arguments if step.on_device else ())]
        with open(step.log, "a", encoding="utf-8", errors="replace") as output:
            output.write(f"\n$ {shlex.join(self.command)}\n")
            output.flush()
            self.offset = output.tell()
            try:
                self.child = Child(
                    self.command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=device.environment(environment) if step.on_device else dict(environment),
                )
            except BaseException:
                self.lock.release()
                raise

    def epoch(self) -> int:
        """The newest epoch number that nnU-Net has written since the step began."""
        if self.step.epochs:
            with open(self.step.log, "rb") as file:
                file.seek(self.offset)
                lines = file.read()
            whole = lines[: lines.rfind(b"\n") + 1]
            self.offset += len(whole)
            if epochs := re.findall(rb"Epoch (\d+)", whole):
                self.last_epoch = int(epochs[-1])
            if b"Training done." in whole:  # what follows is the validation
                self.last_epoch = self.step.epochs
        return self.last_epoch

    def poll(self) -> int | None:
        """The exit status once the command has ended; its time and memory are then in the record."""
        if self.status is None:
            pid, status, usage = os.wait4(self.child.process.pid, os.WNOHANG)
            if not pid:
                return None
            self.status = self.child.process.returncode = os.waitstatus_to_exitcode(status)
            kilobyte = 1 if sys.platform == "darwin" else 1024
            seconds = time.monotonic() - self.began
            StepCosts(self.step.folder).add(self.step.title, seconds, usage.ru_maxrss * kilobyte)
            self.child.close()
            self.lock.release()
        return self.status

    def ask_to_end(self) -> None:
        """Ctrl-C for the command and its workers."""
        self.child.send(signal.SIGTERM)

    def end(self) -> None:
        """Waits for the command to end, and makes it."""
        deadline = time.monotonic() + PATIENCE_S
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.child.send(signal.SIGKILL)
            time.sleep(0.05)

    def failure(self, status: int) -> str:
        """What went wrong, where the log is, and its end."""
        missing = [str(result) for result in self.step.results if not result.exists()] or ["new results"]
        reason = f"ended with status {status}" if status else f"left no {missing[0]}"
        tail = "\n".join(f"  | {line}" for line in self.step.log.read_text(errors="replace").splitlines()[-12:])
        return (
            f"{self.step.label}: {shlex.join(self.command)} {reason}. Its output is in {self.step.log}, "
            f"the end of it:\n{tail}"
        )
