//! The rights of roles: the table of SECURITY.md, that of the code, and the behaviour of the daemon
//! at each listener.

use prost::Message;
use prost_types::FileDescriptorSet;
use tls_sessiond::api::{
    access::{IN_ALL_CONTEXTS, RIGHTS},
    role::Roles,
};
use tls_sessiond_proto::{self as pb, answer::Result as Answered, call::Method};
use tonic::{Code, Request, Status, transport::Channel};

use crate::{
    calls,
    doors::{Guest, House, SOMEBODY, denied, not_there, rule, why},
    harness::reason,
    pki::Leaf,
};

const SECURITY: &str = include_str!("../../SECURITY.md");

/// The right that a role has to an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    Yes,
    /// Only for connections that the caller made itself.
    Own,
    /// Only with the role in all contexts.
    All,
    No,
}

/// A row of the table. Its columns are in the order of [`COLUMNS`].
pub(crate) struct Row {
    pub(crate) path: String,
    pub(crate) rights: [Right; 5],
}

const COLUMNS: [&str; 5] = ["worker", "observer", "admin", "keys", "no role"];
const WORKER: usize = 0;
const NO_ROLE: usize = 4;

/// Parses the table of SECURITY.md.
pub(crate) fn table() -> Vec<Row> {
    let header = format!("| RPC | {} |", COLUMNS.join(" | "));
    let (_, below) = SECURITY
        .split_once(&header)
        .expect("SECURITY.md has the table of RPCs");
    let right = |word: &str| match word {
        "yes" => Right::Yes,
        "own" => Right::Own,
        "all" => Right::All,
        "no" => Right::No,
        word => panic!("SECURITY.md: `{word}` is not yes, own, all or no"),
    };
    below
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<_> = line.trim_matches(['|', ' ']).split(" | ").collect();
            let name = cells[0].trim_matches('`');
            let package = if name.starts_with("grpc.") || name.starts_with("envoy.") {
                ""
            } else {
                "tls.sessiond.v1."
            };
            let rights: Vec<_> = cells[1..].iter().map(|word| right(word)).collect();
            Row {
                path: format!("/{package}{name}"),
                rights: rights.try_into().unwrap(),
            }
        })
        .collect()
}

/// Returns every served method: its path, and whether its answers are a stream.
fn methods() -> Vec<(String, bool)> {
    let sets = [
        pb::FILE_DESCRIPTOR_SET,
        pb::envoy::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut found = Vec::new();
    for file in sets
        .iter()
        .flat_map(|set| FileDescriptorSet::decode(*set).unwrap().file)
    {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                found.push((path, method.server_streaming()));
            }
        }
    }
    found.sort();
    found
}

/// Calls any method with an empty message. Returns the refusal, if there is one.
async fn call(channel: &Channel, path: &str, streams: bool) -> Option<Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let empty = Request::new(tokio_stream::once(()));
    match grpc.streaming(empty, path.parse().unwrap(), codec).await {
        Err(status) => Some(status),
        // The stream has begun. A missing right would have refused it before that.
        Ok(_) if streams => None,
        Ok(answer) => answer.into_inner().message().await.err(),
    }
}

// Invariant 18.
#[test]
fn documented_rights_equal_those_of_the_code() {
    let table = table();
    let mut named: Vec<_> = table.iter().map(|row| row.path.as_str()).collect();
    named.sort_unstable();
    let methods = methods();
    assert_eq!(
        named,
        methods
            .iter()
            .map(|(path, _)| path.as_str())
            .collect::<Vec<_>>()
    );
    let mut listed = RIGHTS.map(|(path, _)| path);
    listed.sort_unstable();
    assert_eq!(named, listed);
    for row in &table {
        let (_, roles) = RIGHTS
            .into_iter()
            .find(|(path, _)| *path == row.path)
            .unwrap();
        let anyone = roles.meet(Roles::ANYONE);
        // The right to remove includes the right to look.
        let may = [
            Roles::WORKER,
            Roles::OBSERVER,
            Roles::OBSERVER.or(Roles::ADMIN),
            Roles::KEYS,
            Roles::ANYONE,
        ]
        .map(|role| anyone || roles.meet(role));
        assert_eq!(
            row.rights.map(|right| right != Right::No),
            may,
            "{}",
            row.path
        );
        assert!(
            !anyone || !row.path.starts_with("/tls."),
            "{}: must not be open to every caller",
            row.path
        );
        assert_eq!(
            row.rights.contains(&Right::All),
            IN_ALL_CONTEXTS.contains(&row.path.as_str()),
            "{}",
            row.path
        );
        assert!(
            !row.rights[1..].contains(&Right::Own),
            "{}: only workers own something",
            row.path
        );
    }
}

// Invariant 18.
#[tokio::test]
async fn each_listener_serves_each_rpc_to_the_documented_roles_only() {
    let house = House::with(&rule("uid:1", "*", "observer")).await;
    let leaf = house.authority.leaf(&["spiffe://example.org/ns/web/a"]);
    let (table, methods) = (table(), methods());
    // Channels that connected under other rules, at each listener.
    let old = doors(&house, &leaf).await;
    let identities = ["local", "uid:54321", "spiffe://example.org/ns/web/*"];
    let mut tried = 0;
    for (column, role) in COLUMNS.iter().enumerate() {
        for (granted, identity) in identities.iter().enumerate() {
            let role = if column == NO_ROLE { "observer" } else { role };
            let identity = if column == NO_ROLE { "uid:1" } else { identity };
            house.reload(&rule(identity, "default", role)).unwrap();
            let new = doors(&house, &leaf).await;
            for (door, channel) in old.iter().enumerate().chain(new.iter().enumerate()) {
                // A caller at the Unix socket has the identity `local` as well.
                let has_role = door == granted || (granted == 0 && door == 1);
                let column = if has_role { column } else { NO_ROLE };
                for (path, streams) in &methods {
                    let right = table.iter().find(|row| row.path == *path).unwrap().rights[column];
                    let what = format!("{path} at listener {door}, {identity} as {role}");
                    let refusal = call(channel, path, *streams).await;
                    let code = refusal.as_ref().map_or(Code::Ok, Status::code);
                    match right {
                        // The rule is about one context.
                        Right::No | Right::All => {
                            let refusal = refusal.unwrap_or_else(|| panic!("{what}: allowed"));
                            assert_eq!((code, reason(&refusal)), denied(), "{what}");
                        }
                        Right::Yes | Right::Own => assert!(
                            ![Code::PermissionDenied, Code::Unauthenticated].contains(&code),
                            "{what}: {refusal:?}"
                        ),
                    }
                    tried += 1;
                }
            }
        }
    }
    assert_eq!(tried, COLUMNS.len() * 3 * 6 * methods.len());
    house.daemon.stop().await;
}

/// Returns a channel through each listener: loopback, the Unix socket as another user, and mutual
/// TLS.
async fn doors(house: &House, leaf: &Leaf) -> [Channel; 3] {
    [
        house.over_tcp().await,
        house.over_unix(SOMEBODY).await,
        house.over_tls(leaf).await,
    ]
}

// Invariant 18.
#[tokio::test]
async fn attach_checks_the_rights_of_each_call() {
    let house = House::with(&rule("local", "default", "worker")).await;
    let mut guest = Guest::new(&house.daemon.channel);
    let mut attached = guest.attach().await;
    let id = attached.established("aa").await;
    let connection_id = id.clone();
    let server = pb::Role::Server.into();
    let calls = [
        (
            "ConnectionService/New",
            Method::New(Box::new(calls::worker(pb::Role::Server))),
        ),
        (
            "ConnectionService/Clear",
            Method::Clear(pb::ClearRequest {
                connection_id: id.clone(),
            }),
        ),
        (
            "ConnectionService/Shutdown",
            Method::Shutdown(pb::ShutdownRequest { connection_id }),
        ),
        (
            "ConnectionService/SetShutdown",
            Method::SetShutdown(pb::SetShutdownRequest {
                connection_id: id.clone(),
                shutdown: Some(pb::ShutdownFlags::default()),
            }),
        ),
        (
            "ConnectionService/SetSession",
            Method::SetSession(pb::SetSessionRequest {
                connection_id: id.clone(),
                session_id: "".into(),
            }),
        ),
        (
            "SessionService/PutSession",
            Method::PutSession(Box::new(calls::put(&id, "ab"))),
        ),
        (
            "SessionService/LookupSession",
            Method::LookupSession(Box::new(calls::lookup("ab"))),
        ),
        (
            "SessionService/RemoveSession",
            Method::RemoveSession(pb::RemoveSessionRequest {
                session_id: "ab".into(),
                role: server,
                ..Default::default()
            }),
        ),
        (
            "ConnectionService/ReportAlert",
            Method::ReportAlert(pb::ReportAlertRequest {
                connection_id: id.clone(),
                alert: Some(pb::Alert {
                    code: 40,
                    ..Default::default()
                }),
            }),
        ),
        (
            "ConnectionService/Free",
            Method::Free(pb::FreeRequest {
                connection_id: id.clone(),
                allow_missing: false,
            }),
        ),
    ];
    let field = |method: &Method| {
        let mut bytes = Vec::new();
        method.encode(&mut bytes);
        bytes[0] >> 3
    };
    let mut fields: Vec<_> = calls.iter().map(|(_, method)| field(method)).collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        (2..=10).chain([12]).collect::<Vec<_>>(),
        "a call of Attach is missing"
    );
    let table = table();
    for (name, method) in calls {
        let path = format!("/tls.sessiond.v1.{name}");
        let right = table.iter().find(|row| row.path == path).unwrap().rights[WORKER];
        let refused = matches!(&attached.call(method).await, Answered::Error(error)
            if error.reason == "PERMISSION_DENIED" && error.code == Code::PermissionDenied as i32);
        assert_eq!(refused, right == Right::No, "{name}");
    }
    // The daemon checks the context of each call as well.
    let mut lookup = calls::lookup("ab");
    lookup.context = "mail".into();
    let mut elsewhere = calls::worker(pb::Role::Server);
    elsewhere.context = "mail".into();
    for method in [
        Method::LookupSession(Box::new(lookup)),
        Method::New(Box::new(elsewhere)),
    ] {
        let Answered::Error(error) = attached.call(method).await else {
            panic!("in another context")
        };
        assert_eq!(error.reason, "PERMISSION_DENIED");
    }
    house.daemon.stop().await;
}

#[tokio::test]
async fn certificate_without_a_name_has_no_identity() {
    let rules = rule("spiffe://example.org/*", "*", "admin") + &rule("dns:*.test", "*", "worker");
    let house = House::with(&rules).await;
    let nameless = house.authority.sign(&[], |params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
    });
    let channel = house.over_tls(&nameless).await;
    let table = table();
    for (path, streams) in methods() {
        let refusal = call(&channel, &path, streams).await;
        let code = refusal.as_ref().map_or(Code::Ok, Status::code);
        match table.iter().find(|row| row.path == path).unwrap().rights[NO_ROLE] {
            Right::No => {
                assert_eq!(code, Code::Unauthenticated, "{path}");
                assert_eq!(reason(&refusal.unwrap()), "UNAUTHENTICATED", "{path}");
            }
            _ => assert_ne!(code, Code::Unauthenticated, "{path}"),
        }
    }
    house.daemon.stop().await;
}

// Invariant 18.
#[tokio::test]
async fn first_matching_rule_decides_for_each_context() {
    let rules = [
        rule("gid:54321", "default", "observer"),
        rule("uid:54321", "default", "worker"),
        rule("uid:54321", "mail", "worker"),
        rule("local", "*", "admin"),
    ];
    let house = House::with(&rules.concat()).await;
    let mut guest = Guest::new(&house.over_unix(SOMEBODY).await);
    assert_eq!(
        why(guest.open("").await),
        denied(),
        "the rule about the group comes first"
    );
    let own = guest.open("mail").await.unwrap();
    assert_eq!(
        why(guest.open("nowhere").await),
        denied(),
        "without revealing whether it exists"
    );
    let missing = pb::GetContextRequest {
        name: "nowhere".into(),
    };
    let answer = house.daemon.contexts().get_context(missing).await;
    assert_eq!(
        why(answer),
        (Code::NotFound, "CONTEXT_NOT_FOUND".into()),
        "an admin of all may know"
    );
    // The caller observes `default`, and owns connections in `mail`.
    let foreign = Guest::new(&house.over_unix(1).await).open("mail").await;
    assert_eq!(why(foreign), denied(), "an admin is not a worker");
    let listed = guest
        .connections
        .list_connections(pb::ListConnectionsRequest::default())
        .await
        .unwrap();
    let ids: Vec<_> = listed
        .into_inner()
        .connections
        .into_iter()
        .map(|listed| listed.id)
        .collect();
    assert_eq!(ids, std::slice::from_ref(&own));
    let sessions = |context: &str| pb::ListSessionsRequest {
        context: context.into(),
        ..Default::default()
    };
    assert_eq!(
        why(guest.sessions.list_sessions(sessions("mail")).await),
        denied()
    );
    guest
        .sessions
        .list_sessions(sessions("default"))
        .await
        .unwrap();
    // Other rules in another order: the caller is a worker in `default` now, and has lost `mail`.
    house
        .reload(&[rules[1].clone(), rules[0].clone(), rules[3].clone()].concat())
        .unwrap();
    guest.open("").await.unwrap();
    let request = pb::GetConnectionRequest {
        connection_id: own.clone(),
    };
    assert_eq!(
        why(guest.connections.get_connection(request.clone()).await).0,
        Code::Ok,
        "an admin sees it"
    );
    let request = pb::ClearRequest { connection_id: own };
    assert_eq!(
        why(guest.connections.clear(request).await),
        not_there(),
        "but may not change it"
    );
    house.daemon.stop().await;
}
