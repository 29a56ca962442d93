"""A journal for tests: starts a daemon whose stderr is the journal, and prints what it sends.

    unshare --mount journal.py DAEMON [ARGUMENT ...]

Hides /run, which has the socket of a real journal, from itself and from the daemon. Prints each event of
the daemon as a line of JSON, sends SIGTERM when the daemon listens, and ends with its status. Fails if the
daemon writes to stderr itself.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

SOCKET = "/run/systemd/journal/socket"

subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
os.makedirs(os.path.dirname(SOCKET))
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind(SOCKET)

ours, theirs = socket.socketpair()
named = os.fstat(theirs.fileno())
environment = dict(os.environ, JOURNAL_STREAM=f"{named.st_dev}:{named.st_ino}")
daemon = subprocess.Popen(
    sys.argv[1:], stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True
)
theirs.close()


def take():
    while True:
        event = journal.recv(1 << 20).decode()
        print(json.dumps([line.split("=", 1) for line in event.splitlines()]), flush=True)


threading.Thread(target=take, daemon=True).start()
for line in daemon.stdout:
    if line.startswith("listening on tcp://"):
        daemon.send_signal(signal.SIGTERM)
status = daemon.wait(timeout=30)
rest = ours.recv(1 << 16)
assert not rest, rest
# The last event may still wait.
journal.setblocking(False)
sys.exit(status)
