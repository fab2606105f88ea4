"""docker-compose.yml keeps its promises: a server with the model, on CPU or GPU, and JupyterLab.

compose-spec.schema.json is a copy of schema/compose-spec.json from
https://github.com/compose-spec/compose-spec (Apache License 2.0).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

ROOT = Path(__file__).parent.parent
SCHEMA = Path(__file__).with_name("compose-spec.schema.json")
SERVERS = {"cpu": "ollama", "gpu": "ollama-gpu"}
MODEL = "llama3.2:3b"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def started(compose: dict[str, Any], profile: str) -> dict[str, Any]:
    """The services that `docker compose --profile PROFILE up` starts."""
    return {
        name: service
        for name, service in compose["services"].items()
        if profile in service.get("profiles", [profile])
    }


def addresses(service: dict[str, Any]) -> set[str]:
    """The names that reach a service from the others, its own apart."""
    networks = service.get("networks", {})
    return {alias for network in networks.values() for alias in network.get("aliases", [])}


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """What is mounted in a service: place in the container -> volume or folder."""
    return {mount.split(":")[1]: mount.split(":")[0] for mount in service.get("volumes", [])}


def test_matches_the_compose_specification(compose: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft7Validator.check_schema(schema)
    errors = [
        f"{error.json_path}: {error.message}"
        for error in Draft7Validator(schema).iter_errors(compose)
    ]
    assert errors == []


def test_the_schema_refuses_a_misspelt_key(compose: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    broken = compose | {"services": {"ollama": {"image": "ollama/ollama", "port": []}}}
    assert not Draft7Validator(schema).is_valid(broken)


@pytest.mark.parametrize("profile", SERVERS)
def test_accepted_by_docker_compose(profile: str) -> None:
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed")
    command = [program, "--file", str(ROOT / "docker-compose.yml"), "--profile", profile]
    run = subprocess.run(
        [*command, "config", "--quiet"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr


def test_the_cpu_is_the_default() -> None:
    settings = (ROOT / ".env").read_text(encoding="utf-8").splitlines()
    assert "COMPOSE_PROFILES=cpu" in settings


@pytest.mark.parametrize(("profile", "server"), SERVERS.items())
def test_a_profile_starts_one_server_as_ollama(
    compose: dict[str, Any], profile: str, server: str
) -> None:
    services = started(compose, profile)
    assert [name for name in SERVERS.values() if name in services] == [server]
    assert "ollama" in {server} | addresses(services[server])
    assert "jupyter" in services
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == len(set(ports)), "two services want the same port"


@pytest.mark.parametrize("server", SERVERS.values())
def test_servers_are_pinned_and_keep_models_in_a_volume(
    compose: dict[str, Any], server: str
) -> None:
    service = compose["services"][server]
    image, _, tag = service["image"].partition(":")
    assert image == "ollama/ollama"
    assert tag not in ("", "latest")
    assert mounts(service)[service["environment"]["OLLAMA_MODELS"]] in compose["volumes"]


@pytest.mark.parametrize("server", SERVERS.values())
def test_servers_are_checked_for_health(compose: dict[str, Any], server: str) -> None:
    # Not curl: the image has none.
    assert compose["services"][server]["healthcheck"]["test"] == ["CMD", "ollama", "list"]


@pytest.mark.parametrize(("profile", "server"), SERVERS.items())
def test_the_model_is_pulled_once_the_server_is_healthy(
    compose: dict[str, Any], profile: str, server: str
) -> None:
    services = started(compose, profile).values()
    (pull,) = [service for service in services if service.get("command") == ["pull", MODEL]]
    assert pull["image"] == compose["services"][server]["image"]
    assert pull["environment"]["OLLAMA_HOST"] == "http://ollama:11434"
    assert pull["depends_on"] == {server: {"condition": "service_healthy"}}
    assert pull["restart"] == "on-failure", "it must end once the model is there"


def test_the_model_is_the_one_of_the_agent_file() -> None:
    agent = json.loads((ROOT / "data" / "config.llama.json").read_text(encoding="utf-8"))
    assert agent["client"]["provider"]["model"]["name"] == MODEL


def test_only_the_gpu_profile_asks_for_nvidia(compose: dict[str, Any]) -> None:
    asking = [name for name, service in compose["services"].items() if "deploy" in service]
    assert asking == ["ollama-gpu"]
    resources = compose["services"]["ollama-gpu"]["deploy"]["resources"]
    (device,) = resources["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]


def test_ports_are_open_to_this_machine_only(compose: dict[str, Any]) -> None:
    ports = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert any(ports.values())
    for name, published in ports.items():
        for port in published:
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"


def test_jupyter_reaches_the_server_and_keeps_the_store(compose: dict[str, Any]) -> None:
    jupyter = compose["services"]["jupyter"]
    assert jupyter["environment"]["OLLAMA_HOST"] == "http://ollama:11434"
    mounted = mounts(jupyter)
    assert mounted["/home/jovyan/notebooks"] == "./notebooks"
    assert mounted["/home/jovyan/.local/share/revkit"] == "store"  # the user's data directory
    assert "store" in compose["volumes"]


def test_no_token_is_written_down(compose: dict[str, Any]) -> None:
    written = json.dumps(compose) + (ROOT / "notebooks" / "Dockerfile").read_text(encoding="utf-8")
    assert "token" not in written.lower()
    assert "password" not in written.lower()


def test_the_image_copies_what_exists() -> None:
    lines = (ROOT / "notebooks" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    sources = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
