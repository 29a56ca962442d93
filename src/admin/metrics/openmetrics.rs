//! All metrics as a text in the format of OpenMetrics.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Registry,
};
use tls_sessiond_core::session::histogram::{BOUNDS_MICROS, HistogramCounts};

use super::{Kind, Labels, Metric, Metrics, Values};

/// The media type of the text.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Writes all metrics.
///
/// # Errors
/// None: writing to a text does not fail.
pub(crate) fn encode(metrics: impl Metrics) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Collected(metrics)));
    let mut written = String::with_capacity(64 << 10);
    text::encode(&mut written, &registry)?;
    Ok(written)
}

/// Metrics, as prometheus-client collects them.
#[derive(Debug)]
struct Collected<M>(M);

impl<M: Metrics> Collector for Collected<M> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0
            .write(&mut |metric, values| write(&mut encoder, metric, values))
    }
}

fn write(to: &mut DescriptorEncoder<'_>, metric: Metric, values: Values) -> fmt::Result {
    let kind = match metric.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
        Kind::Info => MetricType::Info,
    };
    let mut to = to.encode_descriptor(metric.name, metric.help, metric.unit, kind)?;
    match values {
        Values::Info(labels) => to.encode_info(&labels),
        Values::Seconds(time) => {
            let none = None::<&Exemplar<NoLabelSet, f64>>;
            to.encode_counter(&time.as_secs_f64(), none)
        }
        Values::Counts(rows) => rows.iter().try_for_each(|(labels, value)| {
            each(&mut to, labels, |to| match metric.kind {
                Kind::Gauge => to.encode_gauge(value),
                _ => to.encode_counter(value, None::<&Exemplar<NoLabelSet, u64>>),
            })
        }),
        Values::Histograms(rows) => rows
            .iter()
            .try_for_each(|(labels, counts)| each(&mut to, labels, |to| histogram(to, counts))),
    }
}

/// Writes one value, with its labels if it has any.
fn each(
    to: &mut MetricEncoder<'_>,
    labels: &Labels,
    write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    match labels.is_empty() {
        true => write(to),
        false => write(&mut to.encode_family(labels)?),
    }
}

fn histogram(to: &mut MetricEncoder<'_>, counts: &HistogramCounts) -> fmt::Result {
    let bounds = BOUNDS_MICROS.iter().map(|micros| *micros as f64 / 1e6);
    let bounds = bounds.chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(counts.buckets).collect();
    let (sum, count) = (counts.sum.as_secs_f64(), counts.total());
    to.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}
