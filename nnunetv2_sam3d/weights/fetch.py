"""SAM's and MedSAM's published weights: from the Hugging Face Hub or a local file into the cache, whole or not."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.files import sha256, write_whole
from nnunetv2_sam3d.network_architecture.config import variant_of
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.reading import read_weights
from nnunetv2_sam3d.weights.sources import ENVIRONMENT, FILES, HUB, NAMED, cache_folder, cached, command
from nnunetv2_sam3d.weights.state_dict import encoder_sizes

Log = Callable[[str], None]


def fetch(name: str, *, source: str | os.PathLike[str] | None = None, log: Log = lambda line: None) -> Path:
    """Published weights in the cache where the trainers look for them.

    The hub's library transfers. It takes a transfer that breaks off up again, and knows mirrors (``HF_ENDPOINT``).
    A command that was killed begins again. What came is checked against the SHA-256 that the hub has announced, and
    has to be an encoder of SAM of the right size. A file that is there and whole is not transferred again.

    Args:
        name: in :data:`NAMED`.
        source: a local file to take instead of a transfer.
        log: gets a line about each step.

    Returns:
        the file.

    Raises:
        WeightsError: if the file cannot be had or is another one; the message says what to do.
        OSError: if it cannot be written.
    """
    if name not in NAMED:
        raise WeightsError(f"no weights are published as {name!r}, only {', '.join(NAMED)}")
    there = cached(name)
    if there is not None:
        digest, noted = sha256(there), _note(there)
        if digest == (_first_word(noted) if noted.is_file() else NAMED[name].sha256):
            log(f"{there} is there and whole (SHA-256 {digest})")
            return there
        log(f"{there} has changed since it was fetched; it is fetched again")
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = _copied(name, Path(source), folder) if source is not None else _transferred(name, folder, log)
        digest = sha256(target)
        write_whole(_note(target), lambda file: file.write(f"{digest}  {target.name}\n".encode()))
    except OSError as error:
        raise OSError(
            f"{folder} could not be written: {error}. Free disk space, check its permissions, or choose another place "
            f"with XDG_CACHE_HOME; then run the command again."
        ) from error
    known = " as SAM's authors published it" if digest == NAMED[name].sha256 else ""
    log(f"{target}: {target.stat().st_size:,} bytes, SHA-256 {digest}{known}")
    return target


def _note(file: Path) -> Path:
    """Holds a fetched file's SHA-256 in the form of ``sha256sum``."""
    return file.with_name(file.name + ".sha256")


def _first_word(file: Path) -> str:
    return (file.read_text("utf-8", errors="replace").split() or [""])[0]


def _transferred(name: str, folder: Path, log: Log) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    endpoint, repository = os.environ.get(HUB) or None, NAMED[name].repository
    for file in FILES:
        try:
            announced = get_hf_file_metadata(hf_hub_url(repository, file, endpoint=endpoint), timeout=10)
            log(f"fetching {file} of {repository} from {endpoint or 'the hub'}")
            _check_space(announced.size, folder)
            path = Path(
                hf_hub_download(
                    repository,
                    file,
                    local_dir=folder,
                    endpoint=endpoint,
                    force_download=(folder / file).is_file(),  # one that has changed
                )
            )
        except EntryNotFoundError:
            continue
        except OSError as error:
            if error.errno is not None:  # the disk; what the hub raises has no number
                raise
            raise WeightsError(_unavailable(name, error)) from error
        except Exception as error:  # the library's versions raise their HTTP library's errors, too
            raise WeightsError(_unavailable(name, error)) from error
        try:
            _check_announced(path, announced.etag)
            _check_content(path, name)
        except WeightsError as error:
            path.unlink()
            shutil.rmtree(folder / ".cache", ignore_errors=True)
            raise WeightsError(f"{repository} gave another file: {error} Nothing was kept. {_by_hand(name)}") from error
        return path
    raise WeightsError(_unavailable(name, f"it has none of {', '.join(FILES)}"))


def _check_space(size: int | None, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size is not None and free < size:
        raise OSError(28, f"{free:,} bytes are free on the disk, {size:,} are to come")


def _check_announced(path: Path, etag: str | None) -> None:
    if etag is not None and re.fullmatch(r"[0-9a-f]{64}", etag) and (digest := sha256(path)) != etag:
        raise WeightsError(f"its SHA-256 is {digest} instead of {etag}, which was announced.")


def _check_content(path: Path, name: str) -> None:
    weights = read_weights(path)
    variant = variant_of(encoder_sizes(weights.state)) if weights.kind == "sam" else None
    if variant != NAMED[name].variant:
        raise WeightsError(f"it is no encoder of SAM of size {NAMED[name].variant} but {weights.describe()}.")


def _copied(name: str, source: Path, folder: Path) -> Path:
    if not source.is_file():
        raise WeightsError(f"there is no file {source} to take the weights from")
    published = NAMED[name]
    if source.name == published.official and (digest := sha256(source)) != published.sha256:
        raise WeightsError(f"{source} is damaged: it has SHA-256 {digest} instead of {published.sha256}")
    try:
        _check_content(source, name)
    except WeightsError as error:
        raise WeightsError(
            f"{source} is not {name}: {error} To train with another file, name it: export "
            f"{ENVIRONMENT}={source.absolute()}"
        ) from error
    target = folder / (source.name if source.name in FILES else "weights.pth")
    with open(source, "rb") as content:
        write_whole(target, lambda file: shutil.copyfileobj(content, file, 1 << 20))
    if sha256(target) != sha256(source):
        target.unlink()
        raise WeightsError(f"the copy of {source} differs: the disk is damaged, or the file changed meanwhile")
    return target


def _unavailable(name: str, error: Any) -> str:
    where = os.environ.get(HUB) or "the Hugging Face Hub"
    reason = " ".join(str(error).split()).rstrip(".")
    return f"{NAMED[name].repository} cannot be fetched from {where}: {reason}. {_by_hand(name)}"


def _by_hand(name: str) -> str:
    """How to get the file without a connection."""
    published = NAMED[name]
    also = f" (or SAM's own {published.official})" if published.official else ""
    return (
        f"Run the command again, or get the file on another machine: "
        f"https://huggingface.co/{published.repository}/resolve/main/{FILES[0]}{also}. Then run\n"
        f"    {command(name)} --from /path/to/{FILES[0]}\n"
        f"A mirror of the hub is named with the variable {HUB}: https://..."
    )
