"""A worker without keys and without a TLS library: serves HTTPS over Drive, with messages from reflection.

worker.py DAEMON LISTEN NAME [FOLDER]

DAEMON is unix:///PATH or tls://HOST:PORT. FOLDER has ca.crt, and worker.crt and worker.key unless the worker has no
certificate. Prints `listening on HOST:PORT` once the daemon has answered.
"""

import pathlib
import queue
import socket
import sys
import threading

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

PACKAGE = "tls.sessiond.v1"


def connect(daemon, folder):
    if daemon.startswith("unix:"):
        return grpc.insecure_channel(daemon, options=[("grpc.default_authority", "localhost")])
    files = {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}
    certificate = (files.get("worker.key"), files.get("worker.crt"))
    credentials = grpc.ssl_channel_credentials(files["ca.crt"], *certificate)
    return grpc.secure_channel(daemon.removeprefix("tls://"), credentials)


def main():
    daemon, listen, name, *folder = sys.argv[1:]
    channel = connect(daemon, *folder, *[None] * (1 - len(folder)))
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    request, answer = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.Drive{kind}"))
        for kind in ("Request", "Response")
    )
    drive = channel.stream_stream(
        f"/{PACKAGE}.ConnectionService/Drive",
        request_serializer=request.SerializeToString,
        response_deserializer=answer.FromString,
    )
    host, port = listen.rsplit(":", 1)
    listener = socket.create_server((host, int(port)))
    print("listening on {}:{}".format(*listener.getsockname()), flush=True)
    while True:
        peer, address = listener.accept()
        threading.Thread(target=serve, args=(drive, request, peer, address, name), daemon=True).start()


def serve(drive, request, peer, address, name):
    """Serves one connection: an answer to the first request, and the close_notify."""
    requests = queue.SimpleQueue()
    new = {"role": "ROLE_SERVER", "peer_address": "{}:{}".format(*address)}
    requests.put(request(new=new))

    def read():
        try:
            while records := peer.recv(16 * 1024):
                requests.put(request(ciphertext=records))
        except OSError:
            pass
        requests.put(request(end_of_stream=True))

    threading.Thread(target=read, daemon=True).start()
    page, text = "", b""
    try:
        for event in drive(iter(requests.get, None)):
            kind = event.WhichOneof("event")
            if kind == "ciphertext":
                peer.sendall(event.ciphertext)
            elif kind == "established":
                version = event.established.version
                page = f"{name}: TLS 1.{version + 1} resumed: {str(event.established.session_reused).lower()}\n"
            elif kind == "plaintext":
                text += event.plaintext
                if text.endswith(b"\r\n\r\n"):
                    head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(page)}\r\n\r\n"
                    requests.put(request(plaintext=(head + page).encode()))
                    requests.put(request(shutdown={}))
            elif kind == "closed":
                requests.put(request(shutdown={}))
                requests.put(None)
    except (grpc.RpcError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
    finally:
        requests.put(None)
        peer.close()


main()
