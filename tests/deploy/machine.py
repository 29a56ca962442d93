"""Machines for the tests of deploy/: a Debian in a folder, booted with its own systemd by systemd-nspawn.

A machine is a layer in memory over a folder that machines.sh has made (.peers/debian-12), so a test changes no file of it.
It has its own processes, network (loopback alone) and cgroups. Needs root, and no systemd on the host. A test that uses
machines calls harness.alone() first: then all of this ends with the test.
"""

import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import time

from harness import ROOT, fail, run

# In memory, and of this test alone.
SCRATCH = pathlib.Path("/run")
# A boot takes less than a second on an idle machine.
BOOT = 60


def readme(path):
    """Returns the commands of a README that a test must run: each ```sh block after a line `<!-- run: NAME -->`."""
    blocks = re.findall(r"<!-- run: ([a-z-]+) -->\n```sh\n(.*?)```", path.read_text(), re.S)
    return dict(blocks) or fail(f"{path}: no commands")


class Machine:
    """A Debian, booted unless `boot` is false: then it is only a root for chroot. Use it in a `with` statement."""

    def __init__(self, base, boot=True):
        self.base = ROOT / ".peers" / base
        self.boot = boot
        self.root = SCRATCH / f"{base}-{os.urandom(4).hex()}"
        self.nspawn = self.leader = None
        self.cgroups = []
        if not (self.base / "made").exists():
            fail(f"{self.base} is missing: run tests/peers.sh")
        layers = [self.root.with_suffix(suffix) for suffix in (".upper", ".work")]
        for path in (self.root, *layers):
            path.mkdir()
        run("mount", "-t", "overlay", "none", "-o", f"lowerdir={self.base},upperdir={layers[0]},workdir={layers[1]}", self.root)
        self.write("/etc/hostname", "machine\n")
        self.write("/etc/hosts", "127.0.0.1 localhost machine\n::1 localhost\n")

    def put(self, source, target, mode=0o644):
        """Copies a file into the machine."""
        self.write(target, pathlib.Path(source).read_bytes(), mode)

    def write(self, target, content, mode=0o644):
        """Writes a file of the machine. Not below /run, which is its own after the boot."""
        path = self.root / target.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)

    def __enter__(self):
        if not self.boot:
            run("mount", "-t", "proc", "none", self.root / "proc")
            return self
        notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = self.root.with_suffix(".notify")
        notices.bind(str(address))
        # systemd of the machine takes the cgroup in which it starts. Two machines must not have the same.
        for kind in ("systemd", "unified", ""):
            parent = pathlib.Path("/sys/fs/cgroup") / kind
            if (parent / "cgroup.procs").exists():
                self.cgroups.append(parent / self.root.name)
                self.cgroups[-1].mkdir()
        command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--notify-ready=yes", "--private-network", "--resolv-conf=off",
                   "--timezone=off", "--link-journal=no", "--console=passive", f"--machine={self.root.name}", f"--directory={self.root}", "--boot",
                   "systemd.mask=console-getty.service", "systemd.mask=systemd-firstboot.service"]
        environment = {**os.environ, "NOTIFY_SOCKET": str(address), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}

        def enter():
            for cgroup in self.cgroups:
                (cgroup / "cgroup.procs").write_text("0")

        console = self.root.with_suffix(".console")
        with open(console, "wb") as output:
            self.nspawn = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, preexec_fn=enter)
        end = time.monotonic() + BOOT
        told = ""
        while "READY=1" not in told.split("\n"):
            if select.select([notices], [], [], 1)[0]:
                told = notices.recv(4096).decode()
                leader = re.search(r"^X_NSPAWN_LEADER_PID=(\d+)$", told, re.M)
                self.leader = int(leader.group(1)) if leader else self.leader
            elif self.nspawn.poll() is not None or time.monotonic() > end:
                self.__exit__()
                fail(f"{self.base.name} does not boot\n{console.read_text(errors='replace')}")
        return self

    def run(self, command, status=0, **options):
        """Runs a command, or the text of a shell script, in the machine as root. Returns its output."""
        words = ["sh", "-euc", command] if isinstance(command, str) else command
        clean = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "SYSTEMD_PAGER=cat",
                 "DEBIAN_FRONTEND=noninteractive"]
        inside = ["chroot", self.root]
        if self.boot:
            inside = ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd", "--"]
        if "input" in options:
            options = {**options, "input": options["input"].encode(), "stdin": None}
        return run(*inside, *clean, *words, status=status, **options)

    def property(self, unit, name):
        """Returns a property of a unit."""
        return self.run(["systemctl", "show", "--property", name, "--value", unit]).strip()

    def journal(self, unit):
        """Returns the messages of a unit."""
        return self.run(["journalctl", "--no-pager", "--output=cat", "--unit", unit])

    def __exit__(self, *_):
        if self.leader:
            os.kill(self.leader, signal.SIGKILL)
        if self.nspawn:
            try:
                self.nspawn.wait(10)
            except subprocess.TimeoutExpired:
                self.nspawn.kill()
                self.nspawn.wait()
        # Below it are those of the units. A process that has just died may still be in one.
        for cgroup in self.cgroups:
            for _ in range(100):
                for path in sorted((path for path, _, _ in os.walk(cgroup)), reverse=True):
                    try:
                        os.rmdir(path)
                    except OSError:
                        pass
                if not cgroup.exists():
                    break
                time.sleep(0.02)
