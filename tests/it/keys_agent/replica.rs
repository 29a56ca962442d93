//! The servers of a fleet: nginx, HAProxy, Envoy and Go, each at a Unix socket, and how an agent gives them keys.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::process::Command;

use super::{Agent, GET, text, until};
use crate::process::{Process, peer, run};

/// A server of the fleet.
pub(super) struct Replica {
    pub(super) name: String,
    /// Its Unix socket for TLS.
    pub(super) socket: PathBuf,
    kind: Kind,
    pub(super) folder: PathBuf,
    pub(super) process: Option<Process>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Nginx,
    Haproxy,
    /// With the port of its admin address.
    Envoy(u16),
    /// tests/clients/ticket_server.go.
    Go,
}

impl Replica {
    pub(super) fn new(kind: Kind, name: &str, folder: &Path) -> Self {
        let replica = Self {
            name: name.into(),
            socket: folder.join(format!("{name}.tls")),
            kind,
            folder: folder.to_owned(),
            process: None,
        };
        if let Some(configuration) = replica.configuration() {
            fs::write(replica.path("conf"), configuration).unwrap();
        }
        replica
    }

    /// Returns the name of its kind.
    pub(super) fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Nginx => "nginx",
            Kind::Haproxy => "haproxy",
            Kind::Envoy(_) => "envoy",
            Kind::Go => "go",
        }
    }

    pub(super) fn path(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.name))
    }

    /// Returns the content of its configuration file, if it has one.
    fn configuration(&self) -> Option<String> {
        let (socket, folder) = (self.socket.display(), self.folder.display());
        let at = |extension: &str| text(&self.path(extension));
        Some(match self.kind {
            Kind::Nginx => format!(
                "daemon off; pid {}; error_log {}; worker_processes 2; events {{ worker_connections 64; }}\n\
                 http {{ access_log off; server {{ listen unix:{socket} ssl; return 200 hello; keepalive_timeout 0;\n\
                 ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {folder}/tls.crt; ssl_certificate_key {folder}/tls.key;\n\
                 ssl_session_ticket_key {}; ssl_session_ticket_key {}; }} }}\n",
                at("pid"),
                at("err"),
                at("1"),
                at("2"),
            ),
            Kind::Haproxy => format!(
                "global\n stats socket {} mode 600 level admin\ndefaults\n mode http\n timeout client 5s\n timeout server 5s\n\
                 timeout connect 5s\nfrontend f\n bind {socket} ssl crt {folder}/both.pem tls-ticket-keys {}\n\
                 option httpclose\n http-request return status 200\n",
                at("admin"),
                at("keys"),
            ),
            Kind::Envoy(admin) => self.envoy(admin),
            Kind::Go => return None,
        })
    }

    /// Returns the configuration of an Envoy that reads its keys from a file.
    fn envoy(&self, admin: u16) -> String {
        let at = |name: &str| json!({"filename": self.folder.join(name)});
        let extension = "type.googleapis.com/envoy.extensions";
        let tls = json!({
            "@type": format!("{extension}.transport_sockets.tls.v3.DownstreamTlsContext"),
            "common_tls_context": {
                "tls_certificates": [{"certificate_chain": at("tls.crt"), "private_key": at("tls.key")}],
                "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
            },
            "session_ticket_keys_sds_secret_config": {
                "name": "web",
                "sds_config": {"path_config_source": {"path": self.path("keys")}},
            },
        });
        let http = json!({
            "@type": format!("{extension}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "test",
            "delayed_close_timeout": "0s",
            "route_config": {"virtual_hosts": [{
                "name": "all", "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
            }]},
            "http_filters": [{
                "name": "router",
                "typed_config": {"@type": format!("{extension}.filters.http.router.v3.Router")},
            }],
        });
        let configuration = json!({
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
            "static_resources": {"listeners": [{
                "address": {"pipe": {"path": self.socket}},
                "filter_chains": [{
                    "transport_socket": {"name": "tls", "typed_config": tls},
                    "filters": [{"name": "http", "typed_config": http}],
                }],
            }]},
        });
        configuration.to_string()
    }

    /// Starts the server, whose agent runs. It listens when it has its first keys.
    pub(super) async fn start(&mut self) {
        let first = match self.kind {
            Kind::Nginx => Some(self.path("1")),
            Kind::Haproxy | Kind::Envoy(_) => Some(self.path("keys")),
            Kind::Go => None,
        };
        if let Some(first) = first {
            until("the agent writes the first keys", async || first.exists()).await;
        }
        let configuration = self.path("conf");
        let mut command = match self.kind {
            Kind::Nginx => {
                let mut command = Command::new("/usr/sbin/nginx");
                command.arg("-p").arg(&self.folder).arg("-c");
                command.arg(configuration);
                command
            }
            Kind::Haproxy => {
                let mut command = Command::new("/usr/sbin/haproxy");
                command.args(["-db", "-f"]).arg(configuration);
                command
            }
            Kind::Envoy(_) => {
                let mut command = peer("envoy");
                command.args(["--service-node", &self.name, "--service-cluster", "test"]);
                command.args(["--concurrency", "1", "--disable-hot-restart", "-c"]);
                command.arg(configuration);
                command
            }
            Kind::Go => {
                let mut command = peer("ticket-server");
                command.arg(self.path("control")).arg(&self.socket);
                command.args([self.folder.join("tls.crt"), self.folder.join("tls.key")]);
                command
            }
        };
        self.process = Some(Process::start(&mut command));
        until("the server listens", async || self.socket.exists()).await;
    }

    pub(super) fn agent(&self, address: &str) -> Agent {
        let at = |extension: &str| text(&self.path(extension));
        let prefix = text(&self.folder.join(&self.name));
        let args = match self.kind {
            Kind::Nginx => vec!["--nginx".into(), prefix, "--pid-file".into(), at("pid")],
            Kind::Haproxy => vec![
                "--haproxy".into(),
                at("keys"),
                "--socket".into(),
                at("admin"),
            ],
            Kind::Envoy(admin) => vec![
                "--envoy".into(),
                at("keys"),
                "--admin".into(),
                format!("http://127.0.0.1:{admin}"),
            ],
            // It is always late.
            Kind::Go => go(&format!(
                "cat > {} && sleep 0.3 && {}",
                at("keys"),
                self.push()
            )),
        };
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        Agent::start(address, &self.name, &args, &self.folder)
    }

    /// Returns a command that gives the kept keys to a server in Go, and ends when it runs them.
    pub(super) fn push(&self) -> String {
        let at = |extension: &str| text(&self.path(extension));
        format!(
            "curl -sSf --unix-socket {} --data-binary @{} http://keys/",
            at("control"),
            at("keys")
        )
    }

    /// Adds the keys in the files of the server.
    pub(super) fn collect(&self, keys: &mut BTreeSet<Vec<u8>>) {
        match self.kind {
            Kind::Nginx => {
                let files = [self.path("1"), self.path("2")];
                keys.extend(files.iter().filter_map(|file| fs::read(file).ok()));
            }
            Kind::Haproxy => {
                let lines = fs::read_to_string(self.path("keys")).unwrap_or_default();
                keys.extend(lines.lines().map(|line| STANDARD.decode(line).unwrap()));
            }
            Kind::Envoy(_) => {
                let file = fs::read(self.path("keys")).unwrap_or_default();
                let secret: Value = serde_json::from_slice(&file).unwrap_or_default();
                let held = &secret["resources"][0]["session_ticket_keys"]["keys"];
                let held = held.as_array().into_iter().flatten();
                let coded = held.filter_map(|key| key["inline_bytes"].as_str());
                keys.extend(coded.map(|key| STANDARD.decode(key).unwrap()));
            }
            Kind::Go => {
                let file = fs::read(self.path("keys")).unwrap_or_default();
                let given: Value = serde_json::from_slice(&file).unwrap_or_default();
                let held = given["keys"].as_array().into_iter().flatten();
                let coded = held.filter_map(|key| key["key"].as_str());
                keys.extend(coded.map(|key| STANDARD.decode(key).unwrap()));
            }
        }
    }

    /// Makes a connection with OpenSSL. Returns whether it was resumed.
    pub(super) async fn resumes(&self, version: &str, session: [&str; 2]) -> bool {
        let socket = text(&self.socket);
        let args = ["s_client", "-unix", &socket, "-servername", "localhost"];
        let mut command = Command::new("openssl");
        command.args(args).args([version, "-ign_eof"]).args(session);
        let (said, _) = run(&mut command, GET).await;
        let reused = said.contains("\nReused, ");
        assert!(
            reused || said.contains("\nNew, TLSv1"),
            "{}: {said}",
            self.name
        );
        reused
    }
}

/// Stops nginx as its operator does: its workers outlive a master process that is killed.
impl Drop for Replica {
    fn drop(&mut self) {
        let (Kind::Nginx, Some(master)) = (self.kind, &self.process) else {
            return;
        };
        let id = master.id().to_string();
        let told = std::process::Command::new("kill").arg(&id).status();
        // A process that has ended and was not waited for has no command line.
        let runs = || fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|line| !line.is_empty());
        for _ in 0..200 {
            if told.is_err() || !runs() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Returns the arguments of an agent for a server in Go, whose program is a script.
pub(super) fn go(script: &str) -> Vec<String> {
    let words = ["--layout", "32", "--command", "/bin/sh", "-c", script];
    words.map(str::to_owned).to_vec()
}
