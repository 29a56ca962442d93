"""The packages of deploy/packages: built twice, read, installed, upgraded and removed with the commands of the README.

Debian 12 and 13 are machines (machine.py). Needs TLS_SESSIOND, .peers with nfpm, dpkg-dev and rpm.
"""

import os
import re
import shutil
import subprocess
import tomllib

from harness import ROOT, alone, fail, run, shown, stripped_daemon
from machine import SCRATCH, Machine, readme

PACKAGES = ROOT / "deploy/packages"
PEERS = ROOT / ".peers"
COMMANDS = readme(PACKAGES / "README.md")
CONFIGURATION = "/etc/tls-sessiond/tls-sessiond.toml"


def built(binary, name):
    """Builds by the README, in a folder of its own, and returns the folder of the packages."""
    tree = SCRATCH / name
    (tree / "target/dist").mkdir(parents=True)
    (tree / "deploy").symlink_to(ROOT / "deploy")
    shutil.copy(binary, tree / "target/dist/tls-sessiond")
    environment = {**os.environ, "NFPM": str(PEERS / "venv/bin/nfpm"), "TZ": "UTC" if name == "first" else "Asia/Tokyo"}
    # The second build has another host name, time zone and umask.
    host = [] if name == "first" else ["unshare", "--uts", "sh", "-euc", 'hostname other; umask 077; exec "$@"', "sh"]
    run(*host, "sh", "-euc", COMMANDS["build"], cwd=tree, env=environment)
    return tree / "target/packages"


def builds_are_equal(first, second):
    """Two builds have the same names and bytes, and the checksums verify."""
    said = run("diff", "--recursive", first, second)
    names = sorted(path.name for path in first.iterdir())
    if said or len(names) != 4:
        fail(f"two builds differ: {names}\n{said}")
    listed = run("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=first).splitlines()
    if sorted(listed) != sorted(f"{name}: OK" for name in names if name != "SHA256SUMS"):
        fail(f"SHA256SUMS: {listed}")
    shown(f"two builds have the same bytes, and SHA256SUMS verifies: {', '.join(names)}")


# What each package must have: mode, owner and path.
FILES = """
-rwxr-xr-x root/root /usr/bin/tls-sessiond
-rw-r--r-- root/root /etc/tls-sessiond/tls-sessiond.toml
-rw-r--r-- root/root /usr/lib/systemd/system/tls-sessiond-keys@.service
-rw-r--r-- root/root /usr/lib/systemd/system/tls-sessiond-proxy.service
-rw-r--r-- root/root /usr/lib/systemd/system/tls-sessiond.service
-rw-r--r-- root/root /usr/lib/systemd/system/tls-sessiond@.service
-rw-r--r-- root/root /usr/lib/systemd/system/tls-sessiond.socket
-rw-r--r-- root/root /usr/lib/sysusers.d/tls-sessiond.conf
-rw-r--r-- root/root /usr/lib/tmpfiles.d/tls-sessiond.conf
-rw-r--r-- root/root /usr/share/bash-completion/completions/tls-sessiond
-rw-r--r-- root/root /usr/share/fish/vendor_completions.d/tls-sessiond.fish
-rw-r--r-- root/root /usr/share/man/man1/tls-sessiond.1.gz
-rw-r--r-- root/root /usr/share/man/man1/tls-sessiond-sessions-watch.1.gz
-rw-r--r-- root/root /usr/share/doc/tls-sessiond/README.md
-rw-r--r-- root/root /usr/share/doc/tls-sessiond/docs/operations.md
-rw-r--r-- root/root /usr/share/doc/tls-sessiond/deploy/prometheus/rules.yaml
-rw-r--r-- root/root /usr/share/doc/tls-sessiond/deploy/systemd/notify-reload.conf
""".strip().splitlines()
OF_DEB = ["-rw-r--r-- root/root /usr/share/zsh/vendor-completions/_tls-sessiond", "-rw-r--r-- root/root /usr/share/doc/tls-sessiond/copyright"]
OF_RPM = ["-rw-r--r-- root/root /usr/share/zsh/site-functions/_tls-sessiond", "-rw-r--r-- root/root /usr/share/licenses/tls-sessiond/LICENSE-MIT",
          "-rw-r--r-- root/root /usr/share/licenses/tls-sessiond/LICENSE-APACHE"]


def has_files(package, listed, expected):
    """Fails if a file is missing, or any file has another owner, or may be written by others."""
    if missing := [line for line in expected if line not in listed]:
        fail(f"{package.name} lacks {missing}")
    for line in listed:
        mode, owner, path = line.split(" ", 2)
        usual = "drwxr-xr-x" if mode[0] == "d" else "-rwxr-xr-x" if path == "/usr/bin/tls-sessiond" else "-rw-r--r--"
        if (mode, owner) != (usual, "root/root"):
            fail(f"{package.name}: {line}, expected {usual}")


def deb_is_right(package, binary):
    """Content, conffiles, and dependencies as dpkg-shlibdeps finds them."""
    listed = re.findall(r"^(\S+) (\S+) +\d+ \S+ \S+ \.(\S+)$", run("dpkg-deb", "--contents", package), re.M)
    has_files(package, [" ".join(line) for line in listed], FILES + OF_DEB)
    control = SCRATCH / "control"
    run("dpkg-deb", "--control", package, control)
    conffiles = control / "conffiles"
    if not conffiles.exists() or conffiles.read_text().split() != [CONFIGURATION]:
        fail(f"{package.name}: conffiles")
    depends = run("dpkg-deb", "--field", package, "Depends").strip().split(", ")
    (SCRATCH / "debian").mkdir()
    (SCRATCH / "debian/control").write_text("Source: tls-sessiond\n")
    found = run("dpkg-shlibdeps", "-O", f"-e{binary}", cwd=SCRATCH, stderr=subprocess.DEVNULL).strip().removeprefix("shlibs:Depends=").split(", ")
    libc = [item for item in found if item.startswith("libc6 ")]
    names = {item.split(" ")[0] for item in found}
    if not set(libc) <= set(depends) or not names <= {item.split(" ")[0] for item in depends} or names != {"libc6", "libgcc-s1"}:
        fail(f"Depends is {depends}; dpkg-shlibdeps finds {found}")
    shown(f"{package.name}: modes, conffile, Depends as dpkg-shlibdeps finds them: {', '.join(depends)}")


def rpm_is_right(package, binary):
    """Content, configuration files, digests, and requirements as rpm's own generator finds them."""
    listed = run("rpm", "-qp", "--queryformat", "[%{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME} %{FILENAMES}\n]", package).splitlines()
    has_files(package, listed, FILES + OF_RPM)
    run("rpm", "--checksig", "--nosignature", package)
    # c: configuration. n: an upgrade does not replace it.
    flags = run("rpm", "-qp", "--queryformat", "[%{FILEFLAGS:fflags} %{FILENAMES}\n]", package).splitlines()
    if [line for line in flags if line.startswith("c")] != [f"cn {CONFIGURATION}"]:
        fail(f"{package.name}: configuration files")
    required = set(run("rpm", "-qp", "--requires", package).splitlines())
    found = set(run("/usr/lib/rpm/elfdeps", "--requires", binary).splitlines()) - {"rtld(GNU_HASH)"}
    if missing := found - required:
        fail(f"{package.name} does not require {missing}")
    libraries = {name for name in required if name.endswith("(64bit)")}
    if libraries != found:
        fail(f"{package.name} requires {libraries - found}, which the binary does not need")
    shown(f"{package.name}: modes, configuration, digests, and the {len(found)} requirements that rpm finds in the binary")


def tarball_is_right(package, binary):
    """The daemon is where the metadata for cargo binstall says."""
    metadata = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"].get("metadata", {}).get("binstall")
    if not metadata:
        fail("Cargo.toml lacks [package.metadata.binstall]")
    version = run(binary, "--version").split()[1]
    words = {"name": "tls-sessiond", "version": version, "target": f"{os.uname().machine}-unknown-linux-gnu", "bin": "tls-sessiond", "binary-ext": "",
             "archive-suffix": ".tgz", "repo": "https://github.com/tls-sessiond/tls-sessiond"}
    filled = {key: re.sub(r"\{ ([a-z-]+) \}", lambda match: words[match.group(1)], metadata[key]) for key in ("pkg-url", "bin-dir", "pkg-fmt")}
    if filled["pkg-fmt"] != "tgz" or filled["pkg-url"] != f"{words['repo']}/releases/download/v{version}/{package.name}":
        fail(f"[package.metadata.binstall]: {filled}; the tarball is {package.name}")
    content = SCRATCH / "tarball"
    content.mkdir()
    run("tar", "--extract", f"--file={package}", "--directory", content)
    found = content / filled["bin-dir"]
    if not found.is_file() or run(found, "--version") != run(binary, "--version"):
        fail(f"[package.metadata.binstall]: the tarball has no daemon at bin-dir, {filled['bin-dir']}; it has {[str(path.relative_to(content)) for path in content.glob('**/tls-sessiond')]}")
    shown(f"{package.name}: the binary is where cargo binstall expects it")


def changed(package, version, configuration):
    """Returns the package with another version, and a line more in its configuration if wanted."""
    tree = SCRATCH / f"deb-{version}"
    run("dpkg-deb", "--raw-extract", package, tree)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"^Version: .*$", f"Version: {version}", control.read_text(), flags=re.M))
    path = tree / CONFIGURATION.lstrip("/")
    path.write_text(path.read_text() + configuration)
    target = SCRATCH / f"tls-sessiond_{version}_amd64.deb"
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, target)
    return target


def installs_without_systemd(package):
    """In a chroot where no systemd runs: nothing is started, and the daemon starts by hand as its user."""
    with Machine("debian-13", boot=False) as machine:
        machine.put(package, f"/root/{package.name}")
        said = machine.run(f"apt-get install /root/{package.name}")
        machine.run("id tls-sessiond; ! ls -l /proc/*/exe | grep tls-sessiond || exit 1; stat -c '%a %U:%G' /etc/tls-sessiond | grep -x '750 root:tls-sessiond'")
        machine.run("""
            setpriv --reuid=tls-sessiond --regid=tls-sessiond --init-groups tls-sessiond serve --config /etc/tls-sessiond/tls-sessiond.toml >/tmp/out 2>&1 &
            for i in $(seq 200); do tls-sessiond health 2>/dev/null && break; sleep 0.05; done
            tls-sessiond status | grep -q serving
            kill $!; wait $!""")
        machine.run("apt-get purge tls-sessiond; test ! -e /etc/tls-sessiond; test ! -e /usr/bin/tls-sessiond", input="y\n")
        if re.search("rror|ailed", said):
            fail(f"installation without systemd\n{said}")
    shown("without systemd the package installs, the daemon starts by hand as its user, and a purge leaves no configuration")


def lives(package):
    """Installation, upgrade, removal and purge with systemd."""
    with Machine("debian-12") as machine:
        same, newer = changed(package, "0.1.1", ""), changed(package, "0.1.2", "# new\n")
        for path, place in ((package, "first"), (same, "second"), (newer, "third")):
            machine.put(path, f"/root/{place}/{path.name}")
        machine.put(package.parent / "SHA256SUMS", "/root/first/SHA256SUMS")
        machine.run(f"cd /root/first; apt-get install ./{package.name}")
        state = [machine.property("tls-sessiond", name) for name in ("ActiveState", "UnitFileState")]
        if state != ["inactive", "disabled"]:
            fail(f"after the installation the unit is {state}")
        said = machine.run(["systemd-analyze", "verify", "--man=no", "tls-sessiond.service", "tls-sessiond@web.service", "tls-sessiond-proxy.service", "tls-sessiond.socket"])
        if said:
            fail(f"systemd-analyze verify printed\n{said}")
        machine.run(f"cd /root/first; {COMMANDS['install']}")
        machine.run(["bash", "-euc", "source /usr/share/bash-completion/completions/tls-sessiond; complete -p tls-sessiond; gzip -dc /usr/share/man/man1/tls-sessiond.1.gz | grep -q '^.TH tls-sessiond 1'"])
        shown("the package starts nothing; then the commands of the README start it")

        pid = machine.property("tls-sessiond", "MainPID")
        # A proxy beside it, with sessions of its own.
        machine.write("/etc/tls-sessiond/proxy.toml", '[[proxy]]\nbackend = "tcp://127.0.0.1:1"\n')
        machine.run("systemctl start tls-sessiond-proxy; tls-sessiond health --proxy")
        machine.run(f"echo '# mine' >>{CONFIGURATION}; touch /etc/tls-sessiond/tls.key /var/log/tls-sessiond/audit.log")
        upgrade, restart = COMMANDS["upgrade"].strip().split("\n")
        said = machine.run(f"cd /root/second; {upgrade}")
        if any(f"{unit}.service runs the old version" not in said for unit in ("tls-sessiond", "tls-sessiond-proxy")) or machine.property("tls-sessiond", "MainPID") != pid:
            fail(f"an upgrade has restarted the daemon, or did not name it\n{said}")
        machine.run(f"grep -x '# mine' {CONFIGURATION}; {restart}; tls-sessiond health")
        if machine.property("tls-sessiond", "MainPID") == pid:
            fail("the daemon was not restarted")
        # The new version and the administrator have changed the file: dpkg keeps it if it is told so.
        forced = re.search(r"`(sudo apt-get -o Dpkg::Options::=--force-confold install \./tls-sessiond_\*\.deb)`", (PACKAGES / "README.md").read_text()).group(1)
        machine.run(f"cd /root/third; {forced}; grep -x '# mine' {CONFIGURATION}; grep -x '# new' {CONFIGURATION}.dpkg-dist")
        shown("an upgrade keeps a changed configuration without a question, and restarts nothing")

        machine.run(COMMANDS["remove"], input="y\n")
        machine.run(f"! ls -l /proc/*/exe | grep tls-sessiond || exit 1; test ! -e /usr/bin/tls-sessiond; grep -x '# mine' {CONFIGURATION}; test -e /var/log/tls-sessiond/audit.log")
        if machine.run("find /etc/systemd/system -name 'tls-sessiond*'"):
            fail("a removal has left links of the units")
        machine.run(COMMANDS["purge"], input="y\n")
        machine.run(f"for path in {CONFIGURATION}* /var/log/tls-sessiond /run/tls-sessiond; do test ! -e $path; done; test -e /etc/tls-sessiond/tls.key; id tls-sessiond")
        machine.run(f"rm -r /etc/tls-sessiond; cd /root/first; {COMMANDS['install']}")
        shown("a removal stops the daemon and keeps its files; a purge leaves only what the administrator brought; it installs again")


def rpm_lives(package):
    """rpm installs, replaces and erases the package in the root of a Debian: no distribution of rpm can be had here."""
    with Machine("debian-13", boot=False) as machine:
        # Debian's libraries have other names for rpm.
        rpm = ["rpm", "--root", machine.root, "--nodeps"]
        run(*rpm, "--install", package)
        machine.run(f"id tls-sessiond; stat -c '%a %U:%G' /etc/tls-sessiond | grep -x '750 root:tls-sessiond'; tls-sessiond check {CONFIGURATION}; echo '# mine' >>{CONFIGURATION}")
        run(*rpm, "--upgrade", "--replacepkgs", package)
        machine.run(f"grep -x '# mine' {CONFIGURATION}")
        run(*rpm, "--erase", "tls-sessiond")
        machine.run(f"grep -x '# mine' {CONFIGURATION}.rpmsave; test ! -e /usr/bin/tls-sessiond")
    shown("rpm installs the package, keeps a changed configuration, and erases the package")


def main():
    alone()
    binary = stripped_daemon()
    first, second = built(binary, "first"), built(binary, "second")
    builds_are_equal(first, second)
    deb, rpm, tarball = (next(first.glob(pattern)) for pattern in ("*.deb", "*.rpm", "*.tgz"))
    deb_is_right(deb, binary)
    rpm_is_right(rpm, binary)
    tarball_is_right(tarball, binary)
    installs_without_systemd(deb)
    lives(deb)
    rpm_lives(rpm)


if __name__ == "__main__":
    main()
