"""Objects of kustomize and of the chart: rendering, the schemas that know their kinds, and a form in which both are equal."""

import contextlib
import copy
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import helm_python
import kubernetes_validate
import referencing
import yaml
from jsonschema import Draft202012Validator

from harness import fail
from places import CHART

# The oldest version with native sidecars, and the newest that kubernetes-validate knows.
OLDEST = "1.29"
NEWEST = ".".join(kubernetes_validate.latest_version().split(".")[:2])
SCHEMAS = pathlib.Path(__file__).with_name("schemas")
# Labels that only the chart has: deploy/helm/tls-sessiond/README.md.
CHART_LABELS = {"helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/version"}


def load(text):
    return [found for found in yaml.load_all(text, yaml.CSafeLoader) if found]


def kubectl(*arguments):
    """Runs kubectl. A warning fails the test."""
    command = ["kubectl", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0 or done.stderr:
        fail(f"{' '.join(command)}: status {done.returncode}\n{done.stderr}")
    return done.stdout


def kustomize(folder):
    return load(kubectl("kustomize", folder))


def kustomize_with(folder, overlay, component):
    """Renders an overlay with a component, as a kustomization of a user has both."""
    folder.mkdir()
    lines = {"namespace": "web", "resources": [overlay], "components": [component]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(lines))
    return kustomize(folder)


@contextlib.contextmanager
def silent(title):
    """Fails if something writes to stderr: Helm's library prints its warnings there itself."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as written:
        before = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
        written.seek(0)
        if text := written.read().decode():
            fail(f"{title}: {text}")


def helm(values, name="tls-sessiond", namespace="web", chart=CHART):
    """Renders the chart. Returns its objects, and the notes that a user gets. A warning fails the test."""
    with silent(f"helm with {values}"), helm_python.Chart.load(str(chart)) as loaded:
        files = loaded.render(values, name=name, namespace=namespace)
    notes = [text for path, text in files.items() if path.endswith("NOTES.txt")]
    objects = [found for path, text in files.items() if not path.endswith("NOTES.txt") for found in load(text)]
    return objects, "".join(notes)


class Schemas:
    """The schemas of Kubernetes, and for kinds that others define those in schemas/."""

    def __init__(self):
        found = {path.name: json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")}
        resources = [(name, referencing.Resource.from_contents(schema)) for name, schema in found.items()]
        registry = referencing.Registry().with_resources(resources)
        self.own = {
            schema["properties"]["kind"]["const"]: Draft202012Validator(schema, registry=registry)
            for schema in found.values()
            if "kind" in schema.get("properties", {})
        }

    def errors(self, one, version):
        """Yields what is wrong with an object."""
        if one["kind"] in self.own:
            for error in self.own[one["kind"]].iter_errors(one):
                yield f"{error.json_path}: {error.message}"
            return
        try:
            used = kubernetes_validate.validate(one, version, strict=True)
            if used != version:
                yield f"there is no schema for {version}, only for {used}"
        except kubernetes_validate.ValidationError as error:
            yield f"{'.'.join(map(str, error.path))}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield error.message


def name(one):
    return f"{one['kind']}/{one['metadata']['name']}"


def ordered(part, key=None):
    """Sorts lists whose items have names. The order of initContainers counts: it is the order of their start."""
    if isinstance(part, dict):
        return {key: ordered(value, key) for key, value in part.items()}
    if isinstance(part, list):
        items = [ordered(value) for value in part]
        named = all(isinstance(item, dict) and "name" in item for item in items)
        return sorted(items, key=lambda item: item["name"]) if named and key != "initContainers" else items
    return part


def comparable(objects):
    """Returns the objects by kind and name, without namespaces and the labels of the chart."""
    found = {}
    for one in copy.deepcopy(objects):
        metadata = one["metadata"]
        metadata.pop("namespace", None)
        metadata["labels"] = {k: v for k, v in metadata.get("labels", {}).items() if k not in CHART_LABELS}
        for key, text in one.get("data", {}).items():
            one["data"][key] = text.rstrip("\n")
        if name(one) in found:
            fail(f"{name(one)} is there twice")
        found[name(one)] = ordered(one)
    return found


def differences(left, right, path=""):
    """Yields where two values differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted({*left, *right}):
            yield from differences(left.get(key), right.get(key), f"{path}.{key}")
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for place, pair in enumerate(zip(left, right, strict=True)):
            yield from differences(*pair, f"{path}[{place}]")
    elif left != right:
        yield f"{path}: {left!r} in kustomize, {right!r} in the chart"
