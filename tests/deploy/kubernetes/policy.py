"""The restricted Pod Security Standard as a contract: one rule for each of its controls.

A rule takes the spec of a pod and yields what breaks it. The restricted standard includes the baseline. Each rule has a change
that breaks it, so that a rule that finds nothing is noticed.

Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

import copy

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
SELINUX_TYPES = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def containers(pod):
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        yield from pod.get(kind, [])


def contexts(pod):
    """Yields the security context of the pod and of each container."""
    yield "pod", pod.get("securityContext", {})
    for container in containers(pod):
        yield container["name"], container.get("securityContext", {})


def effective(pod, key):
    """Yields the value of a key for each container: its own, or else that of the pod."""
    for container in containers(pod):
        own = container.get("securityContext", {})
        yield container["name"], own.get(key, pod.get("securityContext", {}).get(key))


def host_process(pod):
    return [name for name, found in contexts(pod) if found.get("windowsOptions", {}).get("hostProcess")]


def host_namespaces(pod):
    return [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]


def privileged(pod):
    return [name for name, found in contexts(pod) if found.get("privileged")]


def capabilities(pod):
    for container in containers(pod):
        found = container.get("securityContext", {}).get("capabilities", {})
        if "ALL" not in found.get("drop", []) or set(found.get("add", [])) - {"NET_BIND_SERVICE"}:
            yield container["name"]


def volume_types(pod):
    for volume in pod.get("volumes", []):
        yield from (f"{volume['name']}: {kind}" for kind in set(volume) - {"name"} - VOLUMES)


def host_ports(pod):
    return [c["name"] for c in containers(pod) for port in c.get("ports", []) if port.get("hostPort")]


def host_probes(pod):
    for container in containers(pod):
        hooks = container.get("lifecycle", {}).values()
        probes = (container.get(f"{kind}Probe", {}) for kind in ("startup", "readiness", "liveness"))
        for handler in (*hooks, *probes):
            if any(handler.get(kind, {}).get("host") for kind in ("httpGet", "tcpSocket")):
                yield container["name"]


def apparmor(pod):
    return [
        name
        for name, found in contexts(pod)
        if found.get("appArmorProfile", {}).get("type") not in (None, "RuntimeDefault", "Localhost")
    ]


def selinux(pod):
    for name, found in contexts(pod):
        options = found.get("seLinuxOptions", {})
        if options.get("type") not in SELINUX_TYPES or options.get("user") or options.get("role"):
            yield name


def proc_mount(pod):
    return [name for name, found in contexts(pod) if found.get("procMount") not in (None, "Default")]


def sysctls(pod):
    return [s["name"] for s in pod.get("securityContext", {}).get("sysctls", []) if s["name"] not in SYSCTLS]


def privilege_escalation(pod):
    return [c["name"] for c in containers(pod) if c.get("securityContext", {}).get("allowPrivilegeEscalation") is not False]


def run_as_non_root(pod):
    return [name for name, value in effective(pod, "runAsNonRoot") if value is not True]


def run_as_user(pod):
    return [name for name, found in contexts(pod) if found.get("runAsUser") == 0]


def seccomp(pod):
    return [
        name
        for name, value in effective(pod, "seccompProfile")
        if (value or {}).get("type") not in ("RuntimeDefault", "Localhost")
    ]


def change(path, value):
    """Returns a function that sets a value in the first application container, or in the pod with `pod.`."""

    def apply(pod):
        *keys, last = path.removeprefix("pod.").split(".")
        at = pod if path.startswith("pod.") else pod["containers"][0]
        for key in keys:
            at = at.setdefault(key, {})
        at[last] = value

    return apply


# The controls of the standard, in its order, each with a change that breaks it.
RESTRICTED = {
    host_process: change("securityContext.windowsOptions", {"hostProcess": True}),
    host_namespaces: change("pod.hostPID", True),
    privileged: change("securityContext.privileged", True),
    capabilities: change("securityContext.capabilities", {"drop": ["ALL"], "add": ["SYS_PTRACE"]}),
    volume_types: change("pod.volumes", [{"name": "host", "hostPath": {"path": "/"}}]),
    host_ports: change("ports", [{"containerPort": 1, "hostPort": 1}]),
    host_probes: change("livenessProbe", {"httpGet": {"port": 1, "host": "127.0.0.1"}}),
    apparmor: change("securityContext.appArmorProfile", {"type": "Unconfined"}),
    selinux: change("securityContext.seLinuxOptions", {"user": "system_u"}),
    proc_mount: change("securityContext.procMount", "Unmasked"),
    sysctls: change("pod.securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
    privilege_escalation: change("securityContext.allowPrivilegeEscalation", None),
    run_as_non_root: change("securityContext.runAsNonRoot", False),
    run_as_user: change("securityContext.runAsUser", 0),
    seccomp: change("securityContext.seccompProfile", {"type": "Unconfined"}),
}


def violations(pod):
    """Returns what breaks the restricted standard: the name of the rule, and the part of the pod."""
    return [f"{rule.__name__}: {found}" for rule in RESTRICTED for found in rule(pod)]


def blind_rules(pod):
    """Returns the rules that do not find the change that breaks them, or find it in a pod that is good."""
    blind = []
    for rule, breaks in RESTRICTED.items():
        broken = copy.deepcopy(pod)
        breaks(broken)
        if list(rule(pod)) or not list(rule(broken)):
            blind.append(rule.__name__)
    return blind
