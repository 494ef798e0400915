"""SAM's published weights into the cache: from the internet, a mirror or a local file, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
from filelock import FileLock, Timeout
from tqdm import tqdm

from nnunetv2_sam3d.files import sha256
from nnunetv2_sam3d.weights.files import WeightsError

ENVIRONMENT = "nnUNet_sam_checkpoint"
MIRROR = "nnUNet_sam_mirror"
ORIGIN = "https://dl.fbaipublicfiles.com/segment_anything/"


@dataclass(frozen=True)
class Published:
    """A file that SAM's authors published.

    Attributes:
        name: its name; the digits are the beginning of its MD5.
        size: in bytes.
        sha256: of its content.
    """

    name: str
    size: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} ({self.size:,} bytes, SHA-256 {self.sha256})"


# SAM's authors give only the names. Sizes and SHA-256 are those that projects which check their downloads agree on.
SAM_FILES = {
    "vit_b": Published(
        "sam_vit_b_01ec64.pth", 375_042_383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
    ),
    "vit_l": Published(
        "sam_vit_l_0b3195.pth", 1_249_524_607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
    ),
    "vit_h": Published(
        "sam_vit_h_4b8939.pth", 2_564_550_879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
    ),
}


def cache_folder() -> Path:
    """Folder in which published weights are kept: ``$XDG_CACHE_HOME/nnunetv2_sam3d``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nnunetv2_sam3d"


def find_sam_checkpoint(variant: str, setting: str | None) -> Path | None:
    """SAM's weights for a variant: the plans' setting, the variable ``nnUNet_sam_checkpoint``, the cache.

    Returns:
        the file, or ``None`` if none is given and none is in the cache.

    Raises:
        WeightsError: if the setting or the variable names a file that does not exist.
    """
    for origin, value in (
        ("the plans (sam_checkpoint)", setting),
        (f"the variable {ENVIRONMENT}", os.environ.get(ENVIRONMENT)),
    ):
        if value:
            path = Path(value).expanduser()
            if not path.is_file():
                raise WeightsError(
                    f"{origin} names {path} as SAM's weights, but there is no such file. Correct it, or "
                    f"put the published file there."
                )
            return path
    cached = cache_folder() / SAM_FILES[variant].name if variant in SAM_FILES else None
    return cached if cached is not None and cached.is_file() else None


BLOCK = 1 << 16  # bytes that are read at once; of a broken transfer, less than that is lost
CONNECT_S = 10  # how long a connection may take; machines without one should say so soon
ATTEMPTS = 4  # transfers in a row that give less than PROGRESS
PROGRESS = 1 << 20  # bytes


# Statuses that a later attempt may not meet.
PASSING = frozenset({408, 429, 500, 502, 503, 504})
Log = Callable[[str], None]


class _BrokenOff(Exception):
    """A transfer that may go on where it stopped."""


# No answer, or half of one; the library's other errors are about the address.
PASSING_ERRORS = (_BrokenOff, requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


def fetch(
    variant: str,
    *,
    url: str | None = None,
    source: str | os.PathLike[str] | None = None,
    log: Log = lambda line: None,
    timeout_s: float = 30,
    pause_s: float = 1,
) -> Path:
    """SAM's published checkpoint of a variant, in the cache where the trainers look for it.

    A file that is there and whole is not transferred again. The next transfer goes on with what a broken one left;
    nothing has the final name before its size and SHA-256 are right. Processes that fetch the same file wait for each
    other.

    Args:
        variant: ``vit_b``, ``vit_l`` or ``vit_h``.
        url: of the file, or of a folder that holds it under its published name if it ends in ``/``; by default the
            variable ``nnUNet_sam_mirror``, then the authors' server.
        source: a local file to take instead of a transfer.
        log: gets a line about each step.
        timeout_s: how long the server may be silent.
        pause_s: wait before the second attempt; it doubles with every further one.

    Returns:
        the file.

    Raises:
        WeightsError: if the file cannot be had, or what came is another one; the message says what to put where.
        OSError: if it cannot be written.
    """
    if variant not in SAM_FILES:
        raise WeightsError(f"no SAM weights are published for {variant!r}, only for {', '.join(SAM_FILES)}")
    published = SAM_FILES[variant]
    target = cache_folder() / published.name
    address = url or os.environ.get(MIRROR) or ORIGIN
    address += published.name if address.endswith("/") else ""
    partial = target.with_name(f".{target.name}.partial")
    with contextlib.ExitStack() as held:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            held.callback(_lock(target, log).release)
            if target.is_file():
                fault = check(target, published)
                if fault is None:
                    log(f"{target} is there and whole (SHA-256 {published.sha256})")
                    return target
                log(f"{target} {fault}; it is replaced")
            if source is not None:
                _copy(Path(source), partial, published)
            else:
                _download(address, partial, published, log, timeout_s, pause_s)
            os.replace(partial, target)
        except OSError as error:
            raise OSError(
                f"{target} could not be written: {error}. {published.size:,} bytes are needed. Free disk space, check "
                f"the permissions of {target.parent}, or choose another place with XDG_CACHE_HOME; then run the "
                f"command again, a transfer goes on where it stopped."
            ) from error
    log(f"{target}: {published.size:,} bytes, SHA-256 {published.sha256} as published")
    return target


def check(path: Path, published: Published) -> str | None:
    """What is wrong with a copy of a published file: a phrase, or ``None`` for nothing."""
    if (size := path.stat().st_size) != published.size:
        return f"has {size:,} bytes instead of {published.size:,}"
    digest = sha256(path)
    return None if digest == published.sha256 else f"has SHA-256 {digest} instead of {published.sha256}"


def _lock(target: Path, log: Log) -> FileLock:
    """Held while this process works on the file; the system frees it when the process ends in whatever way."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log(f"another process is fetching {target.name}; waiting for it")
        lock.acquire()
    return lock


def _copy(source: Path, partial: Path, published: Published) -> None:
    if not source.is_file():
        raise WeightsError(f"there is no file {source} to take {published.name} from")
    if fault := check(source, published):
        raise WeightsError(
            f"{source} is not the published {published.name}: it {fault}. To train with another file, name it: "
            f"export nnUNet_sam_checkpoint={source.absolute()}"
        )
    try:
        shutil.copyfile(source, partial)
        _flush(partial)
        if fault := check(partial, published):
            raise WeightsError(f"the copy of {source} {fault}: the disk is damaged, or the file changed meanwhile")
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _download(address: str, partial: Path, published: Published, log: Log, timeout_s: float, pause_s: float) -> None:
    """The published file under the partial name; goes on with what is there.

    The SHA-256 is the validator of a resumed transfer: bytes of another version or another mirror show in it, and are
    then thrown away and fetched once more from the beginning.
    """
    failures, restarted = 0, False
    pieces = bool(_size(partial))  # whether what is there came in more than one transfer
    log(f"fetching {address}" + (f", going on after {_size(partial):,} bytes" if pieces else ""))
    while True:
        before = _size(partial)
        try:
            _transfer(address, partial, published, timeout_s)
        except (_BrokenOff, requests.RequestException) as error:
            failures = failures + 1 if _size(partial) < before + PROGRESS else 1
            if failures == ATTEMPTS or not isinstance(error, PASSING_ERRORS):
                raise WeightsError(
                    f"{address} cannot be fetched: {_reason(error)}. {by_hand(published, _size(partial))}"
                ) from error
            log(f"{_reason(error)}; trying again")
            time.sleep(pause_s * 2 ** (failures - 1))
            pieces = True
            continue
        fault = check(partial, published)
        if fault is None:
            return
        partial.unlink()
        if restarted or not pieces:
            raise WeightsError(
                f"{address} gave another file than the published {published.name}: it {fault}. Nothing was kept. "
                f"{by_hand(published)}"
            )
        log("the pieces of several transfers do not fit together; starting again from the beginning")
        restarted = True


def _transfer(address: str, partial: Path, published: Published, timeout_s: float) -> None:
    """One request; appends to the partial file until it has the published size.

    Raises:
        _BrokenOff: if less came.
        WeightsError: if the server has another file, or none.
    """
    have = _size(partial)
    if have > published.size:
        partial.unlink()
        have = 0
    if have == published.size:
        return
    free = shutil.disk_usage(partial.parent).free
    if free < published.size - have:
        raise OSError(f"{free:,} bytes are free on the disk, {published.size - have:,} more are to come")
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    timeouts = (min(CONNECT_S, timeout_s), timeout_s)
    with requests.get(address, headers=headers, stream=True, timeout=timeouts) as response:
        if response.status_code in PASSING:
            raise _BrokenOff(f"the server answers {response.status_code} {response.reason}")
        if response.status_code not in (200, 206):
            raise WeightsError(
                f"{address} cannot be fetched: the server answers {response.status_code} {response.reason}. "
                f"{by_hand(published, have)}"
            )
        resumed = response.status_code == 206
        try:
            total = _announced(response, resumed, have)
        except ValueError as error:
            partial.unlink(missing_ok=True)  # the next attempt asks for everything
            raise _BrokenOff(str(error)) from error
        if total is not None and total != published.size:
            raise WeightsError(
                f"{address} has another file than the published {published.name}: {total:,} bytes instead of "
                f"{published.size:,}" + (f" ({kind})" if (kind := response.headers.get("Content-Type")) else "") + ". "
                f"{by_hand(published, have)}"
            )
        have = have if resumed else 0
        with (
            open(partial, "ab" if resumed else "wb") as file,
            tqdm(
                total=published.size, initial=have, unit="B", unit_scale=True, desc=published.name, disable=None
            ) as bar,
        ):
            for block in response.iter_content(BLOCK):
                file.write(block)
                have += len(block)
                bar.update(len(block))
                if have > published.size:
                    break
            file.flush()
            os.fsync(file.fileno())
    if have < published.size:
        raise _BrokenOff(f"the transfer broke off after {have:,} of {published.size:,} bytes")


def _announced(response: requests.Response, resumed: bool, have: int) -> int | None:
    """The size of the whole file by the server's words; ``None`` if it sends without saying.

    Raises:
        ValueError: if a range begins elsewhere than asked, so that it cannot be put behind what is there.
    """
    if not resumed:
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else None
    said = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", said)
    if not found or int(found[1]) != have:
        raise ValueError(f"asked for the bytes from {have:,} on, the server sends {said or 'an unknown range'!r}")
    return None if found[2] == "*" else int(found[2])


def _reason(error: Exception) -> str:
    """An error of the transfer for people; the libraries' own texts are nested representations."""
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "the server is silent"
    if isinstance(error, requests.exceptions.SSLError):
        return f"the server's certificate is not accepted ({error})"
    if isinstance(error, requests.exceptions.ProxyError):
        return f"the proxy does not answer ({error})"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the transfer broke off"
    if isinstance(error, requests.exceptions.MissingSchema | requests.exceptions.InvalidSchema):
        return "that is no web address; it begins with https:// or http://"
    if isinstance(error, requests.ConnectionError):
        return f"there is no connection to {urlsplit(str(error.request.url)).netloc if error.request else 'the server'}"
    return str(error)


def by_hand(published: Published, kept: int = 0) -> str:
    """How to get the file without a connection."""
    going_on = f"{kept:,} bytes are kept, the next fetch goes on with them. " if kept else ""
    variant = next(name for name, file in SAM_FILES.items() if file == published)
    return (
        f"{going_on}The file can also be got by other means, or on another machine: {published} from "
        f"{ORIGIN}{published.name}. Then put it at {cache_folder() / published.name} or run\n"
        f"    nnUNetv2_sam3d weights fetch {variant} --from /path/to/{published.name}\n"
        f"A mirror is named with --url or the variable {MIRROR}: https://..., with a slash at its end for a folder."
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
