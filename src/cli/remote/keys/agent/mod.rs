//! `keys agent`: one member of a ring, for one server on this host.
//!
//! * `stream`: the membership: joins, takes instructions, acknowledges, joins again
//! * `sink`: a server, as the stream sees it
//! * `order`: the keys of one instruction
//! * `nginx`, `files`, `haproxy`, `envoy`, `program`: the servers
//! * `replace`, `tmpfs`: files that are replaced as a whole, in memory
//! * `pid_file`: signals to a server
//! * `stop`: SIGTERM and SIGINT

use std::{fs, path::PathBuf, time::Duration};

use clap::{ArgGroup, Args};
use tls_sessiond_proto::TicketKeyLayout;

use super::super::{Console, Verdict, failure::Failure, timeout, words};
use crate::{
    cli::process::keep_memory_private,
    config::{Audit, Filter, Level, LogConfig, LogFormat, mode, user_and_group},
    log::Log,
    supervisor::Supervisor,
};

mod envoy;
mod files;
mod haproxy;
mod nginx;
mod order;
mod pid_file;
mod program;
mod replace;
mod sink;
mod stop;
mod stream;
mod tmpfs;

use envoy::Envoy;
use files::{AfterFiles, KeyFiles, PlainFiles};
use haproxy::Haproxy;
use nginx::Nginx;
use pid_file::SignalTo;
use program::Program;
use replace::FileRules;
use sink::Sink;
use stop::Stop;
use stream::Membership;

pub(super) const EXAMPLES: &str = "\
Examples:
  tls-sessiond keys agent --ring web --nginx /run/keys/web --pid-file /run/nginx.pid
  tls-sessiond keys agent --ring web --haproxy /run/keys/web.keys --socket /run/haproxy/admin.sock
  tls-sessiond keys agent --ring web --envoy /run/keys/web.json --admin http://127.0.0.1:9901
  tls-sessiond keys agent --ring web --files /run/keys/web --single --layout 48 --then 'apachectl graceful'
  tls-sessiond keys agent --ring web --files /run/keys/web --signal /run/server.pid:HUP
  tls-sessiond keys agent --ring web --layout 32 --command /usr/local/bin/give-keys --to '10.0.0.7'

The server's configuration:
  nginx    ssl_session_ticket_key /run/keys/web.1; ssl_session_ticket_key /run/keys/web.2;
  HAProxy  bind :443 ssl crt ... tls-ticket-keys /run/keys/web.keys; stats socket /run/haproxy/admin.sock mode 600 level admin
  Envoy    session_ticket_keys_sds_secret_config: the name is that of the ring; path_config_source: /run/keys/web.json

The agent acknowledges the keys that the server runs, not those that it has written:
  --nginx    after SIGHUP, new workers accept, and none of the old ones
  --haproxy  the runtime socket lists exactly these keys
  --envoy    /config_dump shows the version of the file. Without --admin it is a guess, after --settle
  --files    --then COMMAND has ended with status 0. With --signal it is a guess, after --settle
  --command  PROGRAM has ended with status 0. JSON on stdin: ring, encryptEpoch, keys[].epoch, keys[].key (base64)

If the server does not run them, keys status shows why, and the agent tries again. A rotation waits for it.
If the daemon cannot be reached, the server goes on with its keys. SIGTERM: the member leaves the ring.
Start the agent before the server, which needs the files. Needs the role keys (docs/ticket-keys.md).";

/// The server of an agent.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("sink").required(true).multiple(false)
    .args(["nginx", "haproxy", "envoy", "files", "program"]))]
#[command(group = ArgGroup::new("after").multiple(false).args(["then", "signal"]))]
pub(in crate::cli) struct AgentArgs {
    /// Name of the ring.
    #[arg(long, value_name = "NAME")]
    ring: String,
    /// Name of this server in the ring. Two agents with one name end each other's membership.
    /// Default: the name of this host and of the kind of server, as in web-1/nginx.
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
    /// nginx: write PREFIX.1 (encrypts) and PREFIX.2, and reload.
    #[arg(long, value_name = "PREFIX", requires = "pid_file")]
    nginx: Option<PathBuf>,
    /// The pid file of nginx.
    #[arg(long, value_name = "FILE", requires = "nginx")]
    pid_file: Option<PathBuf>,
    /// HAProxy: write FILE, for its next start, and push keys over the runtime socket. FILE is
    /// written as in HAProxy's configuration.
    #[arg(long, value_name = "FILE", requires = "socket")]
    haproxy: Option<PathBuf>,
    /// The runtime socket of HAProxy: `stats socket PATH mode 600 level admin`.
    #[arg(long, value_name = "PATH", requires = "haproxy")]
    socket: Option<PathBuf>,
    /// Envoy: write FILE, a secret that Envoy watches.
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// The admin address of Envoy, as in http://127.0.0.1:9901. Only this host.
    #[arg(long, value_name = "URL", requires = "envoy")]
    admin: Option<String>,
    /// Another server: write PREFIX.1 (encrypts) and PREFIX.2.
    #[arg(long, value_name = "PREFIX", requires = "after")]
    files: Option<PathBuf>,
    /// After --files: run this command with /bin/sh. It must end only when the server runs the keys.
    #[arg(long, value_name = "COMMAND", requires = "files")]
    then: Option<String>,
    /// After --files: send a signal to the process of a pid file. NAME: HUP, USR1 or USR2.
    #[arg(long, value_name = "PIDFILE:NAME", requires = "files")]
    signal: Option<SignalTo>,
    /// Of --files and --command: the server takes one key (Apache, Node). PREFIX.1 alone is written.
    /// Each rotation costs each client one full handshake.
    #[arg(long, conflicts_with_all = ["nginx", "haproxy", "envoy"])]
    single: bool,
    /// Run a program for each instruction, with the keys as JSON on stdin. Takes the rest of the line.
    #[arg(
        long = "command",
        value_names = ["PROGRAM", "ARG"],
        num_args = 1..,
        allow_hyphen_values = true
    )]
    program: Vec<String>,
    /// Bytes of a key: 80 for all, 48 for --nginx, --files and --command, 32 for --command.
    #[arg(
        long,
        value_name = "BYTES",
        value_parser = words::parser::<TicketKeyLayout>(),
        default_value = "80",
        conflicts_with_all = ["haproxy", "envoy"]
    )]
    layout: TicketKeyLayout,
    /// Permissions of files.
    #[arg(long, value_name = "MODE", value_parser = mode, default_value = "0600")]
    mode: u32,
    /// Owner of files: UID:GID, both numbers.
    #[arg(long, value_name = "UID:GID", value_parser = file_owner)]
    owner: Option<(u32, u32)>,
    /// Write files also to a disk. Keys can be read from it later, also after they were replaced.
    #[arg(long)]
    allow_disk: bool,
    /// How long the server may take to run an instruction.
    #[arg(long, value_name = "DURATION", value_parser = timeout, default_value = "10s")]
    wait: Duration,
    /// Where the agent cannot see what the server runs: acknowledge after this time.
    #[arg(long, value_name = "DURATION", value_parser = timeout, default_value = "2s")]
    settle: Duration,
}

impl AgentArgs {
    /// Returns the server.
    ///
    /// # Errors
    /// [`Failure::Usage`]: an option has no meaning for it, or names a disk.
    fn sink(&mut self) -> Result<Sink, Failure> {
        let rules = FileRules {
            mode: self.mode,
            owner: self.owner,
            allow_disk: self.allow_disk,
        };
        let files = |prefix: PathBuf, single| {
            let count = if single { 1 } else { 2 };
            rules.check(&prefix)?;
            Ok::<_, Failure>(KeyFiles {
                prefix,
                count,
                rules: rules.clone(),
            })
        };
        if let (Some(prefix), Some(pid_file)) = (self.nginx.take(), self.pid_file.take()) {
            self.layout_is_not_32("--nginx")?;
            let files = files(prefix, false)?;
            return Ok(Sink::Nginx(Nginx {
                files,
                pid_file,
                wait: self.wait,
            }));
        }
        if let Some(prefix) = self.files.take() {
            self.layout_is_not_32("--files")?;
            let after = match (self.then.take(), self.signal.take()) {
                (Some(command), _) => AfterFiles::Run(Program::shell(&command, self.wait)),
                (None, Some(signal)) => AfterFiles::Signal(signal, self.settle),
                (None, None) => {
                    return Err(Failure::Usage("--files needs --then or --signal".into()));
                }
            };
            let files = files(prefix, self.single)?;
            return Ok(Sink::Files(PlainFiles { files, after }));
        }
        if let (Some(file), Some(socket)) = (self.haproxy.take(), self.socket.take()) {
            rules.check(&file)?;
            return Ok(Sink::Haproxy(Haproxy {
                file,
                socket,
                rules,
            }));
        }
        if let Some(file) = self.envoy.take() {
            let admin = self.admin.as_deref().map(envoy::admin_address);
            let admin = admin.transpose()?;
            rules.check(&file)?;
            let envoy = Envoy::new(file, rules, admin, self.wait, self.settle);
            return Ok(Sink::Envoy(Box::new(envoy)));
        }
        let words = std::mem::take(&mut self.program);
        Ok(Sink::Program(Program::new(words, self.wait)))
    }

    fn layout_is_not_32(&self, option: &str) -> Result<(), Failure> {
        match self.layout {
            TicketKeyLayout::TicketKeyLayout32 => Err(Failure::Usage(format!(
                "--layout 32 has no meaning for {option}: expected 48 or 80"
            ))),
            _ => Ok(()),
        }
    }
}

/// Parses `UID:GID`.
fn file_owner(text: &str) -> Result<(u32, u32), String> {
    let owner = user_and_group(text).map_err(|err| err.to_string())?;
    owner.ok_or_else(|| "expected UID:GID, both numbers".into())
}

/// How long the end waits for lines of the log, and for the service manager.
const FLUSH: Duration = Duration::from_secs(1);

/// Runs an agent until it is told to stop.
pub(super) async fn agent(console: &Console, mut args: AgentArgs) -> Result<Verdict, Failure> {
    let sink = args.sink()?;
    let stop = Stop::begin()?;
    let log = Log::start(&LogConfig {
        filter: Filter {
            own: Level::Info,
            targets: Vec::new(),
        },
        format: LogFormat::Text,
        audit: Audit::Off,
    })?;
    keep_memory_private();
    let member = args.member.unwrap_or_else(|| default_name(&sink));
    let supervisor = Supervisor::of_environment();
    let mut membership = Membership {
        ring: args.ring,
        member,
        layout: args.layout,
        is_single: args.single,
        sink,
        stop,
        supervisor: supervisor.clone(),
        is_ready: false,
        running: Vec::new(),
        encrypts: 0,
    };
    let done = membership.hold(console).await;
    log.flush(FLUSH);
    supervisor.flush(FLUSH);
    done.map(|()| Verdict::Yes)
}

/// Returns the name of this host and of the kind of server.
fn default_name(sink: &Sink) -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "localhost",
        host => host,
    };
    format!("{host}/{}", sink.kind())
}
