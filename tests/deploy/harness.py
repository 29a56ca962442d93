"""Commands, bounded waits, and namespaces of its own for a test."""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Both are far above the time of any step, also on a busy machine: of one that is polled, and of a whole command, such as a
# build.
LIMIT = 60
COMMAND_LIMIT = 300


def fail(message):
    """Ends the test."""
    sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {message}")


def shown(message):
    """Prints one thing that the test has shown."""
    print(f"ok: {message}", flush=True)


def run(*command, status=0, **options):
    """Runs a command and returns its output, both streams. Any other exit status fails the test."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, **options}
    try:
        done = subprocess.run([str(part) for part in command], timeout=COMMAND_LIMIT, check=False, **options)
    except FileNotFoundError as error:
        fail(f"{error.filename} is missing")
    except subprocess.TimeoutExpired as error:
        fail(f"{error}\n{(error.output or b'').decode(errors='replace')}")
    output = (done.stdout or b"").decode(errors="replace")
    if done.returncode != status:
        fail(f"{' '.join(map(str, command))}: status {done.returncode}, expected {status}\n{output}")
    return output


def until(expected, check, limit=LIMIT):
    """Polls until `check` returns something, and returns that."""
    end = time.monotonic() + limit
    while not (found := check()):
        if time.monotonic() > end:
            fail(f"expected within {limit} s: {expected}")
        time.sleep(0.05)
    return found


def start(stack, ready, *command):
    """Starts a program that ends with `stack`, and waits until its output has the text `ready`."""
    command = [str(part) for part in command]
    with tempfile.NamedTemporaryFile(dir="/run", delete=False) as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    stack.callback(stop, process)

    def is_ready():
        text = pathlib.Path(output.name).read_text(errors="replace")
        if process.poll() is not None:
            fail(f"{' '.join(command)}: status {process.returncode}\n{text}")
        return text if ready in text else None

    return process, until(f"`{ready}` of {' '.join(command)}", is_ready)


def stop(process, wait=LIMIT):
    """Ends a process that the test started."""
    process.kill()
    process.wait(wait)
    if process.stdin:
        process.stdin.close()


def alone():
    """Runs this test again in mount and process namespaces of its own. All that it makes ends with it, however it ends.

    /run is in memory and of this test alone: for its files, and for the names of network namespaces.
    """
    if os.geteuid() != 0:
        fail("needs root")
    if os.environ.pop("TLS_SESSIOND_TEST_ALONE", None):
        run("mount", "-t", "tmpfs", "-o", "mode=0755", "none", "/run")
        return
    os.environ["TLS_SESSIOND_TEST_ALONE"] = "1"
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    os.execvp(namespaces[0], [*namespaces, sys.executable, *sys.argv])


def stripped_daemon():
    """Returns a copy of the daemon's binary, without symbols, which every user can execute."""
    path = os.environ.get("TLS_SESSIOND") or fail("set TLS_SESSIOND to the daemon's binary")
    copy = pathlib.Path("/run/tls-sessiond")
    run("strip", "-o", copy, path)
    return copy
