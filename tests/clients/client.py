"""A worker in Python. It makes the calls that tests/it/clients.rs expects of every client, with messages from reflection.

client.py tcp ADDRESS | unix PATH [AUTHORITY] | tls ADDRESS FOLDER
"""

import sys

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

PACKAGE = "tls.sessiond.v1"


def connect(kind, where, *more):
    if kind == "tcp":
        return grpc.insecure_channel(where)
    if kind == "unix":
        options = [("grpc.default_authority", more[0])] if more else []
        return grpc.insecure_channel("unix:" + where, options=options)
    ca, key, chain = (
        open(f"{more[0]}/{name}", "rb").read() for name in ("ca.pem", "web.key", "web.crt")
    )
    return grpc.secure_channel(where, grpc.ssl_channel_credentials(ca, key, chain))


def main():
    channel = connect(*sys.argv[1:])
    database = ProtoReflectionDescriptorDatabase(channel)
    print("services", *sorted(database.get_services()))
    pool = descriptor_pool.DescriptorPool(database)

    def message(name, **fields):
        kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        return kind(**fields)

    def rpc(service, method):
        make = channel.stream_stream if method == "Drive" else channel.unary_unary
        return make(
            f"/{PACKAGE}.{service}/{method}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=type(message(f"{method}Response")).FromString,
        )

    listed = rpc("ContextService", "ListContexts")(message("ListContextsRequest"), timeout=20)
    print("contexts", *(context.name for context in listed.contexts))

    new = message("NewRequest", role="ROLE_CLIENT", server_name="localhost")
    made = rpc("ConnectionService", "New")(new, timeout=20)
    free = message("FreeRequest", connection_id=made.connection.id)
    rpc("ConnectionService", "Free")(free, timeout=20)
    print("freed", len(made.connection.id))

    events = [message("DriveRequest", new=new)]
    answers = list(rpc("ConnectionService", "Drive")(iter(events), timeout=20))
    kinds = [answer.WhichOneof("event") for answer in answers]
    print("drive", *kinds, answers[1].ciphertext[0])

    try:
        rpc("ConnectionService", "Free")(free, timeout=20)
    except grpc.RpcError as error:
        info = error_details_pb2.ErrorInfo()
        assert rpc_status.from_call(error).details[0].Unpack(info)
        print("error", error.code().name, info.reason, info.domain)


main()
