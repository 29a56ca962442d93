"""A TLS client that returns: `openssl s_client`, with its session in a file."""

import itertools
import re
import subprocess

from harness import LIMIT, fail, run, stop, until

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Client:
    """One TLS client. `prefix` is a command that runs it elsewhere, such as in a network namespace."""

    numbers = itertools.count()

    def __init__(self, folder, version, prefix=()):
        self.version = version
        self.option = {"1.2": "-tls1_2", "1.3": "-tls1_3"}[version]
        self.session = folder / f"session-{next(self.numbers)}"
        self.prefix = prefix

    def command(self, address, keep):
        offer = ["-sess_in", self.session] if self.session.exists() else []
        command = ["openssl", "s_client", "-connect", address, "-servername", "localhost", self.option, "-ign_eof"]
        return [str(part) for part in [*self.prefix, *command, "-sess_out", keep, *offer]]

    def visit(self, address, worker, resumed):
        """Makes a request and closes cleanly. Client and worker must agree on the worker and on the kind of handshake."""
        try:
            command = self.command(address, self.session)
            done = subprocess.run(command, input=REQUEST, capture_output=True, timeout=LIMIT, check=False)
        except subprocess.TimeoutExpired:
            fail(f"TLS {self.version} to {address}: no answer within {LIMIT} s")
        output = done.stdout.decode(errors="replace")
        client = f"{'Reused' if resumed else 'New'}, TLSv{self.version}, "
        page = f"{worker}: TLS {self.version} resumed: {str(resumed).lower()}\n"
        if done.returncode != 0 or client not in output or page not in output:
            expected = f"expected `{client}` and `{page.strip()}`"
            fail(f"TLS {self.version} to {address}: {expected}\n{output}\n{done.stderr.decode()}")

    def open(self, stack, address):
        """Makes a connection that stays open until the worker ends. Returns once the client has a session."""
        keep = self.session.with_suffix(".open")
        process = subprocess.Popen(
            self.command(address, keep), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        stack.callback(stop, process)

        def complete():
            # A further ticket of TLS 1.3 replaces the file while it is read.
            text = keep.read_text() if keep.exists() else ""
            return text if text.endswith("-----END SSL SESSION PARAMETERS-----\n") else None

        self.session.write_text(until("a session of an open connection", complete))

    def session_id(self):
        """Returns the id by which the daemon knows the session: of TLS 1.3 it is the ticket."""
        text = run("openssl", "sess_id", "-in", self.session, "-noout", "-text")
        if self.version == "1.2":
            return re.search(r"Session-ID: (\w+)", text)[1]
        return "".join(re.findall(r"[0-9a-f]{2}", "".join(re.findall(r"[0-9a-f]{4} - (.{47})", text))))
