"""What stands in deploy/ is valid, means what it says, and lets nobody in."""

from __future__ import annotations

import importlib.util
import json
import shlex
import ssl
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed  # noqa: F401 - brings the defaults of its configuration
import jsonschema
import kubernetes_validate
import pytest
import yaml
import zarr

from cryosam_dask.executors.cluster_file import read_cluster_file
from cryosam_dask.executors.security import security_from

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))}
OPERATORS = {name: obj for name, obj in KUBERNETES.items() if obj["apiVersion"].startswith("kubernetes.dask.org/")}
COMPOSE = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())
SCRIPTS = sorted(DEPLOY.rglob("*.sh"))
SECRET_WORDS = ("SECRET", "TOKEN", "PASSWORD", "ACCESS_KEY")


def operator_schema(kind: str) -> dict[str, Any]:
    """The operator's own schema of a kind of object, which ships with dask-kubernetes."""
    spec = importlib.util.find_spec("dask_kubernetes")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "operator/deployment/helm/dask-kubernetes-operator/crds"
    definition = yaml.safe_load((folder / f"{kind.lower()}.yaml").read_text())
    (version,) = definition["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    common: dict[str, Any] = {"apiVersion": {}, "kind": {}, "metadata": {}}
    return strict(schema | {"properties": schema["properties"] | common})


def strict(schema: Any) -> Any:
    """Refuse unknown keys: a cluster would drop them without a word."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that the manifests describe."""
    for name, obj in KUBERNETES.items():
        spec = obj.get("spec", {})
        for part in ("scheduler", "worker"):
            if part in spec:
                yield f"{name} {part}", spec[part]["spec"]
        if obj["kind"] == "Job":
            yield name, spec["template"]["spec"]


# Kubernetes


@pytest.mark.parametrize("name", OPERATORS)
def test_objects_of_the_operator_fit_its_schemas(name):
    obj = OPERATORS[name]
    jsonschema.validate(obj, operator_schema(obj["kind"]))


def test_the_schemas_find_a_misspelt_key():
    obj = json.loads(json.dumps(OPERATORS["gpu-workers"]))
    obj["spec"]["worker"]["spec"]["containers"][0]["resorces"] = {}
    with pytest.raises(jsonschema.ValidationError, match="resorces"):
        jsonschema.validate(obj, operator_schema(obj["kind"]))


@pytest.mark.parametrize("name", sorted(KUBERNETES.keys() - OPERATORS.keys()))
def test_objects_of_kubernetes_fit_its_schemas(name):
    for version in ("1.28", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(KUBERNETES[name], version, strict=True)


@pytest.mark.parametrize(("name", "pod"), list(pods()))
def test_pods_have_no_privileges(name, pod):
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] >= 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for container in pod["containers"]:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"]["memory"]
        assert container["resources"]["limits"]["memory"]
        for variable in container.get("env", []):
            assert not any(word in variable["name"] for word in SECRET_WORDS), "secrets come from a Secret"


def test_only_pods_of_the_cluster_and_the_operator_reach_it():
    policy = KUBERNETES["network-policy"]["spec"]
    chosen = policy["podSelector"]["matchLabels"]
    assert chosen == {"dask.org/cluster-name": KUBERNETES["cluster"]["metadata"]["name"]}
    inside, operator = policy["ingress"]
    assert inside == {"from": [{"podSelector": {"matchLabels": chosen}}]}
    assert [port["port"] for port in operator["ports"]] == [8787]
    assert all("ipBlock" not in peer for rule in policy["ingress"] for peer in rule["from"])
    assert chosen.items() <= KUBERNETES["driver"]["spec"]["template"]["metadata"]["labels"].items()
    service = KUBERNETES["cluster"]["spec"]["scheduler"]["service"]
    assert service["type"] == "ClusterIP"
    assert chosen.items() <= service["selector"].items()


def test_the_parts_belong_together():
    name = KUBERNETES["cluster"]["metadata"]["name"]
    assert KUBERNETES["gpu-workers"]["spec"]["cluster"] == name
    assert KUBERNETES["autoscaler"]["spec"]["cluster"] == name
    claims = {
        v["persistentVolumeClaim"]["claimName"] for _, pod in pods() for v in pod["volumes"] if v["name"] == "data"
    }
    assert claims == {KUBERNETES["storage"]["metadata"]["name"]}
    settings = {
        s["configMapRef"]["name"] for _, p in pods() for s in p["containers"][0]["envFrom"] if "configMapRef" in s
    }
    assert settings == {KUBERNETES["settings"]["metadata"]["name"]}
    for _, pod in pods():
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_gpu_workers_ask_for_a_gpu_and_say_so_to_dask():
    (container,) = KUBERNETES["gpu-workers"]["spec"]["worker"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"]
    assert worker_options(container["args"])["resources"] == "GPU=1"
    (other,) = KUBERNETES["cluster"]["spec"]["worker"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in other["resources"]["limits"]


# commands and settings that manifests and the compose file share


def worker_options(command: list[str]) -> dict[str, Any]:
    from distributed.cli.dask_worker import main

    assert command[:2] == ["dask", "worker"]
    return dict(main.make_context("dask worker", command[2:]).params)


def scheduler_options(command: list[str]) -> dict[str, Any]:
    from distributed.cli.dask_scheduler import main

    assert command[:2] == ["dask", "scheduler"]
    return dict(main.make_context("dask scheduler", command[2:]).params)


def test_dask_knows_the_options_of_workers_and_limits_come_in_order():
    commands = [
        (c["args"], c["resources"]["limits"]["memory"].replace("Gi", "GiB"))
        for _, pod in pods()
        for c in pod["containers"]
        if c["name"] == "worker"
    ]
    worker = COMPOSE["services"]["worker"]
    commands.append((worker["command"], worker["deploy"]["resources"]["limits"]["memory"].replace("g", "GiB")))
    assert len(commands) == 3
    for command, limit in commands:
        options = worker_options(command)
        assert options["n_workers"] == "1"
        own = dask.utils.parse_bytes(options["memory_limit"])
        assert 0.7 < own / dask.utils.parse_bytes(limit) < 1


def test_dask_knows_the_options_of_schedulers():
    (container,) = KUBERNETES["cluster"]["spec"]["scheduler"]["spec"]["containers"]
    for command in (container["args"], COMPOSE["services"]["scheduler"]["command"]):
        assert scheduler_options(command)["port"] == "8786"
        assert not scheduler_options(command)["jupyter"]


@pytest.mark.parametrize(
    "variables", [KUBERNETES["settings"]["data"], COMPOSE["x-cryosam"]["environment"]], ids=["kubernetes", "compose"]
)
def test_variables_are_settings_that_dask_has(variables):
    ours = {name: value for name, value in variables.items() if name.startswith("DASK_")}
    missing = object()
    for name in ours:  # a name that Dask does not know would say nothing
        key = name.removeprefix("DASK_").lower().replace("__", ".")
        assert dask.config.get(".".join(part.replace("_", "-") for part in key.split(".")), missing) is not missing
    with dask.config.set(dask.config.collect_env(ours)):
        assert dask.config.get("distributed.comm.require-encryption") is True
        for role in ("scheduler", "worker", "client"):
            assert {dask.config.get(f"distributed.comm.tls.{role}.{part}")[-3:] for part in ("cert", "key")} == {
                "crt",
                "key",
            }
        for name in ("target", "spill", "pause"):
            assert dask.config.get(f"distributed.worker.memory.{name}") is False


# Docker


def test_services_have_no_privileges_and_no_way_in():
    common = COMPOSE["x-cryosam"]
    for service in COMPOSE["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
        assert "inside" in service["networks"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert not any("8786" in port for port in service.get("ports", []))
    assert COMPOSE["networks"]["inside"]["internal"] is True
    assert COMPOSE["services"]["worker"]["networks"] == ["inside"]
    assert COMPOSE["services"]["scheduler"]["healthcheck"]["test"][0] == "CMD"
    given = {name: value for name, value in common["environment"].items() if any(w in name for w in SECRET_WORDS)}
    assert given
    assert set(given.values()) == {None}  # handed through, never written down


def test_the_image_holds_the_package_and_nothing_else():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert [rest for word, rest in steps if word == "COPY"] == [
        "pyproject.toml ./",
        "README.md LICENSE ./",
        "cryosam_dask ./cryosam_dask",
    ]
    assert not [word for word, _ in steps if word == "ADD"]
    # what an argument holds stays in the image's history: no secret may come that way
    assert [rest for word, rest in steps if word == "ARG"] == ["BASE=python:3.12-slim", "TORCH_INDEX="]
    assert set(COMPOSE["services"]["scheduler"]["build"]["args"]) == {"BASE", "TORCH_INDEX"}
    assert not any(word in rest for step, rest in steps if step == "ENV" for word in SECRET_WORDS)
    assert [rest for word, rest in steps if word == "USER"] == ["10001"]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line for line in ignored if line.startswith("!")} == {
        "!pyproject.toml",
        "!README.md",
        "!LICENSE",
        "!cryosam_dask",
    }


def test_the_image_gets_what_the_package_needs():
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")  # lines go on as Docker has them go on
    (program,) = (line.split("python -c '")[1].split("'")[0] for line in text.splitlines() if "python -c '" in line)
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert shown.splitlines() == project["dependencies"] + project["optional-dependencies"]["s3"]


PODMAN = """#!/bin/sh
case "$1 $2" in
  pull*) {pull} ;;
  build*) echo no wheel for it; exit 1 ;;
  *) exit 0 ;;
esac
"""


@pytest.mark.parametrize(("pull", "code"), [("exit 0", 1), ("echo no such host; exit 125", 0)], ids=["reached", "not"])
def test_what_a_machine_refuses_is_no_failure_of_the_image(tmp_path, pull, code):
    podman = tmp_path / "bin/podman"
    podman.parent.mkdir()
    podman.write_text(PODMAN.format(pull=pull))
    podman.chmod(0o755)
    variables = {"PATH": f"{podman.parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    script = [str(DEPLOY / "docker/try_it.sh"), str(tmp_path / "tried")]
    done = subprocess.run(script, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    statuses = [line.split()[0] for line in done.stdout.split("\n\n")[-1].splitlines()]
    if code:
        assert statuses == ["works", "works", "works", "FAILED", "refused", "refused"]
        assert "no wheel for it" in done.stdout
        assert done.stdout.count("refused: it takes the part 'image'") == 2
    else:
        assert statuses == ["refused"] * 6
        assert "refused: no registry is reached" in done.stdout
        assert "no such host" in done.stdout


def test_the_script_leaves_a_folder_with_other_files_alone(tmp_path):
    kept = tmp_path / "data/kept"
    kept.parent.mkdir()
    kept.touch()
    done = subprocess.run([str(DEPLOY / "docker/try_it.sh"), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "holds other files" in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "kept"]


def test_runs_are_compared_byte_for_byte(tmp_path):
    for name, last in (("one", 2), ("same", 2), ("other", 3)):
        array = zarr.open_group(tmp_path / name, mode="w").create_array("labels/0", shape=(2,), dtype="u1")
        array[:] = [1, last]

    def compare(*names: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(DEPLOY / "same_arrays.py"), *(str(tmp_path / name) for name in names)]
        return subprocess.run(command, capture_output=True, text=True)

    assert compare("one", "same").stdout == "1 arrays are the same, byte for byte\n"
    other = compare("one", "other")
    assert other.returncode == 1
    assert "labels/0 differs" in other.stderr


# scripts, pages and files of clusters


def test_clusters_of_slurm_are_valid():
    for path in (DEPLOY / "slurm").glob("*.yaml"):
        assert set(read_cluster_file(path).kinds) == {"gpu", "cpu"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid(script):
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_the_certificate_of_the_pages_opens_a_connection(tmp_path):
    folder = tmp_path / "tls"
    subprocess.run([str(DEPLOY / "docker/certificate.sh"), str(folder)], check=True, capture_output=True)
    key = folder / "tls.key"
    assert key.stat().st_mode & 0o777 == 0o600
    security = security_from(folder / "tls.crt", folder / "tls.crt", key)
    client, server = (ssl.MemoryBIO(), ssl.MemoryBIO()), (ssl.MemoryBIO(), ssl.MemoryBIO())
    ends = [
        security.get_connection_args("worker")["ssl_context"].wrap_bio(*client),
        security.get_listen_args("scheduler")["ssl_context"].wrap_bio(*server, server_side=True),
    ]
    done = [False, False]
    for _ in range(10):
        for i, end in enumerate(ends):
            if not done[i]:
                try:
                    end.do_handshake()
                    done[i] = True
                except ssl.SSLWantReadError:
                    pass
        server[0].write(client[1].read())
        client[0].write(server[1].read())
    assert done == [True, True]
    assert ends[1].getpeercert(binary_form=True)


@pytest.mark.parametrize("page", sorted(DEPLOY.rglob("README.md")), ids=lambda path: path.parent.name)
def test_files_that_pages_name_are_there(page):
    text = page.read_text()
    for link in (part.split(")")[0] for part in text.split("](")[1:]):
        if "://" not in link and not link.startswith("#"):
            assert (page.parent / link.partition("#")[0]).exists(), link
    for line in text.splitlines():
        for word in shlex.split(line, comments=True) if line.startswith(("deploy/", "kubectl apply")) else []:
            if word.startswith("deploy/"):
                assert (ROOT / word).exists(), word
