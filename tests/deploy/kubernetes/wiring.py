"""What must fit together in a set of objects, beyond the schema of each."""

import itertools
import pathlib
import re
import tomllib

import proxies

# Secrets that the user makes: deploy/kubernetes/README.md.
USER_SECRETS = {
    "tls-sessiond-web": {"tls.crt", "tls.key"},
    "tls-sessiond-store": {"password", "sealing-keys", "ca.crt"},
}
# What cert-manager writes.
ISSUED = {"tls.crt", "tls.key", "ca.crt"}
OWN = {"tls-sessiond", "tls-sessiond-reload", "spiffe-helper", "spiffe-helper-once"}
UNITS = {"Mi": 2**20, "Gi": 2**30, "MiB": 2**20, "GiB": 2**30}
# Measured, in bytes (docs/deploying.md): the daemon without work, in memory and with a shared store; a socket, that is an idle
# HTTP/2 connection; a connection by a Drive with messages up to 72 KiB. Longer messages count as request_bytes.
IDLE, IDLE_WITH_STORE, SOCKET, CONNECTION = 12.4 * 2**20, 27 * 2**20, 39_000, 157_000


def of_kind(objects, *kinds):
    return [one for one in objects if one["kind"] in kinds]


def template(deployment):
    return deployment["spec"]["template"]


def containers(pod):
    return [*pod.get("initContainers", []), *pod["containers"]]


def size(text):
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]+)", text).groups()
    return int(number) * UNITS[unit]


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]


def configuration(objects):
    """Returns the daemon's configuration in these objects."""
    (text,) = [one["data"]["tls-sessiond.toml"] for one in of_kind(objects, "ConfigMap") if "tls-sessiond.toml" in one["data"]]
    return tomllib.loads(text)


def memory(config):
    """Returns the memory that the limits of a configuration allow, in bytes."""
    limits = config["limits"]
    idle = IDLE_WITH_STORE if config.get("store", {}).get("kind") == "redis" else IDLE
    callers = limits["sockets"] * SOCKET + limits["connections"] * CONNECTION
    return idle + callers + size(limits["session_bytes"]) + size(limits["request_bytes"])


def secrets(objects):
    """Returns the Secrets that these objects may use, with their files."""
    issued = {one["spec"]["secretName"]: ISSUED for one in of_kind(objects, "Certificate")}
    return {**USER_SECRETS, **issued}


def matches(selector, labels):
    return bool(selector) and selector.items() <= labels.items()


def problems(objects):
    """Yields what does not fit together."""
    for deployment in of_kind(objects, "Deployment"):
        yield from (f"{deployment['metadata']['name']}: {found}" for found in pod_problems(deployment, objects))
    yield from selector_problems(objects)
    yield from certificate_problems(objects)


def pod_problems(deployment, objects):
    pod = template(deployment)["spec"]
    selector = deployment["spec"]["selector"]["matchLabels"]
    if not matches(selector, template(deployment)["metadata"]["labels"]):
        yield "the selector does not match the pods"
    if pod.get("automountServiceAccountToken") is not False or pod.get("enableServiceLinks") is not False:
        yield "expected automountServiceAccountToken and enableServiceLinks to be false"
    account = pod.get("serviceAccountName")
    if account and account not in [one["metadata"]["name"] for one in of_kind(objects, "ServiceAccount")]:
        yield f"the service account {account} is missing"
    yield from volume_problems(pod, objects)
    for container in containers(pod):
        yield from (f"{container['name']}: {found}" for found in container_problems(container))
    if any(container["name"] == "tls-sessiond-keys" for container in containers(pod)):
        yield from agent_problems(pod)
    if any(container["name"] == "tls-sessiond-proxy" for container in containers(pod)):
        yield from proxies.problems(pod, objects)
    if any(container["name"] == "tls-sessiond" for container in containers(pod)):
        yield from daemon_problems(deployment, pod, configuration(objects))


def volume_problems(pod, objects):
    mounted = {mount["name"] for container in containers(pod) for mount in container.get("volumeMounts", [])}
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    yield from (f"the volume {name} is missing" for name in mounted - set(volumes))
    yield from (f"no container mounts the volume {name}" for name in set(volumes) - mounted)
    maps = {one["metadata"]["name"]: set(one["data"]) for one in of_kind(objects, "ConfigMap")}
    for name, volume in volumes.items():
        for kind, source in sources(volume):
            known = maps if kind == "configMap" else secrets(objects)
            wanted = source.get("name") or source.get("secretName")
            if wanted not in known:
                yield f"volume {name}: the {kind} {wanted} is missing"
            elif missing := {item["key"] for item in source.get("items", [])} - known[wanted]:
                yield f"volume {name}: the {kind} {wanted} has no {missing}"
            elif kind == "secret":
                mode = volume.get("projected", volume.get("secret", {})).get("defaultMode")
                if mode != 0o440 or not pod["securityContext"].get("fsGroup"):
                    yield f"volume {name}: expected defaultMode 0440 and a fsGroup, found {mode}"
        if "emptyDir" in volume and volume["emptyDir"] != {"medium": "Memory", "sizeLimit": "1Mi"}:
            yield f"volume {name}: expected memory with a limit"


def sources(volume):
    """Yields the ConfigMaps and Secrets of a volume."""
    for source in volume.get("projected", {"sources": [volume]})["sources"]:
        yield from ((kind, source[kind]) for kind in ("configMap", "secret") if kind in source)


def container_problems(container):
    if not container["image"].endswith(":VERSION"):
        yield f"expected a placeholder for the version of {container['image']}"
    if container["securityContext"].get("readOnlyRootFilesystem") is not True:
        yield "the root file system can be written"
    resources = container["resources"]
    if set(resources["requests"]) != {"cpu", "memory"} or set(resources["limits"]) != {"memory"}:
        yield f"expected requests of cpu and memory, and a limit of memory alone: {resources}"
    for mount in container.get("volumeMounts", []):
        if mount["mountPath"].startswith("/etc/") and not mount.get("readOnly") and not container["name"].startswith("spiffe"):
            yield f"{mount['mountPath']} can be written"


def agent_problems(pod):
    """Yields what is wrong with an agent of ticket keys and its server, the first container."""
    agent, server = pod["initContainers"][0], pod["containers"][0]
    if agent["name"] != "tls-sessiond-keys" or agent.get("restartPolicy") != "Always" or not agent.get("startupProbe"):
        yield "expected the agent as the first init container, a native sidecar with a startup probe"
        return
    if pod.get("shareProcessNamespace") is not True:
        yield "the agent does not see the processes of its server"
    if agent["securityContext"]["runAsUser"] != server["securityContext"]["runAsUser"]:
        yield "the agent may not send a signal to its server"
    arguments = dict(itertools.pairwise(agent["args"]))
    folders = {option: str(pathlib.PurePath(arguments[option]).parent) for option in ("--nginx", "--pid-file")}
    if agent["startupProbe"]["exec"]["command"][-1] != arguments["--nginx"] + ".1":
        yield "the startup probe does not wait for the file that is written last"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for container in containers(pod):
        for mount in container.get("volumeMounts", []):
            owner = {folders["--nginx"]: agent, folders["--pid-file"]: server}.get(mount["mountPath"])
            if owner and mount.get("readOnly", False) != (container is not owner):
                yield f"only {owner['name']} may write to {mount['mountPath']}, and must: {container['name']}: {mount}"
            if owner and volumes[mount["name"]].get("emptyDir", {}).get("medium") != "Memory":
                yield f"{mount['mountPath']} is not in memory"
    for container in (agent, server):
        if missing := set(folders.values()) - {mount["mountPath"] for mount in container["volumeMounts"]}:
            yield f"{container['name']} has no mount for {missing}"
    (secret,) = [mount["name"] for mount in agent["volumeMounts"] if mount["mountPath"] not in folders.values()]
    if secret in [mount["name"] for mount in server["volumeMounts"]]:
        yield "the server has the certificate of the agent"


def daemon_problems(deployment, pod, config):
    (daemon,) = [container for container in containers(pod) if container["name"] == "tls-sessiond"]
    user = daemon["securityContext"].get("runAsUser", pod["securityContext"].get("runAsUser"))
    for container in containers(pod):
        other = container["securityContext"].get("runAsUser", pod["securityContext"].get("runAsUser"))
        if (other == user) != (container["name"] in OWN):
            yield f"the container {container['name']} runs as {other}, the daemon as {user}"
    admins = [rule["identity"] for rule in config["access"] if rule["role"] == "admin"]
    if admins != [f"uid:{user}"]:
        yield f"expected the user {user} as the only admin: {admins}"

    drain = seconds(config["drain"].get("delay", "0s")) + seconds(config["drain"]["timeout"])
    grace = pod["terminationGracePeriodSeconds"]
    # In a pod with an application, that ends first, and Kubernetes gives it 30 s unless its owner says otherwise.
    before = 30 if deployment["metadata"]["labels"].get("tls-sessiond/inject") in ("true", "proxy") else 0
    if grace <= before + drain:
        yield f"terminationGracePeriodSeconds is {grace}, and {before} s and a drain of {drain} s are before its end"
    alive = daemon["livenessProbe"]
    if alive["periodSeconds"] * alive["failureThreshold"] <= drain:
        yield f"the liveness probe ends a drain of {drain} s"
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        # `health` ends within 1 s.
        if daemon[kind]["exec"]["command"] != ["tls-sessiond", "health"] or daemon[kind]["timeoutSeconds"] < 2:
            yield f"unexpected {kind}"

    bound = memory(config)
    if size(daemon["resources"]["limits"]["memory"]) < bound:
        yield f"the configuration allows {bound / 2**20:.0f} MiB, which is above the memory limit"

    (socket,) = [address for address in config["listen"]["api"] if address.startswith("unix://")]
    folder = str(pathlib.PurePath(socket.removeprefix("unix://")).parent)
    reload = [container for container in containers(pod) if container["name"] == "tls-sessiond-reload"]
    users = [daemon, *reload]
    if before:
        # The proxy, if there is one, or else the application.
        workers = [container for container in containers(pod) if container["name"] == "tls-sessiond-proxy"] or pod["containers"][:1]
        users += workers
        others = [container for container in pod["containers"] if container not in users]
        if workers != pod["containers"][:1] and any(folder == mount["mountPath"] for one in others for mount in one["volumeMounts"]):
            yield "the application has the socket that only the proxy needs"
        if [c["name"] for c in pod["initContainers"][:2]] != ["tls-sessiond", "tls-sessiond-reload"]:
            yield "the sidecars are not the first init containers"
        if any(container.get("restartPolicy") != "Always" for container in users[:2]):
            yield "the sidecars are not native ones"
    for container in users:
        if folder not in [mount["mountPath"] for mount in container.get("volumeMounts", [])]:
            yield f"the container {container['name']} has no mount for {folder}"
    (run,) = [mount["name"] for mount in daemon["volumeMounts"] if mount["mountPath"] == folder]
    for container in containers(pod):
        for mount in container.get("volumeMounts", []):
            if mount["name"] == run and mount.get("readOnly", False) != (container is not daemon):
                yield f"the container {container['name']}: only the daemon may write to {folder}, and must: {mount}"
    for container in (daemon, *reload):
        if {"name": "TLS_SESSIOND_ADDRESS", "value": socket} not in container.get("env", []):
            yield f"the commands of the container {container['name']} may call another address than {socket}"
    watched = {mount["mountPath"] for mount in daemon["volumeMounts"]} - {folder}
    if [set(container["args"]) for container in reload] != [watched]:
        yield f"expected one reload that looks at {watched}"


def selector_problems(objects):
    pods = [template(deployment) for deployment in of_kind(objects, "Deployment")]

    def selected(selector):
        return [pod for pod in pods if matches(selector, pod["metadata"]["labels"])]

    def ports(pod):
        return {port["name"] for container in containers(pod["spec"]) for port in container.get("ports", [])}

    for one in of_kind(objects, "Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor", "ServiceMonitor"):
        name, spec = f"{one['kind']} {one['metadata']['name']}", one["spec"]
        if one["kind"] == "ServiceMonitor":
            found = [
                service["spec"]
                for service in of_kind(objects, "Service")
                if matches(spec["selector"]["matchLabels"], service["metadata"].get("labels", {}))
            ]
            known = {port["name"] for service in found for port in service["ports"]}
        else:
            selector = spec["podSelector"] if one["kind"] == "NetworkPolicy" else spec["selector"]
            found = selected(selector.get("matchLabels", selector))
            known = {port for pod in found for port in ports(pod)}
        if not found:
            yield f"{name} selects nothing"
        others = [pod for pod in pods if pod not in found]
        for rule in spec.get("ingress", []):
            for peer in rule["from"]:
                labels = peer.get("podSelector", {}).get("matchLabels")
                if labels and others and not any(matches(labels, pod["metadata"]["labels"]) for pod in others):
                    yield f"{name}: no worker has the labels {labels}"
        wanted = {
            "Service": [port["targetPort"] for port in spec.get("ports", [])],
            "PodDisruptionBudget": [],
            "NetworkPolicy": [port["port"] for rule in spec.get("ingress", []) for port in rule["ports"]],
            "PodMonitor": [endpoint["port"] for endpoint in spec.get("podMetricsEndpoints", [])],
            "ServiceMonitor": [endpoint["port"] for endpoint in spec.get("endpoints", [])],
        }[one["kind"]]
        yield from (f"{name}: there is no port {port}" for port in set(wanted) - known)
        for endpoint in [*spec.get("podMetricsEndpoints", []), *spec.get("endpoints", [])]:
            job = "tls-sessiond-proxy" if endpoint["port"] == "proxy-metrics" else "tls-sessiond"
            if {"targetLabel": "job", "replacement": job} not in endpoint["relabelings"]:
                yield f"{name}: the rules of deploy/prometheus need the job {job}"


def certificate_problems(objects):
    certificates = of_kind(objects, "Certificate")
    issuers = {one["metadata"]["name"]: one["spec"] for one in of_kind(objects, "Issuer")}
    issued = {one["spec"]["secretName"] for one in certificates}
    for name, spec in issuers.items():
        if "ca" in spec and spec["ca"]["secretName"] not in issued:
            yield f"Issuer {name}: no Certificate makes its Secret"
    for one in certificates:
        name, spec = one["metadata"]["name"], one["spec"]
        if spec["issuerRef"]["name"] not in issuers:
            yield f"Certificate {name}: its issuer is missing"
        if "server auth" in spec.get("usages", []):
            services = {service["metadata"]["name"] for service in of_kind(objects, "Service")}
            if not services & set(spec.get("dnsNames", [])):
                yield f"Certificate {name}: no name is that of the Service"
        if "client auth" in spec.get("usages", []):
            rules = [rule["identity"] for rule in configuration(objects)["access"] if rule["role"] in ("worker", "keys")]
            if not any(uri.startswith(rule.removesuffix("*")) for uri in spec.get("uris", []) for rule in rules):
                yield f"Certificate {name}: no [[access]] rule names it"
