"""A pod as processes: each container of a spec in its image, with its mounts, user, groups, environment and arguments.

The files of ConfigMaps and Secrets are laid as Kubernetes lays them, in a folder behind a link that is replaced as a whole.

As a program, `pod.py FILE [COMMAND...]` becomes the container that a file of Pod.command describes, or runs another command in
its place: an exec probe, or `kubectl exec`.
"""

import ctypes
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

CLONE_NEWNS, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 0x20000, 24, 38
# The last capability of Linux 6, CAP_CHECKPOINT_RESTORE.
CAPABILITIES = 41


class Pod:
    numbers = itertools.count()

    def __init__(self, folder, spec, maps, secrets, images):
        """`maps` and `secrets` are files by object. `images` have a root, an entrypoint and an environment."""
        self.folder = folder
        self.spec = spec
        self.maps = maps
        self.secrets = secrets
        self.images = images
        # More variables of a container, by its name.
        self.extra = {}
        self.group = spec["securityContext"]["fsGroup"]
        self.containers = {one["name"]: one for one in [*spec.get("initContainers", []), *spec["containers"]]}
        for volume in spec["volumes"]:
            place = folder / volume["name"]
            place.mkdir(parents=True)
            if {"emptyDir", "csi"} & set(volume):
                os.chown(place, 0, self.group)
                # The group of the folder becomes the group of new files.
                place.chmod(0o2777)
            else:
                self.write(volume["name"])

    def write(self, name):
        """Writes the files of a volume, or replaces them, as Kubernetes does after a change."""
        (volume,) = [volume for volume in self.spec["volumes"] if volume["name"] == name]
        place = self.folder / name
        data = place / f"..data-{next(self.numbers)}"
        for path, content, mode in self.files(volume):
            (data / path).parent.mkdir(parents=True, exist_ok=True)
            (data / path).write_bytes(content)
            os.chown(data / path, 0, self.group)
            (data / path).chmod(mode)
        link = place / "..data"
        before = link.resolve() if link.exists() else None
        (place / "..data-new").symlink_to(data.name)
        (place / "..data-new").rename(link)
        for top in data.iterdir():
            if not (place / top.name).is_symlink():
                (place / top.name).symlink_to(f"..data/{top.name}")
        if before:
            shutil.rmtree(before)

    def files(self, volume):
        whole = volume.get("projected")
        for source in whole["sources"] if whole else [volume]:
            (kind,) = {"configMap", "secret"} & set(source)
            found = source[kind]
            content = (self.maps if kind == "configMap" else self.secrets)[found.get("name") or found["secretName"]]
            items = found.get("items") or [{"key": key, "path": key} for key in content]
            # A group that reads: Kubernetes adds that for fsGroup.
            mode = (whole or found).get("defaultMode", 0o644) | 0o440
            yield from ((item["path"], content[item["key"]], mode) for item in items)

    def command(self, name, *instead):
        """Returns the command of a container, or of another one in its place."""
        return [sys.executable, __file__, self.description(name), *instead]

    def description(self, name):
        """Writes how to run a container into a file."""
        container = self.containers[name]
        image = self.images[container["image"].rpartition(":")[0]]
        environment = {**image["environment"]}
        environment.update({variable["name"]: variable.get("value", "pod-1") for variable in container.get("env", [])})
        arguments = [*(container.get("command") or image["entrypoint"]), *container.get("args", [])]
        for variable, value in environment.items():
            arguments = [argument.replace(f"$({variable})", value) for argument in arguments]
        context = {**self.spec["securityContext"], **container["securityContext"]}
        mounts = [
            (str(self.folder / mount["name"]), mount["mountPath"], mount.get("readOnly", False))
            for mount in container.get("volumeMounts", [])
        ]
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps({
            "root": image["root"],
            "mounts": mounts,
            "user": context["runAsUser"],
            "group": context["runAsGroup"],
            "groups": [self.group],
            "read_only": context["readOnlyRootFilesystem"],
            "environment": {**environment, **self.extra.get(name, {})},
            "arguments": arguments,
        }))
        return str(file)


def become(container, arguments):
    """Turns this process into a container."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    root = container["root"]

    def mount(*options):
        subprocess.run(["mount", *options], check=True)

    mount("--make-rprivate", "/")
    mount("--bind", root, root)
    # Container runtimes make the places of mounts.
    for _, target, _ in container["mounts"]:
        pathlib.Path(root + target).mkdir(parents=True, exist_ok=True)
    for folder in ("proc", "dev"):
        pathlib.Path(root, folder).mkdir(exist_ok=True)
    pathlib.Path(root, "etc/hosts").touch()
    if container["read_only"]:
        mount("-o", "remount,bind,ro", root)
    if root != "/":
        mount("-t", "proc", "proc", f"{root}/proc")
        mount("--rbind", "/dev", f"{root}/dev")
        mount("--bind", "/etc/hosts", f"{root}/etc/hosts")
    for source, target, read_only in container["mounts"]:
        mount("--bind", source, root + target)
        if read_only:
            mount("-o", "remount,bind,ro", root + target)
    os.chroot(root)
    os.chdir("/")
    for capability in range(CAPABILITIES):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups(container["groups"])
    os.setresgid(*[container["group"]] * 3)
    os.setresuid(*[container["user"]] * 3)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.environ.clear()
    os.environ.update(container["environment"])
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    description = json.loads(pathlib.Path(sys.argv[1]).read_text())
    become(description, sys.argv[2:] or description["arguments"])
