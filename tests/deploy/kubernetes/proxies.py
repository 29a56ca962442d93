"""Proxies in the pods of applications that speak plaintext: how their parts fit together, and how they run."""

import pathlib
import ssl
import subprocess
import time
import tomllib

from harness import LIMIT, fail, run, shown, start, until

PROBE = ["tls-sessiond", "health", "--proxy"]
# In bytes: the proxy without work, and a connection. Measured is 14 kB for a quiet one, and 64 KiB may be under way.
IDLE, CONNECTION = 13 * 2**20, 80_000


def configuration(objects):
    """Returns the configuration of the proxies in these objects."""
    maps = [one for one in objects if one["kind"] == "ConfigMap" and "proxy.toml" in one["data"]]
    return tomllib.loads(maps[0]["data"]["proxy.toml"])


def problems(pod, objects):
    """Yields what is wrong with the proxy of a pod and its application, the first container."""
    found = {container["name"]: container for container in [*pod["initContainers"], *pod["containers"]]}
    proxy, reload, application = found["tls-sessiond-proxy"], found["tls-sessiond-proxy-reload"], pod["containers"][0]
    names = [container["name"] for container in pod["initContainers"]]
    if names[-2:] != ["tls-sessiond-proxy", "tls-sessiond-proxy-reload"]:
        yield f"the proxy starts before its daemon: {names}"
    if any(container.get("restartPolicy") != "Always" for container in (proxy, reload)):
        yield "the proxy and its reload are not native sidecars"
    users = {name: container["securityContext"].get("runAsUser") for name, container in found.items()}
    if users["tls-sessiond-proxy-reload"] != users["tls-sessiond-proxy"] or pod.get("shareProcessNamespace") is not True:
        yield "the reload may not send a signal to the proxy"
    own = {"tls-sessiond-proxy", "tls-sessiond-proxy-reload"}
    if others := {name for name, user in users.items() if user == users["tls-sessiond-proxy"]} - own:
        yield f"{others} run as the user of the proxy"
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        if proxy[kind]["exec"]["command"] != PROBE or proxy[kind]["timeoutSeconds"] < 2:
            yield f"unexpected {kind} of the proxy"

    config = configuration(objects)
    (one,) = config["proxy"]
    drain = int(config["drain"]["timeout"].removesuffix("s"))
    if pod["terminationGracePeriodSeconds"] <= 30 + drain or proxy["livenessProbe"]["periodSeconds"] * proxy["livenessProbe"]["failureThreshold"] <= drain:
        yield f"the time to end and the liveness probe do not fit a drain of {drain} s"
    port = int(one["listen"].rpartition(":")[2])
    if port not in [known["containerPort"] for known in proxy["ports"]]:
        yield f"the proxy has no port {port}"
    # Plaintext stays in the pod, and no other pod reaches the application beside the proxy.
    address, _, number = one["backend"].removeprefix("tcp://").rpartition(":")
    if address != "127.0.0.1" or application["command"][-3:] != ["--bind", address, number]:
        yield f"the application does not listen at {one['backend']} alone: {application['command']}"
    bound = IDLE + one["connections"] * CONNECTION
    limit = int(proxy["resources"]["limits"]["memory"].removesuffix("Mi")) * 2**20
    if limit < bound:
        yield f"{one['connections']} connections take {bound / 2**20:.0f} MiB, which is above the memory limit"
    mounts = {mount["mountPath"]: mount.get("readOnly") for mount in proxy["volumeMounts"]}
    if not all(mounts.values()):
        yield f"the proxy may write to {mounts}"
    wanted = {str(pathlib.PurePath(one[key]).parent) for key in ("sessions_ca", "sessions_certificate", "sessions_key") if key in one}
    if one["sessions"].startswith("unix://"):
        wanted.add(str(pathlib.PurePath(one["sessions"].removeprefix("unix://")).parent))
    if missing := wanted - set(mounts):
        yield f"the proxy has no mount for {missing}"
    watched = {folder for folder in mounts if folder.startswith("/etc/")}
    if reload["args"][0] != "--proxy" or not set(reload["args"][1:]) == {mount["mountPath"] for mount in reload["volumeMounts"]} == watched:
        yield f"expected a reload that looks at {watched}"


def probe(pod, kind):
    """Runs a probe of the proxy as Kubernetes does, until it succeeds."""
    command = pod.command("tls-sessiond-proxy", *pod.containers["tls-sessiond-proxy"][kind]["exec"]["command"])
    until(kind, lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0)


def run_central(stack, cluster, files, objects, visit, period):
    """Runs a central daemon, and two pods of an application with a proxy each. A client resumes at both."""
    daemon = cluster.pod(objects)
    start(stack, "listening on tls://0.0.0.0:50551", *daemon.command("tls-sessiond"))
    first, second = (cluster.pod(objects, "tls-sessiond-application") for _ in range(2))
    # Both pods have the same network here, so the second one has addresses of its own.
    second.extra["tls-sessiond-proxy"] = {
        "TLS_SESSIOND__PROXY__0__LISTEN": "tls://127.0.0.2:8444",
        "TLS_SESSIOND__LISTEN__PROXY_ADMIN": "tcp://127.0.0.2:9552",
    }
    proxy, _ = start(stack, "listening on tls://0.0.0.0:8443", *first.command("tls-sessiond-proxy"))
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe(first, kind)
    first.extra["tls-sessiond-proxy-reload"] = period
    start(stack, "SIGHUP to the proxy", *first.command("tls-sessiond-proxy-reload"))
    application, _ = start(stack, "Serving HTTP", *first.command("application"))
    other, _ = start(stack, "listening on tls://127.0.0.2:8444", *second.command("tls-sessiond-proxy"))
    until("the readiness probe of the application", lambda: subprocess.run(
        first.command("application", *first.containers["application"]["readinessProbe"]["exec"]["command"]), check=False).returncode == 0)
    have_daemon((first, ()), (second, ("http://127.0.0.2:9552",)))
    shown("a proxy of an application that speaks plaintext runs as its user, and its probes succeed over loopback")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):

        def goes_round():
            session, kinds = None, []
            for address in (("127.0.0.1", 8443), ("127.0.0.2", 8444), ("127.0.0.1", 8443)):
                page, session, resumed, _ = visit(version, files, session, address)
                kinds.append(resumed)
                if page != "hello\n":
                    fail(f"the page of the application: {page}")
            return kinds == [False, True, True]

        # A lookup that misses its deadline on a busy machine is a full handshake.
        until(f"{version}: a client that goes round two pods resumes at each", goes_round)
    shown("a client resumes at the proxies of two pods over a central daemon, 1.2 and 1.3, and gets the page of http.server")

    before = visit(ssl.TLSVersion.TLSv1_3, files)[3]
    web = dict(cluster.secrets["tls-sessiond-web"])
    cluster.secrets["tls-sessiond-web"].update({"tls.crt": files["renewed.crt"], "tls.key": files["renewed.key"]})
    first.write("tls-sessiond-proxy-config")
    until("the renewed certificate", lambda: visit(ssl.TLSVersion.TLSv1_3, files)[3] != before)
    cluster.secrets["tls-sessiond-web"].update(web)
    shown("a renewed certificate in the volume reaches the proxy of the other container by SIGHUP")

    # The application may not do what the proxy may.
    run(*first.command("application", "cat", "/etc/tls-sessiond-proxy/web/tls.key"), status=1)
    for title, process in (("application", application), ("proxy", proxy), ("other proxy", other)):
        process.terminate()
        try:
            status = process.wait(20)
        except subprocess.TimeoutExpired:
            status = "none within 20 s"
        # http.server does not handle SIGTERM.
        if status != (-15 if title == "application" else 0):
            fail(f"{title}: SIGTERM: unexpected status {status}")
    shown("the application cannot read the key, and the proxies end with status 0 at SIGTERM")


def have_daemon(*pods):
    """Waits until the proxies of pods, each with an address for `health --proxy`, have their daemon."""
    for pod, address in pods:
        said = []

        def serves():
            done = subprocess.run(pod.command("tls-sessiond-proxy", *PROBE, *address), capture_output=True, text=True, check=False)
            said[:] = [done.stdout + done.stderr]
            return done.stdout == "serving\n"

        end = time.monotonic() + LIMIT
        while not serves():
            if time.monotonic() > end:
                fail(f"`health --proxy` says {said}")
            time.sleep(0.1)


def run_socket(stack, cluster, files, objects, visit):
    """Runs a pod with a daemon and a proxy, which alone may use the socket."""
    pod = cluster.pod(objects, "tls-sessiond-application")
    start(stack, "listening on unix:///run/tls-sessiond/api.sock", *pod.command("tls-sessiond"))
    start(stack, "listening on tls://0.0.0.0:8443", *pod.command("tls-sessiond-proxy"))
    start(stack, "Serving HTTP", *pod.command("application"))
    have_daemon((pod, ()))
    until("a client resumes", lambda: visit(ssl.TLSVersion.TLSv1_3, files, visit(ssl.TLSVersion.TLSv1_3, files)[1])[2])
    # The application has no socket, and its user no right if it had one.
    run(*pod.command("application", "test", "-e", "/run/tls-sessiond/api.sock"), status=1)
    if 'identity = "uid:50553"' not in (pod.folder / "tls-sessiond-config/tls-sessiond.toml").read_text():
        fail("another user than that of the proxy is a worker")
    shown("with a daemon in the pod a client resumes, and the application has no socket")
