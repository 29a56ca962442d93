"""A collector for tests: takes traces and metrics by OTLP over gRPC and prints each as a line of JSON.

    otlp.py [PORT] [--tls CERTIFICATE KEY] [--refuse] [--no-metrics]

Prints `listening on 127.0.0.1:PORT`, then `span {...}` for each span and `metrics {...}` for each message.
With --refuse it takes nothing. With --no-metrics it does not know metrics.
"""

import base64
import json
import sys
from concurrent import futures

import grpc
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


def say(kind, value):
    print(kind, json.dumps(value), flush=True)


def value(any_value):
    return next(iter(any_value.values()), None)


def attributes(message):
    return {each["key"]: value(each["value"]) for each in message.get("attributes", [])}


def check(context):
    if "--refuse" in sys.argv:
        context.abort(grpc.StatusCode.UNAVAILABLE, "takes nothing")


class Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        check(context)
        for group in MessageToDict(request)["resourceSpans"]:
            for scope in group["scopeSpans"]:
                for span in scope["spans"]:
                    for key in ("traceId", "spanId", "parentSpanId"):
                        span[key] = base64.b64decode(span.get(key, "")).hex()
                    span["attributes"] = attributes(span)
                    span["resource"] = attributes(group["resource"])
                    span["scope"] = scope["scope"]["name"]
                    say("span", span)
        return trace_service_pb2.ExportTraceServiceResponse()


class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def Export(self, request, context):
        check(context)
        if "--no-metrics" in sys.argv:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown service")
        found = {}
        for group in MessageToDict(request)["resourceMetrics"]:
            for scope in group["scopeMetrics"]:
                for metric in scope["metrics"]:
                    kind = next(kind for kind in ("sum", "gauge", "histogram") if kind in metric)
                    points = metric[kind].get("dataPoints", [])
                    for point in points:
                        point["attributes"] = attributes(point)
                    assert metric["name"] not in found, metric["name"]
                    found[metric["name"]] = {
                        "kind": kind,
                        "unit": metric.get("unit"),
                        "cumulative": "CUMULATIVE" in metric[kind].get("aggregationTemporality", ""),
                        "points": points,
                        "resource": attributes(group["resource"]),
                    }
        say("metrics", found)
        return metrics_service_pb2.ExportMetricsServiceResponse()


def main():
    server = grpc.server(futures.ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    port = next((argument for argument in sys.argv[1:] if argument.isdigit()), "0")
    address = f"127.0.0.1:{port}"
    if "--tls" in sys.argv:
        at = sys.argv.index("--tls")
        certificate, key = (open(name, "rb").read() for name in sys.argv[at + 1 : at + 3])
        credentials = grpc.ssl_server_credentials([(key, certificate)])
        port = server.add_secure_port(address, credentials)
    else:
        port = server.add_insecure_port(address)
    server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


main()
