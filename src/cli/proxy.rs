//! One run of the proxies: signals, configuration, log, greeting, reloads, stop.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use tokio::{signal::unix::Signal, time::interval};

use super::{
    Options, process, say,
    serve::{
        END, FLUSH, FLUSH_AT_ONCE, Flushed, Signals, aside, next, patiently, start_log,
        tell_warnings,
    },
};
use crate::{
    config::{ConfigError, Drain, ProxyListen},
    daemon::Error,
    log::{Log, panics::caught},
    proxy::{PreparedProxies, Proxies, ProxiesReload},
    supervisor::Supervisor,
};

pub(super) const EXAMPLES: &str = "\
Examples:
  tls-sessiond proxy --backend tcp://127.0.0.1:8080         TLS at 127.0.0.1:8443, with a certificate of its own making
  tls-sessiond proxy --listen tls://0.0.0.0:443 --backend tcp://127.0.0.1:8080 \\
      --certificate tls.crt --key tls.key --sessions unix:///run/tls-sessiond/api.sock
  tls-sessiond proxy --listen unix:///run/api.example.sock --connect api.example.org:443
  tls-sessiond proxy --config /etc/tls-sessiond.toml        every [[proxy]] of the file

A client that returns resumes at every proxy whose sessions are in the same daemon. An end of the backend becomes a close_notify,
and the session stays. After a reset, a time-out or a crash the session is removed. SIGHUP reloads certificates and settings.
SIGTERM and SIGINT stop the proxies after a drain.
Metrics and probes: http://127.0.0.1:9552/metrics, /livez, /readyz (listen.proxy_admin).";

/// One proxy on the command line. Without --backend and --connect, the configuration has the proxies.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ProxyOptions {
    /// Where clients connect: tls://IP:PORT. With --connect, where local programs do: unix:///PATH or
    /// tcp://IP:PORT on loopback. Or systemd:NAME, a socket that systemd passes.
    /// [default: tls://127.0.0.1:8443]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Terminate TLS for this backend: tcp://HOST:PORT or unix:///PATH.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "connect")]
    backend: Option<String>,
    /// Originate TLS to this server.
    #[arg(long, value_name = "HOST:PORT")]
    connect: Option<String>,
    /// The name in the server's certificate, if it is not HOST.
    #[arg(long, value_name = "NAME", requires = "connect")]
    server_name: Option<String>,
    /// The certificate chain of the server, PEM. On a loopback address, one is made without it.
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// The authorities that sign the certificates of clients, PEM.
    #[arg(long, value_name = "FILE", requires = "client_auth")]
    client_ca: Option<PathBuf>,
    /// Whether clients must show a certificate: none, request or require.
    #[arg(long, value_name = "WORD")]
    client_auth: Option<String>,
    /// Application protocols, in the order of preference, as in h2,http/1.1.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    alpn: Vec<String>,
    /// The PROXY protocol: off, send (to the backend), accept (from a load balancer) or both.
    #[arg(long, value_name = "WORD")]
    proxy_protocol: Option<String>,
    /// Allow a backend that is not on this host to get plaintext.
    #[arg(long)]
    plaintext: bool,
    /// How long no byte may pass before a connection ends. [default: 5m]
    #[arg(long, value_name = "TIME")]
    idle_timeout: Option<String>,
    /// Most connections at a time. [default: 5000]
    #[arg(long, value_name = "NUMBER")]
    connections: Option<usize>,
    /// Where the sessions are: own (in this process), or a daemon at unix:///PATH, tcp://HOST:PORT on
    /// loopback or tls://HOST:PORT. [default: own]
    #[arg(long, value_name = "ENDPOINT")]
    sessions: Option<String>,
    /// The context of the daemon that the sessions belong to. [default: default]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

/// Those of [`ProxyOptions`] that a command which calls a daemon has as well.
pub(super) const SHARED_OPTIONS: [&str; 2] = ["certificate", "key"];

impl ProxyOptions {
    /// Returns the assignments of keys that mean the same.
    fn assignments(&self) -> Vec<String> {
        let text = |value: &str| toml::Value::String(value.to_owned()).to_string();
        let path = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let file = |file: &Option<PathBuf>| {
            file.as_ref()
                .map(|file| text(&path(file).to_string_lossy()))
        };
        let word = |word: &Option<String>| word.as_deref().map(text);
        let alpn = self
            .alpn
            .iter()
            .map(|name| text(name.trim()))
            .collect::<Vec<_>>()
            .join(", ");
        let keys = [
            ("listen", word(&self.listen)),
            ("backend", word(&self.backend)),
            ("connect", word(&self.connect)),
            ("server_name", word(&self.server_name)),
            ("certificate", file(&self.certificate)),
            ("key", file(&self.key)),
            ("client_ca", file(&self.client_ca)),
            ("client_auth", word(&self.client_auth)),
            ("alpn", (!self.alpn.is_empty()).then(|| format!("[{alpn}]"))),
            ("proxy_protocol", word(&self.proxy_protocol)),
            ("plaintext", self.plaintext.then(|| "true".to_owned())),
            ("idle_timeout", word(&self.idle_timeout)),
            (
                "connections",
                self.connections.map(|number| number.to_string()),
            ),
            ("sessions", word(&self.sessions)),
            ("context", word(&self.context)),
        ];
        let set = keys
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)));
        set.map(|(key, value)| format!("proxy.0.{key}={value}"))
            .collect()
    }
}

/// Adds the proxy of the command line to the options. The last assignment of a key counts, so `--set`
/// overrides it.
///
/// # Errors
/// The file or the environment has proxies.
pub(super) fn with_proxy(
    mut options: Options,
    proxy: &ProxyOptions,
) -> Result<Options, ConfigError> {
    let mut set = proxy.assignments();
    if set.is_empty() {
        return Ok(options);
    }
    // `--set` may add keys to the proxy of the flags. A file that needs it is read again later, with it.
    let without = Options {
        set: Vec::new(),
        ..options.clone()
    };
    if let Ok(config) = without.load()
        && !config.proxies.is_empty()
    {
        return Err(config.proxies_twice());
    }
    set.append(&mut options.set);
    Ok(Options { set, ..options })
}

/// Runs the proxies until a signal.
pub(super) fn run(options: &Options) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(caught(serve(options.clone())));
    // A thread that still reads a file ends with the process.
    runtime.shutdown_background();
    ended.unwrap_or(Err(Error::Panicked))
}

async fn serve(options: Options) -> Result<(), Error> {
    let mut signals = Signals::take()?;
    let supervisor = Supervisor::of_environment();
    supervisor.status("reading the configuration");
    let mut reading = aside(move || {
        let config = options.load()?;
        let log = Flushed(start_log(&config)?);
        let open_files = process::raise_open_files();
        process::keep_memory_private();
        let prepared = PreparedProxies::read(&config)?.with_open_files(open_files);
        tell_warnings(&prepared.warnings());
        Ok::<_, Error>((prepared, log, options, config.drain))
    })?;
    let (prepared, log, options, drain) = tokio::select! {
        read = &mut reading => read.map_err(|_| Error::Panicked)??,
        _ = next(&mut signals.terminate, &mut signals.interrupt) => return Ok(()),
    };
    let Signals {
        mut terminate,
        mut interrupt,
        hangup,
        ..
    } = signals;
    let proxies = tokio::select! {
        proxies = Proxies::listen(prepared) => proxies?,
        _ = next(&mut terminate, &mut interrupt) => return Ok(()),
    };
    proxies.give_log(log.0.clone());
    let text = greeting(&proxies.ways(), proxies.admin());
    // Writing to stdout may block forever; the proxies serve all the same.
    drop(aside(move || say(io::stdout(), &text))?);
    let status = format!("serving; proxies: {}", proxies.ways().len());
    supervisor.ready(&status);
    if let Some(every) = supervisor.watches() {
        tokio::spawn(attest(supervisor.clone(), every));
    }
    let reload = reload_at(
        hangup,
        proxies.reload(),
        options,
        log.0.clone(),
        supervisor.clone(),
        status,
    );
    let reloading = tokio::spawn(reload);
    let stopped = stop(
        terminate,
        interrupt,
        drain,
        log.0.clone(),
        supervisor.clone(),
    );
    let ended = proxies.run(stopped).await;
    reloading.abort();
    supervisor.flush(FLUSH);
    ended
}

/// Tells the service manager that the process lives, as often as it wants to hear it, while its tasks
/// run.
async fn attest(supervisor: Supervisor, every: Duration) {
    let mut ticks = interval(every);
    loop {
        ticks.tick().await;
        supervisor.alive();
    }
}

/// Reloads at each SIGHUP. An error is logged, and the configuration stays as it was.
async fn reload_at(
    mut hangup: Signal,
    reload: ProxiesReload,
    options: Options,
    log: Log,
    supervisor: Supervisor,
    status: String,
) {
    while hangup.recv().await.is_some() {
        supervisor.reloading();
        let (options, reload, log) = (options.clone(), reload.clone(), log.clone());
        let reloading = aside(move || {
            let config = options.load().inspect_err(|_| reload.refused())?;
            let warnings = reload.apply(&config)?;
            tell_warnings(&warnings);
            if let Err(err) = log.reload(&config.log) {
                tracing::error!(%err, "cannot open the audit file again; audit lines still go to the file that was open");
            }
            Ok::<_, ConfigError>(())
        });
        let done = match reloading {
            Ok(reloading) => patiently(reloading).await,
            Err(err) => {
                tracing::error!(%err, "reload refused: cannot start a thread");
                supervisor.ready("reload refused: cannot start a thread");
                continue;
            }
        };
        match done {
            Ok(Ok(())) => {
                tracing::info!("configuration reloaded");
                supervisor.ready(&status);
            }
            Ok(Err(err)) => {
                tracing::error!(%err, "reload refused; the configuration stays as it was");
                supervisor.ready(&format!("reload refused: {err}"));
            }
            Err(_) => {
                tracing::error!("reload refused: a defect of the proxy, see the log");
                supervisor.ready("reload refused: a defect of the proxy, see the log");
            }
        }
    }
}

/// Returns at the first SIGTERM or SIGINT. From then on, a signal ends the process at once, with status
/// 128 and its number.
async fn stop(
    mut terminate: Signal,
    mut interrupt: Signal,
    drain: Drain,
    log: Log,
    supervisor: Supervisor,
) {
    next(&mut terminate, &mut interrupt).await;
    supervisor.stopping(drain.delay + drain.timeout + END);
    tokio::spawn(async move {
        let signal = next(&mut terminate, &mut interrupt).await;
        tracing::warn!("second signal: the process ends at once");
        log.flush(FLUSH_AT_ONCE);
        std::process::exit(128 + signal.as_raw_value());
    });
}

/// Returns the greeting: where each proxy listens and sends its connections, and a first command to
/// try.
fn greeting(ways: &[(ProxyListen, String)], admin: Option<SocketAddr>) -> String {
    let mut text = format!("tls-sessiond {} proxy\n", env!("CARGO_PKG_VERSION"));
    for (listen, to) in ways {
        text += &format!("listening on {listen}, to {to}\n");
    }
    if let Some(address) = admin {
        text += &format!("metrics at http://{address}/metrics\n");
    }
    let first = ways.iter().find_map(|(listen, _)| match listen {
        ProxyListen::Tls(address) => Some(format!("openssl s_client -connect {address}")),
        ProxyListen::Tcp(address) => Some(format!("curl http://{address}/")),
        ProxyListen::Unix(path) => Some(format!(
            "curl --unix-socket {} http://localhost/",
            path.display()
        )),
        // The greeting has the addresses of the sockets.
        ProxyListen::Systemd(_) => None,
    });
    text + &first
        .map(|first| format!("try: {first}\n"))
        .unwrap_or_default()
}
