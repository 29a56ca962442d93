//! The proved identities of a caller, and the owner name of its connection objects.

use std::{fmt, sync::Arc};

use tls_sessiond_core::{
    access::{DistinguishedName, IdentityPattern},
    clock::WallTime,
    session::PeerIdentity,
};

/// A proved identity of a caller. Displays in the syntax of an `[[access]]` rule. Different
/// identities have different texts, because every kind but `local` has its own prefix and a subject
/// is escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A caller over loopback or a Unix socket.
    Local,
    /// The user of a caller over a Unix socket.
    Uid(u32),
    /// The primary group of a caller over a Unix socket.
    Gid(u32),
    /// A URI of the caller's certificate.
    Uri(String),
    /// A DNS name of the caller's certificate, in lower case.
    Dns(String),
    /// The subject of the caller's certificate.
    Subject(DistinguishedName),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Uid(id) => write!(f, "uid:{id}"),
            Self::Gid(id) => write!(f, "gid:{id}"),
            Self::Uri(uri) => write!(f, "uri:{uri}"),
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Subject(subject) => write!(f, "subject:{subject}"),
        }
    }
}

impl Identity {
    pub(crate) fn fits(&self, pattern: &IdentityPattern) -> bool {
        match (self, pattern) {
            (Self::Local, IdentityPattern::Local) => true,
            (Self::Uid(id), IdentityPattern::Uid(wanted))
            | (Self::Gid(id), IdentityPattern::Gid(wanted)) => id == wanted,
            (Self::Uri(name), IdentityPattern::Uri(text))
            | (Self::Dns(name), IdentityPattern::Dns(text)) => text.matches(name),
            (Self::Subject(name), IdentityPattern::Subject(wanted)) => name == wanted,
            _ => false,
        }
    }
}

/// The name that connection objects belong to. It is the text of one identity, or `nobody` for a
/// caller without one. Equal names mean equal identities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner(Arc<str>);

impl Owner {
    /// Returns the owner name of this identity.
    pub fn of(identity: &Identity) -> Self {
        Self(identity.to_string().into())
    }

    fn nobody() -> Self {
        Self("nobody".into())
    }

    /// Returns the name as text, for maps and messages.
    pub fn name(&self) -> &Arc<str> {
        &self.0
    }
}

/// The caller at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The owner of its connection objects.
    pub owner: Owner,
    /// All proved identities.
    pub identities: Vec<Identity>,
    /// When its certificate expires, by the wall clock. `None` for a caller without a certificate.
    pub ends: Option<WallTime>,
}

impl Peer {
    /// Returns a caller over loopback. Its owner is `local`.
    pub fn local() -> Self {
        Self::owned_by_first(vec![Identity::Local], None)
    }

    /// Returns a caller over a Unix socket. Its owner is the user.
    pub fn unix(uid: u32, gid: u32) -> Self {
        Self::owned_by_first(
            vec![Identity::Uid(uid), Identity::Gid(gid), Identity::Local],
            None,
        )
    }

    /// Returns a caller with a verified certificate. Its owner is the first URI of the certificate,
    /// else the first DNS name, else the subject. A subject that is empty or not in the form of RFC
    /// 4514 is no identity.
    pub fn certified(certificate: &PeerIdentity) -> Self {
        let subject = DistinguishedName::parse(&certificate.subject)
            .ok()
            .filter(|name| !name.is_empty());
        let identities: Vec<_> = (certificate.uris.iter().cloned().map(Identity::Uri))
            .chain(certificate.dns_names.iter().cloned().map(Identity::Dns))
            .chain(subject.map(Identity::Subject))
            .collect();
        Self::owned_by_first(identities, Some(certificate.not_after))
    }

    fn owned_by_first(identities: Vec<Identity>, ends: Option<WallTime>) -> Self {
        let owner = identities.first().map_or_else(Owner::nobody, Owner::of);
        Self {
            owner,
            identities,
            ends,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use tls_sessiond_core::access::Text;

    #[test]
    fn owner_of_a_certificate_is_its_first_name() {
        let mut certificate = PeerIdentity {
            subject: "CN=a".into(),
            dns_names: vec!["a.test".into()],
            uris: vec!["spiffe://a/b".into()],
            ..PeerIdentity::default()
        };
        let owner =
            |certificate: &PeerIdentity| Peer::certified(certificate).owner.name().to_string();
        assert_eq!(owner(&certificate), "uri:spiffe://a/b");
        for uri in ["uid:0", "local", "dns:a.test"] {
            certificate.uris = vec![uri.into()];
            assert_eq!(
                owner(&certificate),
                format!("uri:{uri}"),
                "the prefix tells the kinds apart"
            );
        }
        certificate.uris.clear();
        assert_eq!(owner(&certificate), "dns:a.test");
        certificate.dns_names.clear();
        assert_eq!(owner(&certificate), "subject:CN=a");
        for nothing in ["", "no name"] {
            certificate.subject = nothing.into();
            assert!(Peer::certified(&certificate).identities.is_empty());
            assert_eq!(owner(&certificate), "nobody");
        }
        let text = Text::Exactly("a.test".into());
        assert!(Identity::Dns("a.test".into()).fits(&IdentityPattern::Dns(text)));
    }

    #[test]
    fn subject_and_uri_that_read_alike_have_two_owners() {
        let with = |subject: &str, uris: &[&str]| {
            let uris = uris.iter().map(|&uri| uri.into()).collect();
            Peer::certified(&PeerIdentity {
                subject: subject.into(),
                uris,
                ..PeerIdentity::default()
            })
            .owner
        };
        assert_ne!(with("CN=a://b", &[]), with("", &["subject:CN=a://b"]));
        assert_ne!(with("CN=a\\,O=b", &[]), with("CN=a,O=b", &[]));
        assert_ne!(with("CN=local", &[]), Peer::local().owner);
    }

    fn identities() -> impl Strategy<Value = Identity> {
        let text = "(subject:|uri:|dns:|uid:|gid:|local|CN=)?[a-c:/0,=\\\\ ]{0,4}";
        prop_oneof![
            Just(Identity::Local),
            (0u32..3).prop_map(Identity::Uid),
            (0u32..3).prop_map(Identity::Gid),
            text.prop_map(Identity::Uri),
            text.prop_map(Identity::Dns),
            "CN=[a-c:/]{0,3}(,O=[a-c]{0,2})?".prop_map(|text| {
                Identity::Subject(
                    DistinguishedName::parse(&text).expect("the text needs no escapes"),
                )
            }),
        ]
    }

    proptest! {
        #[test]
        fn owners_are_equal_only_where_identities_are(a in identities(), b in identities()) {
            prop_assert_eq!(Owner::of(&a) == Owner::of(&b), a == b);
        }
    }
}
