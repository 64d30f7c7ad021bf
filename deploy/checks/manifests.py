"""Checks the output of `kubectl kustomize` for base and each overlay against strict schemas and the project's policy.

    manifests.py --kubectl KUBECTL --schemas FOLDER [--binary SLOTCAST]

FOLDER: the folder in which npm installed @kubernetes-models. SLOTCAST: the binary that must know every setting in the overlays'
slotcast.toml.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tomllib

import kubernetes_validate
import yaml

DEPLOY = pathlib.Path(__file__).resolve().parents[1]
# The oldest and the newest supported Kubernetes version.
KUBERNETES_VERSIONS = ("1.29", "1.37")
CUSTOM = ("monitoring.coreos.com/", "gateway.networking.k8s.io/")
DRAIN_SPARE_S = 5
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "fsGroup": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubectl", default="kubectl")
    parser.add_argument("--schemas", required=True)
    parser.add_argument("--binary")
    arguments = parser.parse_args()
    failed = 0
    for folder in [DEPLOY / "base", *sorted(path.parent for path in DEPLOY.glob("overlays/*/kustomization.yaml"))]:
        name = str(folder.relative_to(DEPLOY))
        resources = build(arguments.kubectl, folder)
        problems = [*schema_problems(resources), *custom_problems(resources, arguments.schemas)]
        problems += list(common_problems(resources))
        if name != "base":
            problems += list(Overlay(resources).problems())
            problems += list(unknown_settings(arguments.binary, folder / "slotcast.toml"))
        print(f"{name}: {len(resources)} resources, {len(problems)} problems")
        for problem in problems:
            print(f"  {problem}", file=sys.stderr)
        failed += len(problems)
    return 1 if failed else 0


def build(kubectl, folder):
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True)
    if done.returncode != 0 or done.stderr.strip():
        raise SystemExit(f"kubectl kustomize {folder}: {done.stderr}")
    return [resource for resource in yaml.safe_load_all(done.stdout) if resource]


def unknown_settings(binary, path):
    """Yields settings that the server does not know. Does not check the files that the settings name."""
    if not binary or not path.exists():
        return
    if subprocess.run([binary, "config", "--help"], capture_output=True).returncode != 0:
        print(f"{binary} has no command `config`: skipping {path.name}")
        return
    done = subprocess.run([binary, "config", "--settings-only", "--config", path], capture_output=True, text=True)
    yield from re.findall(r"(?:there is no|unknown) (?:section|setting) .*", done.stderr)


def title(resource):
    return f"{resource['kind']}/{resource['metadata']['name']}"


def schema_problems(resources):
    for resource in resources:
        if resource["apiVersion"].startswith(CUSTOM):
            continue
        for version in KUBERNETES_VERSIONS:
            try:
                kubernetes_validate.validate(resource, version, strict=True)
            except kubernetes_validate.SchemaNotFoundError as error:
                yield f"{title(resource)}: {error.message}"
            except kubernetes_validate.ValidationError as error:
                path = ".".join(str(part) for part in error.path)
                yield f"{title(resource)} for Kubernetes {version}: {path}: {error.message}"


def custom_problems(resources, schemas):
    custom = [resource for resource in resources if resource["apiVersion"].startswith(CUSTOM)]
    if not custom:
        return []
    command = ["node", str(DEPLOY / "checks" / "resources.mjs"), schemas]
    done = subprocess.run(command, input=json.dumps(custom), capture_output=True, text=True)
    problems = [line for line in done.stdout.splitlines() if line]
    return problems if done.returncode in (0, 1) and not done.stderr else [*problems, done.stderr]


def common_problems(resources):
    for resource in resources:
        if "namespace" in resource["metadata"]:
            yield f"{title(resource)} names a namespace"
        if resource["metadata"].get("labels", {}).get("app.kubernetes.io/name", "slotcast") != "slotcast":
            yield f"{title(resource)} has a label app.kubernetes.io/name other than slotcast"


class Overlay:
    def __init__(self, resources):
        self.resources = resources
        self.workloads = [r for r in resources if r["kind"] in ("StatefulSet", "Deployment")]
        self.config = self.slotcast_toml()

    def of_kind(self, kind):
        return [resource for resource in self.resources if resource["kind"] == kind]

    def slotcast_toml(self):
        maps = [r for r in self.of_kind("ConfigMap") if r["metadata"]["name"] == "slotcast"]
        return tomllib.loads(maps[0]["data"]["slotcast.toml"]) if maps else None

    def problems(self):
        if len(self.workloads) != 1 or self.config is None:
            yield "needs exactly one workload, and a ConfigMap slotcast with slotcast.toml"
            return
        [self.workload] = self.workloads
        self.template = self.workload["spec"]["template"]
        self.pod = self.template["spec"]
        checks = (
            self.pod_security, self.containers, self.files, self.services, self.policies, self.listens, self.drain, self.store
        )
        for check in checks:
            for problem in check():
                yield f"{check.__name__}: {problem}"

    def pod_security(self):
        security = self.pod.get("securityContext", {})
        for key, value in POD_SECURITY.items():
            if security.get(key) != value:
                yield f"{key} is {security.get(key)}, not {value}"
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if self.pod.get(key):
                yield f"{key} is set"
        if self.pod.get("automountServiceAccountToken") is not False:
            yield "the service account token is mounted"
        accounts = {account["metadata"]["name"]: account for account in self.of_kind("ServiceAccount")}
        if accounts.get(self.pod.get("serviceAccountName"), {}).get("automountServiceAccountToken") is not False:
            yield "the service account is missing or mounts its token"
        for volume in self.pod.get("volumes", []):
            if "hostPath" in volume:
                yield f"volume {volume['name']} is a hostPath"

    def containers(self):
        for container in self.pod.get("initContainers", []) + self.pod["containers"]:
            name, security = container["name"], container.get("securityContext", {})
            if security != CONTAINER_SECURITY:
                yield f"{name} is not restricted: {security}"
            image = container["image"]
            if not re.search(r"(@sha256:[0-9a-f]{64}|:[^/:]+)$", image) or image.endswith(":latest"):
                yield f"{name} has no pinned image tag or digest: {image}"
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if probe not in container:
                    yield f"{name} has no {probe}"
            resources = container.get("resources", {})
            for kind, what in (("requests", "cpu"), ("requests", "memory"), ("limits", "memory")):
                if what not in resources.get(kind, {}):
                    yield f"{name} has no {what} in {kind}"
            for problem in self.probes(container):
                yield f"{name}: {problem}"

    def probes(self, container):
        """Yields probes that do not use the admin port, which serves plaintext."""
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            for how in ("grpc", "httpGet"):
                aimed = container.get(probe, {}).get(how)
                if aimed and ports.get(aimed["port"], aimed["port"]) != ports.get("admin"):
                    yield f"{probe} does not use the admin port"

    def files(self):
        """Yields files in slotcast.toml that are not in a mounted volume, and mounts without a volume."""
        [container] = self.pod["containers"]
        volumes = {volume["name"] for volume in self.pod.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in self.workload["spec"].get("volumeClaimTemplates", [])}
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        for mount in mounts.values():
            if mount["name"] not in volumes:
                yield f"volume {mount['name']} does not exist"
        for volume in volumes - {mount["name"] for mount in mounts.values()}:
            yield f"volume {volume} is not mounted"
        paths = [argument.split("=", 1)[1] for argument in container["args"] if argument.startswith("--config=")]
        sections = [self.config, *(section for section in self.config.values() if isinstance(section, dict))]
        paths += [value for section in sections for value in section.values() if str(value).startswith("/")]
        for path in paths:
            if not any(path == mount or path.startswith(f"{mount}/") for mount in mounts):
                yield f"{path} is not in a mounted volume"
        if any("subPath" in mount for mount in mounts.values() if mount["name"] == "config"):
            yield "slotcast.toml is mounted by subPath, so changes of the ConfigMap do not reach the pod"

    def services(self):
        labels = self.template["metadata"]["labels"]
        named = {port["name"]: port["containerPort"] for port in self.pod["containers"][0]["ports"]}
        for service in self.of_kind("Service"):
            name, selector = service["metadata"]["name"], service["spec"].get("selector")
            if not selector or not selector.items() <= labels.items():
                yield f"{name} does not select the pod: {selector}"
            for port in service["spec"]["ports"]:
                if named.get(port["targetPort"]) != port["port"]:
                    yield f"{name}: port {port['port']} maps to {port['targetPort']} ({named.get(port['targetPort'])})"
        names = {service["metadata"]["name"] for service in self.of_kind("Service")}
        if self.workload["kind"] == "StatefulSet" and self.workload["spec"]["serviceName"] not in names:
            yield "the serviceName of the StatefulSet does not exist"
        if not self.workload["spec"]["selector"]["matchLabels"].items() <= labels.items():
            yield "the workload does not select its own pods"
        for route in self.of_kind("GRPCRoute"):
            for backend in (backend for rule in route["spec"]["rules"] for backend in rule["backendRefs"]):
                if backend["name"] not in names or backend["port"] != named["grpc"]:
                    yield f"the route refers to {backend}, which does not exist"
        for monitor in self.of_kind("ServiceMonitor"):
            wanted = monitor["spec"]["selector"]["matchLabels"].items()
            chosen = [s for s in self.of_kind("Service") if wanted <= s["metadata"]["labels"].items()]
            ports = {port["name"] for service in chosen for port in service["spec"]["ports"]}
            if len(chosen) != 1 or {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} != ports:
                yield f"the ServiceMonitor selects {[s['metadata']['name'] for s in chosen]} with ports {ports}"

    def policies(self):
        labels = self.template["metadata"]["labels"]
        policies = self.of_kind("NetworkPolicy")
        for policy in policies:
            selected = policy["spec"]["podSelector"].get("matchLabels")
            if not selected or not selected.items() <= labels.items():
                yield f"{policy['metadata']['name']} selects other pods: {selected}"
        if {"Ingress", "Egress"} - {kind for policy in policies for kind in policy["spec"]["policyTypes"]}:
            yield "ingress and egress are not both denied by default"
        rules = [rule for policy in policies for way, peers in (("ingress", "from"), ("egress", "to"))
                 for rule in policy["spec"].get(way, []) if not rule.get(peers) or not rule.get("ports")]
        if rules:
            yield f"a rule allows all peers or all ports: {rules}"
        opened = {port["port"] for policy in policies for rule in policy["spec"].get("ingress", []) for port in rule["ports"]}
        served = {port["targetPort"] for service in self.of_kind("Service") for port in service["spec"]["ports"]}
        if opened != served:
            yield f"policies allow ports {sorted(opened)}, services expose {sorted(served)}"

    def listens(self):
        """Yields listeners beyond loopback without authentication or TLS, and addresses that do not match the pod."""
        ports = {port["name"]: port["containerPort"] for port in self.pod["containers"][0]["ports"]}
        address, port = self.config["listen"].rsplit(":", 1)
        admin_address, admin_port = self.config["admin"]["listen"].rsplit(":", 1)
        if int(admin_port) != ports["admin"] or (address != "127.0.0.1" and int(port) != ports.get("grpc")):
            yield f"slotcast.toml listens on {port} and {admin_port}, but the pod declares {ports}"
        if admin_address != "0.0.0.0":
            yield "probes cannot reach the admin port"
        if self.config.get("identity", {}).get("without_authentication"):
            yield "authentication is disabled"
        tls, identity = self.config.get("tls", {}), self.config.get("identity", {})
        if address != "127.0.0.1" and not ({"certificate", "key"} <= tls.keys() and "jwks" in identity):
            yield f"{address} is not loopback, but TLS or authentication is missing"
        offered = {port["name"] for service in self.of_kind("Service") for port in service["spec"]["ports"]}
        if address == "127.0.0.1" and "grpc" in offered:
            yield "a Service exposes the gRPC port, which listens on loopback only"

    def drain(self):
        drain, grace = self.config["drain"], self.pod["terminationGracePeriodSeconds"]
        needed = (drain["delay_ms"] + drain["limit_ms"]) / 1000 + DRAIN_SPARE_S
        if grace < needed:
            yield f"the pod is killed after {grace} s, but draining takes up to {needed} s"

    def store(self):
        """Yields settings that let two pods open the store, delete its volume, or overfill it."""
        spec, bytes_max = self.workload["spec"], self.config["store"]["bytes_max"]
        if spec["replicas"] != 1:
            yield f"{spec['replicas']} replicas with an embedded store"
        if self.workload["kind"] == "Deployment" and spec["strategy"]["type"] != "Recreate":
            yield "the strategy runs two pods during an update"
        for claim in spec.get("volumeClaimTemplates", []):
            if spec["persistentVolumeClaimRetentionPolicy"] != {"whenDeleted": "Retain", "whenScaled": "Retain"}:
                yield "the volume is deleted with the StatefulSet"
            if bytes_max >= size(claim["spec"]["resources"]["requests"]["storage"]):
                yield f"the volume is not larger than bytes_max = {bytes_max}"
        for volume in self.pod["volumes"]:
            if "emptyDir" in volume and bytes_max >= size(volume["emptyDir"]["sizeLimit"]):
                yield f"volume {volume['name']} is not larger than bytes_max = {bytes_max}"
        if not 0 < self.config.get("history", {}).get("bytes_max", bytes_max // 2) <= bytes_max // 2:
            yield "the history may fill the store"


def size(quantity):
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()
    return int(number) << {"Mi": 20, "Gi": 30}[unit]


if __name__ == "__main__":
    sys.exit(main())
