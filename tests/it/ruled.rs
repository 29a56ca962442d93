//! A daemon with access rules, over loopback and mutual TLS.

use std::{fs, path::Path, sync::Arc};

use tempfile::TempDir;
use tokio::{net::TcpStream, process::Command};
use tokio_rustls::TlsConnector;

use crate::{
    doors::{Guest, client, over},
    pki::{Authority, Leaf},
    process::Process,
};

/// The binary, listening on loopback and with mutual TLS.
pub(crate) struct Running {
    pub(crate) process: Process,
    pub(crate) folder: TempDir,
    pub(crate) authority: Authority,
    pub(crate) tcp: String,
    pub(crate) tls: String,
}

/// Returns a rule. Its identity is a TOML string in single quotes, which keeps backslashes.
pub(crate) fn rule(identity: &str, contexts: &str, role: &str) -> String {
    format!("[[access]]\nidentity = '{identity}'\ncontexts = [\"{contexts}\"]\nrole = \"{role}\"\n")
}

pub(crate) fn write_config(folder: &Path, rules: &str) {
    let text = format!(
        "[listen]\napi = [\"tcp://127.0.0.1:0\", \"tls://127.0.0.1:0\"]\n\
         [listen.tls]\ncertificate = \"server.crt\"\nkey = \"server.key\"\nclient_ca = \"ca.pem\"\n{rules}\
         [[context]]\nname = \"default\"\n[[context]]\nname = \"mail\"\n[drain]\ntimeout = \"100ms\"\n"
    );
    fs::write(folder.join("daemon.toml"), text).unwrap();
}

pub(crate) fn prepare(rules: &str) -> (TempDir, Authority) {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("workers");
    authority
        .leaf(&["localhost"])
        .write(folder.path(), "server");
    fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
    fs::write(folder.path().join("ca.key"), authority.key()).unwrap();
    write_config(folder.path(), rules);
    (folder, authority)
}

impl Running {
    /// Starts the daemon with these rules and `local` as an observer.
    pub(crate) async fn with(rules: &str) -> Self {
        let (folder, authority) = prepare(&(rules.to_owned() + &rule("local", "*", "observer")));
        Self::start(folder, authority).await
    }

    pub(crate) async fn start(folder: TempDir, authority: Authority) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
        command
            .arg("--config")
            .arg(folder.path().join("daemon.toml"));
        let mut process = Process::start(&mut command);
        let tcp = process.says("listening on tcp://").await;
        let tls = process.says("listening on tls://").await;
        Self {
            process,
            folder,
            authority,
            tcp,
            tls,
        }
    }

    /// Reloads with these rules and `local` as an observer. The caller waits until they apply.
    pub(crate) async fn reload(&self, rules: &str) {
        write_config(
            self.folder.path(),
            &(rules.to_owned() + &rule("local", "*", "observer")),
        );
        self.process.signal("HUP").await;
    }

    pub(crate) async fn over_tls(&self, leaf: &Leaf) -> Guest {
        let socket = TcpStream::connect(&self.tls).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let connector = TlsConnector::from(Arc::new(client(&self.authority.pem, Some(leaf))));
        let stream = connector
            .connect("localhost".try_into().unwrap(), socket)
            .await
            .unwrap();
        Guest::new(&over(stream).await)
    }

    pub(crate) async fn local(&self) -> Guest {
        Guest::new(&over(TcpStream::connect(&self.tcp).await.unwrap()).await)
    }

    /// Returns the owner of a connection.
    #[cfg(feature = "peers")]
    pub(crate) async fn owner(&self, connection_id: String) -> String {
        let request = tls_sessiond_proto::GetConnectionRequest { connection_id };
        let answer = self
            .local()
            .await
            .connections
            .get_connection(request)
            .await
            .unwrap();
        answer.into_inner().connection.unwrap().owner
    }

    pub(crate) async fn stop(self) {
        self.process.signal("TERM").await;
        assert!(self.process.succeeds().await);
    }
}
