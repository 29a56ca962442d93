//! The command line: serve, proxy, check, and the commands that call a daemon.
//!
//! * `serve`: one run of the daemon, from its signals to its exit status
//! * `proxy`: the same for the proxies
//! * `process`: settings of the process before it serves
//! * `remote`: commands that call a daemon over gRPC
//! * `defaults`: the commented configuration of `config defaults`
//! * `pages`: completion scripts and manual pages

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{
    Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, error::ErrorKind,
    parser::ValueSource,
};

use crate::{
    config::{self, Config, ConfigError},
    daemon::{Error, Prepared},
    log::Log,
};

mod defaults;
mod pages;
mod process;
mod proxy;
mod remote;
mod serve;

use remote::{RemoteCommand, RemoteOptions};

/// Exit status for wrong usage, as clap has it.
const EX_USAGE: u8 = 2;
/// Exit status for a bad configuration: EX_CONFIG of sysexits.h.
const EX_CONFIG: u8 = 78;

/// Holds TLS connection objects and one shared session cache for many workers, and serves them over
/// gRPC.
///
/// Workers carry the bytes of TLS connections, and the daemon runs TLS. A returning client can
/// resume its session at any worker. If a connection ends without being closed, the daemon removes
/// its sessions (SSL_clear(3)).
#[derive(Debug, Parser)]
#[command(version, after_long_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    remote: RemoteOptions,
}

const AFTER_HELP: &str = "\
Examples:
  tls-sessiond                                       serve with the built-in defaults
  tls-sessiond --config /etc/tls-sessiond.toml       serve with this configuration
  tls-sessiond --set listen.api='[\"tcp://127.0.0.1:6000\"]'
  TLS_SESSIOND__LIMITS__CONNECTIONS=5000 tls-sessiond
  tls-sessiond check /etc/tls-sessiond.toml          check a file; an error names key and line
  tls-sessiond status                                show the state of the daemon on this host
  tls-sessiond sessions watch --kind removed,missed  print events of sessions as they happen
  tls-sessiond connections list --output json --address unix:///run/tls-sessiond/api.sock

First calls:
  grpcurl -plaintext 127.0.0.1:50551 list
  grpcurl -plaintext 127.0.0.1:50551 describe tls.sessiond.v1.ConnectionService
  grpcurl -plaintext -unix -authority localhost /run/tls-sessiond/api.sock list

SIGHUP reloads the configuration and its files; an error changes nothing, and names a key that needs a restart.
SIGTERM and SIGINT stop the daemon after a drain; a second signal ends the process at once.
Exit status: 0 stopped by a signal, 1 cannot listen or failed while running, 2 wrong usage, 78 bad configuration,
128 + N ended at once by a second signal N. Commands that call a daemon: 0 done, 1 the call failed or the answer is no,
2 wrong usage, 69 the daemon cannot be reached, 78 a file of --ca, --certificate or --key cannot be used.
Logs go to stderr: text on a terminal, JSON otherwise. RUST_LOG=debug overrides log.level; audit lines pass every filter.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve. This is the default command.
    Serve,
    /// Check a configuration and every file that it names, as serve does at start. Connects to a
    /// shared store, and runs every script there on keys of its own. Warnings go to stderr; the
    /// status stays 0.
    Check {
        /// The configuration file. Without it, the file of --config.
        file: Option<PathBuf>,
    },
    /// Terminate TLS for a backend that speaks plaintext, or originate TLS for local programs, with
    /// sessions that all proxies share. Serves no API.
    #[command(after_long_help = proxy::EXAMPLES)]
    Proxy(Box<proxy::ProxyOptions>),
    #[command(flatten)]
    Remote(RemoteCommand),
    /// Print the configuration that the daemon runs, check a file, or print the defaults.
    #[command(subcommand, after_long_help = CONFIG_EXAMPLES)]
    Config(ConfigCommand),
    /// Print a script with which a shell completes the command line.
    #[command(after_long_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write manual pages: tls-sessiond.1, and one page for each command.
    #[command(after_long_help = MAN_EXAMPLES)]
    Man {
        /// The folder, which is made if it is missing.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

const CONFIG_EXAMPLES: &str = "\
Examples:
  tls-sessiond config defaults > tls-sessiond.toml    every key with its default and a comment
  tls-sessiond config check tls-sessiond.toml
  tls-sessiond config print                           the values of the running daemon, with their origins
  tls-sessiond config print -o json | jq -r .digest";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  tls-sessiond completions bash > /usr/share/bash-completion/completions/tls-sessiond
  tls-sessiond completions zsh > /usr/local/share/zsh/site-functions/_tls-sessiond
  tls-sessiond completions fish > ~/.config/fish/completions/tls-sessiond.fish";

const MAN_EXAMPLES: &str = "\
Examples:
  tls-sessiond man /usr/local/share/man/man1 && man tls-sessiond-sessions-watch";

/// A command about configurations.
#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the configuration that the daemon runs, each value with its origin. Needs the role
    /// admin for all contexts.
    #[command(after_long_help = CONFIG_EXAMPLES)]
    Print,
    /// Check a configuration, as `check` does.
    #[command(after_long_help = CONFIG_EXAMPLES)]
    Check {
        /// The configuration file. Without it, the file of --config.
        file: Option<PathBuf>,
    },
    /// Print a complete configuration: every key with its default and a comment.
    #[command(after_long_help = CONFIG_EXAMPLES)]
    Defaults,
}

/// The shells that `completions` knows.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// How to find the configuration.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of serve and check")]
struct Options {
    /// The configuration file (TOML). Without it, the built-in defaults apply.
    #[arg(long, value_name = "FILE", env = "TLS_SESSIOND_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Set one key; overrides the file and the environment. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", global = true)]
    set: Vec<String>,
}

/// The names of [`Options`].
const LOCAL_OPTIONS: [&str; 2] = ["config", "set"];

impl Options {
    /// Reads the configuration that the options name.
    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(
            self.config.as_deref(),
            config::environment()?.into_iter(),
            &self.set,
        )
    }
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let Cli {
        command,
        options,
        remote: remote_options,
    } = match parse() {
        Ok(cli) => cli,
        // clap quotes arguments, and one of them may be a key that was pasted.
        Err(err) if err.use_stderr() && config::holds_key(&err.to_string()) => {
            say(
                io::stderr(),
                "tls-sessiond: unexpected argument, which looks like a private key; see --help\n",
            );
            return ExitCode::from(EX_USAGE);
        }
        Err(err) => err.exit(),
    };
    let done = match command.unwrap_or(Command::Serve) {
        Command::Serve => serve::serve(&options),
        Command::Proxy(one) => proxy::with_proxy(options, &one)
            .map_err(Error::from)
            .and_then(|options| proxy::run(&options)),
        Command::Check { file } | Command::Config(ConfigCommand::Check { file }) => {
            match file.or(options.config) {
                Some(file) => check(&file, options.set),
                None => Cli::command()
                    .error(
                        ErrorKind::MissingRequiredArgument,
                        "check needs a file: tls-sessiond check FILE",
                    )
                    .exit(),
            }
        }
        Command::Remote(command) => return remote::run(command, remote_options),
        Command::Config(ConfigCommand::Print) => {
            return remote::print_configuration(remote_options);
        }
        Command::Config(ConfigCommand::Defaults) => {
            say(io::stdout(), defaults::file());
            Ok(())
        }
        Command::Completions { shell } => {
            pages::completions(shell);
            Ok(())
        }
        Command::Man { folder } => return manual(&folder),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            say(io::stderr(), &format!("tls-sessiond: {err}\n"));
            match err {
                Error::Config(_) => ExitCode::from(EX_CONFIG),
                Error::Listen(_) | Error::Api(_) | Error::Serve(_) | Error::Panicked => {
                    ExitCode::FAILURE
                }
            }
        }
    }
}

/// Parses the arguments of this process. An option that the command would ignore is an error.
fn parse() -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches()?;
    let cli = Cli::from_arg_matches(&matches)?;
    let of_proxy_health = match &cli.command {
        Some(Command::Remote(command)) => command.ignored_options(),
        _ => None,
    };
    let (ignored, by): (&[_], _) = match (&cli.command, of_proxy_health) {
        (_, Some(ignored)) => (ignored, "health --proxy, which calls no daemon"),
        (Some(Command::Remote(_) | Command::Config(ConfigCommand::Print)), _) => {
            (&LOCAL_OPTIONS, "a command that calls a daemon")
        }
        _ => (&remote::OPTIONS, "this command, which calls no daemon"),
    };
    let is_own = |id: &&str| {
        matches!(cli.command, Some(Command::Proxy(_))) && proxy::SHARED_OPTIONS.contains(id)
    };
    let given =
        |id: &&&str| matches.value_source(id) == Some(ValueSource::CommandLine) && !is_own(id);
    match ignored.iter().find(given) {
        None => Ok(cli),
        Some(option) => Err(Cli::command().error(
            ErrorKind::ArgumentConflict,
            format!("--{} has no meaning for {by}", option.replace('_', "-")),
        )),
    }
}

fn manual(folder: &std::path::Path) -> ExitCode {
    match pages::manual(folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            let text = format!(
                "tls-sessiond: cannot write to {}: {err}\n",
                folder.display()
            );
            say(io::stderr(), &text);
            ExitCode::FAILURE
        }
    }
}

fn check(file: &std::path::Path, set: Vec<String>) -> Result<(), Error> {
    let options = Options {
        config: Some(file.to_owned()),
        set,
    };
    let config = options.load()?;
    Log::check(&config.log).map_err(|err| config.audit_error(err))?;
    let count = config.proxies.len();
    let proxies = crate::proxy::PreparedProxies::check(&config)?;
    let prepared = Prepared::read(config)?;
    let mut warnings = prepared.warnings();
    warnings.extend(proxies);
    let mut contexts = prepared.context_names().join(", ");
    if count > 0 {
        contexts += &format!("; proxies: {count}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    warnings.extend(runtime.block_on(prepared.check_store())?);
    for warning in &warnings {
        say(io::stderr(), &format!("tls-sessiond: warning: {warning}\n"));
    }
    let good = match warnings.len() {
        0 => format!("{}: good; contexts: {contexts}\n", file.display()),
        1 => format!(
            "{}: good, with a warning; contexts: {contexts}\n",
            file.display()
        ),
        count => format!(
            "{}: good, with {count} warnings; contexts: {contexts}\n",
            file.display()
        ),
    };
    say(io::stdout(), &good);
    Ok(())
}

/// Writes a text, and ignores errors. Output that cannot be written does not change the exit
/// status.
fn say(mut to: impl Write, text: &str) {
    drop(to.write_all(text.as_bytes()).and_then(|()| to.flush()));
}
