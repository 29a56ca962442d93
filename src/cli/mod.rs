//! The command line: serve and check.

use std::{
    future::Future,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::{
    clock::Clock,
    config::{Config, ConfigError, Endpoint},
    context::Registry,
    daemon::{Daemon, Error, Reload},
    rpc::tls::Acceptor,
};

/// Exit status for a bad configuration: EX_CONFIG of sysexits.h.
const EX_CONFIG: u8 = 78;

/// A daemon that holds TLS connection objects and one shared session cache, behind gRPC.
///
/// Workers carry bytes, the daemon runs TLS, and every returning client resumes wherever it lands. A session whose
/// connection was not closed is bad and is removed (SSL_clear(3)).
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_long_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

const AFTER_HELP: &str = "\
Examples:
  tls-sessiond                                       serve with the built-in defaults
  tls-sessiond --config /etc/tls-sessiond.toml       serve what the file says
  tls-sessiond --set listen.api='[\"tcp://127.0.0.1:6000\"]'
  TLS_SESSIOND__LIMITS__CONNECTIONS=5000 tls-sessiond
  tls-sessiond check /etc/tls-sessiond.toml          say what is wrong with a file, with key and line

First calls:
  grpcurl -plaintext 127.0.0.1:50551 list
  grpcurl -plaintext 127.0.0.1:50551 describe tls.sessiond.v1.ConnectionService
  grpcurl -plaintext -unix -authority localhost /run/tls-sessiond/api.sock list

SIGHUP loads contexts, access rules and certificates of the configuration anew; what is wrong changes nothing.
Exit status: 0 stopped by a signal, 1 failed while running, 2 wrong usage, 78 bad configuration.
Logs go to stderr: text on a terminal, JSON otherwise. RUST_LOG sets the level.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve; what happens where no command is given.
    Serve(Serve),
    /// Check a configuration and every file it names, as serve does before it binds.
    Check {
        /// The configuration file.
        file: PathBuf,
        #[command(flatten)]
        overrides: Overrides,
    },
}

#[derive(Clone, Debug, Args)]
struct Serve {
    /// The configuration file (TOML). None: built-in defaults.
    #[arg(long, value_name = "FILE", env = "TLS_SESSIOND_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

#[derive(Clone, Debug, Args)]
struct Overrides {
    /// Set one key over the file and the environment; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        None => serve(&cli.serve),
        Some(Command::Serve(args)) => serve(&args),
        Some(Command::Check { file, overrides }) => check(file, &overrides),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            // Nothing can be done where stderr is closed too.
            let _ = writeln!(io::stderr(), "tls-sessiond: {err}");
            match err {
                Error::Config(_) => ExitCode::from(EX_CONFIG),
                Error::Listen(_) | Error::Api(_) | Error::Serve(_) => ExitCode::FAILURE,
            }
        }
    }
}

fn load(file: Option<PathBuf>, overrides: &Overrides) -> Result<Config, ConfigError> {
    Config::load(file.as_deref(), std::env::vars(), &overrides.set)
}

fn check(file: PathBuf, overrides: &Overrides) -> Result<(), Error> {
    let config = load(Some(file.clone()), overrides)?;
    let registry = Registry::build(&config)?;
    Acceptor::load(&config)?;
    let names: Vec<&str> = registry.all().iter().map(|context| &*context.name).collect();
    say(&format!("{}: good; contexts: {}\n", file.display(), names.join(", ")))
}

fn serve(args: &Serve) -> Result<(), Error> {
    let config = load(args.config.clone(), &args.overrides)?;
    log();
    keep_memory_private();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = stop_signals()?;
        let hangup = signal(SignalKind::hangup())?;
        let daemon = Daemon::bind(&config, Clock::System)?;
        say(&greeting(&config, &daemon.endpoints()))?;
        let reloading = tokio::spawn(reload_at(hangup, daemon.reload(), args.clone()));
        let ended = daemon.run(stop).await;
        reloading.abort();
        ended
    })
}

/// No core file has the secrets of a fleet in it, and no other process of this user reads them (prctl(2),
/// PR_SET_DUMPABLE).
fn keep_memory_private() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let private =
        setrlimit(Resource::Core, none).and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable));
    if let Err(err) = private {
        tracing::warn!(%err, "cannot switch core files off");
    }
}

/// Loads contexts anew at every SIGHUP. What is wrong is said, and the daemon goes on as it was.
async fn reload_at(mut hangup: Signal, reload: Reload, args: Serve) {
    while hangup.recv().await.is_some() {
        match load(args.config.clone(), &args.overrides).and_then(|config| reload.apply(&config)) {
            Ok(contexts) => tracing::info!(contexts, "configuration loaded anew"),
            Err(err) => tracing::error!(%err, "the new configuration is not used"),
        }
    }
}

fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if io::stderr().is_terminal() {
        builder.init();
    } else {
        builder.json().init();
    }
}

fn say(text: &str) -> Result<(), Error> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Where it listens, and what to type first.
fn greeting(config: &Config, endpoints: &[Endpoint]) -> String {
    let mut text = format!("tls-sessiond {}\n", env!("CARGO_PKG_VERSION"));
    let mut first = None;
    for endpoint in endpoints {
        let call = match endpoint {
            Endpoint::Tcp(address) => {
                text += &format!("listening on tcp://{address}\n");
                format!("grpcurl -plaintext {address} list")
            }
            Endpoint::Tls(address) => {
                text += &format!("listening on tls://{address}\n");
                continue;
            }
            Endpoint::Systemd => continue,
            Endpoint::Unix { path, .. } => {
                text += &format!("listening on unix://{}\n", path.display());
                format!("grpcurl -plaintext -unix -authority localhost {} list", path.display())
            }
        };
        first.get_or_insert(call);
    }
    for context in config.contexts.iter().filter(|context| context.self_made) {
        text += &format!(
            "context `{}` has a certificate for localhost that was made now and ends with this process\n",
            context.name
        );
    }
    text + &first.map(|call| format!("try: {call}\n")).unwrap_or_default()
}

/// Ready at the first SIGTERM or SIGINT. A second one ends the process at once.
fn stop_signals() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        next(&mut terminate, &mut interrupt).await;
        tokio::spawn(async move {
            let signal = next(&mut terminate, &mut interrupt).await;
            std::process::exit(128 + signal.as_raw_value());
        });
    })
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> SignalKind {
    tokio::select! {
        _ = terminate.recv() => SignalKind::terminate(),
        _ = interrupt.recv() => SignalKind::interrupt(),
    }
}
