//! Traces and metrics by OTLP, taken by a collector in Python.

use std::{fs, path::Path};

use serde_json::Value;
use tls_sessiond_proto as pb;
use tokio::process::Command;
use tonic::Request;

use crate::{
    calls::{Worker, lookup, worker},
    command::{run, text},
    fleet::server::{Kind, StoreServer},
    harness::TestDaemon,
    log_lines::Logging,
    pki::localhost,
    process::Process,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
const LOOKUP: &str = "tls.sessiond.v1.SessionService/LookupSession";

/// tests/clients/otlp.py.
struct Collector {
    process: Process,
    address: String,
}

impl Collector {
    async fn start(args: &[&str]) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(root.join(".peers/venv/bin/python"));
        command.arg(root.join("tests/clients/otlp.py")).args(args);
        let mut process = Process::start(&mut command);
        let address = process.says("listening on ").await;
        Self { process, address }
    }

    fn port(&self) -> &str {
        self.address.rsplit(':').next().unwrap()
    }

    async fn span(&mut self) -> Value {
        serde_json::from_str(&self.process.says("span ").await).unwrap()
    }

    async fn metrics(&mut self) -> Value {
        serde_json::from_str(&self.process.says("metrics ").await).unwrap()
    }

    /// Returns a configuration that sends to this collector, with more keys of `[otlp]`.
    fn config(&self, keys: &str) -> String {
        format!("[otlp]\nendpoint = \"http://{}\"\n{keys}\n", self.address)
    }
}

/// Returns a lookup that finds nothing, with this `traceparent`.
fn traced(parent: &str) -> Request<pb::LookupSessionRequest> {
    let mut request = Request::new(lookup("ffff"));
    let metadata = request.metadata_mut();
    metadata.insert("traceparent", parent.parse().unwrap());
    metadata.insert("tracestate", "vendor=1".parse().unwrap());
    request
}

async fn call(daemon: &TestDaemon, parent: &str) {
    let answer = daemon.sessions().lookup_session(traced(parent)).await;
    assert!(!answer.unwrap().into_inner().found);
}

#[tokio::test]
async fn spans_continue_the_trace_of_the_caller() {
    let mut collector = Collector::start(&[]).await;
    let daemon = Logging::start(None, &collector.config("")).await;
    let calls = TestDaemon::at(daemon.address()).await;
    // Neither without a trace, nor in one that is not sampled or malformed.
    Worker(&calls).lookup(lookup("ffff")).await;
    for unsampled in [
        format!("00-{TRACE}-{CALLER}-00"),
        format!("00-{TRACE}-{CALLER}"),
        format!("00-{}-{CALLER}-01", "0".repeat(32)),
        "nonsense".into(),
    ] {
        call(&calls, &unsampled).await;
    }
    call(&calls, &format!("00-{TRACE}-{CALLER}-01")).await;
    let span = collector.span().await;
    assert_eq!(span["traceId"], TRACE);
    assert_eq!(span["parentSpanId"], CALLER);
    assert_eq!(span["traceState"], "vendor=1");
    assert_eq!(span["name"], LOOKUP);
    assert_eq!(span["kind"], "SPAN_KIND_SERVER");
    let attributes = &span["attributes"];
    assert_eq!(attributes["rpc.system.name"], "grpc");
    assert_eq!(attributes["rpc.method"], LOOKUP);
    assert_eq!(attributes["rpc.response.status_code"], "OK");
    assert_eq!(span["resource"]["service.name"], "tls-sessiond");
    assert_eq!(span["scope"], "tls-sessiond");
    // A fault of the caller is not an error of the daemon.
    let mut wrong = traced(&format!("00-{TRACE}-{CALLER}-01"));
    wrong.get_mut().session_id = "not hex".into();
    calls.sessions().lookup_session(wrong).await.unwrap_err();
    let span = collector.span().await;
    let status = &span["attributes"]["rpc.response.status_code"];
    assert_eq!(status, "INVALID_ARGUMENT");
    assert_eq!(span["status"], serde_json::json!({}), "{span}");
    daemon.end().await;
}

#[tokio::test]
async fn calls_without_a_trace_are_sampled_by_share() {
    let mut collector = Collector::start(&[]).await;
    let daemon = Logging::start(None, &collector.config("sample = 1.0")).await;
    let calls = TestDaemon::at(daemon.address()).await;
    Worker(&calls).open(worker(pb::Role::Server)).await;
    let span = collector.span().await;
    assert_eq!(span["name"], "tls.sessiond.v1.ConnectionService/New");
    assert_eq!(span["parentSpanId"], "");
    // A caller that has decided against a trace keeps its decision.
    call(&calls, &format!("00-{TRACE}-{CALLER}-00")).await;
    // A stop sends what waits.
    Worker(&calls).open(worker(pb::Role::Client)).await;
    daemon.end().await;
    let span = collector.span().await;
    assert_eq!(span["name"], "tls.sessiond.v1.ConnectionService/New");
}

#[tokio::test]
async fn requests_to_the_store_are_spans_of_their_call() {
    let store = StoreServer::start(Kind::Redis);
    let mut collector = Collector::start(&[]).await;
    let config = format!("{}{}", collector.config(""), store.config());
    let daemon = Logging::start(None, &config).await;
    let calls = TestDaemon::at(daemon.address()).await;
    call(&calls, &format!("00-{TRACE}-{CALLER}-01")).await;
    let (inner, outer) = (collector.span().await, collector.span().await);
    assert_eq!(outer["name"], LOOKUP);
    assert_eq!(inner["name"], "store");
    assert_eq!(inner["kind"], "SPAN_KIND_CLIENT");
    assert_eq!(inner["parentSpanId"], outer["spanId"]);
    assert_eq!(inner["traceId"], TRACE);
    assert_eq!(inner["attributes"]["db.system.name"], "redis");
    daemon.end().await;
}

#[tokio::test]
async fn metrics_are_those_of_the_admin_address() {
    let mut collector = Collector::start(&[]).await;
    let daemon = Logging::start(None, &collector.config("interval = \"1s\"")).await;
    let calls = TestDaemon::at(daemon.address()).await;
    for _ in 0..3 {
        Worker(&calls).lookup(lookup("ffff")).await;
    }
    let metrics = loop {
        let metrics = collector.metrics().await;
        if let Some(points) = metrics["rpc.server.call.duration"]["points"].as_array()
            && points
                .iter()
                .any(|point| point["attributes"]["rpc.method"] == LOOKUP && point["count"] == "3")
        {
            break metrics;
        }
    };
    let lookups = &metrics["tls_sessiond_lookups"];
    assert_eq!(lookups["kind"], "sum");
    assert_eq!(lookups["cumulative"], true);
    assert_eq!(lookups["resource"]["service.name"], "tls-sessiond");
    let points = lookups["points"].as_array().unwrap();
    let missed = points.iter().find(|point| {
        let labels = &point["attributes"];
        labels["context"] == "default"
            && labels["result"] == "miss"
            && labels["reason"] == "unknown"
    });
    assert_eq!(missed.unwrap()["asInt"], "3");
    let durations = &metrics["rpc.server.call.duration"];
    assert_eq!(
        (&durations["kind"], &durations["unit"]),
        (&"histogram".into(), &"s".into())
    );
    for point in durations["points"].as_array().unwrap() {
        let number = |value: &Value| value.as_str().unwrap().parse::<u64>().unwrap();
        let buckets = point["bucketCounts"].as_array().unwrap();
        let bounds = point["explicitBounds"].as_array().unwrap();
        assert_eq!(buckets.len(), bounds.len() + 1);
        assert_eq!(
            buckets.iter().map(number).sum::<u64>(),
            number(&point["count"])
        );
    }
    assert_eq!(metrics["process_resident_memory"]["unit"], "By");
    assert_eq!(metrics["tls_sessiond_ready"]["points"][0]["asInt"], "1");
    daemon.end().await;
}

#[tokio::test]
async fn collector_proves_its_name_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    localhost(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (certificate, key) = (file("tls.crt"), file("tls.key"));
    let mut collector = Collector::start(&["--tls", &certificate, &key]).await;
    let config = |ca: &str| {
        format!(
            "[otlp]\nendpoint = \"https://localhost:{}\"\nca = {ca:?}\nsample = 1.0\n",
            collector.port()
        )
    };
    // Another authority: nothing is sent, and the daemon goes on.
    let other = tempfile::tempdir().unwrap();
    localhost(other.path());
    let wrong = config(&other.path().join("ca.pem").display().to_string());
    let (right, missing) = (config(&file("ca.pem")), config("missing.pem"));
    let daemon = Logging::start(None, &wrong).await;
    let calls = TestDaemon::at(daemon.address()).await;
    Worker(&calls).lookup(lookup("ffff")).await;
    daemon
        .until("stderr", "the collector does not take this signal")
        .await;
    daemon.until("stderr", "invalid peer certificate").await;
    daemon.end().await;
    let daemon = Logging::start(None, &right).await;
    let calls = TestDaemon::at(daemon.address()).await;
    Worker(&calls).lookup(lookup("ffff")).await;
    assert_eq!(collector.span().await["name"], LOOKUP);
    daemon.end().await;
    // A file that is missing is found before the daemon listens.
    fs::write(folder.path().join("wrong.toml"), missing).unwrap();
    let output = run(&["check", &file("wrong.toml")]);
    assert_eq!(output.status.code(), Some(78));
    let said = text(&output.stderr);
    assert!(said.contains("wrong.toml:3: otlp.ca"), "{said}");
}

#[tokio::test]
async fn lost_collector_delays_no_call_and_is_told_once() {
    let collector = Collector::start(&[]).await;
    let port = collector.port().to_owned();
    let daemon = Logging::start(None, &collector.config("sample = 1.0\ninterval = \"1s\"")).await;
    let calls = TestDaemon::at(daemon.address()).await;
    collector.process.kill().await;
    Worker(&calls).lookup(lookup("ffff")).await;
    daemon
        .until("stderr", "the collector does not take this signal")
        .await;
    // More spans than the queue has places.
    for _ in 0..5_000 {
        Worker(&calls).lookup(lookup("ffff")).await;
    }
    let mut collector = Collector::start(&[&port]).await;
    // Those that the queue had room for come now.
    assert_eq!(collector.span().await["name"], LOOKUP);
    collector.metrics().await;
    daemon.until("stderr", "takes this signal again").await;
    let lines = daemon.end().await;
    let of = |text: &str, signal: &str| {
        let has = |line: &&Value| {
            let fields = &line["fields"];
            fields["signal"] == signal
                && fields["message"]
                    .as_str()
                    .is_some_and(|said| said.contains(text))
        };
        lines.iter().filter(has).count()
    };
    for signal in ["traces", "metrics"] {
        assert_eq!(of("does not take this signal", signal), 1, "{lines:?}");
        assert_eq!(of("takes this signal again", signal), 1, "{lines:?}");
    }
}

#[tokio::test]
async fn collector_that_knows_traces_alone_gets_them() {
    let mut collector = Collector::start(&["--no-metrics"]).await;
    let daemon = Logging::start(None, &collector.config("sample = 1.0\ninterval = \"1s\"")).await;
    let calls = TestDaemon::at(daemon.address()).await;
    daemon.until("stderr", "does not know this signal").await;
    Worker(&calls).lookup(lookup("ffff")).await;
    assert_eq!(collector.span().await["name"], LOOKUP);
    let lines = daemon.end().await;
    let told = lines
        .iter()
        .filter(|line| line["fields"]["signal"] == "metrics");
    assert_eq!(told.count(), 1, "{lines:?}");
}

#[tokio::test]
async fn collector_that_never_answers_is_told_and_left() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepts = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(listener.accept().await.unwrap());
        }
    });
    let config = format!("[otlp]\nendpoint = \"http://{address}\"\nsample = 1.0\n");
    let daemon = Logging::start(None, &config).await;
    let calls = TestDaemon::at(daemon.address()).await;
    Worker(&calls).lookup(lookup("ffff")).await;
    daemon.until("stderr", "does not take this signal").await;
    // The span is still there, and the stop does not wait for it.
    let lines = daemon.end().await;
    let lost = lines.iter().any(|line| {
        line["fields"]["message"] == "the last traces and metrics were not sent in time"
    });
    assert!(lost, "{lines:?}");
    accepts.abort();
}

#[tokio::test]
async fn collector_that_refuses_is_told_with_its_words() {
    let collector = Collector::start(&["--refuse"]).await;
    let daemon = Logging::start(None, &collector.config("sample = 1.0")).await;
    let calls = TestDaemon::at(daemon.address()).await;
    Worker(&calls).lookup(lookup("ffff")).await;
    daemon.until("stderr", "takes nothing (Unavailable)").await;
    daemon.end().await;
}
