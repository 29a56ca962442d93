//! The command line: serve and check.
//!
//! * `serve`: one run of the daemon, from its signals to its exit status
//! * `process`: settings of the process before it serves

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, CommandFactory, Parser, Subcommand, error::ErrorKind};

use crate::{
    config::{self, Config, ConfigError},
    daemon::{Error, Prepared},
    log::Log,
};

mod process;
mod serve;

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
}

const AFTER_HELP: &str = "\
Examples:
  tls-sessiond                                       serve with the built-in defaults
  tls-sessiond --config /etc/tls-sessiond.toml       serve with this configuration
  tls-sessiond --set listen.api='[\"tcp://127.0.0.1:6000\"]'
  TLS_SESSIOND__LIMITS__CONNECTIONS=5000 tls-sessiond
  tls-sessiond check /etc/tls-sessiond.toml          check a file; an error names key and line

First calls:
  grpcurl -plaintext 127.0.0.1:50551 list
  grpcurl -plaintext 127.0.0.1:50551 describe tls.sessiond.v1.ConnectionService
  grpcurl -plaintext -unix -authority localhost /run/tls-sessiond/api.sock list

SIGHUP reloads the configuration and its files; an error changes nothing, and names a key that needs a restart.
SIGTERM and SIGINT stop the daemon after a drain; a second signal ends the process at once.
Exit status: 0 stopped by a signal, 1 cannot listen or failed while running, 2 wrong usage, 78 bad configuration,
128 + N ended at once by a second signal N.
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
}

#[derive(Clone, Debug, Args)]
struct Options {
    /// The configuration file (TOML). Without it, the built-in defaults apply.
    #[arg(long, value_name = "FILE", env = "TLS_SESSIOND_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Set one key; overrides the file and the environment. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", global = true)]
    set: Vec<String>,
}

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
    let Cli { command, options } = match Cli::try_parse() {
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
    let done = match command {
        None | Some(Command::Serve) => serve::serve(&options),
        Some(Command::Check { file }) => match file.or(options.config) {
            Some(file) => check(&file, options.set),
            None => Cli::command()
                .error(
                    ErrorKind::MissingRequiredArgument,
                    "check needs a file: tls-sessiond check FILE",
                )
                .exit(),
        },
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

fn check(file: &std::path::Path, set: Vec<String>) -> Result<(), Error> {
    let options = Options {
        config: Some(file.to_owned()),
        set,
    };
    let config = options.load()?;
    Log::check(&config.log).map_err(|err| config.audit_error(err))?;
    let prepared = Prepared::read(config)?;
    let mut warnings = prepared.warnings();
    let contexts = prepared.context_names().join(", ");
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
