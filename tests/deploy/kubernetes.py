"""The files of deploy/kubernetes and the chart of deploy/helm: rendered, validated, compared, and run as processes.

* Every kustomization and the chart in several values are valid for Kubernetes 1.29 and the newest version that
  kubernetes-validate knows. Pods pass the restricted Pod Security Standard (kubernetes/policy.py). The parts fit together
  (kubernetes/wiring.py). Chart and kustomize give the same objects.
* Containers run as processes with the users, groups, files and probes of their pods (kubernetes/pod.py): TLS clients resume at
  the worker in Python, a renewed certificate reaches the daemon, workers reach a central daemon over mutual TLS, and an agent of
  ticket keys reloads the nginx of its pod.
* The commands of both READMEs run word for word, with a stand-in for the cluster (kubernetes/cluster.py).

There is no cluster here: nothing shows that one accepts the objects. The images of the daemon and of its reload are built,
those of the workers are not, because their bases cannot be pulled.

Needs root, kubectl 1.28 or later, Debian's binutils, buildah, busybox-static, iproute2, openssl and redis-server, and in .peers
hadolint, and Python with kubernetes-validate, helm-python-sdk, grpcio and grpcio-reflection. TLS_SESSIOND is the path of the
daemon's binary.
"""

import contextlib
import copy
import ctypes
import json
import os
import pathlib
import re
import shutil
import sys
import tomllib

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).with_suffix("")))

import policy  # noqa: E402
import readmes  # noqa: E402
import rendered  # noqa: E402
import running  # noqa: E402
import wiring  # noqa: E402
from harness import ROOT, alone, fail, run, shown  # noqa: E402
from images import images  # noqa: E402
from places import CHART, KUBERNETES, RUN  # noqa: E402
from rendered import NEWEST, OLDEST, Schemas, helm, helm_python, kubectl, kustomize, name  # noqa: E402


def image(repository):
    return {"repository": repository, "tag": "VERSION"}


IMAGE_VALUES = {"image": image("tls-sessiond"), "reloadImage": image("tls-sessiond-reload")}
SIDECAR = {**IMAGE_VALUES, "sidecar": {"example": {"enabled": True, "image": image("tls-sessiond-python-worker")}}}
CENTRAL = {**IMAGE_VALUES, "mode": "central"}
SPIFFE = {"certificates": "spiffe", "spiffeHelperImage": {"tag": "VERSION"}}
TWO = {"central": {"replicas": 2}}
STORE = {"sharedStore": {"enabled": True}}
METRICS = {"monitoring": {"enabled": True}}
PROXY = {"proxy": {"enabled": True, "example": {"enabled": True, "image": image("python")}}}
# Kustomization, component, and the values of the chart that give the same objects.
CHOICES = [
    ("overlays/sidecar", None, SIDECAR),
    ("overlays/sidecar-shared-store", None, {**SIDECAR, **STORE}),
    ("overlays/central-cert-manager", None, CENTRAL),
    ("overlays/central-spiffe", None, {**CENTRAL, "central": SPIFFE}),
    ("overlays/central-shared-store", None, {**CENTRAL, **STORE, **TWO}),
    ("overlays/sidecar", "components/pod-monitor", {**SIDECAR, **METRICS}),
    ("overlays/central-cert-manager", "components/service-monitor", {**CENTRAL, **METRICS}),
    ("overlays/central-shared-store", "components/service-monitor", {**CENTRAL, **STORE, **METRICS, **TWO}),
    ("examples/plain-backend", None, {**CENTRAL, **PROXY}),
    ("examples/plain-backend-sidecar", None, {**IMAGE_VALUES, **PROXY}),
]
# This component changes examples/plain-backend, as monitoring.enabled of the chart does beside the metrics of the daemon.
PROXY_METRICS = "examples/plain-backend with components/proxy-monitor"
SERVICE_MONITOR = "overlays/central-cert-manager with components/service-monitor"
# Kustomizations that the chart does not have.
OTHERS = ["base", "examples/central-worker", "examples/nginx-keys", "examples/rust-workers"]
# Values that the schema of the chart refuses, and a part of the reason.
REFUSED = [
    ({"mode": "node"}, "'/mode'"),
    ({"replicas": 3}, "'replicas' not allowed"),
    ({"central": {"replica": 3}}, "'replica' not allowed"),
    ({"central": {"replicas": 2}}, "'/central/replicas'"),
    ({"central": {"certificates": "file"}}, "'/central/certificates'"),
    ({"central": {"context": "Web"}}, "'/central/context'"),
    ({"central": {"trustDomain": "example.org/ns"}}, "'/central/trustDomain'"),
    ({"sharedStore": {"url": "redis://valkey:6379"}}, "'/sharedStore/url'"),
    ({"sharedStore": {"podLabels": None}}, "'podLabels'"),
    ({"image": {"tag": "latest"}}, "'/image/tag'"),
    ({"image": {"repository": "tls-sessiond --privileged"}}, "'/image/repository'"),
    ({"certificateSecret": ""}, "'/certificateSecret'"),
    ({"terminationGracePeriodSeconds": 40}, "'/terminationGracePeriodSeconds'"),
    ({"config": 7}, "'/config'"),
    ({"monitoring": {"enabled": "yes"}}, "'/monitoring/enabled'"),
    ({"sidecar": {"resources": {"limits": {"memory": "lots"}}}}, "'/sidecar/resources/limits"),
    ({"imagePullSecrets": ["registry"]}, "'/imagePullSecrets/0'"),
    ({"proxy": {"enabled": "yes"}}, "'/proxy/enabled'"),
    ({"proxy": {"backendPort": 0}}, "'/proxy/backendPort'"),
    ({"proxy": {"backend": "tcp://10.0.0.1:80"}}, "'backend' not allowed"),
    ({"proxy": {"enabled": True}, "sidecar": {"example": {"enabled": True}}}, "'not' failed"),
]


def prerequisites():
    if not shutil.which("kubectl"):
        fail("kubectl is missing. No registry of the tests has it: install 1.28 or later by hand")
    version = json.loads(kubectl("version", "--client", "--output", "json"))["clientVersion"]
    if (int(version["major"]), int(re.match(r"\d+", version["minor"])[0])) < (1, 28):
        fail(f"kubectl is {version['gitVersion']}: expected 1.28 or later")
    for program in ("busybox", "buildah", "redis-server", "openssl", "hadolint", "ip", "nginx", "strip"):
        if not shutil.which(program):
            fail(f"{program} is missing: run tests/peers.sh")


def isolate():
    """Gives the test a network with loopback alone, and an /etc that it may write. Ports and paths are those of the pods."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) != 0:
        fail("cannot make a network namespace")
    run("ip", "link", "set", "lo", "up")
    for folder in (RUN / "etc", RUN / "work"):
        folder.mkdir(parents=True)
    run("mount", "-t", "overlay", "-o", f"lowerdir=/etc,upperdir={RUN}/etc,workdir={RUN}/work", "none", "/etc")
    # kubectl keeps files there.
    os.environ["HOME"] = str(RUN)
    with open("/etc/hosts", "a") as hosts:
        hosts.write("\n127.0.0.1 localhost tls-sessiond valkey\n")


def lint():
    run("hadolint", "--failure-threshold", "style", *KUBERNETES.rglob("Containerfile"))
    shown("hadolint finds nothing in the Containerfiles")
    for values in ({}, SIDECAR, CENTRAL):
        report = helm_python.lint(str(CHART), values, strict=True, namespace="web")
        # 1 is information: the chart has no icon.
        if report["errors"] or [found for found in report["messages"] if found["severity"] > 1]:
            fail(f"helm lint: {report}")
    with helm_python.Chart.load(str(CHART)) as chart:
        versions = chart.metadata["version"], chart.metadata["appVersion"]
    daemon = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    if versions != (daemon, daemon):
        fail(f"Chart.yaml: expected the version {daemon} twice: {versions}")
    shown("helm lint has no warning, and the chart has the version of the daemon")


def render():
    """Returns the objects of each kustomization and of the chart, by a name."""
    found = {other: kustomize(KUBERNETES / other) for other in OTHERS}
    charts = {}
    for number, (overlay, component, values) in enumerate(CHOICES):
        title = f"{overlay} with {component}" if component else overlay
        if component:
            # Kustomize takes relative paths alone.
            folder = RUN / f"kustomize-{number}"
            parts = [os.path.relpath(KUBERNETES / part, folder) for part in (overlay, component)]
            found[title] = rendered.kustomize_with(folder, *parts)
        else:
            found[title] = kustomize(KUBERNETES / overlay)
        charts[title], notes = helm(values)
        if "kubectl" not in notes:
            fail(f"the chart as {title} has no notes: {notes}")
    folder = RUN / "kustomize-proxy-monitor"
    found[PROXY_METRICS] = rendered.kustomize_with(folder, *(os.path.relpath(KUBERNETES / part, folder) for part in PROXY_METRICS.split(" with ")))
    tried = {str(path.parent.relative_to(KUBERNETES)) for path in KUBERNETES.rglob("kustomization.yaml")}
    known = {*OTHERS, *(part for overlay, component, _ in CHOICES for part in (overlay, component))}
    # These are parts of overlays and examples.
    parts = {"sidecar", "central", "keys-agent", "proxy-sidecar", "proxy-sidecar-socket", "proxy-monitor"}
    if missing := tried - known - {f"components/{part}" for part in parts} - {"examples/plain-backend-application"}:
        fail(f"the test does not render {missing}")
    shown(f"kubectl kustomize renders {len(found)} sets of objects without a warning, and the chart {len(charts)}")
    return found, charts


def both(found, charts):
    """Yields the objects of kustomize and of the chart, each with a title."""
    yield from found.items()
    yield from ((f"the chart as {title}", objects) for title, objects in charts.items())


def validate(found, charts):
    schemas = Schemas()
    for title, objects in both(found, charts):
        for one in objects:
            for version in (OLDEST, NEWEST):
                for error in schemas.errors(one, version):
                    fail(f"{title}: {name(one)}, Kubernetes {version}: {error}")
    # The schemas can refuse.
    for title, kind, path, value in [
        ("overlays/sidecar", "Deployment", ("spec", "template", "spec", "initContainers", 0, "restart"), "Always"),
        ("overlays/sidecar", "Deployment", ("spec", "template", "spec", "terminationGraceSeconds"), 1),
        ("overlays/sidecar with components/pod-monitor", "PodMonitor", ("spec", "endpoints"), []),
        (SERVICE_MONITOR, "ServiceMonitor", ("spec", "endpoints", 0, "port"), 9551),
        ("overlays/central-cert-manager", "Certificate", ("spec", "renewBefore"), "30d"),
        ("overlays/central-cert-manager", "Issuer", ("spec", "selfsigned"), {}),
    ]:
        one = copy.deepcopy(next(one for one in found[title] if one["kind"] == kind))
        at = one
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        if not list(schemas.errors(one, NEWEST)):
            fail(f"the schema of {kind} does not refuse {path[-1]}: {value}")
    total = sum(map(len, found.values())) + sum(map(len, charts.values()))
    shown(f"{total} objects are valid for Kubernetes {OLDEST} and {NEWEST}, and 6 wrong ones are refused")


def judge(found, charts):
    pods = 0
    for title, objects in both(found, charts):
        for deployment in wiring.of_kind(objects, "Deployment"):
            pods += 1
            pod = wiring.template(deployment)["spec"]
            if broken := policy.violations(pod):
                fail(f"{title}: {name(deployment)} breaks the restricted standard: {broken}")
            if blind := policy.blind_rules(pod):
                fail(f"{title}: {name(deployment)}: rules that find nothing: {blind}")
        # This worker is for the daemon of an overlay, which has its certificate.
        beside = found["overlays/central-cert-manager"] if title == "examples/central-worker" else []
        if broken := list(wiring.problems([*objects, *beside])):
            fail(f"{title}: {broken}")
    rules = len(policy.RESTRICTED)
    shown(f"{pods} pods pass the {rules} rules of the restricted standard, and each rule finds its counterexample")
    shown("references, selectors, ports, users, rights, drains, memory and certificates fit together")


def compare(found, charts):
    for title, objects in charts.items():
        if different := list(rendered.differences(rendered.comparable(found[title]), rendered.comparable(objects))):
            fail(f"{title}: chart and kustomize differ:\n" + "\n".join(different))
    shown(f"chart and kustomize give the same objects in {len(charts)} choices")


def configure():
    """A value of the chart reaches the pods of both modes."""
    for values in (SIDECAR, CENTRAL):
        objects, _ = helm({**values, "terminationGracePeriodSeconds": 75})
        for deployment in wiring.of_kind(objects, "Deployment"):
            if (found := wiring.template(deployment)["spec"]["terminationGracePeriodSeconds"]) != 75:
                fail(f"{name(deployment)}: terminationGracePeriodSeconds is {found}, expected 75 of the values")
    shown("the chart takes terminationGracePeriodSeconds from its values")


def refuse():
    for values, reason in REFUSED:
        try:
            helm({**values})
        except helm_python.HelmValuesError as error:
            if reason not in str(error):
                fail(f"the chart refuses {values} for another reason than {reason}: {error}")
        else:
            fail(f"the chart accepts {values}")
    try:
        helm({"mode": "central"})
        fail("the chart renders without an image")
    except helm_python.HelmRenderError as error:
        if "image.repository is not set" not in str(error):
            fail(f"{error}")
    shown(f"the schema of the chart refuses {len(REFUSED)} wrong values, and the chart a missing image")


def arguments_exist(found):
    """The servers in Rust are not built here. Their arguments are those of their sources."""
    for deployment in wiring.of_kind(found["examples/rust-workers"], "Deployment"):
        (worker,) = wiring.template(deployment)["spec"]["containers"]
        path = ROOT / f"examples/{worker['command'][0]}.rs"
        source = path.read_text() if path.exists() else fail(f"{path} is missing")
        fields = re.findall(r"#\[arg\(long[^\n]*\n    (\w+):", source)
        for argument in worker["args"]:
            if argument.startswith("--") and argument[2:].replace("-", "_") not in fields:
                fail(f"{path} has no {argument}")
    shown("the servers in Rust have the arguments of their Deployments")


def main():
    os.environ["PATH"] = f"{ROOT}/.peers/bin:{ROOT}/.peers/venv/bin:{os.environ['PATH']}"
    prerequisites()
    alone()
    isolate()
    with contextlib.ExitStack() as stack:
        lint()
        found, charts = render()
        validate(found, charts)
        judge(found, charts)
        compare(found, charts)
        configure()
        refuse()
        arguments_exist(found)
        readmes.inject_by_chart(readmes.inject())
        readmes.inject_agent()
        readmes.inject_proxy()

        files = running.authority(RUN / "authority")
        cluster = running.Cluster(images(), running.secrets(files))
        running.store(stack, files)
        running.check(cluster, dict(both(found, charts)))
        running.run_all(cluster, files, found)
        readmes.run_readmes(stack, cluster, files, found["overlays/sidecar"], found["examples/plain-backend"])


main()
