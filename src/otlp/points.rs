//! The metrics of the admin address as messages of OTLP: counters are cumulative sums since the start.

use std::fmt;

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric as Message,
        NumberDataPoint, Sum, metric::Data, number_data_point::Value,
    },
};
use prometheus_client::registry::Unit;
use tls_sessiond_core::session::histogram::{BOUNDS_MICROS, HistogramCounts};

use crate::admin::metrics::{Everything, Kind, Labels, Metric, Metrics, Values};

/// When counting began and when it was read, in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) start: u64,
    pub(super) now: u64,
}

/// Returns all metrics.
///
/// # Errors
/// None: nothing here fails.
pub(super) fn all(everything: &Everything, times: Times) -> Result<Vec<Message>, fmt::Error> {
    let mut messages = Vec::new();
    everything.write(&mut |metric, values| {
        messages.push(message(metric, values, times));
        Ok(())
    })?;
    Ok(messages)
}

fn message(metric: Metric, values: Values, times: Times) -> Message {
    let unit = match metric.unit {
        Some(Unit::Seconds) => "s",
        Some(Unit::Bytes) => "By",
        _ => "1",
    };
    let temporality = AggregationTemporality::Cumulative.into();
    let data = match (metric.kind, values) {
        (_, Values::Histograms(rows)) => Data::Histogram(Histogram {
            data_points: rows
                .into_iter()
                .map(|(labels, counts)| histogram(&labels, &counts, times))
                .collect(),
            aggregation_temporality: temporality,
        }),
        (Kind::Counter, values) => Data::Sum(Sum {
            data_points: numbers(values, times),
            aggregation_temporality: temporality,
            is_monotonic: true,
        }),
        (_, values) => Data::Gauge(Gauge {
            data_points: numbers(values, times),
        }),
    };
    Message {
        name: conventional(metric.name),
        description: metric.help.into(),
        unit: unit.into(),
        data: Some(data),
        ..Message::default()
    }
}

/// Returns the name of a metric or a label in the conventions of OpenTelemetry, if it is one of them:
/// `rpc_server_call_duration` is `rpc.server.call.duration` there. `rpc.response.status_code` has an
/// underscore of its own.
fn conventional(name: &str) -> String {
    match name.starts_with("rpc_") {
        true => name.replace('_', ".").replace("status.code", "status_code"),
        false => name.to_owned(),
    }
}

fn attributes(labels: &Labels) -> Vec<KeyValue> {
    let attribute = |(name, value): &(&'static str, String)| KeyValue {
        key: conventional(name),
        value: Some(AnyValue {
            value: Some(any_value::Value::StringValue(value.clone())),
        }),
        ..KeyValue::default()
    };
    labels.iter().map(attribute).collect()
}

fn numbers(values: Values, times: Times) -> Vec<NumberDataPoint> {
    let point = |labels: &Labels, value| NumberDataPoint {
        attributes: attributes(labels),
        start_time_unix_nano: times.start,
        time_unix_nano: times.now,
        value: Some(value),
        ..NumberDataPoint::default()
    };
    match values {
        Values::Info(labels) => vec![point(&labels, Value::AsInt(1))],
        Values::Seconds(time) => vec![point(&Labels::new(), Value::AsDouble(time.as_secs_f64()))],
        Values::Counts(rows) => rows
            .iter()
            .map(|(labels, count)| {
                let count = i64::try_from(*count).unwrap_or(i64::MAX);
                point(labels, Value::AsInt(count))
            })
            .collect(),
        // Written as a histogram.
        Values::Histograms(_) => Vec::new(),
    }
}

fn histogram(labels: &Labels, counts: &HistogramCounts, times: Times) -> HistogramDataPoint {
    HistogramDataPoint {
        attributes: attributes(labels),
        start_time_unix_nano: times.start,
        time_unix_nano: times.now,
        count: counts.total(),
        sum: Some(counts.sum.as_secs_f64()),
        bucket_counts: counts.buckets.to_vec(),
        explicit_bounds: BOUNDS_MICROS
            .iter()
            .map(|micros| *micros as f64 / 1e6)
            .collect(),
        ..HistogramDataPoint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_conventions_have_dots() {
        for (ours, theirs) in [
            ("rpc_server_call_duration", "rpc.server.call.duration"),
            ("rpc_method", "rpc.method"),
            ("rpc_response_status_code", "rpc.response.status_code"),
            ("tls_sessiond_lookups", "tls_sessiond_lookups"),
            ("context", "context"),
        ] {
            assert_eq!(conventional(ours), theirs);
        }
    }
}
