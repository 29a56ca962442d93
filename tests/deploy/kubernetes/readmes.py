"""The READMEs: their commands run word for word, and their examples inject as they say."""

import copy
import json
import os
import pathlib
import re
import shutil
import sys

import yaml

import rendered
import wiring
from harness import ROOT, fail, run, shown, start
from places import CHART, KUBERNETES, RUN
from rendered import NEWEST, Schemas, helm, kustomize, load, name


def blocks(readme, first):
    """Returns the fenced block of a README whose first line is this one."""
    found = re.findall(r"^```\w+\n(.*?)^```$", readme.read_text(), re.DOTALL | re.MULTILINE)
    (block,) = [block for block in found if block.startswith(first)]
    return block


def commands(readme):
    """Returns the blocks of a README that are marked to be run."""
    return re.findall(r"^<!-- run -->\n```sh\n(.*?)^```$", readme.read_text(), re.DOTALL | re.MULTILINE)


def inject():
    """The component injects into a Deployment of a user as the README says, and into no other."""
    folder = RUN / "user"
    folder.mkdir()
    shutil.copytree(ROOT / "deploy", RUN / "deploy")
    app = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "app", "labels": {"tls-sessiond/inject": "true"}},
        "spec": {
            "selector": {"matchLabels": {"app": "app"}},
            "template": {
                "metadata": {"labels": {"app": "app"}},
                "spec": {
                    "initContainers": [{"name": "migrate", "image": "migrate:1"}],
                    "containers": [
                        {"name": "app", "image": "app:1", "volumeMounts": [{"name": "data", "mountPath": "/data"}]},
                        {"name": "other", "image": "other:1"},
                    ],
                    "volumes": [{"name": "data", "emptyDir": {}}],
                },
            },
        },
    }
    plain = copy.deepcopy(app)
    plain["metadata"] = {"name": "plain"}
    (folder / "deployment.yaml").write_text(yaml.safe_dump_all([app, plain]))
    (folder / "kustomization.yaml").write_text(blocks(KUBERNETES / "README.md", "# kustomization.yaml"))
    objects = {name(one): one for one in kustomize(folder)}
    # A patch of the user comes after the component.
    with (folder / "kustomization.yaml").open("a") as kustomization:
        operation = [{"op": "replace", "path": "/spec/template/spec/terminationGracePeriodSeconds", "value": 75}]
        kustomization.write(yaml.safe_dump({"patches": [{"target": {"name": "app"}, "patch": json.dumps(operation)}]}))
    (patched,) = [one for one in kustomize(folder) if name(one) == "Deployment/app"]
    if wiring.template(patched)["spec"]["terminationGracePeriodSeconds"] != 75:
        fail("a patch of the user does not set terminationGracePeriodSeconds")
    pod = wiring.template(objects["Deployment/app"])["spec"]
    if objects["Deployment/plain"] != plain:
        fail("the component changes a Deployment without the label")
    if [container["name"] for container in pod["initContainers"]] != ["tls-sessiond", "tls-sessiond-reload", "migrate"]:
        fail("expected the sidecars before other init containers")
    mounts = [sorted(mount["name"] for mount in container.get("volumeMounts", [])) for container in pod["containers"]]
    if mounts != [["data", "tls-sessiond-run"], []]:
        fail(f"expected the socket in the first container alone: {mounts}")
    writable = [mount["name"] for mount in pod["containers"][0]["volumeMounts"] if not mount.get("readOnly")]
    if writable != ["data"]:
        fail(f"expected a read-only mount of the socket's folder: {writable}")
    shown("the component injects into a Deployment with the label and leaves others as they are")
    return pod


def inject_agent():
    """The component injects an agent into a Deployment of a user as the README says, and into no other."""
    folder = RUN / "user-of-keys"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(blocks(KUBERNETES / "README.md", "# my-own-nginx/kustomization.yaml"))
    container = {"image": "nginx:1", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    spec = {"initContainers": [{"name": "migrate"}], "containers": [{"name": "own", **container}, {"name": "other"}]}
    template = {"metadata": {"labels": {"app": "app"}}, "spec": {**spec, "volumes": [{"name": "data", "emptyDir": {}}]}}
    labels = {"app": {"tls-sessiond/keys": "nginx"}, "plain": {"tls-sessiond/inject": "true"}}
    kind = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": template}}
    made = [{**kind, "metadata": {"name": one, "labels": found}} for one, found in labels.items()]
    (folder / "deployment.yaml").write_text(yaml.safe_dump_all(copy.deepcopy(made)))
    objects = {name(one): one for one in kustomize(folder)}
    if len(objects) != 2 or objects["Deployment/plain"] != made[1]:
        fail(f"the component changes a Deployment without the label, or adds objects: {objects}")
    pod = wiring.template(objects["Deployment/app"])["spec"]
    if [container["name"] for container in pod["initContainers"]] != ["tls-sessiond-keys", "migrate"]:
        fail("expected the agent before other init containers")
    mounts = [{m["name"]: m.get("readOnly", False) for m in one.get("volumeMounts", [])} for one in pod["containers"]]
    if mounts != [{"data": False, "tls-sessiond-keys": True, "tls-sessiond-keys-pid": False}, {}]:
        fail(f"expected the folders of the agent in the first container alone: {mounts}")
    shown("the component of ticket keys injects an agent into a Deployment with its label, and leaves others as they are")


def inject_proxy():
    """The component injects a proxy into a Deployment of a user as the README says, and into no other. So does the chart."""
    folder = RUN / "user-of-proxy"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(blocks(KUBERNETES / "README.md", "# my-own-backend/kustomization.yaml"))
    spec = {"containers": [{"name": "own", "image": "own:1"}], "initContainers": [{"name": "migrate"}]}
    kind = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": {"metadata": {"labels": {"app": "app"}}, "spec": spec}}}
    labels = {"app": {"tls-sessiond/proxy": "true"}, "plain": {"tls-sessiond/inject": "true"}}
    made = [{**kind, "metadata": {"name": one, "labels": found}} for one, found in labels.items()]
    (folder / "deployment.yaml").write_text(yaml.safe_dump_all(copy.deepcopy(made)))
    objects = {name(one): one for one in kustomize(folder)}
    if set(objects) != {"Deployment/app", "Deployment/plain", "ConfigMap/tls-sessiond-proxy"} or objects["Deployment/plain"] != made[1]:
        fail(f"the component changes a Deployment without the label, or adds objects: {objects}")
    pod = wiring.template(objects["Deployment/app"])["spec"]
    if [one["name"] for one in pod["initContainers"]] != ["tls-sessiond-proxy", "tls-sessiond-proxy-reload", "migrate"]:
        fail("expected the proxy before other init containers")
    if pod["containers"] != spec["containers"]:
        fail(f"the component changes the application: {pod['containers']}")
    in_pods = {**made[0], "metadata": {"name": "app", "labels": {**labels["app"], "tls-sessiond/inject": "proxy"}}}
    (folder / "deployment.yaml").write_text(yaml.safe_dump(copy.deepcopy(in_pods)))
    (folder / "kustomization.yaml").write_text(blocks(KUBERNETES / "README.md", "# my-own-pods/kustomization.yaml"))
    (deployment,) = wiring.of_kind(kustomize(folder), "Deployment")
    in_pods = wiring.template(deployment)["spec"]
    if in_pods["containers"] != spec["containers"] or len(in_pods["initContainers"]) != 5:
        fail(f"expected a daemon, a proxy, their reloads, and an application without the socket: {in_pods}")
    # The chart of inject_by_chart, which depends on ours.
    chart = RUN / "chart"
    (chart / "templates/deployment.yaml").write_text(blocks(CHART / "README.md", "# templates/backend.yaml"))
    values = {"tls-sessiond": {"mode": "central", "proxy": {"enabled": True}}}
    found, _ = helm(values, name="shop", namespace="web", chart=chart)
    (deployment,) = [one for one in wiring.of_kind(found, "Deployment") if name(one).endswith("-backend")]
    ours = {one["name"]: one for one in wiring.template(deployment)["spec"]["initContainers"]}
    for one in pod["initContainers"][:2]:
        for key in ("args", "securityContext", "resources", "volumeMounts"):
            if rendered.ordered(one[key]) != rendered.ordered(ours[one["name"]][key]):
                fail(f"the chart injects another {key} of {one['name']}: {ours[one['name']][key]}")
    shown("a proxy is injected into a Deployment with its label, by the component and by a chart that depends on ours")


def inject_by_chart(by_component):
    """A chart that depends on ours injects the same containers and volumes."""
    folder = RUN / "chart"
    (folder / "templates").mkdir(parents=True)
    shutil.copytree(CHART, folder / "charts/tls-sessiond")
    readme = CHART / "README.md"
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: web\nversion: 1.0.0\n" + blocks(readme, "# Chart.yaml"))
    (folder / "values.yaml").write_text(blocks(readme, "# values.yaml"))
    (folder / "templates/deployment.yaml").write_text(blocks(readme, "# templates/deployment.yaml"))
    objects, _ = helm({}, name="shop", namespace="web", chart=folder)
    (deployment,) = wiring.of_kind(objects, "Deployment")
    (config,) = wiring.of_kind(objects, "ConfigMap")
    pod = wiring.template(deployment)["spec"]
    if [mount.get("readOnly") for mount in pod["containers"][0]["volumeMounts"]] != [True]:
        fail("another chart: expected a read-only mount of the socket's folder")

    def own(spec):
        text = json.dumps([spec["initContainers"][:2], [v for v in spec["volumes"] if v["name"].startswith("tls-sessiond")]])
        return re.sub(r'"image": "[^"]*/?(tls-sessiond[a-z-]*):[^"]*"', r'"image": "\1"', text)

    ours = json.loads(own(pod).replace("registry.example.com/", ""))
    theirs = json.loads(own(by_component).replace('{"name": "tls-sessiond"}', f'{{"name": "{config["metadata"]["name"]}"}}'))
    for one, other in zip(ours, theirs, strict=True):
        if different := list(rendered.differences(rendered.ordered(other), rendered.ordered(one))):
            fail(f"the chart injects something else:\n{different}")
    if "tls-sessiond/inject" not in wiring.template(deployment)["metadata"]["labels"]:
        fail("the PodMonitor does not select the pods of another chart")
    shown("a chart that depends on ours, as in its README, injects the same containers and volumes as the component")


def run_readmes(stack, cluster, files, objects, backend):
    """Runs the commands of both READMEs, word for word. kubectl and helm are stand-ins for those of a cluster."""
    pod = cluster.pod(objects, "tls-sessiond-worker")
    start(stack, "listening on", *pod.command("tls-sessiond"))
    backend = cluster.pod(backend, "tls-sessiond-application")
    start(stack, "listening on tls://", *backend.command("tls-sessiond-proxy"))
    cluster_program = pathlib.Path(__file__).with_name("cluster.py")
    programs = RUN / "programs"
    programs.mkdir()
    for program in ("kubectl", "helm"):
        text = f"#!/bin/sh\nexec {sys.executable} {cluster_program} {program} \"$@\"\n"
        (programs / program).write_text(text)
        (programs / program).chmod(0o755)
    running = {container: one.command(container) for one in (backend, pod) for container in one.containers}
    (RUN / "exec.json").write_text(json.dumps(running))
    path = f"{programs}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "CLUSTER": str(RUN), "KUBECTL": shutil.which("kubectl")}
    place = RUN / "readme"
    place.mkdir()
    shutil.copytree(ROOT / "deploy", place / "deploy")
    for file, content in {"tls.crt": "web.crt", "tls.key": "web.key", "ca.crt": "ca.crt"}.items():
        (place / file).write_bytes(files[content])
    (place / "password").write_text("PASSWORD")
    schemas, ran = Schemas(), 0
    for readme in (KUBERNETES / "README.md", CHART / "README.md"):
        for block in commands(readme):
            made = RUN / "objects.yaml"
            made.unlink(missing_ok=True)
            run("sh", "-euc", block, cwd=place, env=environment)
            for one in load(made.read_text()):
                for error in schemas.errors(one, NEWEST):
                    fail(f"{readme}: {name(one)}: {error}")
                if "VERSION" in json.dumps(one.get("spec", {})):
                    fail(f"{readme}: {name(one)} has no version")
                if one["kind"] == "Secret" and set(one["data"]) != wiring.USER_SECRETS[one["metadata"]["name"]]:
                    fail(f"{readme}: {name(one)} has {set(one['data'])}")
            ran += 1
    if ran != 9:
        fail(f"expected nine blocks to run, found {ran}")
    shown(f"{ran} blocks of commands of both READMEs run word for word, with a stand-in for the cluster")
