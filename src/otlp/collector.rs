//! The connection to the collector.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::{
    metrics::v1::{ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient},
    trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
};
use rustls::{
    ClientConfig, RootCertStore, crypto::aws_lc_rs::default_provider, pki_types::ServerName,
};
use tls_sessiond_core::pem;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use crate::config::{Config, ConfigError, OtlpConfig};

/// How long connecting and one transmission may take, and how often an idle connection is checked.
const LIMIT: Duration = Duration::from_secs(10);

/// What a collector has not taken of a transmission.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotTaken {
    /// The collector is away, or refuses all of it.
    #[error("{}", in_words(.0))]
    All(#[from] Status),
    /// The collector refuses a part, or warns.
    #[error("{count} were not taken: {why}")]
    Part {
        /// How many spans or values.
        count: i64,
        /// The collector's words.
        why: String,
    },
}

/// Writes a status with its causes: tonic's own text for a failed connection is `transport error`.
fn in_words(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text += &format!(": {more}");
        }
        cause = error.source();
    }
    format!("{text} ({:?})", status.code())
}

/// A collector. The connection is opened at the first transmission, and again after a failure.
#[derive(Clone)]
pub(super) struct Collector {
    traces: TraceServiceClient<Channel>,
    metrics: MetricsServiceClient<Channel>,
}

/// How a connection to the collector is opened. The files are read once.
pub(super) struct Target {
    host: Arc<str>,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl NotTaken {
    /// Returns whether the same may be taken later.
    pub(super) fn may_pass(&self) -> bool {
        let Self::All(status) = self else {
            return false;
        };
        matches!(
            status.code(),
            Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Aborted
                | Code::OutOfRange
                | Code::Unavailable
                | Code::DataLoss
                | Code::ResourceExhausted
                | Code::Unknown
        )
    }

    /// Returns whether the collector does not know this kind of message.
    pub(super) fn is_unknown(&self) -> bool {
        matches!(self, Self::All(status) if status.code() == Code::Unimplemented)
    }
}

impl Target {
    /// Reads the trust anchors.
    ///
    /// # Errors
    /// Names the key, the file and the fault.
    pub(super) fn read(config: &Config, otlp: &OtlpConfig) -> Result<Self, ConfigError> {
        let tls = otlp.has_tls.then(|| tls(config, otlp)).transpose()?;
        Ok(Self {
            host: otlp.host.as_str().into(),
            port: otlp.port,
            tls,
        })
    }

    /// Returns the address, as the configuration has it.
    pub(super) fn address(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        match self.host.contains(':') {
            true => format!("{scheme}://[{}]:{}", self.host, self.port),
            false => format!("{scheme}://{}:{}", self.host, self.port),
        }
    }
}

fn tls(
    config: &Config,
    otlp: &OtlpConfig,
) -> Result<(TlsConnector, ServerName<'static>), ConfigError> {
    let name = ServerName::try_from(otlp.host.clone()).map_err(|_| {
        let why = format!("`{}` is not a name or an address", otlp.host);
        config.otlp_error("endpoint", why)
    })?;
    let mut roots = RootCertStore::empty();
    match &otlp.ca {
        Some(path) => {
            roots = pem::read_anchors(path).map_err(|err| config.otlp_error("ca", err))?;
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let mut client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|err| config.otlp_error("endpoint", err))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    Ok((TlsConnector::from(Arc::new(client)), name))
}

impl Collector {
    /// Makes the channel. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// The address is not a valid URI.
    pub(super) fn new(target: Target) -> Result<Self, tonic::transport::Error> {
        let address = target.address();
        let origin = Uri::try_from(&address).unwrap_or_default();
        let target = Arc::new(target);
        let connector = service_fn(move |_: Uri| {
            let target = Arc::clone(&target);
            async move { connect(&target).await.map(TokioIo::new) }
        });
        // The connector makes the TLS connection, so the URI of the channel has no TLS.
        let channel = Endpoint::try_from(address.replacen("https:", "http:", 1))?
            .origin(origin)
            .connect_timeout(LIMIT)
            .http2_keep_alive_interval(LIMIT)
            .keep_alive_timeout(LIMIT)
            .connect_with_connector_lazy(connector);
        Ok(Self {
            traces: TraceServiceClient::new(channel.clone()),
            metrics: MetricsServiceClient::new(channel),
        })
    }

    /// Sends spans.
    ///
    /// # Errors
    /// See [`NotTaken`].
    pub(super) async fn take_spans(
        &mut self,
        request: ExportTraceServiceRequest,
    ) -> Result<(), NotTaken> {
        let answer = within(self.traces.export(request)).await?.into_inner();
        match answer.partial_success {
            Some(part) if part.rejected_spans > 0 || !part.error_message.is_empty() => {
                Err(NotTaken::Part {
                    count: part.rejected_spans,
                    why: part.error_message,
                })
            }
            _ => Ok(()),
        }
    }

    /// Sends metrics.
    ///
    /// # Errors
    /// See [`NotTaken`].
    pub(super) async fn take_metrics(
        &mut self,
        request: ExportMetricsServiceRequest,
    ) -> Result<(), NotTaken> {
        let answer = within(self.metrics.export(request)).await?.into_inner();
        match answer.partial_success {
            Some(part) if part.rejected_data_points > 0 || !part.error_message.is_empty() => {
                Err(NotTaken::Part {
                    count: part.rejected_data_points,
                    why: part.error_message,
                })
            }
            _ => Ok(()),
        }
    }
}

/// Waits for an answer, from its request to its last byte.
async fn within<T>(answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded(format!("no answer within {} s", LIMIT.as_secs()));
    timeout(LIMIT, answer).await.map_err(late)?
}

trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

async fn connect(target: &Target) -> io::Result<Box<dyn ByteStream>> {
    let found = lookup_host((&*target.host, target.port)).await?;
    // `localhost` may resolve to other addresses than those of loopback; plaintext goes to none of them.
    let has_tls = target.tls.is_some();
    let allowed: Vec<SocketAddr> = found
        .filter(|address| has_tls || address.ip().to_canonical().is_loopback())
        .collect();
    let socket = TcpStream::connect(&*allowed).await?;
    socket.set_nodelay(true)?;
    match &target.tls {
        None => Ok(Box::new(socket)),
        Some((connector, name)) => Ok(Box::new(connector.connect(name.clone(), socket).await?)),
    }
}
