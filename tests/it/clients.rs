//! Third-party gRPC clients: grpcurl, grpcio, grpc-js and grpc-go, over TCP, over a Unix socket and
//! with mutual TLS.
//!
//! Each lists the contexts, makes a connection and frees it, drives another one, and reads the
//! error of a second Free. Three of them are programs in `tests/clients/`.

use std::path::Path;

use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    pki::Authority,
    process::{Process, peer, run},
};

/// The lines that every client prints.
const ANSWERS: [&str; 4] = [
    "contexts default",
    "freed 32",
    // A TLS record of a handshake begins with 22.
    "drive opened ciphertext 22",
    "error NOT_FOUND CONNECTION_NOT_FOUND tls.sessiond.v1",
];
/// The services that reflection lists under its older name (v1alpha), which all clients support.
const SERVICES: &str = "services envoy.service.secret.v3.SecretDiscoveryService grpc.health.v1.Health grpc.reflection.v1.ServerReflection grpc.reflection.v1alpha.ServerReflection tls.sessiond.v1.AdminService tls.sessiond.v1.ConnectionService \
    tls.sessiond.v1.ContextService tls.sessiond.v1.SessionService tls.sessiond.v1.TicketKeyService tls.sessiond.v1.WorkerService";

/// A daemon that listens on TCP, on a Unix socket and with mutual TLS.
struct Daemon {
    _process: Process,
    folder: TempDir,
    tcp: String,
    unix: String,
    tls: String,
}

impl Daemon {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("workers");
        std::fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
        authority
            .leaf(&["localhost"])
            .write(folder.path(), "daemon");
        authority
            .leaf(&["spiffe://example.org/ns/web/one"])
            .write(folder.path(), "web");
        let socket = folder.path().join("api.sock").display().to_string();
        let text = format!(
            "[listen]\napi = [\"tcp://127.0.0.1:0\", \"unix://{socket}\", \"tls://127.0.0.1:0\"]\n\
             [listen.tls]\ncertificate = \"daemon.crt\"\nkey = \"daemon.key\"\nclient_ca = \"ca.pem\"\n\
             [[access]]\nidentity = \"local\"\ncontexts = [\"*\"]\nrole = \"worker\"\n\
             [[access]]\nidentity = \"spiffe://example.org/ns/web/*\"\ncontexts = [\"*\"]\nrole = \"worker\"\n"
        );
        let file = folder.path().join("daemon.toml");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
        let mut process = Process::start(command.arg("--config").arg(&file));
        let tcp = process.says("listening on tcp://").await;
        let unix = process.says("listening on unix://").await;
        let tls = process
            .says("listening on tls://")
            .await
            .replace("127.0.0.1", "localhost");
        Self {
            _process: process,
            folder,
            tcp,
            unix,
            tls,
        }
    }

    fn folder(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    /// Returns the three listeners as arguments of the programs in `tests/clients/`.
    fn ways(&self) -> [Vec<&str>; 3] {
        [
            vec!["tcp", &self.tcp],
            vec!["unix", &self.unix],
            vec!["tls", &self.tls, self.folder()],
        ]
    }

    /// Returns the three listeners as arguments of grpcurl.
    fn grpcurl(&self) -> [Vec<String>; 3] {
        let pem = |option: &str, name: &str| [option.into(), format!("{}/{name}", self.folder())];
        let tls = [
            pem("-cacert", "ca.pem"),
            pem("-cert", "web.crt"),
            pem("-key", "web.key"),
        ]
        .concat();
        [
            vec!["-plaintext".into(), self.tcp.clone()],
            ["-plaintext", "-unix", "-authority", "localhost", &self.unix]
                .map(str::to_owned)
                .to_vec(),
            [tls, vec![self.tls.clone()]].concat(),
        ]
    }
}

fn program(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(name)
        .display()
        .to_string()
}

/// Returns the command of the grpcio client, which tests/peers.sh installed.
fn python() -> Command {
    let mut command = peer("../venv/bin/python");
    command.arg(program("client.py"));
    command
}

fn node() -> Command {
    let mut command = Command::new("node");
    command.env(
        "NODE_PATH",
        Path::new(env!("CARGO_MANIFEST_DIR")).join(".peers/node_modules"),
    );
    command
        .arg(program("client.js"))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("proto"));
    command
}

/// Runs a client that must succeed. Returns its lines.
async fn lines(command: &mut Command) -> Vec<String> {
    let (said, good) = run(command, "").await;
    assert!(good, "{said}");
    said.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn python_grpcio_works_over_tcp_unix_and_mutual_tls() {
    let daemon = Daemon::start().await;
    for mut way in daemon.ways() {
        if way[0] == "unix" {
            // docs/workers.md tells to set the authority: without it the call fails.
            let (said, good) = run(python().args(&way), "").await;
            assert!(
                !good && said.contains("RST_STREAM"),
                "no authority is needed now: {said}"
            );
            way.push("localhost");
        }
        let said = lines(python().args(&way)).await;
        assert_eq!(said[0], SERVICES);
        assert_eq!(said[1..], ANSWERS, "{way:?}");
    }
}

#[tokio::test]
async fn node_grpc_js_works_over_tcp_unix_and_mutual_tls() {
    let daemon = Daemon::start().await;
    for way in daemon.ways() {
        assert_eq!(lines(node().args(&way)).await, ANSWERS, "{way:?}");
    }
}

#[tokio::test]
async fn go_grpc_works_over_tcp_unix_and_mutual_tls() {
    let daemon = Daemon::start().await;
    for way in daemon.ways() {
        let said = lines(peer("grpc-go").args(&way)).await;
        assert_eq!(said[0], SERVICES);
        // Go spells status codes differently.
        let said: Vec<_> = said[1..]
            .iter()
            .map(|line| line.replace("NotFound", "NOT_FOUND"))
            .collect();
        assert_eq!(said, ANSWERS, "{way:?}");
    }
}

#[tokio::test]
async fn grpcurl_works_over_tcp_unix_and_mutual_tls() {
    let daemon = Daemon::start().await;
    for way in daemon.grpcurl() {
        let call = async |method: &str, request: &str| {
            let (address, options) = way.split_last().unwrap();
            let mut command = peer("grpcurl");
            // Ten times the duration on a busy machine. The call has no other time limit.
            command
                .args(options)
                .args(["-max-time", "20", "-d", request, address]);
            let (said, good) = run(command.arg(method), "").await;
            (said.split_whitespace().collect::<Vec<_>>().join(" "), good)
        };
        let (said, good) = call("tls.sessiond.v1.ContextService/ListContexts", "").await;
        assert!(
            good && said.contains("\"name\": \"default\""),
            "{way:?}: {said}"
        );
        let wanted = r#"{"role":"ROLE_CLIENT","server_name":"localhost"}"#;
        let (said, good) = call("tls.sessiond.v1.ConnectionService/New", wanted).await;
        let id = said
            .split("\"id\": \"")
            .nth(1)
            .and_then(|rest| rest.get(..32))
            .unwrap_or_default();
        assert!(good && !id.is_empty(), "{way:?}: {said}");
        let free = format!(r#"{{"connection_id":"{id}"}}"#);
        let (said, good) = call("tls.sessiond.v1.ConnectionService/Free", &free).await;
        assert!(good, "{way:?}: {said}");
        let drive = format!(r#"{{"new":{wanted}}}"#);
        let (said, good) = call("tls.sessiond.v1.ConnectionService/Drive", &drive).await;
        // 0x16 0x03 0x01, in base64.
        assert!(
            good && said.contains("\"opened\"") && said.contains("\"ciphertext\": \"FgMB"),
            "{said}"
        );
        let (said, good) = call("tls.sessiond.v1.ConnectionService/Free", &free).await;
        assert!(!good && said.contains("Code: NotFound"), "{way:?}: {said}");
        assert!(
            said.contains("\"reason\":\"CONNECTION_NOT_FOUND\""),
            "{way:?}: {said}"
        );
    }
}

#[tokio::test]
async fn grpcurl_needs_an_authority_over_a_unix_socket() {
    let daemon = Daemon::start().await;
    let args = [
        "-plaintext",
        "-unix",
        "-max-time",
        "20",
        &daemon.unix,
        "list",
    ];
    let (said, good) = run(peer("grpcurl").args(args), "").await;
    assert!(
        !good && said.contains("PROTOCOL_ERROR"),
        "no authority is needed now: {said}"
    );
}

/// The daemon refuses every client that shows a certificate of another authority.
#[tokio::test]
async fn clients_with_a_foreign_certificate_are_refused() {
    let daemon = Daemon::start().await;
    Authority::new("others")
        .leaf(&["spiffe://example.org/ns/web/one"])
        .write(daemon.folder.path(), "web");
    let [_, _, way] = daemon.ways();
    let mut clients = [python(), node(), peer("grpc-go")];
    for client in &mut clients {
        let (said, good) = run(client.args(&way), "").await;
        assert!(!good && !said.contains("contexts"), "{said}");
    }
    let [_, _, mut options] = daemon.grpcurl();
    options.insert(0, "-max-time=5".into());
    let (said, good) = run(peer("grpcurl").args(&options).arg("list"), "").await;
    assert!(!good && !said.contains("ContextService"), "{said}");
}
