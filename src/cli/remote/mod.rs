//! Commands that call a daemon over gRPC.
//!
//! * `address`, `tls`, `socket`, `channel`: the way to the daemon
//! * `failure`: why a command fails, and its exit status
//! * `http`: requests to a program of this host that speaks HTTP
//! * `printer`, `screen`, `yaml`, `message`, `words`, `text`: the forms of an answer
//! * `id`: ids as a person writes them
//! * `confirmation`: questions to a person before something that cannot be undone
//! * a file for each group of commands

use std::{ffi::OsString, io, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use tls_sessiond_proto::{Role, admin_service_client::AdminServiceClient};
use tonic::transport::Channel;

use super::say;
use crate::config;

mod address;
mod channel;
mod configuration;
mod confirmation;
mod connections;
mod contexts;
mod doctor;
mod failure;
mod health;
mod http;
mod id;
mod keys;
mod message;
mod printer;
mod recent;
mod running;
mod screen;
mod sessions;
mod socket;
mod status;
mod text;
mod tls;
mod top;
mod words;
mod yaml;

use address::DaemonAddress;
use channel::RemoteDaemon;
use failure::Failure;
use printer::{ColorWhen, OutputFormat, Printer};
use tls::ClientFiles;

/// Time limit of connecting and of each call, without `--timeout`.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How to reach the daemon, and how to print its answers.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of commands that call a daemon")]
pub(super) struct RemoteOptions {
    /// The address of the daemon: tcp://HOST:PORT to this host, tls://HOST:PORT, or unix:///PATH.
    /// http:// and https:// mean tcp:// and tls://.
    /// Default: unix:///run/tls-sessiond/api.sock if it exists, else tcp://127.0.0.1:50551.
    // Any value of the variable parses, because `serve` ignores it.
    #[arg(
        long,
        value_name = "URL",
        env = "TLS_SESSIOND_ADDRESS",
        global = true,
        hide_env_values = true
    )]
    address: Option<OsString>,
    #[command(flatten)]
    files: ClientFiles,
    /// Time limit of connecting and of each call: 500ms, 2s. Default: 10s, for health 1s in all.
    #[arg(long, value_name = "DURATION", value_parser = timeout, global = true)]
    timeout: Option<Duration>,
    /// The form of answers.
    #[arg(
        long,
        short,
        value_name = "FORM",
        value_enum,
        default_value = "table",
        global = true
    )]
    output: OutputFormat,
    /// When to colour words for states.
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        default_value = "auto",
        global = true
    )]
    color: ColorWhen,
}

/// How many objects a list shows, without `--limit`.
const LIST_MAX: usize = 1000;
/// The size of a page of a list: the largest that the daemon allows.
const PAGE: i32 = 1000;
/// The largest answer in bytes. A page of sessions has at most 1000, each with 8 KiB of names.
const MESSAGE_MAX: usize = 32 << 20;

/// The names of [`RemoteOptions`].
pub(super) const OPTIONS: [&str; 8] = [
    "address",
    "ca",
    "certificate",
    "key",
    "tls_server_name",
    "timeout",
    "output",
    "color",
];

/// The options that `health --proxy` does not use.
const IGNORED_BY_PROXY_HEALTH: [&str; 7] = [
    "config",
    "set",
    "address",
    "ca",
    "certificate",
    "key",
    "tls_server_name",
];

/// Parses a duration of the configuration that is more than 0.
fn timeout(text: &str) -> Result<Duration, String> {
    let duration = config::duration(text).map_err(|err| err.to_string())?;
    if duration.is_zero() {
        return Err("expected more than 0".into());
    }
    Ok(duration)
}

/// A command that calls a daemon.
#[derive(Debug, Subcommand)]
pub(super) enum RemoteCommand {
    /// Show the state of the daemon on one screen: contexts, connections, owners, the process,
    /// certificates and the store.
    #[command(after_long_help = status::EXAMPLES)]
    Status,
    /// Show the state of the daemon as a live screen in the terminal, with rates and sorted tables.
    #[command(after_long_help = top::EXAMPLES)]
    Top(top::TopArgs),
    /// Ask whether the daemon (grpc.health.v1) or a proxy accepts work, for probes.
    #[command(after_long_help = health::EXAMPLES)]
    Health(health::HealthArgs),
    /// List, show and free connections.
    #[command(subcommand, after_long_help = connections::EXAMPLES)]
    Connections(connections::ConnectionsCommand),
    /// List, show, explain, remove, revoke and watch sessions.
    #[command(subcommand, after_long_help = sessions::EXAMPLES)]
    Sessions(sessions::SessionsCommand),
    /// List and show contexts.
    #[command(subcommand, after_long_help = contexts::EXAMPLES)]
    Contexts(contexts::ContextsCommand),
    /// Show, rotate and fence rings of session ticket keys, and give them to a server (agent).
    #[command(subcommand, after_long_help = keys::EXAMPLES)]
    Keys(keys::KeysCommand),
    /// Show recent lookups that found nothing to resume, newest first.
    #[command(after_long_help = recent::MISSES_EXAMPLES)]
    Misses(recent::MissesArgs),
    /// Show recent handshakes that failed, newest first.
    #[command(after_long_help = recent::FAILURES_EXAMPLES)]
    Failures(recent::FailuresArgs),
    /// Show the identities with the most connections.
    #[command(after_long_help = status::OWNERS_EXAMPLES)]
    Owners,
    /// Say in words what is wrong with the daemon and what to do, worst first.
    #[command(after_long_help = doctor::EXAMPLES)]
    Doctor(doctor::DoctorArgs),
    /// Reload the configuration, as SIGHUP does, and show what changed.
    #[command(after_long_help = running::RELOAD_EXAMPLES)]
    Reload,
    /// Stop the daemon after a drain, as SIGTERM does.
    #[command(after_long_help = running::DRAIN_EXAMPLES)]
    Drain,
    /// Show or set the level of the log, until the next reload.
    #[command(after_long_help = running::LOG_LEVEL_EXAMPLES)]
    LogLevel(running::LogLevelArgs),
}

impl RemoteCommand {
    /// Returns the names of the options that a command would ignore because it calls no daemon.
    pub(super) fn ignored_options(&self) -> Option<&'static [&'static str]> {
        match self {
            Self::Health(args) if args.asks_a_proxy() => Some(&IGNORED_BY_PROXY_HEALTH),
            _ => None,
        }
    }

    async fn run(self, console: &Console) -> Result<Verdict, Failure> {
        match self {
            Self::Status => status::status(console).await,
            Self::Top(args) => top::top(console, args).await,
            Self::Health(args) => health::health(console, &args).await,
            Self::Connections(command) => command.run(console).await,
            Self::Sessions(command) => command.run(console).await,
            Self::Contexts(command) => command.run(console).await,
            Self::Keys(command) => command.run(console).await,
            Self::Misses(args) => recent::misses(console, args).await,
            Self::Failures(args) => recent::failures(console, args).await,
            Self::Owners => status::owners(console).await,
            Self::Doctor(args) => doctor::doctor(console, args).await,
            Self::Reload => running::reload(console).await,
            Self::Drain => running::drain(console).await,
            Self::LogLevel(args) => running::log_level(console, args).await,
        }
    }
}

/// The answer of a daemon, as an exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Status 0.
    Yes,
    /// Status 1: no such object, or unhealthy. stdout says so.
    No,
}

/// One run of a command: its options and its printer.
struct Console {
    options: RemoteOptions,
    printer: Printer,
}

impl Console {
    /// Connects to the daemon that the options name.
    ///
    /// # Errors
    /// As [`RemoteDaemon::connect`], or the options are wrong.
    async fn daemon(&self) -> Result<RemoteDaemon, Failure> {
        self.daemon_within(TIMEOUT).await
    }

    /// Connects as [`Self::daemon`] does, with another default of `--timeout`.
    async fn daemon_within(&self, default: Duration) -> Result<RemoteDaemon, Failure> {
        let limit = self.options.timeout.unwrap_or(default);
        RemoteDaemon::connect(self.address()?, &self.options.files, limit).await
    }

    /// Returns the address of the daemon.
    fn address(&self) -> Result<DaemonAddress, Failure> {
        match self.options.address.as_deref() {
            None => Ok(DaemonAddress::default_of_this_host()),
            Some(text) if text.is_empty() => Ok(DaemonAddress::default_of_this_host()),
            Some(text) => text.to_string_lossy().parse(),
        }
    }
}

/// Returns the stub of AdminService.
fn admin(daemon: &RemoteDaemon) -> AdminServiceClient<Channel> {
    AdminServiceClient::new(daemon.channel())
}

/// The options that select the context and the role of sessions or connections.
#[derive(Clone, Debug, Args)]
struct Selection {
    /// Only those of this context.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Only those of this role.
    #[arg(long, value_name = "ROLE", value_parser = words::parser::<Role>())]
    role: Option<Role>,
}

impl Selection {
    fn has_role(&self, role: i32) -> bool {
        self.role.is_none_or(|wanted| role == i32::from(wanted))
    }
}

/// Runs a command of this module.
pub(super) fn run(command: RemoteCommand, options: RemoteOptions) -> ExitCode {
    run_with(options, async |console| command.run(console).await)
}

/// Prints the configuration that the daemon runs.
pub(super) fn print_configuration(options: RemoteOptions) -> ExitCode {
    run_with(options, configuration::print)
}

/// Runs a call with these options, and says on stderr why it failed.
fn run_with(
    options: RemoteOptions,
    call: impl AsyncFnOnce(&Console) -> Result<Verdict, Failure>,
) -> ExitCode {
    let called = Printer::new(options.output, options.color).and_then(|printer| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let console = Console { options, printer };
        let called = runtime.block_on(call(&console));
        // A name that is being resolved must not delay the end.
        runtime.shutdown_background();
        called
    });
    match called {
        Ok(Verdict::Yes) => ExitCode::SUCCESS,
        Ok(Verdict::No) => ExitCode::FAILURE,
        Err(failure) => {
            let status = failure.exit_status();
            if status != 0 {
                tell(&failure);
            }
            ExitCode::from(status)
        }
    }
}

/// Writes a failure to stderr.
fn tell(failure: &Failure) {
    let text = failure.to_string();
    // Only these failures quote an argument, and one of them may be a key that was pasted. Others
    // quote ids of sessions, which look like keys.
    if matches!(failure, Failure::Usage(_)) && config::holds_key(&text) {
        say(
            io::stderr(),
            "tls-sessiond: an argument looks like a private key; see --help\n",
        );
    } else {
        say(io::stderr(), &format!("tls-sessiond: {text}\n"));
    }
}
