//! The command line: serve and check.
//!
//! * `serve`: one run of the daemon, from its signals to its exit status
//! * `process`: what the process asks of the system before it serves

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

/// A daemon that holds TLS connection objects and one shared session cache, behind gRPC.
///
/// Workers carry bytes, the daemon runs TLS, and every returning client resumes wherever it lands. A session whose
/// connection was not closed is bad and is removed (SSL_clear(3)).
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
  tls-sessiond --config /etc/tls-sessiond.toml       serve what the file says
  tls-sessiond --set listen.api='[\"tcp://127.0.0.1:6000\"]'
  TLS_SESSIOND__LIMITS__CONNECTIONS=5000 tls-sessiond
  tls-sessiond check /etc/tls-sessiond.toml          say what is wrong with a file, with key and line

First calls:
  grpcurl -plaintext 127.0.0.1:50551 list
  grpcurl -plaintext 127.0.0.1:50551 describe tls.sessiond.v1.ConnectionService
  grpcurl -plaintext -unix -authority localhost /run/tls-sessiond/api.sock list

SIGHUP reloads contexts, access rules, certificates and log.level; an error changes nothing.
SIGTERM and SIGINT drain and stop; a second one ends the process at once.
Exit status: 0 stopped by a signal, 1 failed while running, 2 wrong usage, 78 bad configuration, 128 + N ended at once by a
second signal N.
Logs go to stderr: text on a terminal, JSON otherwise. RUST_LOG=debug goes over log.level; audit lines pass every filter.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve; what happens where no command is given.
    Serve,
    /// Check a configuration and every file it names, as serve does before it binds. Warnings go to stderr and leave the status 0.
    Check {
        /// The configuration file; without it, that of --config.
        file: Option<PathBuf>,
    },
}

#[derive(Clone, Debug, Args)]
struct Options {
    /// The configuration file (TOML). None: built-in defaults.
    #[arg(long, value_name = "FILE", env = "TLS_SESSIOND_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Set one key over the file and the environment; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", global = true)]
    set: Vec<String>,
}

impl Options {
    /// Reads the configuration that they name.
    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.config.as_deref(), config::environment()?.into_iter(), &self.set)
    }
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let Cli { command, options } = match Cli::try_parse() {
        Ok(cli) => cli,
        // The library quotes arguments, and one of them may be a key that was pasted.
        Err(err) if err.use_stderr() && config::holds_key(&err.to_string()) => {
            say(
                io::stderr(),
                "tls-sessiond: an argument looks like a private key, and is not expected; see --help\n",
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
                .error(ErrorKind::MissingRequiredArgument, "check needs a file: tls-sessiond check FILE")
                .exit(),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            say(io::stderr(), &format!("tls-sessiond: {err}\n"));
            match err {
                Error::Config(_) => ExitCode::from(EX_CONFIG),
                Error::Listen(_) | Error::Api(_) | Error::Serve(_) | Error::Panicked => ExitCode::FAILURE,
            }
        }
    }
}

fn check(file: &std::path::Path, set: Vec<String>) -> Result<(), Error> {
    let options = Options { config: Some(file.to_owned()), set };
    let config = options.load()?;
    Log::check(&config.log).map_err(|err| config.audit_error(err))?;
    let prepared = Prepared::read(config)?;
    let warnings = prepared.warnings();
    for warning in &warnings {
        say(io::stderr(), &format!("tls-sessiond: warning: {warning}\n"));
    }
    let contexts = prepared.context_names().join(", ");
    let good = match warnings.len() {
        0 => format!("{}: good; contexts: {contexts}\n", file.display()),
        1 => format!("{}: good, with a warning; contexts: {contexts}\n", file.display()),
        count => format!("{}: good, with {count} warnings; contexts: {contexts}\n", file.display()),
    };
    say(io::stdout(), &good);
    Ok(())
}

/// Writes what can be written. The exit status tells the rest: output that cannot be written is no reason to fail.
fn say(mut to: impl Write, text: &str) {
    drop(to.write_all(text.as_bytes()).and_then(|()| to.flush()));
}
