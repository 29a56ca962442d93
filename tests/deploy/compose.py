"""deploy/compose, run by podman and podman-compose: no Docker engine and no registry can be had here.

The images of others are stand-ins with the names that compose.yaml has: the programs are those of this machine (Valkey, Prometheus
of Debian), and Grafana does nothing. The daemon has its own image. Needs TLS_SESSIOND with examples/ beside it, openssl,
podman with netavark, and .peers.
"""

import ctypes
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.parse
import urllib.request

import compose_spec
import yaml
from harness import ROOT, alone, fail, run, shown, stripped_daemon, until
from machine import SCRATCH, readme

sys.path.insert(0, str(pathlib.Path(__file__).with_name("kubernetes")))
from wiring import memory  # noqa: E402

PEERS = ROOT / ".peers"
DEPLOY = SCRATCH / "source/deploy"
FOLDER = DEPLOY / "compose"
COMMANDS = readme(ROOT / "deploy/compose/README.md")
# This process may not raise its own limits.
LIMITS = [f"{name}={min(resource.getrlimit(number)[1], 65536)}" for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC))]
ENGINE = f"""
[containers]
default_ulimits = {json.dumps(LIMITS)}
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "/run/podman/tmp"
[network]
network_backend = "netavark"
network_config_dir = "/run/podman/networks"
"""
STORAGE = """
[storage]
driver = "overlay"
graphroot = "/run/podman/storage"
runroot = "/run/podman/run"
"""


def has_a_network():
    """Moves the test into a network namespace of its own: the ports of compose.yaml are free there."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):
        fail(f"cannot make a network namespace: {os.strerror(ctypes.get_errno())}")
    run("ip", "link", "set", "lo", "up")


def engine():
    """Configures podman for this test alone, and makes it the `docker` of the README."""
    (SCRATCH / "podman").mkdir()
    for name, text in (("containers.conf", ENGINE), ("storage.conf", STORAGE)):
        (SCRATCH / "podman" / name).write_text(text)
    os.environ["CONTAINERS_CONF"] = str(SCRATCH / "podman/containers.conf")
    os.environ["CONTAINERS_STORAGE_CONF"] = str(SCRATCH / "podman/storage.conf")
    docker = SCRATCH / "bin/docker"
    docker.parent.mkdir()
    # `docker compose exec` without a terminal.
    docker.write_text(f'#!/bin/sh\nshift\ncase $1 in exec) shift; set -- exec -T "$@" ;; esac\nexec {PEERS}/venv/bin/podman-compose "$@"\n')
    docker.chmod(0o755)
    os.environ["PATH"] = f"{docker.parent}:{os.environ['PATH']}"


def shell(commands):
    """Runs commands of the README in its folder."""
    return run("sh", "-euc", commands, cwd=FOLDER)


def is_confined(text):
    """What the file itself promises."""
    # A typed parser of the specification: unknown keys, wrong types and undefined names are errors.
    try:
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(text))).validate()
    except ValueError as error:
        fail(f"compose.yaml: {error}")
    services = yaml.safe_load(text)["services"]
    for name, service in services.items():
        wanted = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
        if different := {key for key, value in wanted.items() if service.get(key) != value}:
            fail(f"compose.yaml: {name} lacks {different}")
        if open_ports := [port for port in service.get("ports", []) if not port.startswith("127.0.0.1:")]:
            fail(f"compose.yaml: {name} publishes {open_ports}")
        if not re.search(r":[\w.]+$", service["image"]) or service["image"].endswith(":latest"):
            fail(f"compose.yaml: {name} names no version: {service['image']}")
    shown(f"compose.yaml is valid; {len(services)} services have a read-only root, no capability and loopback ports")
    bound = memory(tomllib.loads((ROOT / "deploy/compose/daemon/tls-sessiond.toml").read_text())) / 2**20
    megabytes = int(services["daemon"]["mem_limit"].removesuffix("m"))
    if bound > megabytes:
        fail(f"the [limits] of the daemon allow {bound:.0f} MiB, and mem_limit is {megabytes} MiB")
    shown(f"the [limits] of the daemon allow {bound:.0f} MiB, which is below its mem_limit of {megabytes} MiB")
    return services


def stand_in(image, programs, instructions, folder=None):
    """Makes an image of programs of this machine, with the libraries that they need, and a folder that every user can write to."""
    context = SCRATCH / "context" / re.sub(r"\W", "-", image)
    for name, program in programs.items():
        target = context / "root/usr/local/bin" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shutil.which(program), target)
        run("strip", target)
        for library in re.findall(r"(/\S+) \(0x", run("ldd", target)):
            copy = context / "root" / library.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, copy)
    if folder:
        (context / "root" / folder).mkdir()
        (context / "root" / folder).chmod(0o1777)
    (context / "Containerfile").write_text(f"FROM scratch\nCOPY root /\nENV PATH=/usr/local/bin\n{instructions}\n")
    run("podman", "build", "--tag", image, context)


def images(services, daemon):
    """Makes every image that compose.yaml names."""
    shutil.copytree(ROOT / "deploy", DEPLOY, ignore=shutil.ignore_patterns("secrets"))
    context = SCRATCH / "context/daemon"
    context.parent.mkdir()
    run(ROOT / "deploy/image/context.sh", daemon, context)
    run("podman", "build", "--format", "docker", "--build-arg", "BUILD=binary", "--tag", services["daemon"]["image"],
        "--file", ROOT / "deploy/image/Containerfile", context)
    examples = pathlib.Path(os.environ["TLS_SESSIOND"]).parent / "examples"
    stand_in(services["worker-1"]["image"], {"tls_server": examples / "tls_server"}, "USER 10001:10001")
    stand_in(services["store"]["image"], {"valkey-server": PEERS / "bin/valkey-server", "valkey-cli": "redis-cli"}, "WORKDIR /data", "data")
    stand_in(services["prometheus"]["image"], {"prometheus": "prometheus", "promtool": "promtool"},
             'USER 65534:65534\nENTRYPOINT ["prometheus"]', "prometheus")
    stand_in(services["grafana"]["image"], {"sleep": "sleep"}, 'USER 472:0\nSTOPSIGNAL SIGKILL\nENTRYPOINT ["sleep", "infinity"]')


def serves():
    """Returns whether both workers answer a client."""
    command = "for port in 8443 8444; do echo | openssl s_client -connect localhost:$port -CAfile secrets/ca.crt -verify_return_error >/dev/null 2>&1 || exit 0; done; echo yes"
    return "yes" in shell(command)


def are_renewed_by_their_owner():
    """An ordinary user makes the secrets, replaces one and renews the certificates by the commands of the README."""
    owner = 20001
    folder = SCRATCH / "owner"
    folder.mkdir()
    shutil.copy(FOLDER / "secrets.sh", folder)
    os.chown(folder, owner, owner)

    def as_owner(commands):
        return run("sh", "-euc", commands, cwd=folder, user=owner, group=owner, extra_groups=[])

    def state():
        return {path.name: (path.stat().st_mode & 0o7777, path.stat().st_ino, path.read_bytes()) for path in (folder / "secrets").iterdir()}

    as_owner(COMMANDS["secrets"])
    made = state()
    modes = {name: oct(mode) for name, (mode, _, _) in made.items() if mode != (0o600 if name == "ca.key" else 0o644)}
    if modes or (folder / "secrets").stat().st_mode & 0o7777 != 0o700:
        fail(f"secrets.sh: expected files 0644, ca.key 0600, in a folder 0700: {modes}")
    command = re.search(r"`(cat new.crt >secrets/web.crt)`", (ROOT / "deploy/compose/README.md").read_text()).group(1)
    as_owner(f"cp secrets/daemon.crt new.crt\n{command}\ncmp new.crt secrets/web.crt")
    as_owner(COMMANDS["renew"].split("\n")[0])
    renewed = state()
    changed = {name for name in made if made[name][2] != renewed[name][2]}
    if changed != {f"{name}.{kind}" for name in ("web", "daemon", "prometheus") for kind in ("crt", "key")}:
        fail(f"secrets.sh renew: changed {changed}")
    # A container has mounted the file itself.
    if {name: one[:2] for name, one in made.items()} != {name: one[:2] for name, one in renewed.items()}:
        fail("secrets.sh renew: a file was replaced, or has another mode")
    as_owner("openssl verify -CAfile secrets/ca.crt secrets/web.crt secrets/daemon.crt secrets/prometheus.crt")
    shown("an ordinary user makes the secrets, replaces one, and renews the certificates")


def renews():
    """The commands of the README renew the certificate that clients see. Sessions stay."""
    get = COMMANDS["resume"].split("\n")[0]
    serial = "openssl s_client -connect localhost:8443 </dev/null 2>/dev/null | openssl x509 -noout -serial"
    before = shell(serial)
    shell(f"{get}\nget -connect localhost:8443 -sess_out before-renewal")
    shell(COMMANDS["renew"])
    until("the renewed certificate", lambda: shell(serial) != before)
    if "resumed: true" not in shell(f"{get}\nget -connect localhost:8444 -sess_in before-renewal"):
        fail("the renewal has lost the sessions")
    shown("a renewed certificate reaches the clients, and a session of before resumes")


def container(service, text):
    """Returns a value of a container."""
    return run("podman", "inspect", "--format", text, f"tls-sessiond_{service}_1").strip()


def is_in_force(services):
    """The processes of the containers have the rights that compose.yaml gives."""
    users = {"store": "50552", "daemon": "50551", "worker-1": "10001", "worker-2": "10001", "prometheus": "65534", "grafana": "472"}
    for name in services:
        pid = container(name, "{{.State.Pid}}")
        # With `init` the process of the service is the child of the first one.
        status = dict(re.findall(r"^(\w+):\s+(\S+)", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M))
        expected = {"Uid": users[name], "CapBnd": "0" * 16, "NoNewPrivs": "1"}
        if different := {key: status[key] for key, value in expected.items() if status[key] != value}:
            fail(f"{name}: {different}, expected {expected}")
        root = re.search(r"^\d+ \d+ \S+ \S+ / (\S+)", pathlib.Path(f"/proc/{pid}/mountinfo").read_text(), re.M).group(1)
        if "ro" not in root.split(","):
            fail(f"{name}: the root is mounted {root}")
    if links := run("nsenter", f"--net=/proc/{container('store', '{{.State.Pid}}')}/ns/net", "ip", "-brief", "link").split("\n")[1:-1]:
        fail(f"the store has a network: {links}")
    for name in ("store", "daemon"):
        run("podman", "healthcheck", "run", f"tls-sessiond_{name}_1")
    shown("users, capabilities, no-new-privileges and read-only roots are in force; the store has no network; health checks pass")


def query(expression):
    """Returns the result of a query of Prometheus."""
    words = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"http://127.0.0.1:9090/api/v1/query?{words}", timeout=5) as answer:
        return json.load(answer)["data"]["result"]


def is_watched():
    """Prometheus scrapes the daemon with names, and has the rules."""
    until("Prometheus has scraped resumed handshakes of the context web", lambda: query('tls_sessiond_handshakes_total{job="tls-sessiond",context="web",kind="resumed"} > 0'), 40)
    if [one["value"][1] for one in query("up")] != ["1"]:
        fail(f"up: {query('up')}")
    with urllib.request.urlopen("http://127.0.0.1:9090/api/v1/rules", timeout=5) as answer:
        groups = json.load(answer)["data"]["groups"]
    rules = [rule["name"] for group in groups for rule in group["rules"]]
    if "TlsSessiondDown" not in rules:
        fail(f"rules: {rules}")
    run("podman", "exec", "tls-sessiond_prometheus_1", "promtool", "check", "config", "/etc/prometheus/prometheus.yml")
    shown(f"Prometheus scrapes the daemon over mutual TLS, with names, and has {len(rules)} rules")


def grafana_is_provisioned():
    """The files of Grafana agree with each other, with compose.yaml and with the dashboard."""
    source = yaml.safe_load((FOLDER / "grafana/datasources.yaml").read_text())["datasources"][0]
    provider = yaml.safe_load((FOLDER / "grafana/dashboards.yaml").read_text())["providers"][0]
    mounts = dict(reversed(volume.removesuffix(":ro").split(":")) for volume in yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["grafana"]["volumes"] if isinstance(volume, str))
    board = next((pathlib.Path(source_) for target, source_ in mounts.items() if target.startswith(provider["options"]["path"] + "/")), None)
    if not board or source["type"] != "prometheus" or source["url"] != "http://prometheus:9090":
        fail(f"provisioning of Grafana: {source}, {provider}, {mounts}")
    variables = json.loads((FOLDER / board).read_text())["templating"]["list"]
    if not any(variable["type"] == "datasource" and variable["query"] == source["type"] for variable in variables):
        fail("the dashboard has no variable for the data source")
    shown("Grafana's files name the dashboard, its folder and Prometheus (Grafana itself was not run)")


def containers():
    """Returns the ids of all containers."""
    return set(run("podman", "ps", "--all", "--quiet", "--no-trunc").split())


def ends(ids):
    """Kills what is left of the containers, and removes their cgroups, which do not end with this process."""
    # All other processes of the namespace that alone() has made, of which this process is the first.
    if os.getpid() != 1:
        fail("not alone")
    try:
        os.kill(-1, signal.SIGKILL)
        while os.wait():
            pass
    except (ProcessLookupError, ChildProcessError):
        pass
    for path, folders, _ in os.walk("/sys/fs/cgroup", topdown=False):
        for name in folders:
            if any(one in name for one in ids):
                os.rmdir(os.path.join(path, name))


def main():
    alone()
    has_a_network()
    engine()
    services = is_confined((ROOT / "deploy/compose/compose.yaml").read_text())
    images(services, stripped_daemon())
    are_renewed_by_their_owner()
    ids = set()
    try:
        shell(COMMANDS["secrets"])
        said = shell(COMMANDS["up"])
        ids = containers()
        until(f"the workers serve\n{said}", serves, 40)
        pages = shell(COMMANDS["resume"])
        if not re.search(r"worker-1: .* resumed: false.*worker-2: .* resumed: true", pages, re.S):
            fail(f"the client did not resume at the other worker\n{pages}")
        shown("a client resumes at the other worker")
        said = shell(COMMANDS["status"])
        if not re.search(r"^open parts +64\b", said, re.M):
            fail(f"the daemon does not reach its store\n{said}")
        is_in_force(services)
        get = COMMANDS["resume"].split("\n")[0]
        shell(f"{get}\nget -connect localhost:8443 -sess_out kept")
        restart = re.search(r"`(docker compose restart daemon)`", (FOLDER / "README.md").read_text()).group(1)
        shell(restart)
        until("the workers serve after a restart of the daemon", serves, 40)
        if "resumed: true" not in shell(f"{get}\nget -connect localhost:8444 -sess_in kept"):
            fail("the restart of the daemon has lost the sessions")
        reload = re.search(r"`(docker compose exec daemon tls-sessiond reload)`", (FOLDER / "README.md").read_text()).group(1)
        shell(reload)
        shown("a session survives a restart of the daemon; a reload is applied")
        renews()
        is_watched()
        grafana_is_provisioned()
        said = shell(COMMANDS["down"])
        if left := run("podman", "ps", "--all", "--quiet") + run("podman", "volume", "ls", "--quiet"):
            fail(f"left after `down`: {left}\n{said}")
    except SystemExit:
        for name in services:
            print(f"--- {name}", flush=True)
            subprocess.run(["podman", "logs", "--tail", "20", f"tls-sessiond_{name}_1"], check=False)
        raise
    finally:
        ends(ids | containers())
    shown("`down` leaves nothing")


if __name__ == "__main__":
    main()
