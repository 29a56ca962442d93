//! Revokes all sessions that a selector matches, after a confirmation.

use clap::Args;
use prost_types::Timestamp;
use tls_sessiond_proto::{self as pb, revoke_sessions_request::Selector};

use super::{
    super::{Console, Verdict, confirmation::answer_to, failure::Failure, words},
    stub,
};

pub(super) const EXAMPLES: &str = "\
Examples:
  tls-sessiond sessions revoke --uri spiffe://example.org/ns/web/one
  tls-sessiond sessions revoke --dns-name a.example.org --context web --yes
  tls-sessiond sessions revoke --certificate-sha256 9C:41:F0:...
  tls-sessiond sessions revoke --all --before 2026-01-31T12:00:00Z --yes

On a terminal the command asks first. Without a terminal it needs --yes.";

/// Which sessions to revoke.
#[derive(Debug, Args)]
pub(in crate::cli) struct RevokeArgs {
    #[command(flatten)]
    selector: SelectorArgs,
    /// Only in the caches of this context, with the sessions of all contexts that share them.
    /// Without it, in every context.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    context: String,
    /// Only sessions that authenticated before this time (RFC 3339). Without it, before now.
    #[arg(long, value_name = "TIME")]
    before: Option<Timestamp>,
    /// Revoke without asking.
    #[arg(long)]
    yes: bool,
}

/// Exactly one selector.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct SelectorArgs {
    /// All sessions.
    #[arg(long)]
    all: bool,
    /// Sessions of peers with this certificate: the SHA-256 of its DER form, in hex.
    #[arg(long, value_name = "HEX")]
    certificate_sha256: Option<String>,
    /// Sessions of peers with this URI, a SPIFFE id for example. Compared exactly.
    #[arg(long, value_name = "URI")]
    uri: Option<String>,
    /// Sessions of peers with this DNS name.
    #[arg(long, value_name = "NAME")]
    dns_name: Option<String>,
    /// Sessions that were made under this server name.
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
}

impl SelectorArgs {
    /// Returns the selector, and what it selects in words.
    fn into_selector(self) -> (Selector, String) {
        let Self {
            all: _,
            certificate_sha256,
            uri,
            dns_name,
            server_name,
        } = self;
        if let Some(digest) = certificate_sha256 {
            let words = format!("of peers with the certificate {digest}");
            (Selector::CertificateSha256(digest), words)
        } else if let Some(uri) = uri {
            let words = format!("of peers with the URI {uri}");
            (Selector::Uri(uri), words)
        } else if let Some(name) = dns_name {
            let words = format!("of peers with the DNS name {name}");
            (Selector::DnsName(name), words)
        } else if let Some(name) = server_name {
            let words = format!("with the server name {name}");
            (Selector::ServerName(name), words)
        } else {
            (Selector::All(true), "of all peers".into())
        }
    }
}

pub(super) async fn revoke(console: &Console, args: RevokeArgs) -> Result<Verdict, Failure> {
    let (selector, selected) = args.selector.into_selector();
    if !args.yes {
        let place = match &*args.context {
            "" => "every context".to_owned(),
            name => format!("context {name}"),
        };
        let question = format!("Revoke the sessions {selected} in {place}? [y/N]");
        if !is_yes(&answer_to(&question, "revoke")?) {
            return Err(Failure::No("nothing was revoked".into()));
        }
    }
    let daemon = console.daemon().await?;
    let request = pb::RevokeSessionsRequest {
        context: args.context,
        selector: Some(selector),
        before: args.before,
    };
    let answer = daemon.call(stub(&daemon).revoke_sessions(request)).await?;
    console.printer.message(&answer, |screen| {
        screen.line(format!(
            "revoked the sessions {selected} that authenticated before {}; {} were removed at once",
            words::precise_time(answer.before.as_ref()),
            answer.removed
        ));
    })?;
    Ok(Verdict::Yes)
}

/// Returns whether a line confirms: `y` or `yes`.
fn is_yes(answer: &str) -> bool {
    matches!(&*answer.trim().to_ascii_lowercase(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::is_yes;

    #[test]
    fn only_y_and_yes_confirm() {
        assert!(is_yes("y\n") && is_yes(" YES\r\n"));
        for answer in ["", "\n", "n\n", "yy\n", "yes please\n"] {
            assert!(!is_yes(answer), "{answer:?}");
        }
    }
}
