"""Containers that run as processes: daemons, reloads and workers, with TLS clients that visit them."""

import contextlib
import copy
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import time
import urllib.error
import urllib.request

import proxies
import wiring
from harness import ROOT, fail, run, shown, start, until
from places import RUN
from pod import Pod

# A test has neither 10 s nor 5 minutes.
PERIOD = {"PERIOD": "0.2", "REPEAT": "1"}


def authority(folder):
    """Makes an authority, and leaves of it: of TLS peers, of the API, of a worker, and of the store."""
    folder.mkdir()
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
    run(*new, "-subj", "/CN=tls-sessiond-ca", "-keyout", folder / "ca.key", "-out", folder / "ca.crt")

    def leaf(file, names, usage):
        signer = ["-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]
        extensions = ["-addext", f"extendedKeyUsage={usage}", "-addext", f"subjectAltName={names}"]
        output = ["-keyout", folder / f"{file}.key", "-out", folder / f"{file}.crt"]
        run(*new, *signer, *extensions, "-subj", f"/CN={file}", *output)

    leaf("web", "DNS:localhost", "serverAuth")
    leaf("renewed", "DNS:localhost", "serverAuth")
    for file in ("api", "api-renewed"):
        leaf(file, "DNS:tls-sessiond,DNS:tls-sessiond.web.svc", "serverAuth")
    leaf("worker", "URI:spiffe://example.org/ns/web/sa/worker", "clientAuth")
    leaf("keys", "URI:spiffe://example.org/ns/web/sa/nginx", "clientAuth")
    leaf("store", "DNS:valkey", "serverAuth")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def secrets(files):
    """Returns the Secrets as their makers write them."""

    def issued(leaf):
        return {"tls.crt": files[f"{leaf}.crt"], "tls.key": files[f"{leaf}.key"], "ca.crt": files["ca.crt"]}

    web = issued("web")
    del web["ca.crt"]
    return {
        "tls-sessiond-web": web,
        "tls-sessiond-api": issued("api"),
        "tls-sessiond-worker": issued("worker"),
        "tls-sessiond-keys": issued("keys"),
        "tls-sessiond-store": {"password": b"PASSWORD", "sealing-keys": b"ab" * 32 + b"\n", "ca.crt": files["ca.crt"]},
    }


def store(stack, files):
    """Starts a Redis with TLS and the users of deploy/shared-store."""
    folder = RUN / "store"
    folder.mkdir()
    for file in ("store.crt", "store.key", "ca.crt"):
        (folder / file).write_bytes(files[file])
    shutil.copy(ROOT / "deploy/shared-store/tls-sessiond.acl", folder)
    lines = ["port 0", "tls-port 6379", "bind 127.0.0.1", "tls-auth-clients no", "save ''", "maxmemory-policy volatile-lru"]
    lines += ["maxmemory 64mb", "appendonly yes", f"dir {folder}", f"aclfile {folder}/tls-sessiond.acl"]
    lines += [f"tls-cert-file {folder}/store.crt", f"tls-key-file {folder}/store.key", f"tls-ca-cert-file {folder}/ca.crt"]
    (folder / "redis.conf").write_text("\n".join(lines))
    start(stack, "Ready to accept connections", "redis-server", folder / "redis.conf")


class Cluster:
    """Makes pods of deployments, as Kubernetes would."""

    def __init__(self, images, secrets):
        self.images = images
        self.secrets = secrets
        self.count = 0

    def pod(self, objects, deployment="tls-sessiond", group=None):
        """Makes a pod of a deployment, with another fsGroup if one is given."""
        maps = {
            one["metadata"]["name"]: {key: text.encode() for key, text in one["data"].items()}
            for one in wiring.of_kind(objects, "ConfigMap")
        }
        (found,) = [one for one in wiring.of_kind(objects, "Deployment") if one["metadata"]["name"] == deployment]
        self.count += 1
        spec = copy.deepcopy(wiring.template(found)["spec"])
        if group:
            spec["securityContext"]["fsGroup"] = group
        return Pod(RUN / f"pods/{self.count}", spec, maps, self.secrets, self.images)


def check(cluster, found):
    """Checks the configuration of each pod as the daemon would see it, with the files, users and variables of the pod."""
    number = 0
    for title, objects in found.items():
        for deployment in wiring.of_kind(objects, "Deployment"):
            containers = wiring.containers(wiring.template(deployment)["spec"])
            if "tls-sessiond" not in [container["name"] for container in containers]:
                continue
            pod = cluster.pod(objects, deployment["metadata"]["name"])
            if "central-spiffe" in title:
                # What spiffe-helper would write, by its user.
                spiffe_helper(pod, **cluster.secrets["tls-sessiond-api"])
            output = run(*pod.command("tls-sessiond", "tls-sessiond", "check"))
            if not re.fullmatch(r"/etc/tls-sessiond/tls-sessiond.toml: good; contexts: \S+\n", output):
                fail(f"{title}: {output}")
            number += 1
    shown(f"`tls-sessiond check` finds no fault and no warning in {number} pods, with their files, users and variables")


def spiffe_helper(pod, **files):
    """Writes files as spiffe-helper does: by its user, and in place."""
    for file, content in files.items():
        path = pod.folder / "tls-sessiond-api" / file
        path.write_bytes(content)
        path.chmod(0o600)
        os.chown(path, 50551, 50551)


def visit(version, files, session=None, address=("127.0.0.1", 8443)):
    """Gets the page of the worker or proxy at this address as a TLS client. Returns the page, its session, whether it resumed, and the certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if session is None else session[1]
    if session is None:
        context.load_verify_locations(cadata=files["ca.crt"].decode())
        context.minimum_version = context.maximum_version = version
    page = b""
    try:
        with socket.create_connection(address, timeout=10) as tcp:
            with context.wrap_socket(tcp, server_hostname="localhost", session=session and session[0]) as tls:
                tls.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                while part := tls.recv(4096):
                    page += part
                found = page.partition(b"\r\n\r\n")[2].decode(), (tls.session, context), tls.session_reused
                return (*found, tls.getpeercert(binary_form=True))
    except OSError as error:
        fail(f"a TLS client at the worker: {error}")


def resumes(files):
    """A TLS client of each version makes a full handshake at the worker, and then resumes."""
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        page, session, reused, _ = visit(version, files)
        again, _, reused_again, _ = visit(version, files, session)
        if (reused, reused_again) != (False, True) or "resumed: false" not in page or "resumed: true" not in again:
            fail(f"{version}: expected a full handshake and a resumption: {page} {again}")
        if not page.startswith("pod-1: "):
            fail(f"expected the name of the pod: {page}")


def probe(pod, kind):
    """Runs a probe of the daemon as Kubernetes does, until it succeeds."""
    command = pod.command("tls-sessiond", *pod.containers["tls-sessiond"][kind]["exec"]["command"])
    until(kind, lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0)


def keeps_its_socket(pod):
    """The user of the worker can neither remove the socket of the daemon nor make a file beside it."""
    for command in (("rm", "-f", "/run/tls-sessiond/api.sock"), ("touch", "/run/tls-sessiond/other")):
        refused = run(*pod.command("worker", *command), status=1)
        if "Read-only file system" not in refused:
            fail(f"{command}: {refused}")


def last_reload(pod):
    return re.search(r"last reload +(.+)", run(*pod.command("tls-sessiond", "tls-sessiond", "status")))[1]


def run_sidecar(stack, cluster, files, objects):
    """Runs the containers of the sidecar's pod in the order of their start."""
    pod = cluster.pod(objects, "tls-sessiond-worker", group=60000)
    daemon, _ = start(stack, "listening on unix:///run/tls-sessiond/api.sock", *pod.command("tls-sessiond"))
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe(pod, kind)
    shown("the sidecar's daemon runs as its user, with another fsGroup than its own, and its probes succeed")

    pod.extra["tls-sessiond-reload"] = PERIOD
    reload, _ = start(stack, "reloaded", *pod.command("tls-sessiond-reload"))
    worker, _ = start(stack, "listening on 0.0.0.0:8443", *pod.command("worker"))
    resumes(files)
    with socket.create_connection(("127.0.0.1", 8443)):
        pass
    status = run(*pod.command("tls-sessiond", "tls-sessiond", "status"))
    if "uid:10001" not in status:
        fail(f"expected the user of the worker as an owner:\n{status}")
    # The worker is no admin, and its user cannot read the key.
    refused = run(*pod.command("worker", f"{RUN}/storage/tls-sessiond", "reload"), status=1)
    if "PERMISSION_DENIED" not in refused:
        fail(f"the worker may reload: {refused}")
    run(*pod.command("worker", "cat", "/etc/tls-sessiond/web/tls.key"), status=1)
    keeps_its_socket(pod)
    failures = run(*pod.command("tls-sessiond", "tls-sessiond", "failures"))
    if re.search(r"\d\d:\d\d", failures):
        fail(f"a probe by TCP counts as a failure:\n{failures}")
    shown("TLS clients of both versions resume at the worker in Python, which has neither key nor admin's rights")
    shown("the worker cannot replace the socket of the daemon")

    _, session, _, before = visit(ssl.TLSVersion.TLSv1_3, files)
    cluster.secrets["tls-sessiond-web"].update({"tls.crt": files["renewed.crt"], "tls.key": files["renewed.key"]})
    pod.write("tls-sessiond-config")
    until("the renewed certificate", lambda: visit(ssl.TLSVersion.TLSv1_3, files)[3] != before)
    if not visit(ssl.TLSVersion.TLSv1_3, files, session)[2]:
        fail("a renewed certificate for the same names has dropped the sessions")
    shown("a renewed certificate in the volume reaches the daemon, and the session of before resumes")

    cluster.secrets["tls-sessiond-web"]["tls.crt"] = files["web.crt"]
    pod.write("tls-sessiond-config")
    until("a refused reload", lambda: "refused" in run(*pod.command("tls-sessiond", "tls-sessiond", "status")))
    visit(ssl.TLSVersion.TLSv1_3, files)
    cluster.secrets["tls-sessiond-web"]["tls.key"] = files["web.key"]
    pod.write("tls-sessiond-config")
    until("the first certificate again", lambda: visit(ssl.TLSVersion.TLSv1_3, files)[3] == before)
    shown("a key that does not fit is refused, the daemon goes on, and the next reload succeeds")

    # A cause that ends without a change of the files: their times and sizes stay.
    key = pod.folder / "tls-sessiond-config/web/tls.key"
    until("an applied reload", lambda: last_reload(pod) == "applied")
    key.chmod(0)
    os.utime(key, (0, 0))
    until("a refused reload of a key that cannot be read", lambda: "refused" in last_reload(pod))
    key.chmod(0o440)
    until("the repeated reload", lambda: last_reload(pod) == "applied")
    shown("a refused reload is repeated until it succeeds, without a change of the files")

    # The order in which Kubernetes stops a pod with native sidecars.
    for title, process in (("worker", worker), ("reload", reload), ("daemon", daemon)):
        process.terminate()
        try:
            status = process.wait(10)
        except subprocess.TimeoutExpired:
            status = "none within 10 s"
        if status != 0:
            fail(f"{title}: SIGTERM: expected status 0: {status}")
    shown("worker, reload and daemon end with status 0 at SIGTERM")


def run_central(stack, cluster, files, found):
    """Runs a central daemon, and a worker that reaches it over mutual TLS."""
    daemon = cluster.pod(found["overlays/central-cert-manager"])
    start(stack, "listening on tls://0.0.0.0:50551", *daemon.command("tls-sessiond"))
    worker = cluster.pod(found["examples/central-worker"], "tls-sessiond-worker")
    start(stack, "listening on 0.0.0.0:8443", *worker.command("worker"))
    resumes(files)
    status = run(*daemon.command("tls-sessiond", "tls-sessiond", "status"))
    if "uri:spiffe://example.org/ns/web/sa/worker" not in status:
        fail(f"expected the worker as an owner:\n{status}")
    shown("TLS clients resume at a worker that reaches the central daemon over mutual TLS, under the name of its certificate")


def run_spiffe(stack, cluster, files, objects):
    """Runs a central daemon whose certificate changes in place, and its reload before it."""
    pod = cluster.pod(objects)
    pod.extra["tls-sessiond-reload"] = PERIOD
    spiffe_helper(pod, **cluster.secrets["tls-sessiond-api"])
    start(stack, "cannot reach", *pod.command("tls-sessiond-reload"))
    start(stack, "listening on tls://0.0.0.0:50551", *pod.command("tls-sessiond"))
    context = ssl.create_default_context(cadata=files["ca.crt"].decode())
    context.load_cert_chain(RUN / "authority/worker.crt", RUN / "authority/worker.key")

    def certificate():
        with socket.create_connection(("tls-sessiond", 50551), timeout=10) as tcp:
            with context.wrap_socket(tcp, server_hostname="tls-sessiond") as tls:
                return tls.getpeercert(binary_form=True)

    before = certificate()
    until("a reload after the daemon was away", lambda: last_reload(pod) == "applied")
    # The certificate of the next key, for longer than a look.
    spiffe_helper(pod, **{"tls.crt": files["api-renewed.crt"]})
    until("a refused reload", lambda: "refused" in last_reload(pod))
    if certificate() != before:
        fail("the daemon has a certificate without its key")
    spiffe_helper(pod, **{"tls.key": files["api-renewed.key"]})
    until("the renewed certificate of the API", lambda: certificate() != before)
    shown("files that change in place and one after another reach the central daemon, once they fit")


def run_metrics(stack, cluster, objects):
    """Reads the metrics of a sidecar as Prometheus does, at the address of the pod and the port of the PodMonitor."""
    run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
    pod = cluster.pod(objects, "tls-sessiond-worker")
    start(stack, "listening on", *pod.command("tls-sessiond"))
    # This pod has the group of the daemon, which may write to the folder.
    keeps_its_socket(pod)
    (monitor,) = wiring.of_kind(objects, "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    ports = {port["name"]: port["containerPort"] for port in pod.containers["tls-sessiond"]["ports"]}
    address = f"http://192.0.2.1:{ports[endpoint['port']]}"
    with urllib.request.urlopen(address + endpoint["path"], timeout=10) as answer:
        text = answer.read().decode()
    if "tls_sessiond_ready 1\n" not in text or "context=" in text:
        fail(f"expected metrics without names:\n{text}")
    try:
        urllib.request.urlopen(address + "/", timeout=10)
        fail("the status page is there")
    except urllib.error.HTTPError as error:
        if error.code != 404:
            fail(f"the status page: {error}")
    shown("the port of the PodMonitor has metrics without names, and no status page")


def run_keys(stack, cluster, files, objects):
    """Runs a central daemon with a ring, an agent of ticket keys, and then its nginx."""
    daemon = cluster.pod(objects)
    start(stack, "listening on tls://0.0.0.0:50551", *daemon.command("tls-sessiond"))
    pod = cluster.pod(objects, "nginx")
    keys = pod.folder / "tls-sessiond-keys"

    def status(*command):
        return run(*daemon.command("tls-sessiond", "tls-sessiond", "keys", *command))

    def ring():
        (found,) = json.loads(status("status", "--output", "json"))["rings"]
        return found

    def runs_all():
        found = ring()
        members = found.get("members", [])
        done = [one.get("counted") and one["acknowledgedSequence"] == found["sequence"] for one in members]
        return found if done == [True] else None

    def workers():
        master = (pod.folder / "tls-sessiond-keys-pid/nginx.pid").read_text().strip()
        return set(pathlib.Path(f"/proc/{master}/task/{master}/children").read_text().split())

    # Kubernetes starts nginx when this probe has succeeded.
    command = pod.command("tls-sessiond-keys", *pod.containers["tls-sessiond-keys"]["startupProbe"]["exec"]["command"])
    run(*command, status=1)
    refused = run(*pod.command("nginx"), status=1)
    if "web.1" not in refused:
        fail(f"nginx does not start for another reason than its missing keys: {refused}")
    agent, _ = start(stack, "joined the ring", *pod.command("tls-sessiond-keys"))
    until("the startup probe of the agent", lambda: subprocess.run(command, check=False).returncode == 0)
    nginx = subprocess.Popen(pod.command("nginx"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    stack.callback(stop_nginx, nginx)
    until("nginx runs the first keys", runs_all)
    for path in keys.iterdir():
        found = path.stat()
        if (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) != (101, 101, 0o600):
            fail(f"{path}: {found}")
    for file in ("rm", "-f", "/run/tls-sessiond-keys/web.1"), ("cat", "/etc/tls-sessiond-keys/tls.key"):
        run(*pod.command("nginx", *file), status=1)
    shown("nginx starts once its agent has written the keys, as its user, and may neither write keys nor read the certificate")

    before, first, old = ring(), {path.name: path.read_bytes() for path in keys.iterdir()}, workers()
    sessions = {}
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        page, sessions[version], reused, _ = visit(version, files)
        if reused or page != "hello\n":
            fail(f"expected a full handshake and the page: {page}")
    status("rotate", "web")
    until("nginx encrypts with the next epoch", lambda: (found := runs_all()) and int(found["epoch"]) > int(before["epoch"]))
    if (keys / "web.1").read_bytes() in first.values() or (keys / "web.2").read_bytes() != first["web.1"]:
        fail("expected a new key that encrypts, and the first one after it")
    if workers() & old or not workers():
        fail("nginx has its old workers")
    for version, session in sessions.items():
        if not visit(version, files, session)[2]:
            fail(f"{version}: a rotation has lost a ticket")
    status("rotate", "web", "--emergency", "--yes")
    until("nginx runs the keys of the emergency", lambda: not ring().get("emergency") and runs_all())
    for version, session in sessions.items():
        if visit(version, files, session)[2]:
            fail(f"{version}: a ticket is resumed after an emergency")
        again = visit(version, files)[1]
        if not visit(version, files, again)[2]:
            fail(f"{version}: a ticket of the new key is not resumed")
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path(f"/proc/{agent.pid}/status").read_text())[1])
    if peak << 10 > wiring.size(pod.containers["tls-sessiond-keys"]["resources"]["limits"]["memory"]) * 3 // 4:
        fail(f"the agent takes {peak} kB, which is too near to its limit")
    shown("a rotation reloads nginx in the other container without a lost ticket, and an emergency ends all tickets")
    shown(f"the agent has taken {peak >> 10} MiB at most")

    # The order in which Kubernetes stops the pod.
    nginx.send_signal(signal.SIGQUIT)
    if (code := nginx.wait(10)) != 0:
        fail(f"nginx: SIGQUIT: expected status 0: {code}")
    agent.terminate()
    if (code := agent.wait(10)) != 0:
        fail(f"the agent: SIGTERM: expected status 0: {code}")
    if ring().get("members"):
        fail("the agent has not left the ring")
    shown("nginx ends first, and then the agent leaves the ring with status 0")


def stop_nginx(nginx):
    """Ends nginx, whose workers outlive a master process that is killed."""
    if nginx.poll() is None:
        nginx.terminate()
        nginx.wait(10)


def run_store(stack, cluster, objects):
    """Runs a sidecar that has a store with TLS."""
    pod = cluster.pod(objects, "tls-sessiond-worker")
    began = time.monotonic()
    start(stack, "listening on", *pod.command("tls-sessiond"))
    took = time.monotonic() - began
    probe(pod, "startupProbe")
    startup = pod.containers["tls-sessiond"]["startupProbe"]
    if took > startup["periodSeconds"] * startup["failureThreshold"] / 2:
        fail(f"the start with a store took {took:.0f} s")
    shown(f"a sidecar with a store over TLS is ready after {took:.1f} s")


def run_all(cluster, files, found):
    """Runs one kind of pod after the other, because they have the same ports."""
    for runs in (
        lambda stack: run_sidecar(stack, cluster, files, found["overlays/sidecar"]),
        lambda stack: run_central(stack, cluster, files, found),
        lambda stack: run_spiffe(stack, cluster, files, found["overlays/central-spiffe"]),
        lambda stack: run_metrics(stack, cluster, found["overlays/sidecar with components/pod-monitor"]),
        lambda stack: run_keys(stack, cluster, files, found["examples/nginx-keys"]),
        lambda stack: run_store(stack, cluster, found["overlays/sidecar-shared-store"]),
        lambda stack: proxies.run_central(stack, cluster, files, found["examples/plain-backend"], visit, PERIOD),
        lambda stack: proxies.run_socket(stack, cluster, files, found["examples/plain-backend-sidecar"], visit),
    ):
        with contextlib.ExitStack() as stack:
            runs(stack)
