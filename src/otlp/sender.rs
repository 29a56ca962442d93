//! The task that sends spans and metrics.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use opentelemetry::KeyValue;
use opentelemetry_proto::{
    tonic::{
        collector::{
            metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest,
        },
        common::v1::InstrumentationScope,
        metrics::v1::{ResourceMetrics, ScopeMetrics},
        resource::v1::Resource as ResourceMessage,
    },
    transform::{
        common::tonic::ResourceAttributesWithSchema,
        trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::{
    Resource,
    resource::EnvResourceDetector,
    trace::{Sampler, SdkTracerProvider, SpanData},
};
use tokio::{
    sync::mpsc::{self, Receiver},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    collector::{Collector, NotTaken, Target},
    points::{self, Times},
    queue::{Queue, WAITING_MAX},
    trouble::Trouble,
};
use crate::{
    admin::metrics::Everything,
    api::admin::Admin,
    config::{Config, ConfigError},
    trace::Tracer,
};

/// Most spans of one transmission.
const BATCH_MAX: usize = 512;
/// How long a span waits for others that are sent with it.
const LINGER: Duration = Duration::from_secs(1);
/// Wait after a transmission that failed: initial and maximum.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long the last transmission of a stop may take.
const STOP_MAX: Duration = Duration::from_secs(2);
/// The scope of the daemon's metrics and spans.
const SCOPE: &str = "tls-sessiond";

/// Traces and metrics, before they are sent. Without `otlp.endpoint` there are none.
pub struct Telemetry {
    tracer: Tracer,
    parts: Option<Parts>,
}

struct Parts {
    target: Target,
    /// Lives as long as spans are made.
    provider: SdkTracerProvider,
    resource: Resource,
    spans: Receiver<SpanData>,
    dropped: Arc<AtomicU64>,
    interval: Duration,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Telemetry")
    }
}

impl Telemetry {
    /// Reads the files that `[otlp]` names.
    ///
    /// # Errors
    /// Names the key, the file and the fault.
    pub fn read(config: &Config) -> Result<Self, ConfigError> {
        let Some(otlp) = &config.otlp else {
            return Ok(Self {
                tracer: Tracer::default(),
                parts: None,
            });
        };
        let target = Target::read(config, otlp)?;
        let resource = resource();
        let (sender, spans) = mpsc::channel(WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let sampled = Sampler::TraceIdRatioBased(otlp.sample);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(sampled)))
            .with_resource(resource.clone())
            .with_span_processor(Queue {
                spans: sender,
                dropped: Arc::clone(&dropped),
            })
            .build();
        Ok(Self {
            tracer: Tracer::of(&provider),
            parts: Some(Parts {
                target,
                provider,
                resource,
                spans,
                dropped,
                interval: otlp.interval,
            }),
        })
    }

    /// Returns the tracer whose spans are sent.
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Begins to send. Needs a tokio runtime around it.
    pub(crate) fn begin(self, admin: Arc<Admin>) -> Sending {
        Sending(self.parts.and_then(|parts| parts.begin(admin)))
    }
}

/// Returns what describes this daemon. OTEL_RESOURCE_ATTRIBUTES adds to it and replaces it, and
/// OTEL_SERVICE_NAME has the last word.
fn resource() -> Resource {
    let own = Resource::builder_empty()
        .with_attribute(KeyValue::new("service.name", SCOPE))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_detector(Box::new(EnvResourceDetector::new()))
        .build();
    // An attribute without a name is none.
    let named = own.iter().filter(|(key, _)| !key.as_str().is_empty());
    let named = named.map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    let resource = Resource::builder_empty().with_attributes(named);
    match std::env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => {
            resource.with_attribute(KeyValue::new("service.name", name))
        }
        _ => resource,
    }
    .build()
}

impl Parts {
    fn begin(self, admin: Arc<Admin>) -> Option<(CancellationToken, JoinHandle<()>)> {
        let address = self.target.address();
        let collector = match Collector::new(self.target) {
            Ok(collector) => collector,
            Err(err) => {
                tracing::error!(%err, address, "traces and metrics are not sent");
                return None;
            }
        };
        tracing::info!(
            address,
            "traces and metrics are sent by OTLP to this address"
        );
        let trouble = |signal, dropped| Trouble::new(signal, &address, dropped);
        let sender = Sender {
            collector,
            resource: (&self.resource).into(),
            admin,
            batch: Vec::new(),
            due: None,
            pause: Duration::ZERO,
            traces: trouble("traces", self.dropped),
            metrics: trouble("metrics", Arc::default()),
            _provider: self.provider,
        };
        let stop = CancellationToken::new();
        let task = sender.run(self.spans, self.interval, stop.clone());
        Some((stop, tokio::spawn(task)))
    }
}

/// The task, which goes on until it is stopped.
#[derive(Debug)]
pub struct Sending(Option<(CancellationToken, JoinHandle<()>)>);

impl Sending {
    /// Sends what waits and the last metrics. Takes two seconds at most.
    pub async fn stop(self) {
        let Some((stop, task)) = self.0 else { return };
        stop.cancel();
        match timeout(STOP_MAX, task).await {
            Ok(Ok(())) => {}
            Ok(Err(err)) => tracing::error!(%err, "the task of OTLP failed"),
            Err(_) => tracing::warn!("the last traces and metrics were not sent in time"),
        }
    }
}

struct Sender {
    collector: Collector,
    resource: ResourceAttributesWithSchema,
    admin: Arc<Admin>,
    /// Spans that wait to be sent, or to be sent again.
    batch: Vec<SpanData>,
    /// When the batch is sent, full or not. `None`: it is empty.
    due: Option<Instant>,
    /// Wait after a transmission that failed.
    pause: Duration,
    traces: Trouble,
    metrics: Trouble,
    _provider: SdkTracerProvider,
}

impl Sender {
    async fn run(
        mut self,
        mut spans: Receiver<SpanData>,
        interval: Duration,
        stop: CancellationToken,
    ) {
        let mut ticks = interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.due.filter(|_| !self.traces.is_unknown);
            let is_due = async {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let room = BATCH_MAX - self.batch.len();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = ticks.tick() => self.send_metrics().await,
                () = is_due => {
                    self.send_spans().await;
                }
                _ = spans.recv_many(&mut self.batch, room), if room > 0 => {
                    match self.due {
                        // A batch that the collector did not take waits for its time.
                        _ if self.pause > Duration::ZERO && self.due.is_some() => {}
                        _ if self.batch.len() == BATCH_MAX => self.due = Some(Instant::now()),
                        None => self.due = Some(Instant::now() + LINGER),
                        Some(_) => {}
                    }
                    if self.traces.is_unknown {
                        self.traces.lose(self.batch.len() as u64);
                        self.batch.clear();
                        self.due = None;
                    }
                }
            }
        }
        spans.close();
        while !self.traces.is_unknown {
            let room = BATCH_MAX - self.batch.len();
            if room > 0 {
                spans.recv_many(&mut self.batch, room).await;
            }
            if self.batch.is_empty() || !self.send_spans().await {
                break;
            }
        }
        self.traces.lose((self.batch.len() + spans.len()) as u64);
        self.send_metrics().await;
        self.traces.tell_the_end();
    }

    /// Sends the batch. Returns whether the collector is there.
    async fn send_spans(&mut self) -> bool {
        let batch = std::mem::take(&mut self.batch);
        let count = batch.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(batch.clone(), &self.resource);
        let request = ExportTraceServiceRequest { resource_spans };
        let sent = self.collector.take_spans(request).await;
        self.due = None;
        match sent {
            Err(err) if err.may_pass() => {
                self.batch = batch;
                self.pause = (2 * self.pause).clamp(PAUSE, PAUSE_MAX);
                self.due = Some(Instant::now() + self.pause);
                self.traces.fails(&err);
                return false;
            }
            Err(err @ NotTaken::Part { count: part, .. }) => {
                let part = u64::try_from(part).unwrap_or(0).min(count);
                self.traces.warns(&err, part);
            }
            Err(err) => {
                self.traces.lose(count);
                self.traces.fails(&err);
            }
            Ok(()) => self.traces.works(),
        }
        self.pause = Duration::ZERO;
        true
    }

    async fn send_metrics(&mut self) {
        if self.metrics.is_unknown {
            return;
        }
        // The operator has chosen the collector, so it is told all names.
        let snapshot = self.admin.whole_snapshot().await;
        let times = Times {
            start: nanoseconds(snapshot.status.start_time.as_ref()),
            now: nanoseconds(snapshot.status.time.as_ref()),
        };
        let Ok(metrics) = points::all(&Everything::of(snapshot, &self.admin), times) else {
            return;
        };
        let scope_metrics = vec![ScopeMetrics {
            scope: Some(InstrumentationScope {
                name: SCOPE.into(),
                version: env!("CARGO_PKG_VERSION").into(),
                ..InstrumentationScope::default()
            }),
            metrics,
            ..ScopeMetrics::default()
        }];
        let request = ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(ResourceMessage {
                    attributes: self.resource.attributes.0.clone(),
                    ..ResourceMessage::default()
                }),
                scope_metrics,
                ..ResourceMetrics::default()
            }],
        };
        match self.collector.take_metrics(request).await {
            Ok(()) => self.metrics.works(),
            Err(err @ NotTaken::Part { .. }) => self.metrics.warns(&err, 0),
            Err(err) => self.metrics.fails(&err),
        }
    }
}

/// Returns a time in nanoseconds since the Unix epoch.
fn nanoseconds(time: Option<&prost_types::Timestamp>) -> u64 {
    let nanoseconds = time.map(|time| {
        let seconds = u64::try_from(time.seconds).unwrap_or(0);
        seconds * 1_000_000_000 + u64::try_from(time.nanos).unwrap_or(0)
    });
    nanoseconds.unwrap_or(0)
}
