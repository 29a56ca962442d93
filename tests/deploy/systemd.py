"""The units of deploy/systemd under systemd 252 (Debian 12) and 257 (Debian 13), with the commands of its README.

Each systemd is a real one that runs in a machine (machine.py). Needs TLS_SESSIOND, openssl, and .peers.
"""

import json
import re
import shutil

from harness import ROOT, alone, fail, run, shown, stripped_daemon, until
from machine import Machine, readme

UNITS = ROOT / "deploy/systemd"
PEERS = ROOT / ".peers"
COMMANDS = readme(UNITS / "README.md")
SOCKET = "/run/tls-sessiond/api.sock"
UNIT = "tls-sessiond.service"
PROXY = "tls-sessiond-proxy.service"


def files_agree():
    """The template is the unit with the name of the instance in its description and its paths."""
    unit = (UNITS / UNIT).read_text()
    expected = re.sub(r"^(Description=.*)$", r"\1 (%i)", unit, flags=re.M)
    expected = expected.replace("/etc/tls-sessiond/tls-sessiond.toml", "/etc/tls-sessiond/%i.toml")
    expected = re.sub(r"^(RuntimeDirectory|LogsDirectory|StateDirectory)=tls-sessiond$", r"\1=tls-sessiond-%i", expected, flags=re.M)
    expected = expected.replace("unix:///run/tls-sessiond/", "unix:///run/tls-sessiond-%i/")
    expected = expected.replace("/var/lib/tls-sessiond,", "/var/lib/tls-sessiond-%i,")
    if (UNITS / "tls-sessiond@.service").read_text() != expected:
        fail("tls-sessiond@.service differs from tls-sessiond.service in more than the name of the instance")
    shown("the template is the unit with the name of its instance")


def installs(machine):
    """Installs by the README, from a copy of the files that it names."""
    for name in ("deploy/systemd", "deploy/packages/tls-sessiond.toml"):
        copy = machine.root / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, copy)
    machine.put(machine.binary, "/source/target/dist/tls-sessiond", 0o755)
    machine.run(f"cd /source; {COMMANDS['install']}")
    rights = machine.run("stat -c '%a %U:%G %n' /etc/tls-sessiond /etc/tls-sessiond/* /run/tls-sessiond").splitlines()
    expected = ["750 root:tls-sessiond /etc/tls-sessiond", "640 root:tls-sessiond /etc/tls-sessiond/tls-sessiond.toml",
                "750 tls-sessiond:tls-sessiond /run/tls-sessiond"]
    if rights != expected:
        fail(f"rights {rights}, expected {expected}")
    shown(f"{machine.name}: install, sysusers and tmpfiles of the README")


def is_verified(machine):
    """systemd-analyze prints nothing, and the exposure is at most 1.5."""
    units = [f"/etc/systemd/system/{name}" for name in (UNIT, "tls-sessiond@web.service", PROXY, "tls-sessiond.socket")]
    said = machine.run(["systemd-analyze", "verify", "--man=no", *units])
    if said:
        fail(f"{machine.name}: systemd-analyze verify printed\n{said}")
    for unit in (UNIT, "tls-sessiond@.service", PROXY):
        exposure = exposed(machine, f"/etc/systemd/system/{unit}")
        shown(f"{machine.name}: systemd-analyze verify prints nothing; exposure of {unit} is {exposure}")


def exposed(machine, unit):
    """Returns the exposure of a unit, which is at most 1.5."""
    # The threshold is ten times the figure that is printed, so 15 is 1.5. Above it the status is not 0.
    said = machine.run(["systemd-analyze", "security", "--offline=true", "--threshold=15", unit])
    return float(re.search(r"exposure level for \S+: ([0-9.]+)", said).group(1))


def main_pid(machine, unit=UNIT):
    """Returns the process of a unit, as a number in the machine."""
    return machine.property(unit, "MainPID")


def is_active(machine, unit=UNIT):
    """Fails if a unit is not active."""
    state = machine.property(unit, "ActiveState")
    if state != "active":
        fail(f"{machine.name}: {unit} is {state}\n{machine.journal(unit)}")


def starts(machine):
    """Starts by the README. The start ends when the daemon has said that it is ready."""
    machine.run("useradd --system www-data 2>/dev/null || true")
    said = machine.run(COMMANDS["start"])
    is_active(machine)
    if "serving" not in said:
        fail(f"`tls-sessiond status` right after the start printed\n{said}")
    if re.search("Failed|ignoring", journal := machine.journal(UNIT)):
        fail(f"systemd complains about {UNIT}\n{journal}")
    if not told(machine):
        fail("the daemon has told systemd no STATUS=")
    shown(f"{machine.name}: Type=notify: it serves when the start returns; Status: {told(machine)}")


def is_confined(machine):
    """The settings of the unit are in force in the process."""
    pid = main_pid(machine)
    status = dict(re.findall(r"^(\w+):\s+(.*)$", machine.run(f"cat /proc/{pid}/status"), re.M))
    user = machine.run("id -u tls-sessiond").strip()
    expected = {"Uid": "\t".join([user] * 4), "NoNewPrivs": "1", "Seccomp": "2", "CapEff": "0" * 16, "CapBnd": "0" * 16, "CapAmb": "0" * 16}
    if different := {name: status[name] for name, value in expected.items() if status[name] != value}:
        fail(f"/proc/PID/status: {different}, expected {expected}")
    limits = machine.run(f"cat /proc/{pid}/limits")
    hard = machine.run("ulimit -Hn").strip()
    files = re.search(r"Max open files +(\d+) +(\d+)", limits).groups()
    # A machine whose own limit is lower can give no more.
    if set(files) != {str(min(65536, int(hard)))} or not re.search(r"Max core file size +0 +0 ", limits):
        fail(f"limits of the process\n{limits}")
    # The daemon sets the first itself, too. The last is also the default.
    if [machine.property(UNIT, name) for name in ("LimitCORE", "MemorySwapMax", "NotifyAccess")] != ["0", "0", "main"]:
        fail("LimitCORE=, MemorySwapMax= and NotifyAccess= of the unit")
    inside = f"nsenter --target={pid} --mount --"
    for path in ("/etc/tls-sessiond", "/usr", "/var/lib", "/root", "/home", "/sys"):
        machine.run(f"! {inside} touch {path}/written 2>/dev/null")
    for path in ("/run/tls-sessiond", "/var/log/tls-sessiond", "/tmp"):
        machine.run(f"{inside} sh -c 'touch {path}/written && rm {path}/written'")
    # The user of the daemon sees its own process alone.
    for hidden in ("/proc/sys", "/proc/meminfo", "/proc/1"):
        machine.run(f"! {inside} setpriv --reuid=tls-sessiond --regid=tls-sessiond --clear-groups ls {hidden} 2>/dev/null")
    machine.run("useradd member; usermod -aG tls-sessiond member; useradd stranger")
    machine.run(["setpriv", "--reuid=member", "--regid=member", "--init-groups", "tls-sessiond", "health"])
    # The daemon sees the user of a caller: a worker may not reload.
    machine.run(["setpriv", "--reuid=member", "--regid=member", "--init-groups", "tls-sessiond", "reload"], 1)
    caller = f"uid:{machine.run('id -u member').strip()}"
    until(f"the journal names {caller}", lambda: caller in machine.journal(UNIT))
    machine.run(["setpriv", "--reuid=stranger", "--regid=stranger", "--init-groups", "tls-sessiond", "health", "--address", f"unix://{SOCKET}"], 69)
    shown(f"{machine.name}: no capability, filter of system calls, read-only root; a member of the group is served, another user is not")


def told(machine):
    """Returns the last STATUS= of the daemon."""
    return machine.property(UNIT, "StatusText")


def last_reload(machine):
    """Returns the last reload that the daemon reports."""
    return json.loads(machine.run("tls-sessiond status --output json")).get("lastReload", {})


def page(machine, path):
    """Returns a page of the admin address."""
    request = f"GET {path} HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n"
    said = machine.run(["bash", "-euc", f"exec 3<>/dev/tcp/127.0.0.1/9551; printf '{request}' >&3; cat <&3"])
    return said if " 200 OK" in said else fail(f"{path} answers\n{said}")


def change(machine, old, new, file="tls-sessiond.toml"):
    """Replaces a text of the configuration in one step, as an administrator should."""
    path = machine.root / f"etc/tls-sessiond/{file}"
    text = path.read_text()
    if old not in text:
        fail(f"{path} lacks {old}")
    machine.run(f"cp -p /etc/tls-sessiond/{file} /etc/tls-sessiond/new")
    machine.run(f"cat >/etc/tls-sessiond/new; mv /etc/tls-sessiond/new /etc/tls-sessiond/{file}", input=text.replace(old, new))


def reloads(machine):
    """The job of a reload ends with the reload, and fails if the daemon refuses. SIGHUP needs no rights."""
    pid = main_pid(machine)
    said = machine.run(COMMANDS["reload"])
    if "active (running)" not in said or not last_reload(machine).get("applied"):
        fail(f"the job has ended before the reload: {last_reload(machine)}\n{said}")
    for wrong, cause in (("wrong = 1", "listen.wrong"), ('unix_mode = "0666"', "cannot change at run time")):
        change(machine, "[listen]", f"[listen]\n{wrong}")
        machine.run("systemctl reload tls-sessiond", 1)
        if cause not in machine.run("journalctl --no-pager --output=cat --unit tls-sessiond --lines=5"):
            fail(f"the journal lacks {cause}\n{machine.journal(UNIT)}")
        change(machine, f"{wrong}\n", "")
    # The journal has the level, and the values as fields.
    errors = machine.run("journalctl --no-pager --output=json --priority=err --unit tls-sessiond _COMM=tls-sessiond").splitlines()
    if not any("listen.wrong" in json.loads(line).get("TLS_SESSIOND_ERR", "") for line in errors):
        fail(f"errors in the journal: {errors}")
    machine.run("systemctl reload tls-sessiond")
    if "refused" in told(machine):
        fail(f"Status: after a good reload: {told(machine)}")

    hangup = "systemctl kill --signal=HUP --kill-who=main tls-sessiond"
    if hangup not in (UNITS / "README.md").read_text():
        fail(f"README.md lacks {hangup}")
    change(machine, "[listen]", "[listen]\nwrong = 1")
    machine.run(hangup)
    text = until("Status: tells of the refusal", lambda: told(machine) if "refused" in told(machine) else "")
    change(machine, "wrong = 1\n", "")
    machine.run(hangup)
    until("Status: no longer tells of it", lambda: "refused" not in told(machine))
    if main_pid(machine) != pid:
        fail("a reload has replaced the process")
    shown(f"{machine.name}: a reload ends with its job; one that is refused fails the job; Status: {text}")


def restarts(machine):
    """A daemon that hangs or is killed is started again. A wrong configuration is not tried again."""
    machine.write(f"/etc/systemd/system/{UNIT}.d/fast.conf", "[Service]\nWatchdogSec=2\nRestartSec=100ms\n")
    machine.run(f"systemctl daemon-reload; systemctl restart {UNIT}; systemctl reset-failed")
    pid = main_pid(machine)
    # Nothing but WATCHDOG=1 keeps the daemon running for longer than WatchdogSec=.
    began = int(machine.property(UNIT, "WatchdogTimestampMonotonic"))
    until("WATCHDOG=1 arrives", lambda: int(machine.property(UNIT, "WatchdogTimestampMonotonic")) > began + 2_500_000)
    if main_pid(machine) != pid:
        fail("the watchdog has ended a daemon that works")
    machine.run(f"kill -STOP {pid}")
    until("a daemon that hangs is replaced", lambda: main_pid(machine) not in (pid, "0") and machine.property(UNIT, "ActiveState") == "active")
    pid = main_pid(machine)
    machine.run(f"kill -KILL {pid}")
    until("a daemon that was killed is replaced", lambda: main_pid(machine) not in (pid, "0") and machine.property(UNIT, "ActiveState") == "active")
    if machine.property(UNIT, "NRestarts") != "2":
        fail(f"{machine.property(UNIT, 'NRestarts')} restarts, expected 2")
    shown(f"{machine.name}: WATCHDOG=1 arrives; systemd replaces a daemon that hangs, and one that was killed")

    change(machine, "[listen]", "[listen]\nwrong = 1")
    machine.run(f"systemctl restart {UNIT}", 1)
    found = [machine.property(UNIT, name) for name in ("ActiveState", "ExecMainStatus", "NRestarts")]
    if found != ["failed", "78", "0"]:
        fail(f"state, status and restarts after a wrong configuration: {found}")
    change(machine, "wrong = 1\n", "")
    machine.run(f"rm /etc/systemd/system/{UNIT}.d/fast.conf; systemctl daemon-reload; systemctl start {UNIT}")
    shown(f"{machine.name}: a wrong configuration ends with 78 and is not tried again")


def stops(machine):
    """A stop ends with the status 0, and leaves the folder of the socket."""
    machine.run(f"systemctl stop {UNIT}")
    found = [machine.property(UNIT, name) for name in ("ActiveState", "Result", "ExecMainStatus", "StatusText")]
    if found[:3] != ["inactive", "success", "0"]:
        fail(f"state, result and status after a stop: {found}")
    machine.run(f"test -d /run/tls-sessiond; test ! -e {SOCKET}")
    shown(f"{machine.name}: a stop ends with the status 0")


def takes_the_socket(machine):
    """The socket unit starts the daemon, and stays while the daemon restarts."""
    machine.run(COMMANDS["socket"])
    is_active(machine)
    if machine.run(f"stat -c '%a %U:%G' {SOCKET}").strip() != "660 tls-sessiond:tls-sessiond":
        fail("rights of the socket")
    machine.run("tls-sessiond health")
    machine.run(f"systemctl stop {UNIT}")
    machine.run("tls-sessiond health --timeout 10s")
    is_active(machine)
    machine.run(f"systemctl restart {UNIT}; tls-sessiond health; systemctl stop tls-sessiond.socket {UNIT}; test ! -e {SOCKET}")
    shown(f"{machine.name}: the socket unit passes its socket, and a caller starts the daemon")


def runs_instances(machine):
    """Two instances of the template run at the same time, each with its own files."""
    machine.run(COMMANDS["instance"])
    machine.run(COMMANDS["instance"].replace("web", "mail").replace("9561", "9562"))
    for name in ("web", "mail"):
        is_active(machine, f"tls-sessiond@{name}")
        machine.run(f"test -d /var/log/tls-sessiond-{name}; stat -c '%a %U' /run/tls-sessiond-{name} | grep -x '750 tls-sessiond'")
    machine.run("systemctl stop tls-sessiond@mail; tls-sessiond health --address unix:///run/tls-sessiond-web/api.sock; systemctl stop tls-sessiond@web")
    shown(f"{machine.name}: two instances, and one goes on without the other")


def certificates(machine):
    """Makes an authority, and certificates for a server and a client, in /root."""
    here = machine.root / "root"
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    run(*new, "-subj", "/CN=ca", "-keyout", here / "ca.key", "-out", here / "ca.crt")
    for name, names in (("tls", "DNS:localhost,IP:127.0.0.1"), ("client", "DNS:client")):
        run(*new, "-CA", here / "ca.crt", "-CAkey", here / "ca.key", "-subj", f"/CN={name}", "-keyout", here / f"{name}.key", "-out", here / f"{name}.crt",
             "-addext", "basicConstraints=critical,CA:FALSE", "-addext", f"subjectAltName={names}")


def takes_credentials(machine):
    """The daemon has a key that its user cannot read as a file, and a reload keeps it."""
    change(machine, "\"systemd\"", f"\"unix://{SOCKET}\"")
    machine.run(f"cd /root; cp -r /source/deploy .; {COMMANDS['credentials']}")
    is_active(machine)
    machine.run("! setpriv --reuid=tls-sessiond --regid=tls-sessiond --init-groups cat /etc/tls-sessiond/private/tls.key 2>/dev/null")
    machine.run(f"tls-sessiond contexts show web; systemctl reload {UNIT}")
    machine.run(f"systemctl stop {UNIT}; rm -r /etc/systemd/system/{UNIT}.d")
    shown(f"{machine.name}: LoadCredential= gives the key to the daemon, at a start and at a reload")


def gives_ticket_keys(machine):
    """The unit of the agent joins a ring, is ready when its server runs the keys, and leaves at a stop."""
    machine.put(UNITS / "tls-sessiond-keys@.service", "/etc/systemd/system/tls-sessiond-keys@.service")
    machine.run("""
        cp -a /etc/tls-sessiond/tls-sessiond.toml /root/before.toml
        sed -i 's/^role = "admin"$/role = ["admin", "keys"]/' /etc/tls-sessiond/tls-sessiond.toml
        printf '[[ticket_keys]]\nname = "web"\n' >>/etc/tls-sessiond/tls-sessiond.toml
        printf 'KEYS_OPTIONS=--files /run/tls-sessiond-keys/web --then true\n' >/etc/tls-sessiond/keys-web.env
        systemctl daemon-reload
        systemctl restart tls-sessiond
        systemctl start tls-sessiond-keys@web
        tls-sessiond keys status web --output json | grep '"counted": true'
        stat -c '%a %s' /run/tls-sessiond-keys/web.1 | grep -x '600 80'
        systemctl stop tls-sessiond-keys@web
        ! tls-sessiond keys status web --output json | grep '"counted": true'
        systemctl stop tls-sessiond
        cp -a /root/before.toml /etc/tls-sessiond/tls-sessiond.toml
    """)
    shown(f"{machine.name}: the unit of the agent gives ticket keys, and leaves the ring at a stop")


def visit_proxy(machine, *session):
    """Visits the proxy as a TLS client. Returns what openssl printed: the kind of the handshake, and the page."""
    inside = ["nsenter", f"--target={machine.leader}", "--net", "--"]
    request = b"GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n"
    client = ["openssl", "s_client", "-ign_eof", "-connect", "127.0.0.1:443", "-CAfile", machine.root / "root/ca.crt", "-verify_return_error"]
    return run(*inside, *client, *session, input=request, stdin=None)


def runs_proxies(machine):
    """The proxy of the README before a backend that speaks plaintext: the admin address of the daemon."""
    machine.run(f"systemctl start {UNIT}")
    machine.run(f"cd /root; {COMMANDS['proxy'].replace('8080', '9551')}")
    is_active(machine, PROXY)
    pid = main_pid(machine, PROXY)
    status = dict(re.findall(r"^(\w+):\s+(.*)$", machine.run(f"cat /proc/{pid}/status"), re.M))
    user = machine.run("id -u tls-sessiond-proxy").strip()
    # CAP_NET_BIND_SERVICE alone.
    expected = {"Uid": "\t".join([user] * 4), "NoNewPrivs": "1", "Seccomp": "2", "CapEff": f"{1 << 10:016x}", "CapBnd": f"{1 << 10:016x}"}
    if different := {name: status[name] for name, value in expected.items() if status[name] != value}:
        fail(f"/proc/PID/status of the proxy: {different}, expected {expected}")
    # Several, because a lookup that misses its deadline on a busy machine consumes one.
    sessions = [machine.root / f"root/session-{number}" for number in range(4)]
    said = [visit_proxy(machine, "-sess_out", session) for session in sessions][0]
    if "New, TLSv1.3" not in said or "alive" not in said:
        fail(f"the first visit printed\n{said}\n{machine.journal(PROXY)}")

    machine.run(COMMANDS["proxy-reload"])
    machine.run("sed -i 's/^key = .*/key = \"proxy.crt\"/' /etc/tls-sessiond/proxy.toml")
    machine.run(f"systemctl reload {PROXY}", 1)
    if "proxy[0].key" not in machine.journal(PROXY):
        fail(f"the journal does not name the key\n{machine.journal(PROXY)}")
    machine.run("sed -i 's/^key = .*/key = \"proxy.key\"/' /etc/tls-sessiond/proxy.toml")
    machine.run("cat /root/client.crt >/etc/tls-sessiond/proxy.crt; cat /root/client.key >/etc/tls-sessiond/proxy.key")
    machine.run(f"systemctl reload {PROXY}")
    until("the proxy has the other certificate", lambda: re.search("CN ?= ?client", visit_proxy(machine)))
    machine.run("cat /root/tls.crt >/etc/tls-sessiond/proxy.crt; cat /root/tls.key >/etc/tls-sessiond/proxy.key")
    if main_pid(machine, PROXY) != pid:
        fail("a reload has replaced the process of the proxy")
    shown(f"{machine.name}: the proxy serves as its user on port 443; a reload takes a certificate, and one with an error fails the job")

    # The key as a credential, from a start on.
    machine.run(f"""
        install -d -m 0700 /etc/tls-sessiond/private
        mv /etc/tls-sessiond/proxy.key /etc/tls-sessiond/private/proxy.key
        chmod 0400 /etc/tls-sessiond/private/proxy.key
        install -D -m 0644 /source/deploy/systemd/proxy-credentials.conf /etc/systemd/system/{PROXY}.d/proxy-credentials.conf
        systemctl daemon-reload
        systemctl restart {PROXY}
    """)
    until("the proxy has its daemon", lambda: machine.run("tls-sessiond health --proxy") == "serving\n")
    said = [visit_proxy(machine, "-sess_in", session) for session in sessions]
    if not any("Reused, TLSv1.3" in one for one in said):
        fail(f"after a restart of the proxy no client resumes\n{said[-1]}\n{machine.journal(PROXY)}")
    machine.run(f"printf wrong >>/etc/tls-sessiond/proxy.toml; systemctl restart {PROXY}", 1)
    found = [machine.property(PROXY, name) for name in ("ActiveState", "ExecMainStatus", "NRestarts")]
    if found != ["failed", "78", "0"]:
        fail(f"state, status and restarts of the proxy after a wrong configuration: {found}")
    machine.run(f"sed -i 's/^wrong//' /etc/tls-sessiond/proxy.toml; systemctl start {PROXY}; systemctl stop {PROXY} {UNIT}")
    found = [machine.property(PROXY, name) for name in ("ActiveState", "Result", "ExecMainStatus")]
    if found != ["inactive", "success", "0"]:
        fail(f"state, result and status of the proxy after a stop: {found}\n{machine.journal(PROXY)}")
    machine.run(f"rm -r /etc/systemd/system/{PROXY}.d /etc/tls-sessiond/private /etc/tls-sessiond/proxy.*; systemctl daemon-reload")
    shown(f"{machine.name}: a client resumes after a restart of the proxy, whose key is a credential; a wrong configuration ends with 78; a stop with 0")


BUSY = """
[listen]
api = ["tcp://127.0.0.1:50551", "unix:///run/tls-sessiond-busy/api.sock"]
[log]
audit = "/var/log/tls-sessiond-busy/audit.log"
[store]
kind = "redis"
[store.redis]
urls = ["redis://localhost:6379"]
sealing_keys = "sealing-keys"
[[context]]
certificate = "tls.crt"
key = "tls.key"
ca = "ca.crt"
"""
REMOTE = """
[listen]
api = ["tls://127.0.0.1:50552", "unix:///run/tls-sessiond-remote/api.sock"]
admin = "tls://127.0.0.1:9554"
[listen.tls]
certificate = "tls.crt"
key = "tls.key"
client_ca = "ca.crt"
[[access]]
identity = "dns:client"
contexts = ["*"]
role = "admin"
"""


def works_within_the_filter(machine):
    """Everything that the daemon does, with a filter that kills it at the first system call that the unit forbids."""
    machine.write("/etc/systemd/system/tls-sessiond@.service.d/kill.conf", "[Service]\nSystemCallErrorNumber=kill\n")
    for tool in ("grpcurl", "valkey-server"):
        machine.put((PEERS / "bin" / tool).resolve(), f"/usr/local/bin/{tool}", 0o755)
    machine.write("/etc/tls-sessiond/busy.toml", BUSY)
    machine.write("/etc/tls-sessiond/remote.toml", REMOTE)
    machine.run("cd /etc/tls-sessiond; cp /root/ca.crt /root/tls.* .; chgrp tls-sessiond *; chmod 0640 *; od -An -tx1 -N32 /dev/urandom | tr -d ' \\n' >sealing-keys")
    machine.run("chgrp tls-sessiond /etc/tls-sessiond/sealing-keys; systemd-run --quiet --unit=store valkey-server --bind 127.0.0.1 --save ''")
    machine.run("systemctl daemon-reload; systemctl start tls-sessiond@busy tls-sessiond@remote")
    said = machine.run("tls-sessiond status --address tcp://127.0.0.1:50551")
    if not re.search(r"^open parts +64\b", said, re.M):
        fail(f"the daemon does not reach its store\n{said}")
    # The tour of the README: handshakes, resumption, closes, lists. The last block explains a session of this daemon's memory.
    tour = re.findall(r"<!-- tour -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    said = machine.run(["bash", "-euc", "\n".join(tour[:-1])])
    if '"sessionReused": true' not in said:
        fail(f"no session was resumed\n{said}")
    machine.run("tls-sessiond sessions revoke --all --yes --context default --address tcp://127.0.0.1:50551")
    # A rotation of the audit file.
    machine.run("mv /var/log/tls-sessiond-busy/audit.log /var/log/tls-sessiond-busy/audit.log.1; systemctl reload tls-sessiond@busy")
    until("a new audit file", (machine.root / "var/log/tls-sessiond-busy/audit.log").exists)
    # The admin address, and mutual TLS.
    for path in ("/", "/metrics", "/readyz"):
        page(machine, path)
    secure = "--address tls://127.0.0.1:50552 --ca /root/ca.crt --certificate /root/client.crt --key /root/client.key"
    machine.run(f"tls-sessiond health {secure}; tls-sessiond status {secure}; tls-sessiond reload {secure}; tls-sessiond drain {secure}")
    until("the drain ends", lambda: machine.property("tls-sessiond@remote", "ActiveState") == "inactive")
    machine.run("systemctl stop tls-sessiond@busy")
    for name in ("busy", "remote"):
        found = [machine.property(f"tls-sessiond@{name}", name) for name in ("Result", "ExecMainStatus", "NRestarts")]
        if found != ["success", "0", "0"]:
            fail(f"result, status and restarts of {name}: {found}\n{machine.journal(f'tls-sessiond@{name}')}")
    shown(f"{machine.name}: no forbidden system call in handshakes, resumption, shared store by name, mutual TLS, reload, rotation, metrics, drain")


def waits_for_reloads(machine):
    """With notify-reload a reload has ended when the job has, without any rights."""
    machine.run(f"cd /source; {COMMANDS['notify-reload']}")
    change(machine, "[[access]]\nidentity = \"uid:0\"", "[[access]]\nidentity = \"uid:12345\"")
    said = machine.run(["systemd-analyze", "verify", "--man=no", f"/etc/systemd/system/{UNIT}"])
    if said or machine.property(UNIT, "Type") != "notify-reload":
        fail(f"type {machine.property(UNIT, 'Type')}; systemd-analyze verify printed {said}")
    for expected in (1, 2, 3, 4, 5):
        machine.run(f"systemctl reload {UNIT}")
        applied = re.search(r'^tls_sessiond_reloads_total\{result="applied"\} (\d+)', page(machine, "/metrics"), re.M)
        if not applied or int(applied.group(1)) != expected:
            fail(f"the job has ended before reload {expected}\n{machine.journal(UNIT)}")
    shown(f"{machine.name}: notify-reload: five reloads had ended when systemctl returned")


def refuses_notify_reload(machine):
    """Why the drop-in is not for systemd 252: it keeps the type of the unit, and has no reload."""
    machine.run(f"cd /source; {COMMANDS['notify-reload']}")
    if machine.property(UNIT, "Type") != "notify" or machine.property(UNIT, "CanReload") != "no":
        fail(f"systemd 252 with notify-reload: type {machine.property(UNIT, 'Type')}")
    machine.run(f"rm /etc/systemd/system/{UNIT}.d/notify-reload.conf; systemctl daemon-reload; systemctl restart {UNIT}")
    shown(f"{machine.name}: ignores Type=notify-reload")


def main():
    alone()
    files_agree()
    binary = stripped_daemon()
    with Machine("debian-12") as old:
        old.binary, old.name = binary, "systemd 252"
        certificates(old)
        for step in (installs, is_verified, starts, is_confined, reloads, refuses_notify_reload, restarts, stops, runs_proxies, gives_ticket_keys, takes_the_socket, runs_instances,
                     takes_credentials, works_within_the_filter):
            step(old)
    with Machine("debian-13") as new:
        new.binary, new.name = binary, "systemd 257"
        for step in (installs, is_verified, starts, is_confined, reloads, waits_for_reloads, stops):
            step(new)


if __name__ == "__main__":
    main()
