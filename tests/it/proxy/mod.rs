//! `tls-sessiond proxy` with real backends and real clients: nginx and Python's http.server behind three proxies with one daemon,
//! and clients that move from proxy to proxy.
//!
//! * `child`: processes that end with this one
//! * `fleet`: the daemon, the backends and the proxies, which are started once for all tests
//! * `lane`: the part of the fleet that belongs to one test, and what its proxies have counted
//! * `switch`: one port in front of three proxies
//! * the other files: the tests, by client

mod browser;
mod certificates;
mod child;
mod curl;
mod fleet;
mod gnutls;
mod go;
mod http2;
mod java;
mod lane;
mod openssl;
mod switch;
mod websocket;

/// The versions of TLS, as the metrics have them, with the option of openssl.
const VERSIONS: [(&str, &str); 2] = [("1.2", "-tls1_2"), ("1.3", "-tls1_3")];
/// The page of nginx over HTTP/1.1, and over HTTP/2.
const NGINX: &str = "a page of nginx over HTTP/1.1";
const NGINX_H2: &str = "a page of nginx over HTTP/2.0";
/// The page of Python's http.server.
const PYTHON: &str = "a page of http.server";

/// Returns a file of tests/clients, for the program that runs it.
fn script(name: &str) -> String {
    format!("{}/tests/clients/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Returns a folder that tests/peers.sh filled.
fn peers(name: &str) -> String {
    format!("{}/.peers/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Reads one line of a client for each connection. `line` makes the line for a connection that was resumed, or was not. Returns
/// whether each was resumed.
fn resumed(said: &str, line: impl Fn(bool) -> String) -> Vec<bool> {
    let lines = said.lines();
    lines
        .map(|said| {
            let is_resumed = said == line(true);
            assert!(is_resumed || said == line(false), "{said}");
            is_resumed
        })
        .collect()
}
