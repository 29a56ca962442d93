"""The images of the pods: built where their bases are here, and otherwise the program on the root of this machine."""

import json
import os
import pathlib
import re
import shutil
import sys

import yaml

from harness import ROOT, fail, run, shown
from places import KUBERNETES, RUN


def images():
    """Builds the images of the daemon and of its reload. Returns for each image its root, entrypoint and environment."""
    storage = RUN / "storage"
    storage.mkdir()
    lines = ["[storage]", 'driver = "vfs"', f'graphroot = "{storage}/graph"', f'runroot = "{storage}/run"']
    (storage / "storage.conf").write_text("\n".join(lines))
    # buildah warns otherwise that the plugins of the other backend are not there.
    (storage / "containers.conf").write_text('[network]\nnetwork_backend = "netavark"\n')
    os.environ |= {
        "CONTAINERS_CONF": str(storage / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(storage / "storage.conf"),
        "BUILDAH_ISOLATION": "chroot",
    }
    # The base image, which no registry here has: the same program, of Debian.
    base = run("buildah", "from", "scratch").strip()
    run("buildah", "copy", base, shutil.which("busybox"), "/bin/busybox")
    run("buildah", "commit", base, "docker.io/library/busybox:stable-musl")
    binary = storage / "tls-sessiond"
    run("strip", "-o", binary, os.environ.get("TLS_SESSIOND") or fail("set TLS_SESSIOND to the daemon's binary"))
    readme = (ROOT / "deploy/image/README.md").read_text()
    (context,) = re.findall(r"^(deploy/image/\S+\.sh) target/dist", readme, re.MULTILINE)
    run(ROOT / context, binary, storage / "context")
    recipe = ["--build-arg", "BUILD=binary", "--file", ROOT / "deploy/image/Containerfile"]
    run("buildah", "build", "--format", "docker", *recipe, "--tag", "tls-sessiond", storage / "context")
    readme = (KUBERNETES / "README.md").read_text()
    (command,) = re.findall(r"^\$ (buildah build .* deploy/kubernetes/reload)$", readme, re.MULTILINE)
    run("sh", "-euc", command, cwd=ROOT)
    shown("the image of the reload is built by the command of the README, on the image of the daemon")
    found = {}
    for image, tag in {"tls-sessiond": "tls-sessiond", "tls-sessiond-reload": command.split()[-2]}.items():
        container = run("buildah", "from", tag).strip()
        config = json.loads(run("buildah", "inspect", container))["OCIv1"]["config"]
        found[image] = {
            "root": run("buildah", "mount", container).strip(),
            "entrypoint": config["Entrypoint"],
            "environment": dict(variable.split("=", 1) for variable in config["Env"]),
        }
    # Debian's nginx on the root of this machine.
    nginx = {"root": "/", "entrypoint": ["nginx"], "environment": {"PATH": "/usr/sbin:/usr/bin:/bin"}}
    worker = python_image()
    python = {**worker, "entrypoint": [], "environment": {**worker["environment"], "PATH": f"{RUN}/python-worker/python/bin:/usr/bin:/bin"}}
    return {**found, "tls-sessiond-python-worker": worker, "python": python, "nginx": nginx}


def python_image():
    """Returns the worker in Python on the root of this machine: its base image is in no registry here."""
    folder = RUN / "python-worker"
    folder.mkdir()
    # The folders of Python and of the repository may be closed to other users.
    for part, source in {"python": sys.base_prefix, "venv": sys.prefix}.items():
        (folder / part).mkdir()
        run("mount", "--bind", source, folder / part)
    shutil.copy(KUBERNETES / "examples/python-worker/worker.py", folder)
    packages = folder / "venv" / pathlib.Path(yaml.__file__).parents[1].relative_to(sys.prefix)
    environment = {"PYTHONPATH": str(packages), "LD_LIBRARY_PATH": f"{folder}/python/lib", "PATH": "/usr/bin:/bin"}
    return {"root": "/", "entrypoint": [f"{folder}/python/bin/python3", f"{folder}/worker.py"], "environment": environment}
