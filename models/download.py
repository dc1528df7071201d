"""Downloads the weights that pytorchcv publishes, into its own cache, verified by its own checksums.

pytorchcv's table (`model_store`) knows a file, a release and a sha1 for each network. Its downloader prints, retries
for long and needs `requests`; this one is quiet, has time limits, and never leaves half a file behind.

    GDFQ_EXPORT_CACHE        folder for the files (default ~/.torch/models, which pytorchcv uses too)
    GDFQ_EXPORT_WEIGHTS_URL  a mirror: RELEASE/FILE.pth.zip, FILE.pth.zip or FILE.pth is asked for under it
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import logging
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from gdfq_export.errors import WeightsError
from gdfq_export.models.table import ModelEntry

TIMEOUT_SECONDS = 20.0  # of silence, not of the whole download
CHUNK_BYTES = 1 << 18
NETWORK_ERRORS = (OSError, http.client.HTTPException, ValueError)  # ValueError: a mirror's address that is none

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """A file of pytorchcv's table."""

    file: str
    release: str
    sha1: str


def published_weights(architecture: str) -> Published | None:
    """What pytorchcv's table says about the weights of a network; None where it has none."""
    # importlib, because the name is private and has no type.
    table = importlib.import_module("pytorchcv.models.model_store")._model_sha1
    if architecture not in table:
        return None
    error, sha1, release = table[architecture][:3]
    return Published(file=f"{architecture}-{error}-{sha1[:8]}.pth", release=release, sha1=sha1)


def download_weights(entry: ModelEntry) -> Path:
    """The verified file with the published weights of `entry`, downloaded unless it is in the cache."""
    published = published_weights(entry.architecture)
    if published is None:
        raise WeightsError(
            f"pytorchcv has no trained weights for {entry.name}: pass yours with --weights FILE, "
            "or take random ones with --no-pretrained"
        )
    cache = Path(os.environ.get("GDFQ_EXPORT_CACHE") or Path.home() / ".torch" / "models")
    target = cache / published.file
    if target.is_file():
        if _sha1(target) == published.sha1:
            return target
        logger.warning("%s does not match its checksum: downloading it again", target)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=cache, prefix=".download-")
    except OSError as error:
        raise WeightsError(
            f"cannot write the weights of {entry.name} to {cache} ({error.strerror or error}): "
            "set GDFQ_EXPORT_CACHE to another folder"
        ) from error
    with folder as name:
        fetched = _fetch_any(entry.name, published, Path(name))
        plain = _unzipped(entry.name, fetched, published)
        if _sha1(plain) != published.sha1:
            target.unlink(missing_ok=True)
            raise WeightsError(
                f"the downloaded weights of {entry.name} ({published.file}) do not match their checksum and were "
                "removed: try again, or pass a file with --weights FILE"
            )
        plain.replace(target)
    return target


def _fetch_any(name: str, published: Published, folder: Path) -> Path:
    """Tries each address until one answers."""
    addresses = _addresses(published)
    for number, address in enumerate(addresses):
        path = folder / address.rsplit("/", 1)[-1]
        try:
            _fetch(address, path)
            return path
        except NETWORK_ERRORS as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 404 and number + 1 < len(addresses):
                continue
            reason = getattr(error, "reason", None) or error
            raise WeightsError(
                f"cannot download the weights of {name} from {address} ({reason or type(error).__name__}): "
                "connect to the network once, or pass them with --weights FILE"
            ) from error
    raise AssertionError("there is always an address")


def _addresses(published: Published) -> list[str]:
    mirror = os.environ.get("GDFQ_EXPORT_WEIGHTS_URL", "").rstrip("/")
    if mirror:
        zipped = f"{published.file}.zip"
        return [f"{mirror}/{published.release}/{zipped}", f"{mirror}/{zipped}", f"{mirror}/{published.file}"]
    home = importlib.import_module("pytorchcv.models.model_store").imgclsmob_repo_url
    return [f"{home}/releases/download/{published.release}/{published.file}.zip"]


def _fetch(address: str, path: Path) -> None:
    """Writes what `address` answers to `path`, with a progress bar where somebody is watching."""
    from rich.console import Console
    from rich.progress import Progress

    logger.info("downloading %s", address)
    console = Console(stderr=True)
    with (
        urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as answer,
        path.open("wb") as file,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        length = answer.headers.get("Content-Length")
        expected = int(length) if length and length.isdigit() else None
        task = progress.add_task(path.name, total=expected)
        received = 0
        while chunk := answer.read(CHUNK_BYTES):
            file.write(chunk)
            received += len(chunk)
            progress.update(task, completed=received)
    if expected is not None and received != expected:
        raise OSError(f"the connection ended after {received} of {expected} bytes")


def _unzipped(name: str, path: Path, published: Published) -> Path:
    """The torch file inside the published zip; a mirror may serve it plain."""
    if path.suffix != ".zip":
        return path
    plain = path.with_suffix("")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(published.file) as member, plain.open("wb") as file:
            shutil.copyfileobj(member, file)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise WeightsError(
            f"the download for {name} is no zip with {published.file} in it, and was removed: "
            "try again, or pass a file with --weights FILE"
        ) from error
    return plain


def _sha1(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()
