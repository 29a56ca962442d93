//! Requests of HTTP/1.1 to an address of this host.

use std::{fmt, future::poll_fn, pin::pin};

use http_body::Body as _;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tonic::{
    body::Body,
    codegen::http::{Request, header},
    transport::Uri,
};

use super::address::is_loopback;

/// A server on this host that speaks HTTP.
pub(super) struct LocalServer {
    authority: String,
    client: Client<HttpConnector, Body>,
}

impl LocalServer {
    /// Parses `http://HOST:PORT`, with or without a slash at the end. `None`: it has another form, or
    /// is not on this host.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let host = uri.host()?.trim_matches(&['[', ']'][..]);
        let is_plain = uri.scheme_str() == Some("http")
            && is_loopback(host)
            && uri.path() == "/"
            && uri.query().is_none();
        let authority = uri.authority().filter(|_| is_plain)?.to_string();
        uri.port_u16()?;
        Some(Self {
            authority,
            client: Client::builder(TokioExecutor::new()).build_http(),
        })
    }

    /// Returns the status of a page and its text, which has at most `max` bytes. A longer text is an
    /// error.
    ///
    /// # Errors
    /// Says in a few words what is wrong with the server, which the caller names.
    pub(super) async fn get(&self, path: &str, max: usize) -> Result<(u16, Vec<u8>), String> {
        let page: Uri = format!("http://{}{path}", self.authority)
            .parse()
            .map_err(|_| "invalid address".to_owned())?;
        // The admin address of this program answers no other Host than this host.
        let request = Request::get(page)
            .header(header::HOST, "localhost")
            .body(Body::empty())
            .map_err(|_| "invalid address".to_owned())?;
        let answer = self.client.request(request).await;
        let answer = answer.map_err(|_| "it does not answer".to_owned())?;
        let status = answer.status().as_u16();
        let mut body = pin!(answer.into_body());
        let mut text = Vec::new();
        while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            let frame = frame.map_err(|_| "its answer is cut".to_owned())?;
            if let Ok(piece) = frame.into_data() {
                text.extend_from_slice(&piece);
            }
            if text.len() > max {
                return Err("its answer is too long".into());
            }
        }
        Ok((status, text))
    }
}

impl fmt::Display for LocalServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_on_this_host() {
        for good in [
            "http://127.0.0.1:9901",
            "http://localhost:1/",
            "http://[::1]:9",
        ] {
            assert!(LocalServer::parse(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1:9901",
            "https://127.0.0.1:1",
            "http://10.0.0.1:1",
            "http://127.0.0.1",
            "http://127.0.0.1:1/x",
            "http://127.0.0.1:1/?x",
        ] {
            assert!(LocalServer::parse(bad).is_none(), "{bad}");
        }
    }
}
