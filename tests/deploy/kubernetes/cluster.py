"""A stand-in for kubectl and helm, for the commands of READMEs: it makes the objects, and no cluster gets them.

    cluster.py kubectl ARGUMENT... | helm ARGUMENT...

CLUSTER is a folder: objects.yaml gets all objects, and exec.json has the commands of containers that run. KUBECTL is the real
one. A command that the stand-in does not know fails.
"""

import json
import os
import pathlib
import subprocess
import sys

CLUSTER = pathlib.Path(os.environ["CLUSTER"])
OBJECTS = CLUSTER / "objects.yaml"


def real(*arguments):
    done = subprocess.run([os.environ["KUBECTL"], *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0 or done.stderr:
        sys.exit(done.stderr or f"kubectl {arguments}: status {done.returncode}")
    return done.stdout


def add(text):
    with OBJECTS.open("a") as objects:
        objects.write(f"---\n{text}")


def deployment(name):
    import yaml

    for one in yaml.safe_load_all(OBJECTS.read_text()):
        if one and one["kind"] == "Deployment" and f"deployment/{one['metadata']['name']}" == name:
            return one["spec"]["template"]["spec"]
    sys.exit(f"there is no {name}")


def kubectl(arguments):
    if arguments[0] == "--namespace":
        if arguments[1] != "web":
            sys.exit(f"there is no namespace {arguments[1]}")
        arguments = arguments[2:]
    match arguments:
        case ["create", *rest]:
            add(real("create", *rest, "--dry-run=client", "--output=yaml"))
        case ["apply", "--kustomize", folder]:
            add(real("kustomize", folder))
        case ["rollout", "status", name]:
            deployment(name)
        case ["exec", name, "--container", container, "--", *command]:
            spec = deployment(name)
            if container not in [one["name"] for one in [*spec.get("initContainers", []), *spec["containers"]]]:
                sys.exit(f"{name} has no container {container}")
            start = json.loads((CLUSTER / "exec.json").read_text())[container]
            sys.exit(subprocess.run([*start, *command], check=False).returncode)
        case _:
            sys.exit(f"the stand-in does not know kubectl {' '.join(arguments)}")


def helm(arguments):
    import helm_python

    match arguments:
        case ["install", name, chart, "--namespace", namespace, *rest]:
            values = {}
            for flag, value in zip(rest[::2], rest[1::2], strict=True):
                if flag != "--set":
                    sys.exit(f"the stand-in does not know {flag}")
                merge(values, helm_python.parse_set_string(value))
            with helm_python.Chart.load(chart) as loaded:
                for path, text in loaded.render(values, name=name, namespace=namespace).items():
                    print(text) if path.endswith("NOTES.txt") else add(text)
        case _:
            sys.exit(f"the stand-in does not know helm {' '.join(arguments)}")


def merge(values, more):
    for key, value in more.items():
        if isinstance(value, dict):
            merge(values.setdefault(key, {}), value)
        else:
            values[key] = value


{"kubectl": kubectl, "helm": helm}[sys.argv[1]](sys.argv[2:])
