"""Tests the policy of manifests.py: each mistake, applied to a valid overlay, is reported by its check.

    test_manifests.py --kubectl KUBECTL
"""

import argparse
import copy
import sys

import manifests


def pod(overlay):
    return manifests.Overlay(overlay).workloads[0]["spec"]["template"]["spec"]


def named(overlay, kind, name):
    return next(r for r in overlay if r["kind"] == kind and r["metadata"]["name"] == name)


def settings(overlay, old, new):
    data = named(overlay, "ConfigMap", "slotcast")["data"]
    assert old in data["slotcast.toml"], old
    data["slotcast.toml"] = data["slotcast.toml"].replace(old, new)


# Maps each check to mistakes. A mistake modifies the resources of overlay `embedded-monitored`.
MISTAKES = {
    "pod_security": [
        lambda o: pod(o)["securityContext"].update(runAsNonRoot=False),
        lambda o: pod(o).update(hostNetwork=True),
        lambda o: pod(o).pop("automountServiceAccountToken"),
        lambda o: pod(o)["volumes"].append({"name": "node", "hostPath": {"path": "/"}}),
    ],
    "containers": [
        lambda o: pod(o)["containers"][0].update(image="slotcast:latest"),
        lambda o: pod(o)["containers"][0].update(image="slotcast"),
        lambda o: pod(o)["containers"][0].pop("readinessProbe"),
        lambda o: pod(o)["containers"][0]["livenessProbe"]["httpGet"].update(port="grpc"),
        lambda o: pod(o)["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False),
        lambda o: pod(o)["containers"][0]["resources"].pop("limits"),
    ],
    "files": [
        lambda o: settings(o, "/etc/slotcast-tls/tls.key", "/somewhere/tls.key"),
        lambda o: pod(o)["volumes"].clear(),
    ],
    "services": [
        lambda o: named(o, "Service", "slotcast")["spec"].update(selector={"app": "other"}),
        lambda o: named(o, "Service", "slotcast")["spec"]["ports"][0].update(port=7500),
        lambda o: named(o, "Service", "slotcast-admin")["metadata"]["labels"].pop("slotcast/service"),
        lambda o: named(o, "GRPCRoute", "slotcast")["spec"]["rules"][0]["backendRefs"][0].update(name="other"),
    ],
    "policies": [
        lambda o: named(o, "NetworkPolicy", "slotcast")["spec"].update(podSelector={}),
        lambda o: named(o, "NetworkPolicy", "slotcast")["spec"].update(policyTypes=["Ingress"]),
        lambda o: named(o, "NetworkPolicy", "slotcast-grpc")["spec"]["ingress"][0].pop("from"),
        lambda o: o.remove(named(o, "NetworkPolicy", "slotcast-grpc")),
    ],
    "listens": [
        lambda o: settings(o, 'jwks = "/etc/slotcast-jwks/jwks.json"', ""),
        lambda o: settings(o, 'key = "/etc/slotcast-tls/tls.key"', ""),
        lambda o: settings(o, "0.0.0.0:7401", "127.0.0.1:7401"),
        lambda o: settings(o, "0.0.0.0:7400", "127.0.0.1:7400"),
        lambda o: settings(o, "[identity]", "[identity]\nwithout_authentication = true"),
    ],
    "drain": [lambda o: settings(o, "limit_ms = 15000", "limit_ms = 60000")],
    "store": [
        lambda o: named(o, "StatefulSet", "slotcast")["spec"].update(replicas=2),
        lambda o: settings(o, "bytes_max = 17179869184", "bytes_max = 34359738368"),
        lambda o: settings(o, "bytes_max = 8589934592", "bytes_max = 0"),
    ],
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubectl", default="kubectl")
    good = manifests.build(parser.parse_args().kubectl, manifests.DEPLOY / "overlays" / "embedded-monitored")
    assert not list(manifests.Overlay(good).problems())
    count = 0
    for check, mistakes in MISTAKES.items():
        for number, mistake in enumerate(mistakes):
            bad = copy.deepcopy(good)
            mistake(bad)
            found = list(manifests.Overlay(bad).problems())
            assert any(problem.startswith(f"{check}:") for problem in found), f"{check} does not report mistake {number}: {found}"
            count += 1
    print(f"{count} mistakes, all reported")
    return 0


if __name__ == "__main__":
    sys.exit(main())
