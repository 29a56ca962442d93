"""The image of deploy/image: its build, its contents, and containers of it, by the commands of its README.

Needs root, Debian's buildah, podman, runc and binutils, git and openssl, and in .peers hadolint, syft and Python with
grpcio. TLS_SESSIOND is the path of the daemon's binary.
"""

import contextlib
import json
import os
import pathlib
import re
import resource
import shutil
import stat
import subprocess
import sys
import zlib

from harness import ROOT, alone, fail, run, shown, start, stripped_daemon, until
from tls_client import Client

README = (ROOT / "deploy/image/README.md").read_text()
WORK = pathlib.Path("/run/image")
# A copy of what the commands of the README read, so that no file of the repository changes.
COPY = WORK / "repository"
USER = 50551
# glibc, libgcc, certificates and licences: 3.6 MB.
SIZE_WITHOUT_DAEMON_MAX = 4 << 20


def blocks():
    """Returns the commands of the README by their name."""
    found = dict(re.findall(r"<!-- run: (\w+) -->\n```sh\n(.*?)```", README, re.DOTALL))
    if len(found) != README.count("```sh"):
        fail("a block of the README has no name, so it is not run")
    return found


def shell(commands):
    return run("sh", "-euc", commands, cwd=COPY)


def stores():
    """Makes stores of images and containers that end with the test."""
    # buildah and podman have a cache here, wherever the stores are.
    cache = pathlib.Path("/var/lib/containers")
    cache.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "none", cache)
    (WORK / "storage.conf").write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{WORK}/graph"\nrunroot = "{WORK}/run"\n')
    # podman's own limits are above those of some machines.
    limits = []
    for name, kind in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            limits.append(f"{name}={hard}:{hard}")
    (WORK / "containers.conf").write_text(f"""
[containers]
default_ulimits = {json.dumps(limits)}
log_driver = "k8s-file"

[network]
network_config_dir = "{WORK}/networks"

[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{WORK}/libpod"
volume_path = "{WORK}/volumes"
""")
    # For the stand-in of Rust's image: the programs of this machine, and a folder in which it writes its calls.
    (WORK / "calls").mkdir()
    mounts = [f"{folder}:{folder}:ro" for folder in ("/usr", "/etc/alternatives", "/var/lib/dpkg")]
    mounts = json.dumps([*mounts, f"{WORK}/calls:/calls"])
    (WORK / "host.conf").write_text(f"[containers]\nvolumes = {mounts}\n")
    os.environ |= {
        "BUILDAH_ISOLATION": "chroot",
        "CONTAINERS_CONF": f"{WORK}/containers.conf",
        "CONTAINERS_STORAGE_CONF": f"{WORK}/storage.conf",
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        # syft asks for its newest version otherwise.
        "SYFT_CHECK_FOR_APP_UPDATE": "false",
        "TMPDIR": f"{WORK}",
    }


def repository():
    """Makes the copy, with the daemon where `make dist` puts it.

    The daemon has a stand-in for the list of crates that cargo-auditable writes, with every crate of Cargo.lock.
    """
    shutil.copytree(ROOT / "deploy/image", COPY / "deploy/image")
    for name in ("Cargo.toml", "Cargo.lock"):
        shutil.copy(ROOT / name, COPY)
    dist = COPY / "target/dist"
    dist.mkdir(parents=True)
    crates = re.findall(r'\[\[package\]\]\nname = "(.*)"\nversion = "(.*)"', (ROOT / "Cargo.lock").read_text())
    packages = [{"name": name, "version": version, "source": "crates.io"} for name, version in crates]
    next(package for package in packages if package["name"] == "tls-sessiond")["root"] = True
    (WORK / "crates").write_bytes(zlib.compress(json.dumps({"packages": packages}).encode()))
    run("objcopy", "--add-section", f".dep-v0={WORK}/crates", stripped_daemon(), dist / "tls-sessiond")
    shell("git init --quiet; git -c user.name=test -c user.email=test@localhost commit --quiet --allow-empty --message test")
    return dist / "tls-sessiond"


def settings():
    """Returns the settings of the image that was built last. buildah adds its version to the labels."""
    config = json.loads(run("buildah", "inspect", "tls-sessiond"))["Docker"]["config"]
    config["Labels"].pop("io.buildah.version")
    config.pop("Hostname")
    return config


def image(field):
    return run("podman", "image", "inspect", "--format", f"{{{{.{field}}}}}", "tls-sessiond").strip()


def from_sources(command):
    """Builds from the sources with stand-ins for the images that are pulled, and for cargo."""
    base = WORK / "base"
    base.mkdir()
    for name in ("bin", "lib", "lib64"):
        (base / name).symlink_to(f"usr/{name}")
    (base / "etc").mkdir()
    shutil.copy("/etc/os-release", base / "etc")
    shutil.copy(COPY / "target/dist/tls-sessiond", base / "built")
    (base / "cargo").write_text("""#!/bin/sh
echo "cargo $*, RUSTFLAGS=$RUSTFLAGS, in $(ls -A | tr '\\n' ' ')" >>/calls/cargo
case "$1 $2" in
"chef prepare") echo '{}' >recipe.json ;;
"auditable build") install -D /built target/dist/tls-sessiond ;;
esac
""")
    (base / "cargo").chmod(0o755)
    (WORK / "rust").write_text("FROM scratch\nCOPY . /\nENV PATH=/:/usr/bin:/bin\n")
    (WORK / "distroless").write_text("FROM scratch\nCOPY etc/os-release /etc/os-release\nUSER 65532\n")
    tags = {"rust": "docker.io/library/rust:1.95-bookworm", "distroless": "gcr.io/distroless/cc-debian12:nonroot"}
    for name, tag in tags.items():
        run("buildah", "build", "--quiet", "--format", "docker", "--file", WORK / name, "--tag", tag, base)
    (COPY / ".peers").mkdir()
    shell(f"export CONTAINERS_CONF={WORK}/host.conf\n{command}")
    calls = re.findall(r"^cargo (.*), RUSTFLAGS=(.*), in (.*)$", (WORK / "calls/cargo").read_text(), re.MULTILINE)
    if [call.split(" --")[0] for call, _, _ in calls] != ["install", "chef prepare", "chef cook", "auditable build"]:
        fail(f"expected calls of cargo to install, chef and auditable: {calls}")
    for call, flags, folder in calls:
        if "chef prepare" not in call and "--locked" not in call:
            fail(f"expected --locked: cargo {call}")
        compiles = " cook " in call or " build " in call
        if compiles and ("--profile dist" not in call or "--remap-path-prefix=" not in flags):
            fail(f"expected the profile dist, and paths that are remapped: cargo {call}, RUSTFLAGS={flags}")
        if {".git", ".peers", "target"} & set(folder.split()):
            fail(f"expected no .git, .peers and target in the build: {folder}")
    check_files(["tls-sessiond"])
    found = settings()
    shown("a build from the sources, with stand-ins for cargo and the pulled images, has all steps and an image")
    return found


def check_settings(config, sources):
    if config != sources:
        fail(f"expected the same settings from the sources and from a binary:\n{sources}\n{config}")
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    expected = {
        "User": f"{USER}:{USER}",
        "Entrypoint": ["/usr/local/bin/tls-sessiond"],
        "Cmd": ["serve"],
        "StopSignal": "SIGTERM",
        "Volumes": {"/run/tls-sessiond": {}},
        "ExposedPorts": {"50551/tcp": {}, "9551/tcp": {}},
    }
    for name, value in expected.items():
        if config[name] != value:
            fail(f"expected {name} {value}: {config[name]}")
    if config.get("Healthcheck", {}).get("Test") != ["CMD", "tls-sessiond", "health"]:
        fail(f"expected a health check: {config}")
    if labels["version"] != version or labels["revision"] != shell("git rev-parse HEAD").strip():
        fail(f"expected version {version} and the revision: {labels}")
    if not {"title", "description", "source", "licenses"} <= set(labels):
        fail(f"expected more labels: {labels}")
    shown(f"the image has user {USER}, a health check, a stop signal and labels, also from the sources")


def check_same(build):
    """Builds the image three times, the last time as the README does."""
    built = []
    for umask, form in (("022", "oci"), ("077", "oci"), ("022", "docker")):
        shutil.rmtree(COPY / "target/image", ignore_errors=True)
        shell(f"umask {umask}\n{build.replace('--format docker', f'--format {form}')}")
        built.append((image("Digest"), image("RootFS.Layers")))
        # Docker takes the times of the files, and buildah has an option for them.
        times = {path.stat().st_mtime for path in (COPY / "target/image").rglob("*")}
        if times != {int(shell("git log -1 --format=%ct"))}:
            fail(f"expected the time of the commit: {times}")
    if built[0] != built[1] or built[0][1] != built[2][1]:
        fail(f"expected two builds with the same digest, and the same layers in both formats: {built}")
    shown(f"two builds have the same digest, {built[0][0]}, and both formats the same layers")


def check_files(expected):
    """Checks the mode and owner of every file of the image, and which are programs. Returns its folder and its size."""
    root = pathlib.Path(run("podman", "image", "mount", "tls-sessiond").strip())
    programs, owned, size = [], [], 0
    for path in root.rglob("*"):
        found = path.lstat()
        name = f"/{path.relative_to(root)}"
        if (found.st_uid, found.st_gid) != (0, 0):
            owned.append((name, found.st_uid, found.st_gid, stat.filemode(found.st_mode)))
        refused = stat.S_ISUID | stat.S_ISGID | stat.S_IWGRP | stat.S_IWOTH
        if not stat.S_ISLNK(found.st_mode) and found.st_mode & refused:
            fail(f"expected a mode without setuid, and without writers: {name} {stat.filemode(found.st_mode)}")
        if stat.S_ISREG(found.st_mode):
            size += found.st_size
            if found.st_mode & 0o111:
                programs.append(re.sub(r"ld-linux.*", "ld-linux", path.name))
    if sorted(programs) != expected:
        fail(f"expected no program but {expected}: {programs}")
    if owned != [("/run/tls-sessiond", USER, USER, "drwxr-x---")]:
        fail(f"expected one folder of the daemon's user: {owned}")
    return root, size


def check_contents(binary):
    root, size = check_files(["ld-linux", "tls-sessiond"])
    shown("the image has one program, no shell, and one folder that its user may write to")

    other = size - binary.stat().st_size
    if other > SIZE_WITHOUT_DAEMON_MAX:
        fail(f"expected at most {SIZE_WITHOUT_DAEMON_MAX} bytes beside the daemon: {other}")
    shown(f"the image has {size:,} bytes, {other:,} of them beside the daemon")
    if (dist := ROOT / "target/dist/tls-sessiond").exists():
        shown(f"with the binary of `make dist` it has {dist.stat().st_size + other:,} bytes")

    anchors = (root / "etc/ssl/certs/ca-certificates.crt").read_text().count("BEGIN CERTIFICATE")
    public = len(list(pathlib.Path("/usr/share/ca-certificates/mozilla").glob("*.crt")))
    if anchors != public or public < 100:
        fail(f"expected the {public} certificates of Debian's package: {anchors}")
    shown(f"the image has the {public} public authorities of Debian, and none that was added to this machine")


def check_sbom(commands):
    shell(commands)
    listed = json.loads((COPY / "tls-sessiond.spdx.json").read_text())["packages"]
    listed = {package["name"]: package.get("versionInfo") for package in listed}
    missing = {"libc6", "libgcc-s1", "tls-sessiond", "rustls", "tokio", "h2"} - set(listed)
    if missing:
        fail(f"expected these in the SBOM: {missing}")
    shown(f"the SBOM has {len(listed)} packages: rustls {listed['rustls']}, libc6 {listed['libc6']}, ...")


def check_rights():
    proc = pathlib.Path("/proc") / run("podman", "inspect", "--format", "{{.State.Pid}}", "tls-sessiond").strip()
    status = dict(line.split(":\t") for line in (proc / "status").read_text().splitlines() if ":\t" in line)
    expected = {"Uid": "\t".join([str(USER)] * 4), "CapPrm": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1"}
    found = {name: status[name] for name in expected}
    if found != expected:
        fail(f"expected a user without rights: {found}")
    mounts = {line.split()[4]: line.split()[5].split(",")[0] for line in (proc / "mountinfo").read_text().splitlines()}
    if (mounts["/"], mounts["/run/tls-sessiond"]) != ("ro", "rw"):
        fail(f"expected a read-only root and a volume: {mounts}")
    shown(f"the daemon runs as user {USER}, without capabilities, on a read-only root")


def check_resumption(address):
    with contextlib.ExitStack() as stack:
        worker = pathlib.Path(__file__).with_name("worker.py")
        _, output = start(stack, "listening", sys.executable, worker, address, "127.0.0.1:0", "worker")
        listen = output.split()[-1]
        for version in ("1.2", "1.3"):
            client = Client(WORK, version)
            client.visit(listen, "worker", resumed=False)
            client.visit(listen, "worker", resumed=True)
    shown("a client of TLS 1.2 and 1.3 resumes through a worker outside the container")


def check_group(command):
    shell(command)
    if "--group-add 50551 " not in command:
        fail(f"expected a group: {command}")
    run("sh", "-euc", command.replace("--group-add 50551 ", ""), status=69)
    shown("another user reaches the socket with the group 50551, and not without it")


def check_store_by_name(etc):
    """Checks that the daemon finds a store by its name, which glibc looks up without a file that configures it."""
    (etc / "sealing-keys").write_text("00" * 32)
    (etc / "tls-sessiond.toml").write_text(
        '[store]\nkind = "redis"\n[store.redis]\nurls = ["rediss://store.example:6379"]\nsealing_keys = "sealing-keys"\n'
    )
    options = ("--add-host", "store.example:127.0.0.1", "--volume", f"{etc}:/etc/tls-sessiond:ro")
    output = run("podman", "run", "--rm", "--network", "none", *options, "tls-sessiond", "check", status=78)
    if "cannot connect to rediss://store.example:6379: Connection refused" not in output:
        fail(f"expected a name that is found: {output}")
    shown("a store is found by its name")


def configuration(etc):
    """Makes a folder as the README describes it: a configuration, a certificate and its key."""
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost".split()
    run(*new, "-addext", "subjectAltName=DNS:localhost", "-keyout", etc / "tls.key", "-out", etc / "tls.crt")
    os.chown(etc / "tls.key", USER, USER)
    (etc / "tls-sessiond.toml").write_text(
        '[drain]\ndelay = "2s"\n[[context]]\nname = "web"\ncertificate = "tls.crt"\nkey = "tls.key"\n'
    )


def check_drain(binary, address, commands):
    """Checks that the health of a daemon that was told to stop is `not serving` until it ends, with status 0."""
    stopping, *after = commands.splitlines()

    def health():
        return subprocess.run([binary, "--address", address, "health"], capture_output=True, check=False)

    if (done := health()).stdout != b"serving\n":
        fail(f"expected a daemon that serves: {done}")
    command = ["sh", "-euc", stopping]
    with subprocess.Popen(command, cwd=COPY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as stop:
        until("health `not serving` while the daemon drains", lambda: health().stdout == b"not serving\n")
        errors = stop.communicate()[1].decode()
        if stop.returncode != 0:
            fail(f"{stopping}: status {stop.returncode}\n{errors}")
    status = run("podman", "inspect", "--format", "{{.State.ExitCode}}", "tls-sessiond").strip()
    if status != "0":
        fail(f"expected a drain that ends with status 0: {status}\n{run('podman', 'logs', 'tls-sessiond')}")
    shell("\n".join(after))
    shown("SIGTERM drains the daemon: not serving for drain.delay, then status 0")


def main():
    alone()
    COPY.mkdir(parents=True)
    stores()
    run("hadolint", "--failure-threshold", "style", ROOT / "deploy/image/Containerfile")
    shown("hadolint finds nothing")
    commands = blocks()
    binary = repository()

    sources = from_sources(commands.pop("source"))
    check_same(commands.pop("binary"))
    check_settings(settings(), sources)
    check_contents(binary)
    check_sbom(commands.pop("sbom"))

    output = shell(commands.pop("run"))
    address = output.split()[-1]
    shown("a container becomes ready and healthy")
    check_rights()
    check_resumption(address)
    check_group(commands.pop("worker"))
    stop = commands.pop("stop")
    shell(stop)

    etc = COPY / "etc"
    etc.mkdir()
    check_store_by_name(etc)
    configuration(etc)
    shell(commands.pop("configuration"))
    if "web" not in (answer := run("podman", "exec", "tls-sessiond", "tls-sessiond", "contexts", "list")):
        fail(f"expected the context of the configuration: {answer}")
    shown("a mounted configuration is checked, served and reloaded")
    check_drain(binary, address, stop)
    if commands:
        fail(f"blocks of the README that this test does not run: {', '.join(commands)}")


main()
