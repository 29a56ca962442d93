//! The task that sends spans and metrics.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
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
    trace::{Sampler, SdkTracerProvider, SpanData},
};
use tokio::{
    sync::mpsc::{self, Receiver},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    collector::{Collector, NotTaken, Target},
    points::{self, Times},
    queue::{Queue, WAITING_MAX},
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
        // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES add to these and replace them.
        let resource = Resource::builder_empty()
            .with_attribute(KeyValue::new("service.name", SCOPE))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_detector(Box::new(
                opentelemetry_sdk::resource::EnvResourceDetector::new(),
            ))
            .build();
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
        tracing::info!(address, "traces and metrics are sent by OTLP");
        let sender = Sender {
            collector,
            resource: (&self.resource).into(),
            admin,
            dropped: self.dropped,
            refused: None,
            address,
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
    dropped: Arc<AtomicU64>,
    /// How many spans were lost since the collector last took something. `None`: it takes what is sent.
    refused: Option<u64>,
    address: String,
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
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = ticks.tick() => self.send_metrics().await,
                () = gather(&mut spans, &mut batch) => self.send_spans(std::mem::take(&mut batch)).await,
            }
        }
        spans.close();
        while spans.recv_many(&mut batch, BATCH_MAX).await > 0 || !batch.is_empty() {
            self.send_spans(std::mem::take(&mut batch)).await;
        }
        self.send_metrics().await;
    }

    async fn send_spans(&mut self, batch: Vec<SpanData>) {
        let count = batch.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let request = ExportTraceServiceRequest { resource_spans };
        let sent = self.collector.take_spans(request).await;
        let lost = match &sent {
            Ok(()) => 0,
            Err(NotTaken::All(_)) => count,
            Err(NotTaken::Part { count, .. }) => u64::try_from(*count).unwrap_or(0),
        };
        self.tell(sent, lost);
    }

    async fn send_metrics(&mut self) {
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
        let sent = self.collector.take_metrics(request).await;
        self.tell(sent, 0);
    }

    /// Logs when the collector stops or begins again to take what is sent, with the number of spans that
    /// were lost meanwhile.
    fn tell(&mut self, sent: Result<(), NotTaken>, lost: u64) {
        let lost = lost + self.dropped.swap(0, Ordering::Relaxed);
        let address = &self.address;
        match (sent, &mut self.refused) {
            (Ok(()), None) if lost == 0 => {}
            (Ok(()), None) => {
                tracing::warn!(
                    address,
                    spans = lost,
                    "more spans than can be sent: these were dropped"
                );
            }
            (Ok(()), Some(before)) => {
                let spans = *before + lost;
                tracing::info!(
                    address,
                    lost_spans = spans,
                    "the collector takes traces and metrics again"
                );
                self.refused = None;
            }
            (Err(err), None) => {
                tracing::warn!(%err, address, "the collector does not take traces and metrics; the daemon tries again");
                self.refused = Some(lost);
            }
            (Err(_), Some(before)) => *before += lost,
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

/// Waits for a span, and then for others that are sent with it.
async fn gather(spans: &mut Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    if batch.is_empty() {
        spans.recv_many(batch, BATCH_MAX).await;
    }
    let more = async {
        while batch.len() < BATCH_MAX {
            let room = BATCH_MAX - batch.len();
            if spans.recv_many(batch, room).await == 0 {
                break;
            }
        }
    };
    // The batch is sent as it is when the time is over.
    let _ = timeout(LINGER, more).await;
}
