//! A daemon in this process, on a free port, with a clock that the test moves.

use std::{sync::Arc, time::Duration};

use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tls_sessiond::{
    config::{Config, ConfigError, Endpoint},
    daemon::{Daemon, Reload, Reloaded},
};
use tls_sessiond_core::{
    clock::{Clock, ManualClock, WallTime},
    state::CoreState,
};
use tls_sessiond_proto::{
    self as pb, connection_service_client::ConnectionServiceClient,
    context_service_client::ContextServiceClient, session_service_client::SessionServiceClient,
};
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::{Request, Status, transport::Channel};
use tonic_types::StatusExt;

/// A daemon that ends with the test.
pub(crate) struct TestDaemon {
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    pub(crate) clock: ManualClock,
    pub(crate) core: Arc<CoreState>,
    pub(crate) channel: Channel,
    /// All listeners, with the ports that they got.
    pub(crate) endpoints: Vec<Endpoint>,
    reload: Reload,
    stop: Option<oneshot::Sender<()>>,
    run: JoinHandle<()>,
}

/// Returns the time of this machine, at which certificates made by the test are valid.
pub(crate) fn now() -> WallTime {
    Clock::System.now().wall()
}

impl TestDaemon {
    /// Starts a daemon with the built-in context.
    pub(crate) async fn start() -> Self {
        Self::with("").await
    }

    /// Starts a daemon with a configuration. `listen.api` is set here.
    pub(crate) async fn with(config: &str) -> Self {
        Self::run(&load(LOOPBACK, config)).await
    }

    /// Starts a daemon that listens at `api`, a TOML array with at least one loopback TCP address.
    pub(crate) async fn listening(api: &str, config: &str) -> Self {
        Self::run(&load(api, config)).await
    }

    /// Reloads a daemon that listens at `api`, as SIGHUP does.
    pub(crate) fn reload_listening(
        &self,
        api: &str,
        config: &str,
    ) -> Result<Reloaded, ConfigError> {
        self.apply(&load(api, config))
    }

    /// Reloads a daemon that listens at loopback only, as SIGHUP does.
    pub(crate) fn reload(&self, config: &str) -> Result<Reloaded, ConfigError> {
        self.apply(&load(LOOPBACK, config))
    }

    pub(crate) fn apply(&self, config: &Config) -> Result<Reloaded, ConfigError> {
        self.reload.apply(config)
    }

    pub(crate) async fn run(config: &Config) -> Self {
        let clock = ManualClock::starting(now());
        Self::run_by(config, Clock::Manual(clock.clone()), clock).await
    }

    /// Starts a daemon by the clock of this machine, for a store that has a clock of its own.
    /// Returns once the daemon is ready.
    #[cfg(feature = "peers")]
    pub(crate) async fn by_real_time(config: &str) -> Self {
        let unused = ManualClock::starting(now());
        Self::run_by(&load(LOOPBACK, config), Clock::System, unused).await
    }

    async fn run_by(config: &Config, by: Clock, clock: ManualClock) -> Self {
        let mut daemon = Daemon::bind(config, by).unwrap();
        daemon.ready().await.unwrap();
        let endpoints = daemon.endpoints();
        let tcp = |endpoint: &Endpoint| match endpoint {
            Endpoint::Tcp(address) => Some(*address),
            _ => None,
        };
        let address = endpoints.iter().find_map(tcp).expect("a loopback address");
        let core = Arc::clone(daemon.core());
        let reload = daemon.reload();
        let (stop, stopped) = oneshot::channel();
        let run = tokio::spawn(async move {
            daemon.run(async { drop(stopped.await) }).await.unwrap();
        });
        let channel = Channel::from_shared(format!("http://{address}"))
            .unwrap()
            .connect()
            .await
            .unwrap();
        Self {
            address: address.to_string(),
            clock,
            core,
            channel,
            endpoints,
            reload,
            stop: Some(stop),
            run,
        }
    }

    /// Returns the calls of a daemon in another process. Its core and its clock are not here: those of
    /// this value belong to a daemon that no test uses.
    pub(crate) async fn at(address: &str) -> Self {
        let mut here = Self::start().await;
        here.channel = Channel::from_shared(format!("http://{address}"))
            .unwrap()
            .connect()
            .await
            .unwrap();
        here.address = address.into();
        here
    }

    pub(crate) fn connections(&self) -> ConnectionServiceClient<Channel> {
        ConnectionServiceClient::new(self.channel.clone())
    }

    /// Returns a client that leaves deadlines to the daemon. tonic's channel would enforce them
    /// itself.
    pub(crate) fn patient_connections(
        &self,
    ) -> ConnectionServiceClient<Client<HttpConnector, tonic::body::Body>> {
        let client = Client::builder(TokioExecutor::new())
            .http2_only(true)
            .build_http();
        ConnectionServiceClient::with_origin(
            client,
            format!("http://{}", self.address).parse().unwrap(),
        )
    }

    pub(crate) fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel.clone())
    }

    pub(crate) fn contexts(&self) -> ContextServiceClient<Channel> {
        ContextServiceClient::new(self.channel.clone())
    }

    /// Makes a connection of the default context. Returns its id.
    pub(crate) async fn open(&self, role: pb::Role) -> String {
        self.open_in("", role).await
    }

    pub(crate) async fn open_in(&self, context: &str, role: pb::Role) -> String {
        let request = new(context, role);
        self.connections()
            .new_connection(request)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap()
            .id
    }

    pub(crate) async fn exchange(
        &self,
        id: &str,
        ciphertext: &[u8],
        plaintext: &[u8],
    ) -> Result<pb::ExchangeResponse, Status> {
        let request = pb::ExchangeRequest {
            connection_id: id.into(),
            ciphertext: ciphertext.to_vec().into(),
            plaintext: plaintext.to_vec().into(),
            end_of_stream: false,
        };
        Ok(self.connections().exchange(request).await?.into_inner())
    }

    pub(crate) async fn get(&self, id: &str) -> pb::Connection {
        let request = pb::GetConnectionRequest {
            connection_id: id.into(),
        };
        self.connections()
            .get_connection(request)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap()
    }

    /// Carries bytes between two connections until neither sends any.
    pub(crate) async fn handshake(&self, client: &str, server: &str) {
        let mut to_server = self.exchange(client, b"", b"").await.unwrap().ciphertext;
        while !to_server.is_empty() {
            let to_client = self
                .exchange(server, &to_server, b"")
                .await
                .unwrap()
                .ciphertext;
            to_server = self
                .exchange(client, &to_client, b"")
                .await
                .unwrap()
                .ciphertext;
        }
    }

    /// Returns the number of sessions in the default context's server cache.
    pub(crate) fn server_cache_len(&self) -> usize {
        self.core
            .registry()
            .get("default")
            .unwrap()
            .server_cache
            .len()
    }

    pub(crate) async fn server_sessions(&self) -> usize {
        let listed = self
            .sessions()
            .list_sessions(pb::ListSessionsRequest::default())
            .await
            .unwrap()
            .into_inner();
        listed
            .sessions
            .iter()
            .filter(|session| session.role() == pb::Role::Server)
            .count()
    }

    /// Waits until a condition holds, for at most 20 s.
    pub(crate) async fn until(&self, what: &str, mut holds: impl AsyncFnMut(&Self) -> bool) {
        let wait = async {
            while !holds(self).await {
                // Without a pause the polling would keep the daemon busy.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .unwrap_or_else(|_| panic!("never: {what}"));
    }

    /// Begins the stop, as SIGTERM does.
    pub(crate) fn begin_stop(&mut self) {
        drop(self.stop.take());
    }

    /// Stops the daemon and waits until it has ended.
    pub(crate) async fn stop(mut self) {
        self.begin_stop();
        drop(self.channel);
        self.run.await.unwrap();
    }
}

/// The default of `listen.api` in tests.
const LOOPBACK: &str = "[\"tcp://127.0.0.1:0\"]";

/// Loads a configuration with this text. `listen.api` is set here. Paths in the text must be
/// absolute.
fn load(api: &str, text: &str) -> Config {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("test.toml");
    std::fs::write(&file, text).unwrap();
    // The tests of the admin address use the binary.
    let set = [format!("listen.api={api}"), "listen.admin=".to_owned()];
    Config::load(Some(&file), std::iter::empty(), &set).unwrap()
}

/// Returns a request for a new connection with the server name `localhost`.
pub(crate) fn new(context: &str, role: pb::Role) -> pb::NewRequest {
    pb::NewRequest {
        context: context.into(),
        role: role.into(),
        server_name: "localhost".into(),
        ..pb::NewRequest::default()
    }
}

/// Returns the `ErrorInfo.reason` of a status, or an empty string.
pub(crate) fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map(|info| info.reason)
        .unwrap_or_default()
}

/// Returns a request with a deadline, in the form of `grpc-timeout`.
pub(crate) fn within<T>(timeout: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("grpc-timeout", timeout.parse().unwrap());
    request
}
