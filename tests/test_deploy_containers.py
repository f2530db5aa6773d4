"""The compose file and the Kubernetes manifests: what they set the service and its image know, and every name leads somewhere."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from identity import __version__
from identity.app import endpoints
from identity.settings import Settings
from tests.conftest import fresh_database
from tests.world import free_port, start_live

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text().replace("${AUTH_HOST", "auth.example.com${"))
MANIFESTS = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))
# What a secret's file would hold.
SECRETS: Final = {
    "IDENTITY_DATABASE_URL": "postgresql://identity:x@database/identity",
    "IDENTITY_REDIS_URL": "valkey://limits:6379",
    "IDENTITY_MASTER_KEYS": "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg=",
    "IDENTITY_MAIL_URL": "smtps://user:x@mail.example.com",
}
WORKER_MIB, HASH_MIB = 65, 20  # As docs/operations.md says of its size.

# The fields of the Kubernetes API that we use, so that one that is misspelled, or stands in the wrong place, is found without a cluster.
_LABELS: Final = {"app": str}
_META: Final = {"name": str, "labels": _LABELS}
_SELECTOR: Final = {"matchLabels": _LABELS}
_PROBE: Final = {
    "httpGet": {"path": str, "port": str},
    **dict.fromkeys(("periodSeconds", "timeoutSeconds", "failureThreshold"), int),
}
_AMOUNTS: Final = {"cpu": str, "memory": str}
_CONTAINER: Final = {
    "name": str,
    "image": str,
    "ports": [{"name": str, "containerPort": int}],
    "envFrom": [{"configMapRef": {"name": str}}],
    "securityContext": {
        "allowPrivilegeEscalation": bool,
        "readOnlyRootFilesystem": bool,
        "capabilities": {"drop": [str]},
    },
    "startupProbe": _PROBE,
    "livenessProbe": _PROBE,
    "readinessProbe": _PROBE,
    "lifecycle": {"preStop": {"sleep": {"seconds": int}}},
    "resources": {"requests": _AMOUNTS, "limits": _AMOUNTS},
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
}
_POD: Final = {
    "enableServiceLinks": bool,
    "automountServiceAccountToken": bool,
    "terminationGracePeriodSeconds": int,
    "securityContext": {
        "runAsNonRoot": bool,
        **dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), int),
        "seccompProfile": {"type": str},
    },
    "topologySpreadConstraints": [
        {"maxSkew": int, "topologyKey": str, "whenUnsatisfiable": str, "labelSelector": _SELECTOR}
    ],
    "containers": [_CONTAINER],
    "volumes": [
        {"name": str, "secret": {"secretName": str, "defaultMode": int}, "emptyDir": {"sizeLimit": str}},
    ],
}
SHAPES: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("v1", "ConfigMap"): {"data": str},
    ("v1", "Service"): {
        "spec": {"selector": _LABELS, "ports": [{"name": str, "port": int, "targetPort": str}]},
    },
    ("policy/v1", "PodDisruptionBudget"): {"spec": {"minAvailable": int, "selector": _SELECTOR}},
    ("apps/v1", "Deployment"): {
        "spec": {
            "replicas": int,
            "selector": _SELECTOR,
            "strategy": {"type": str, "rollingUpdate": {"maxUnavailable": int, "maxSurge": int}},
            "template": {"metadata": {"labels": _LABELS}, "spec": _POD},
        }
    },
}


def unlike(value: Any, shape: Any, place: str) -> list[str]:
    """Where a manifest is not as the API has it."""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{place} is no list"]
        return [fault for number, one in enumerate(value) for fault in unlike(one, shape[0], f"{place}[{number}]")]
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{place} is no mapping"]
        unknown = [f"{place}.{name} is no field" for name in value if name not in shape]
        return unknown + [
            fault
            for name, one in value.items()
            if name in shape
            for fault in unlike(one, shape[name], f"{place}.{name}")
        ]
    return [] if type(value) is shape else [f"{place} is {value!r}"]


def named(kind: str) -> dict[str, Any]:
    (found,) = [one for one in MANIFESTS if one["kind"] == kind]
    return found


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = named("Deployment")["spec"]["template"]["spec"]
    return spec


def settings_of(environment: dict[str, str], folder: str, keys: set[str]) -> Settings:
    """What the service makes of an environment, with each file of a secret in its place."""
    given = {}
    for name, value in environment.items():
        if name.endswith("_FILE"):
            assert value.rpartition("/")[0] == folder, name
            assert value.rpartition("/")[2] in keys, name
            given[name.removesuffix("_FILE")] = SECRETS[name.removesuffix("_FILE")]
        else:
            given[name] = re.sub(r"\$\{[^}]*\}", "", value)
    return Settings.from_env(given)


def test_a_service_of_such_settings_writes_temporary_files_only(tmp_path: Path) -> None:
    given = {"mail_url": SECRETS["IDENTITY_MAIL_URL"], "metrics_bind": f"127.0.0.1:{free_port()}"}
    with start_live(tmp_path, fresh_database("postgresql", tmp_path), given) as live:
        assert live.get("/health/ready").status_code == 200
        # The log is the test's own.
        assert [path.name for path in tmp_path.iterdir()] == ["log"]


# Kubernetes.


def test_each_manifest_has_only_fields_of_its_kind() -> None:
    for one in MANIFESTS:
        shape = SHAPES[one["apiVersion"], one["kind"]]
        if one["kind"] == "ConfigMap":  # Its names are ours.
            shape = {"data": dict.fromkeys(one["data"], str)}
        assert unlike(one, {"apiVersion": str, "kind": str, "metadata": _META, **shape}, one["kind"]) == []
    assert {one["kind"] for one in MANIFESTS} == {kind for _, kind in SHAPES}


@pytest.mark.parametrize(
    "wrong", [{"enableServiceLink": False}, {"enableServiceLinks": "false"}, {"containers": {}}, {"securityContext": 1}]
)
def test_a_field_that_is_wrong_would_be_found(wrong: dict[str, Any]) -> None:
    assert len(unlike(wrong, _POD, "pod")) == 1


def test_the_pod_may_do_little_and_learns_nothing_of_its_cluster() -> None:
    assert (pod()["enableServiceLinks"], pod()["automountServiceAccountToken"]) == (False, False)
    (container,) = pod()["containers"]
    context = container["securityContext"]
    assert context == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    user = re.search(r"^USER ([0-9]+):([0-9]+)$", DOCKERFILE, re.MULTILINE)
    assert user is not None
    own = pod()["securityContext"]
    assert (own["runAsUser"], own["runAsGroup"], own["fsGroup"]) == (int(user[1]), int(user[2]), int(user[2]))
    assert own["runAsNonRoot"] is True
    assert container["image"].endswith(f"/identity:{__version__}")


def test_the_probes_ask_routes_that_there_are_on_the_port_of_the_image() -> None:
    (container,) = pod()["containers"]
    public = {endpoint.path for endpoint in endpoints() if endpoint.method == "GET"}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/health/live",
        "liveness": "/health/live",
        "readiness": "/health/ready",
    }
    assert {probe["path"] for probe in probes.values()} <= public
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert f"EXPOSE {ports['http']}\n" in DOCKERFILE
    assert {port["targetPort"] for port in named("Service")["spec"]["ports"]} == {"http"}


def test_the_pods_settings_are_ones_that_the_service_takes_and_has_room_for() -> None:
    (container,) = pod()["containers"]
    (source,) = container["envFrom"]
    config = named("ConfigMap")
    assert source["configMapRef"]["name"] == config["metadata"]["name"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert mounts["scratch"] == "/tmp"
    # The keys of the secret, as the comment at the head makes it.
    head = (ROOT / "deploy" / "kubernetes.yaml").read_text()
    assert f"kubectl create secret generic {volumes['secrets']['secret']['secretName']} " in head
    keys = set(re.findall(r"--from-file=([a-z-]+)", head))
    settings = settings_of(config["data"], mounts["secrets"], keys)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert settings.metrics_bind == f"0.0.0.0:{ports['metrics']}"
    assert settings.trusted_proxies
    grace = pod()["terminationGracePeriodSeconds"] - container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert grace > settings.graceful_stop_seconds
    room = int(container["resources"]["limits"]["memory"].removesuffix("Mi"))
    assert settings.workers > 0
    assert settings.hash_concurrency > 0, "or every processor of the node"
    assert (settings.workers + 1) * WORKER_MIB + settings.workers * settings.hash_slots * HASH_MIB < room


def test_a_disruption_leaves_somebody_to_answer() -> None:
    deployment, budget = named("Deployment")["spec"], named("PodDisruptionBudget")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert budget["selector"]["matchLabels"] == labels
    assert named("Service")["spec"]["selector"] == labels
    assert 0 < budget["minAvailable"] < deployment["replicas"]
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


# Compose.

OPTIONS: Final = {
    "image", "build", "command", "ports", "volumes", "networks", "depends_on", "restart", "environment", "secrets", "read_only", "tmpfs",
    "cap_drop", "security_opt", "ulimits", "stop_grace_period", "healthcheck",
}  # fmt: skip


def test_every_name_in_the_compose_file_leads_somewhere() -> None:
    assert COMPOSE.keys() == {"name", "services", "networks", "volumes", "secrets"}
    services = COMPOSE["services"]
    used: dict[str, set[str]] = {"networks": set(), "secrets": set(), "volumes": set()}
    for name, service in services.items():
        assert service.keys() <= OPTIONS, name
        for other, wanted in service.get("depends_on", {}).items():
            # The image of identity brings its own check.
            has_check = "healthcheck" in services[other] or (other == "identity" and "HEALTHCHECK" in DOCKERFILE)
            assert (wanted, has_check) == ({"condition": "service_healthy"}, True), name
        for kind in used:
            used[kind] |= {one.partition(":")[0] for one in service.get(kind, [])}
    for kind, names in used.items():
        assert names == COMPOSE[kind].keys(), kind
    assert {name: one["file"] for name, one in COMPOSE["secrets"].items()} == {
        name: f"secrets/{name}" for name in COMPOSE["secrets"]
    }
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert not [line for line in ignored if line.startswith("!deploy")]


def test_the_composed_service_is_reached_by_its_proxy_only_and_believes_it() -> None:
    services = COMPOSE["services"]
    assert [name for name, service in services.items() if "ports" in service] == ["proxy"]
    assert services["proxy"]["command"][-1] == "identity:8000"
    assert set(services["proxy"]["networks"]) & set(services["identity"]["networks"]) == {"front"}
    assert not {"database", "limits"} & {name for name, one in services.items() if "front" in one["networks"]}
    service = services["identity"]
    settings = settings_of(service["environment"], "/run/secrets", set(service["secrets"]))
    (network,) = COMPOSE["networks"]["front"]["ipam"]["config"]
    assert [ip_network(one) for one in settings.trusted_proxies] == [ip_network(network["subnet"])]
    assert settings.issuer == "https://auth.example.com"
    assert settings.redis_url == "redis://limits:6379"
    assert int(service["stop_grace_period"].removesuffix("s")) > settings.graceful_stop_seconds


def test_the_composed_service_may_do_little() -> None:
    service = COMPOSE["services"]["identity"]
    assert (service["read_only"], service["cap_drop"], service["tmpfs"]) == (True, ["ALL"], ["/tmp"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert (ROOT / "deploy" / service["build"]["context"] / "Dockerfile").is_file()


def test_each_composed_service_comes_back_keeps_its_data_and_is_asked_as_it_should_be() -> None:
    services = COMPOSE["services"]
    assert services.keys() == {"proxy", "identity", "database", "limits"}
    assert {service["restart"] for service in services.values()} == {"unless-stopped"}
    assert services["proxy"]["image"] == "caddy:2"
    assert services["proxy"]["ports"] == ["80:80", "443:443"], "the first for the certificate"
    assert services["proxy"]["command"][:3] == ["caddy", "reverse-proxy", "--from"]
    assert services["proxy"]["command"][3].startswith("auth.example.com$")
    assert services["proxy"]["command"][4] == "--to"
    assert services["proxy"]["depends_on"].keys() == {"identity"}
    assert services["proxy"]["volumes"] == ["certificates:/data"]
    assert services["identity"]["depends_on"].keys() == {"database", "limits"}
    assert services["identity"]["ulimits"]["nofile"] >= 65_536
    assert services["identity"]["environment"].keys() == {
        "IDENTITY_ISSUER", "IDENTITY_TRUSTED_PROXIES", "IDENTITY_MAIL_FROM", "IDENTITY_REDIS_URL", "IDENTITY_DATABASE_URL_FILE",
        "IDENTITY_MASTER_KEYS_FILE", "IDENTITY_MAIL_URL_FILE"}  # fmt: skip
    database, limits = services["database"], services["limits"]
    assert database["image"].startswith("postgres:")
    assert database["environment"] == {
        "POSTGRES_USER": "identity", "POSTGRES_PASSWORD_FILE": "/run/secrets/database-password"}  # fmt: skip
    assert database["secrets"] == ["database-password"]
    assert database["volumes"] == ["database:/var/lib/postgresql"]
    assert database["healthcheck"]["test"] == ["CMD", "pg_isready", "--username=identity"]
    assert limits["image"].startswith("valkey/valkey:")
    assert limits["command"] == ["valkey-server", "--save", "", "--appendonly", "no"], "nothing to keep"
    assert limits["healthcheck"]["test"] == ["CMD", "valkey-cli", "ping"]
    for service in (database, limits):
        assert service["networks"] == ["back"], "where identity finds them"
        assert {name: service["healthcheck"][name] for name in ("interval", "timeout", "retries")} == {
            "interval": "5s", "timeout": "5s", "retries": 20}  # fmt: skip
    assert "back" in services["identity"]["networks"]
