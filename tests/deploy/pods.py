"""Pods as network namespaces. A client that moves from pod to pod resumes, and a killed pod takes its open sessions along.

* shared socket: one daemon for two pods, over a Unix socket in a folder that they share
* central: one daemon in a pod of its own, over mutual TLS
* fleet: a daemon in each pod, over one store

Needs root, `ip` with network namespaces, openssl, and .peers. TLS_SESSIOND is the path of the daemon's binary.
"""

import contextlib
import json
import os
import pathlib
import shutil
import sys

from harness import ROOT, alone, fail, run, shown, start, stripped_daemon, until
from tls_client import Client

WORKER = pathlib.Path(__file__).with_name("worker.py")
VERSIONS = ("1.2", "1.3")
ADDRESSES = {
    "client": "10.77.0.2",
    "central": "10.77.0.5",
    "store": "10.77.0.6",
    "pod1": "10.77.0.11",
    "pod2": "10.77.0.12",
}
# Every pod has a network of its own, so a fixed port is free.
API, HTTPS, STORE = 50551, 8443, 6379
# The user and group of the daemon, as in the image.
DAEMON = ("setpriv", "--reuid=50551", "--regid=50551", "--clear-groups", "--bounding-set=-all", "--no-new-privs")


class Pods:
    """One network namespace for each address, joined by a bridge that is in a namespace too."""

    def __init__(self):
        run("ip", "netns", "add", "switch")
        self.ip("switch", "link", "add", "bridge", "type", "bridge")
        self.ip("switch", "link", "set", "bridge", "up")
        for name, address in ADDRESSES.items():
            run("ip", "netns", "add", name)
            run("ip", "link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", name, "netns", "switch")
            self.ip("switch", "link", "set", name, "master", "bridge", "up")
            self.ip(name, "address", "add", f"{address}/24", "dev", "eth0")
            self.ip(name, "link", "set", "eth0", "up")
            self.ip(name, "link", "set", "lo", "up")

    def ip(self, name, *command):
        run("ip", "-netns", name, *command)

    def inside(self, name):
        return ("ip", "netns", "exec", name)

    def start(self, stack, name, ready, *command):
        return start(stack, ready, *self.inside(name), *command)[0]

    def worker(self, stack, name, daemon, *folder):
        listen = f"{ADDRESSES[name]}:{HTTPS}"
        return self.start(stack, name, "listening", sys.executable, WORKER, daemon, listen, name, *folder)


def moves(pods, folder):
    """Shows that a client resumes at another pod and back. Returns clients with sessions that were closed."""
    clients = []
    for version in VERSIONS:
        client = Client(folder, version, pods.inside("client"))
        client.visit(f"{ADDRESSES['pod1']}:{HTTPS}", "pod1", resumed=False)
        client.visit(f"{ADDRESSES['pod2']}:{HTTPS}", "pod2", resumed=True)
        client.visit(f"{ADDRESSES['pod1']}:{HTTPS}", "pod1", resumed=True)
        clients.append(client)
    return clients


def killed(pods, stack, folder, closed, programs, call, reason):
    """Kills pod 1 with open connections. Their sessions are gone for `reason`; those of `closed` are resumed at pod 2.

    `call` is the beginning of a command line that calls the daemon of pod 2.
    """
    opened = [Client(folder, version, pods.inside("client")) for version in VERSIONS]
    for client in opened:
        client.open(stack, f"{ADDRESSES['pod1']}:{HTTPS}")
    ids = [client.session_id() for client in opened]

    def explain(number):
        return json.loads(run(*call, "sessions", "explain", number, "--role", "server", "--output", "json"))

    for number in ids:
        answer = explain(number)
        if not answer["resumable"] or answer["session"]["openConnections"] != 1:
            fail(f"expected a session of one open connection: {answer}")
    for program in programs:
        program.kill()

    def gone(number):
        answer = explain(number)
        return not answer["resumable"] and reason in answer.values()

    for number in ids:
        until(f"session {number} is not resumed any more: {reason}", lambda number=number: gone(number))
    for client in opened:
        client.visit(f"{ADDRESSES['pod2']}:{HTTPS}", "pod2", resumed=False)
    for client in closed:
        client.visit(f"{ADDRESSES['pod2']}:{HTTPS}", "pod2", resumed=True)


def shared_socket(pods, binary, folder):
    sockets = folder / "sockets"
    sockets.mkdir()
    # As Kubernetes makes an emptyDir with fsGroup: the group of the socket decides.
    os.chown(sockets, 50551, 50551)
    sockets.chmod(0o2770)
    daemon = f"unix://{sockets}/api.sock"
    with contextlib.ExitStack() as stack:
        keys = ("--set", f'listen.api=["{daemon}"]', "--set", 'listen.admin=""')
        pods.start(stack, "central", "listening", *DAEMON, binary, *keys)
        first = pods.worker(stack, "pod1", daemon)
        pods.worker(stack, "pod2", daemon)
        call = (binary, "--address", daemon)
        user = ("setpriv", "--reuid=1001", "--regid=1001", "--bounding-set=-all")
        run(*user, "--groups=50551", *call, "health")
        run(*user, "--clear-groups", *call, "health", status=69)
        shown("shared socket: a user of the group calls the daemon, another user does not")
        closed = moves(pods, folder)
        shown("shared socket: a client of TLS 1.2 and 1.3 resumes from pod to pod")
        killed(pods, stack, folder, closed, [first], call, "REMOVAL_REASON_UNCLOSED")
        shown("shared socket: a killed pod takes its open sessions along, and closed ones stay")


def certificates(folder):
    """Makes an authority, and certificates of the daemon, both pods, a job that no rule names, and a stranger."""
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split()
    for authority in ("ca", "other-ca"):
        run(*new, "-subj", f"/CN={authority}", "-keyout", folder / f"{authority}.key", "-out", folder / f"{authority}.crt")

    def issue(name, certificate, usage, alternative, authority="ca"):
        home = folder / name
        home.mkdir()
        signer = ["-CA", folder / f"{authority}.crt", "-CAkey", folder / f"{authority}.key"]
        names = ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", f"extendedKeyUsage={usage}"]
        names += ["-subj", f"/CN={name}", "-addext", f"subjectAltName={alternative}"]
        run(*new, *signer, *names, "-keyout", home / f"{certificate}.key", "-out", home / f"{certificate}.crt")
        shutil.copy(folder / "ca.crt", home)

    issue("central", "server", "serverAuth", f"IP:{ADDRESSES['central']}")
    for name in ("pod1", "pod2"):
        issue(name, "worker", "clientAuth", f"URI:spiffe://example.org/ns/web/{name}")
    issue("job", "worker", "clientAuth", "URI:spiffe://example.org/ns/batch/job")
    issue("stranger", "worker", "clientAuth", "URI:spiffe://example.org/ns/web/pod1", "other-ca")
    (folder / "none").mkdir()
    shutil.copy(folder / "ca.crt", folder / "none")


def central(pods, binary, folder):
    certificates(folder)
    home = folder / "central"
    address = f"tls://{ADDRESSES['central']}:{API}"
    socket = f"unix://{home}/api.sock"
    (home / "tls-sessiond.toml").write_text(f"""
[listen]
api = ["{socket}", "{address}"]
admin = ""

[listen.tls]
certificate = "server.crt"
key = "server.key"
client_ca = "ca.crt"

[[access]]
identity = "spiffe://example.org/ns/web/*"
contexts = ["default"]
role = "worker"

[[access]]
identity = "uid:0"
contexts = ["*"]
role = "admin"
""")
    for path in (home, *home.iterdir()):
        os.chown(path, 50551, 50551)
    with contextlib.ExitStack() as stack:
        pods.start(stack, "central", "listening on tls://", *DAEMON, binary, "--config", home / "tls-sessiond.toml")
        first = pods.worker(stack, "pod1", address, folder / "pod1")
        pods.worker(stack, "pod2", address, folder / "pod2")
        shown("central: workers of two pods are served over mutual TLS")
        closed = moves(pods, folder)
        shown("central: a client of TLS 1.2 and 1.3 resumes from pod to pod")

        def call(name, *command, status):
            pair = ("--certificate", folder / name / "worker.crt", "--key", folder / name / "worker.key")
            options = ("--address", address, "--ca", folder / "ca.crt", *pair)
            return run(*pods.inside("pod2"), binary, *options, *command, status=status)

        refused = (sys.executable, WORKER, address, f"{ADDRESSES['pod2']}:0", "pod2", folder / "none")
        if "UNAVAILABLE" not in (answer := run(*pods.inside("pod2"), *refused, status=1)):
            fail(f"expected UNAVAILABLE: {answer}")
        call("stranger", "health", status=69)
        shown("central: a pod without a certificate, or with one of another authority, gets no answer")
        call("job", "health", status=0)
        if "PERMISSION_DENIED" not in (answer := call("job", "contexts", "list", status=1)):
            fail(f"expected PERMISSION_DENIED: {answer}")
        shown("central: a pod whose certificate no rule names is served health alone")
        killed(pods, stack, folder, closed, [first], (binary, "--address", socket), "REMOVAL_REASON_UNCLOSED")
        shown("central: a killed pod takes its open sessions along, and closed ones stay")


def fleet(pods, binary, folder):
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost".split()
    run(*new, "-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "tls.key", "-out", folder / "tls.crt")
    (folder / "sealing-keys").write_text(os.urandom(32).hex())
    valkey = ROOT / ".peers/bin/valkey-server"
    with contextlib.ExitStack() as stack:
        store = ("--bind", ADDRESSES["store"], "--port", STORE, "--protected-mode", "no", "--save", "", "--dir", folder)
        pods.start(stack, "store", "Ready to accept connections", valkey, *store)
        programs = {}
        for name in ("pod1", "pod2"):
            home = folder / f"{name}-fleet"
            home.mkdir()
            (home / "tls-sessiond.toml").write_text(f"""
[listen]
api = ["unix://{home}/api.sock"]
admin = ""

[store]
kind = "redis"
# A busy machine is slow, and a lookup that waits too long misses.
deadline = "1s"

[store.redis]
urls = ["redis://{ADDRESSES['store']}:{STORE}"]
plaintext = true
sealing_keys = "../sealing-keys"

[[context]]
certificate = "../tls.crt"
key = "../tls.key"
""")
            for path in (home, home / "tls-sessiond.toml", folder / "sealing-keys", folder / "tls.key"):
                os.chown(path, 50551, 50551)
            daemon = pods.start(stack, name, "listening", *DAEMON, binary, "--config", home / "tls-sessiond.toml")
            programs[name] = [daemon, pods.worker(stack, name, f"unix://{home}/api.sock")]
        closed = moves(pods, folder)
        shown("fleet: a client of TLS 1.2 and 1.3 resumes from pod to pod, each with a daemon of its own")
        call = (binary, "--address", f"unix://{folder}/pod2-fleet/api.sock")
        killed(pods, stack, folder, closed, programs["pod1"], call, "MISS_REASON_HOLDER_LOST")
        shown("fleet: a killed pod takes its open sessions along, and closed ones stay")


def main():
    alone()
    folder = pathlib.Path("/run/pods")
    folder.mkdir()
    binary = stripped_daemon()
    pods = Pods()
    shared_socket(pods, binary, folder)
    central(pods, binary, folder)
    fleet(pods, binary, folder)


main()
