"""A worker in Python that serves HTTPS without keys and without a TLS library. TLS runs in the daemon, through Drive.

The worker carries bytes between its socket and the daemon. Messages come from the daemon's reflection, so nothing is
generated.
"""

import argparse
import asyncio
import signal
import sys

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

PACKAGE = "tls.sessiond.v1"
# One channel carries all Drives, and each takes one of its streams. The daemon allows 8,000 (limits.streams).
CONNECTIONS_MAX = 1000
# One read from a socket, and the largest request, in bytes.
READ_MAX = 16 * 1024
REQUEST_MAX = 8 * 1024
# How long one connection may take, and how long a stop waits for all, in seconds.
CONNECTION_MAX = 30
STOP_MAX = 20


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--daemon", default="unix:///run/tls-sessiond/api.sock", help="unix:///PATH or tls://HOST:PORT")
    parser.add_argument("--ca", help="with tls://: the authority of the daemon's certificate, PEM")
    parser.add_argument("--certificate", help="with tls://: the certificate of this worker, PEM")
    parser.add_argument("--key", help="with tls://: its key, PEM")
    parser.add_argument("--listen", default="127.0.0.1:8443", help="HOST:PORT; with port 0 the system chooses one")
    parser.add_argument("--context", default="default", help="the daemon's context, which has the certificate")
    parser.add_argument("--name", default="worker", help="the name of this replica in its answers")
    return parser.parse_args()


def endpoint(args):
    """Returns the target, the credentials and the options of a channel to the daemon."""
    scheme, _, where = args.daemon.partition("://")
    if scheme == "unix":
        # grpcio would write the path of the socket into :authority, which HTTP/2 does not allow.
        return f"unix:{where}", None, [("grpc.default_authority", "localhost")]
    if scheme != "tls":
        sys.exit(f"invalid --daemon {args.daemon}: expected unix:///PATH or tls://HOST:PORT")
    ca, key, chain = (open(path, "rb").read() for path in (args.ca, args.key, args.certificate))
    return where, grpc.ssl_channel_credentials(ca, key, chain), None


class Messages:
    """The messages of the contract, from the daemon's reflection."""

    def __init__(self, target, credentials, options):
        if credentials:
            channel = grpc.secure_channel(target, credentials, options)
        else:
            channel = grpc.insecure_channel(target, options)
        with channel:
            grpc.channel_ready_future(channel).result(timeout=10)
            pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
            self.request, self.response = (
                message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
                for name in ("DriveRequest", "DriveResponse")
            )
            self.versions = pool.FindEnumTypeByName(f"{PACKAGE}.ProtocolVersion").values_by_number


class Events:
    """The requests of one Drive, in the order in which they were sent. Sending never waits, so answers are always read."""

    def __init__(self, messages):
        self._messages = messages
        self._waiting = asyncio.Queue()

    def send(self, **event):
        self._waiting.put_nowait(self._messages.request(**event))

    def finish(self):
        self._waiting.put_nowait(None)

    async def sent(self):
        """Waits until the daemon has taken all."""
        await self._waiting.join()

    async def requests(self):
        while (request := await self._waiting.get()) is not None:
            yield request
            self._waiting.task_done()


class Worker:
    def __init__(self, args, channel, messages):
        self.args = args
        self.messages = messages
        self.places = asyncio.Semaphore(CONNECTIONS_MAX)
        self.running = set()
        self.drive = channel.stream_stream(
            f"/{PACKAGE}.ConnectionService/Drive",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=messages.response.FromString,
        )

    async def accept(self, reader, writer):
        """Serves one socket. Prints an error and goes on with the others."""
        self.running.add(asyncio.current_task())
        peer = "{}:{}".format(*writer.get_extra_info("peername"))
        try:
            async with self.places:
                await asyncio.wait_for(self.serve(reader, writer, peer), CONNECTION_MAX)
        except grpc.aio.AioRpcError as error:
            print(f"{peer}: {error.code().name}: {error.details()}", file=sys.stderr)
        except (OSError, asyncio.TimeoutError) as error:
            print(f"{peer}: {error or 'took too long'}", file=sys.stderr)
        finally:
            self.running.discard(asyncio.current_task())
            writer.close()

    async def serve(self, reader, writer, peer):
        first = await reader.read(READ_MAX)
        if not first:
            return  # A probe that only connects.
        events = Events(self.messages)
        events.send(new={"role": "ROLE_SERVER", "context": self.args.context, "peer_address": peer})
        events.send(ciphertext=first)
        call = self.drive(events.requests())
        upward = asyncio.create_task(carry(reader, events))
        try:
            await self.answer(call, events, writer)
        finally:
            upward.cancel()
            call.cancel()

    async def answer(self, call, events, writer):
        """Handles the answers of the daemon: ciphertext goes to the socket, a whole request gets its page."""
        page, request, answered = "", b"", False
        async for response in call:
            event = response.WhichOneof("event")
            if event == "ciphertext":
                writer.write(response.ciphertext)
                await writer.drain()
            elif event == "established":
                page = f"{self.args.name}: {self.describe(response.established)}\n"
            elif event == "plaintext" and not answered:
                request += response.plaintext[: REQUEST_MAX - len(request)]
                status = status_of(request)
                if status:
                    answered = True
                    events.send(plaintext=reply(status, page))
                    events.send(shutdown={})
            elif event == "closed":
                # The peer has closed, and may wait for the close_notify of this side.
                events.send(shutdown={})
                events.finish()

    def describe(self, connection):
        version = self.messages.versions[connection.version].name
        return f"{version} {connection.cipher_suite} resumed: {str(connection.session_reused).lower()}"


async def carry(reader, events):
    """Carries ciphertext from the socket to the daemon, one read at a time, until the socket ends."""
    while True:
        await events.sent()
        try:
            ciphertext = await reader.read(READ_MAX)
        except OSError:
            ciphertext = b""  # A reset is an end of the transport.
        if not ciphertext:
            events.send(end_of_stream=True)
            return
        events.send(ciphertext=ciphertext)


def status_of(request):
    """Returns the status of the answer, once the request is complete or too long."""
    if b"\r\n\r\n" in request:
        return "200 OK" if request.startswith(b"GET ") else "405 Method Not Allowed"
    return "431 Request Header Fields Too Large" if len(request) == REQUEST_MAX else None


def reply(status, page):
    body = page if status.startswith("200") else status
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close"
    return f"{head}\r\n\r\n{body}".encode()


async def main(args):
    target, credentials, options = endpoint(args)
    # Reflection has no asynchronous client. It is done before the first connection.
    messages = await asyncio.to_thread(Messages, target, credentials, options)
    if credentials:
        channel = grpc.aio.secure_channel(target, credentials, options)
    else:
        channel = grpc.aio.insecure_channel(target, options)
    worker = Worker(args, channel, messages)
    host, _, port = args.listen.rpartition(":")
    server = await asyncio.start_server(worker.accept, host, int(port))
    print("listening on {}:{}".format(*server.sockets[0].getsockname()), flush=True)

    # The first process of a container ignores SIGTERM unless it handles it.
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    server.close()
    if worker.running:
        await asyncio.wait(worker.running, timeout=STOP_MAX)
    await channel.close()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
