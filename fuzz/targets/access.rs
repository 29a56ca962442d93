//! Access rules: identities in a rule, names in a certificate, and which of them are equal.
//!
//! ```text
//! input: the identity of a rule, a subject as text, a URI and a DNS name, each after its length in
//!   two bytes; then a subject in DER
//! ```

use std::{cell::OnceCell, fs, path::Path};

use tempfile::TempDir;
use tls_sessiond::{
    api::access::{Identity, Owner, Peer},
    config::Config,
};
use tls_sessiond_core::{
    access::{DistinguishedName, IdentityPattern, Text},
    session::PeerIdentity,
};
use tls_sessiond_types::server_name::ServerName;

use super::choices::Choices;

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

pub(crate) fn run(data: &[u8]) {
    let mut choices = Choices(data);
    let mut text = || String::from_utf8_lossy(choices.vector()).into_owned();
    let (rule, subject, uri, dns) = (text(), text(), text(), text());
    let from_der = DistinguishedName::from_der(choices.0);
    let written = DistinguishedName::parse(&subject).ok();
    for name in [&from_der, &written].into_iter().flatten() {
        one_spelling(name);
    }
    if let (Some(one), Some(other)) = (&from_der, &written) {
        assert_eq!(
            one == other,
            one.to_string() == other.to_string(),
            "equal names have one spelling"
        );
    }
    owned(written.as_ref(), &subject, &uri, &dns);
    let pattern = FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| tempfile::tempdir().expect("a folder for the file"));
        rule_of(&folder.path().join("rules.toml"), &rule)
    });
    match pattern {
        None => {}
        Some(IdentityPattern::Local) => assert_eq!(rule, "local"),
        Some(IdentityPattern::Uid(id)) => assert_number(&rule, "uid:", id),
        Some(IdentityPattern::Gid(id)) => assert_number(&rule, "gid:", id),
        Some(IdentityPattern::Uri(text)) => {
            let wanted = rule.strip_prefix("uri:").unwrap_or(&rule);
            assert_eq!(text.matches(&uri), below(wanted, &uri), "{rule} {uri}");
            assert!(matches!(text, Text::Exactly(_) | Text::Below(_)));
        }
        Some(IdentityPattern::Dns(text)) => {
            let wanted = ServerName::new(&rule["dns:".len()..]).to_string();
            assert_eq!(text.matches(&dns), one_label(&wanted, &dns), "{rule} {dns}");
        }
        Some(IdentityPattern::Subject(wanted)) => {
            one_spelling(&wanted);
            assert_eq!(
                DistinguishedName::parse(&rule["subject:".len()..]).as_ref(),
                Ok(&wanted)
            );
        }
    }
}

/// Checks that a name has one spelling, which is parsed as the same name.
fn one_spelling(name: &DistinguishedName) {
    let written = name.to_string();
    assert_eq!(
        DistinguishedName::parse(&written).as_ref(),
        Ok(name),
        "{written}"
    );
    assert!(
        !written.chars().any(char::is_control),
        "{written:?} would break a line of the log"
    );
    assert_eq!(name.is_empty(), written.is_empty());
}

/// Checks that owners of different names differ, whatever kinds the names are of.
fn owned(name: Option<&DistinguishedName>, subject: &str, uri: &str, dns: &str) {
    let owner = |certificate: PeerIdentity| Peer::certified(&certificate).owner;
    let by_uri = owner(PeerIdentity {
        uris: vec![uri.into()],
        ..PeerIdentity::default()
    });
    let by_dns = owner(PeerIdentity {
        dns_names: vec![dns.into()],
        ..PeerIdentity::default()
    });
    let by_subject = owner(PeerIdentity {
        subject: subject.into(),
        ..PeerIdentity::default()
    });
    assert!(
        by_uri != by_dns && by_uri != by_subject && by_dns != by_subject,
        "{subject} {uri} {dns}"
    );
    let proved = name.filter(|name| !name.is_empty());
    let expected = proved.map_or_else(
        || Peer::certified(&PeerIdentity::default()).owner,
        |name| Owner::of(&Identity::Subject(name.clone())),
    );
    assert_eq!(
        by_subject, expected,
        "an invalid subject proves no identity"
    );
}

/// Returns the identity of a rule, if the rule is valid.
fn rule_of(file: &Path, rule: &str) -> Option<IdentityPattern> {
    let quoted: String = rule
        .chars()
        .map(|c| format!("\\U{:08X}", u32::from(c)))
        .collect();
    let text =
        format!("[[access]]\nidentity = \"{quoted}\"\ncontexts = [\"*\"]\nrole = \"worker\"\n");
    fs::write(file, text).expect("the file can be written");
    match Config::load(Some(file), std::iter::empty(), &[]) {
        Ok(config) => Some(config.access[0].identity.clone()),
        Err(err) => {
            let err = err.to_string();
            assert!(err.contains("rules.toml:2: access[0].identity: "), "{err}");
            None
        }
    }
}

fn assert_number(rule: &str, prefix: &str, id: u32) {
    let digits = rule.strip_prefix(prefix).expect("it has this kind");
    assert_eq!(
        digits.trim_start_matches('+').trim_start_matches('0'),
        id.to_string().trim_start_matches('0')
    );
}

/// Matches character by character, where the daemon compares a prefix.
fn below(wanted: &str, uri: &str) -> bool {
    match wanted.ends_with("/*") {
        true => uri.len() >= wanted.len() && uri.starts_with(&wanted[..wanted.len() - 1]),
        false => uri == wanted,
    }
}

fn one_label(wanted: &str, dns: &str) -> bool {
    let (mut wanted, mut labels) = (wanted.split('.'), dns.split('.'));
    loop {
        match (wanted.next(), labels.next()) {
            (None, None) => return true,
            (Some("*"), Some(label)) if !label.is_empty() => {}
            (Some(wanted), Some(label)) if wanted == label && wanted != "*" => {}
            _ => return false,
        }
    }
}
