//! `openssl s_client`, which keeps a session in a file.

use tokio::process::Command;

use super::{NGINX, PYTHON, VERSIONS, lane::Lane};
use crate::process::run;

pub(super) const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// A client with a session in a file.
pub(super) struct Visitor {
    file: String,
    more: Vec<String>,
    version: &'static str,
}

/// A connection of a client.
pub(super) struct Visit {
    pub(super) said: String,
    /// Whether it was resumed. `None`: there was no whole handshake.
    pub(super) resumed: Option<bool>,
}

impl Visitor {
    /// Returns a client without a session. `name` is that of the file. `more`: further arguments of s_client.
    pub(super) fn new(lane: &Lane, name: &str, version: &'static str, more: &[&str]) -> Self {
        Self {
            file: lane.fleet.path(name),
            more: more.iter().map(|&arg| arg.to_owned()).collect(),
            version,
        }
    }

    async fn fetch(&self, address: &str, session: &[&str]) -> Visit {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", address, "-servername", "localhost"]);
        command.args([self.version, "-ign_eof"]).args(&self.more);
        let (said, _) = run(command.args(session), GET).await;
        let resumed = match (said.contains("\nReused, "), said.contains("\nNew, TLSv")) {
            (false, false) => None,
            (reused, _) => Some(reused),
        };
        Visit { said, resumed }
    }

    /// Connects without a session, and keeps the new one.
    pub(super) async fn comes(&self, address: &str) -> Visit {
        self.fetch(address, &["-sess_out", &self.file]).await
    }

    /// Returns with the session, and keeps the newest one.
    pub(super) async fn returns(&self, address: &str) -> Visit {
        let session = ["-sess_in", &self.file, "-sess_out", &self.file];
        self.fetch(address, &session).await
    }

    /// Returns with the session, and keeps it.
    pub(super) async fn tries(&self, address: &str) -> Visit {
        self.fetch(address, &["-sess_in", &self.file]).await
    }

    /// Connects without a session, and keeps none.
    pub(super) async fn passes(&self, address: &str) -> Visit {
        self.fetch(address, &[]).await
    }
}

impl Visit {
    /// Returns whether the connection was resumed. Asserts that it brought a page.
    pub(super) fn brought(&self, page: &str) -> bool {
        assert!(self.said.contains(page), "{}", self.said);
        self.resumed.expect("a handshake")
    }
}

async fn moves(name: &str, page: &str) {
    let lane = Lane::of(name);
    let ca = lane.fleet.path("ca.pem");
    for (version, option) in VERSIONS {
        let trusted = ["-CAfile", &ca, "-verify_return_error"];
        let visitor = Visitor::new(&lane, name, option, &trusted);
        let expected = [false, true, true, true, true, true];
        let visit = async || {
            let mut resumed = vec![visitor.comes(lane.address(0)).await.brought(page)];
            for proxy in [1, 2, 0, 1, 2] {
                resumed.push(visitor.returns(lane.address(proxy)).await.brought(page));
            }
            resumed
        };
        lane.resumes(version, &expected, visit).await;
    }
    lane.all_closed().await;
}

#[tokio::test]
async fn openssl_resumes_at_each_proxy_of_nginx() {
    moves("openssl nginx", NGINX).await;
}

#[tokio::test]
async fn openssl_resumes_at_each_proxy_of_http_server() {
    moves("openssl python", PYTHON).await;
}
