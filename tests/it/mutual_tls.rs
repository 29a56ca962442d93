//! Mutual TLS of the API: accepted certificates, the identities that they give, their expiry, and
//! new files at run time.

use std::{fs, time::Duration};

use rcgen::{DnType, date_time_ymd};
use tls_sessiond_client::{Options, Worker};
use tls_sessiond_proto::{self as pb, drive_request::Event, drive_response::Event as Told};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    doors::{Guest, House, client, denied, rule, told, trust, why},
    harness::{new, now},
    pki::Authority,
    worker_client::{attached, established, found},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Returns the error of a handshake that must fail. In TLS 1.3 the client receives the alert only
/// when it reads.
async fn turned_away(house: &House, config: rustls::ClientConfig) -> String {
    let mut stream = match house.handshake(config).await {
        Err(err) => return err.to_string(),
        Ok(stream) => stream,
    };
    // The daemon may have closed the connection already.
    drop(stream.write_all(PREFACE).await);
    let mut bytes = [0; 64];
    match stream.read(&mut bytes).await {
        Err(err) => err.to_string(),
        Ok(length) => panic!("the daemon accepted it and sent {:?}", &bytes[..length]),
    }
}

// Invariant 21.
#[tokio::test]
async fn mutual_tls_requires_a_valid_certificate_of_our_authority() {
    let house = House::with(&rule("dns:*.test", "*", "worker")).await;
    let ours = &house.authority;
    let good = ours.leaf(&["a.test"]);
    let expired = ours.sign(&["a.test"], |params| {
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
    });
    let early = ours.sign(&["a.test"], |params| {
        params.not_before = date_time_ymd(2095, 1, 1);
        params.not_after = date_time_ymd(2096, 1, 1);
    });
    let foreign = Authority::new("others").leaf(&["a.test"]);
    let namesake = Authority::new("workers").leaf(&["a.test"]);
    let for_servers = ours.sign(&["a.test"], |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    });
    let old = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS12])
        .with_root_certificates(trust(&ours.pem))
        .with_no_client_auth();
    let mut http1 = client(&ours.pem, Some(&good));
    http1.alpn_protocols = vec![b"http/1.1".to_vec()];
    for (what, config, alert) in [
        (
            "expired",
            client(&ours.pem, Some(&expired)),
            "CertificateExpired",
        ),
        (
            "not yet valid",
            client(&ours.pem, Some(&early)),
            "CertificateExpired",
        ),
        (
            "of another authority",
            client(&ours.pem, Some(&foreign)),
            "UnknownCA",
        ),
        (
            "of another authority of our name",
            client(&ours.pem, Some(&namesake)),
            "DecryptError",
        ),
        (
            "for servers alone",
            client(&ours.pem, Some(&for_servers)),
            "UnsupportedCertificate",
        ),
        ("none", client(&ours.pem, None), "CertificateRequired"),
        ("TLS 1.2", old, "ProtocolVersion"),
        ("another protocol", http1, ""),
    ] {
        let heard = turned_away(&house, config).await;
        assert!(heard.contains(alert), "{what}: {heard}");
    }
    Guest::new(&house.over_tls(&good).await)
        .open("")
        .await
        .unwrap();

    // The daemon does not answer plaintext in plaintext, at most with an alert.
    let mut plain = TcpStream::connect(house.tls).await.unwrap();
    plain.write_all(PREFACE).await.unwrap();
    let mut answer = Vec::new();
    drop(plain.read_to_end(&mut answer).await);
    assert!(
        answer.first().is_none_or(|first| *first == 21),
        "an alert, not {answer:?}"
    );
    house.daemon.stop().await;
}

#[tokio::test]
async fn certificate_names_identify_and_the_first_one_owns() {
    let rules = [
        rule("spiffe://example.org/ns/web/*", "*", "worker"),
        rule("dns:*.workers.test", "*", "worker"),
        rule("subject:CN=job", "*", "worker"),
        rule("uri:urn:a:1", "*", "worker"),
        rule("local", "*", "observer"),
    ];
    let house = House::with(&rules.concat()).await;
    let ours = &house.authority;
    let named = |name: &str| {
        let name = name.to_owned();
        ours.sign(&[], move |params| {
            params.distinguished_name.push(DnType::CommonName, name);
        })
    };
    let urn = ours.sign(&[], |params| {
        params.subject_alt_names = vec![rcgen::SanType::URI("urn:a:1".try_into().unwrap())];
    });
    for (leaf, owner) in [
        (
            ours.leaf(&["spiffe://example.org/ns/web/a"]),
            Some("uri:spiffe://example.org/ns/web/a"),
        ),
        (ours.leaf(&["A.Workers.Test"]), Some("dns:a.workers.test")),
        (named("job"), Some("subject:CN=job")),
        (urn, Some("uri:urn:a:1")),
        // The first URI is the owner, even if the rule matches another name.
        (
            ours.leaf(&["spiffe://example.org/ns/mail/a", "b.workers.test"]),
            Some("uri:spiffe://example.org/ns/mail/a"),
        ),
        (ours.leaf(&["spiffe://example.org/ns/mail/a"]), None),
        (ours.leaf(&["spiffe://example.org/ns/web/"]), None),
        (ours.leaf(&["spiffe://elsewhere.org/ns/web/a"]), None),
        (ours.leaf(&["a.b.workers.test"]), None),
        (named("job2"), None),
    ] {
        let mut guest = Guest::new(&house.over_tls(&leaf).await);
        match (guest.open("").await, owner) {
            (Ok(id), Some(owner)) => assert_eq!(house.daemon.get(&id).await.owner, owner),
            (refused, None) => assert_eq!(why(refused), denied()),
            (refused, owner) => panic!("{owner:?}: {refused:?}"),
        }
    }
    house.daemon.stop().await;
}

// Invariant 20.
#[tokio::test]
async fn expired_certificate_ends_its_calls_and_streams() {
    let rules = rule("dns:a.test", "default", "worker") + &rule("dns:a.test", "mail", "observer");
    let house = House::with(&(rules + &rule("local", "*", "observer"))).await;
    let last = now().as_secs() + 3600;
    let short = house.authority.sign(&["a.test"], |params| {
        params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(last);
    });
    let mut guest = Guest::new(&house.over_tls(&short).await);
    guest.open("").await.unwrap();
    // The certificate expires at the end of the second that it names. Streams sleep until then and
    // read the clock again, so three seconds remain.
    let daemon = &house.daemon;
    let left = (last + 1) * 1000 - daemon.core.now().wall().as_millis();
    daemon.clock.advance(Duration::from_millis(left - 3000));
    let mut attached = guest.attach().await;
    attached.established("aa").await;
    let mut driven = guest.drive(Event::New(new("", pb::Role::Server))).await;
    assert!(matches!(
        driven.answers.message().await.unwrap().unwrap().event,
        Some(Told::Opened(_))
    ));
    let mut watched = guest.watch("mail").await;
    guest.open("").await.unwrap();
    daemon.clock.advance(Duration::from_millis(3000));
    let ended = (Code::Unauthenticated, "CERTIFICATE_ENDED".to_owned());
    assert_eq!(told(attached.answers.message()).await, ended);
    assert_eq!(told(driven.answers.message()).await, ended);
    assert_eq!(told(watched.message()).await, ended);
    assert_eq!(why(guest.open("").await), ended);
    // Calls that are open to every caller fail as well.
    let health = HealthClient::new(guest.channel.clone())
        .check(HealthCheckRequest::default())
        .await;
    assert_eq!(why(health), ended);
    house.daemon.stop().await;
}

// Invariant 21.
#[tokio::test]
async fn new_certificates_and_ca_apply_to_new_connections_only() {
    let rules = rule("dns:*.test", "*", "worker") + &rule("local", "*", "observer");
    let house = House::with(&rules).await;
    let (ours, theirs) = (&house.authority, Authority::new("next"));
    let (old, next) = (ours.leaf(&["a.test"]), theirs.leaf(&["a.test"]));
    let mut guest = Guest::new(&house.over_tls(&old).await);
    let mut attached = guest.attach().await;
    let made = attached.established("aa").await;
    let mut driven = guest.drive(Event::New(new("", pb::Role::Server))).await;
    driven.answers.message().await.unwrap().unwrap();

    theirs.leaf(&["localhost"]).write(house.folder(), "server");
    // The key does not match the certificate, so the reload changes nothing.
    let key = fs::read(house.folder().join("server.key")).unwrap();
    fs::write(house.folder().join("server.key"), "").unwrap();
    fs::write(house.folder().join("ca.pem"), &theirs.pem).unwrap();
    let refused = house.reload(&rules).unwrap_err().to_string();
    assert!(
        refused.contains("server.key") || refused.contains("key"),
        "{refused}"
    );
    Guest::new(&house.over_tls(&old).await)
        .open("")
        .await
        .unwrap();

    fs::write(house.folder().join("server.key"), key).unwrap();
    house.reload(&rules).unwrap();
    let heard = turned_away(&house, client(&theirs.pem, Some(&old))).await;
    assert!(!heard.is_empty());
    house
        .handshake(client(&ours.pem, Some(&next)))
        .await
        .expect_err("the daemon shows the new certificate");
    let stream = house
        .handshake(client(&theirs.pem, Some(&next)))
        .await
        .unwrap();
    Guest::new(&crate::doors::over(stream).await)
        .open("")
        .await
        .unwrap();

    // Calls and streams opened earlier go on. The connections have the same owner, because the
    // certificate has the same name.
    guest.open("").await.unwrap();
    attached.established("ab").await;
    assert_eq!(house.daemon.get(&made).await.owner, "dns:a.test");
    drop(driven);
    house.daemon.stop().await;
}

#[tokio::test]
async fn rust_client_connects_over_mutual_tls() {
    let house = House::with(&rule("dns:a.test", "*", "worker")).await;
    let endpoint = format!("https://localhost:{}", house.tls.port());
    let options = |config: &rustls::ClientConfig| {
        let mut options = Options::over_tls(&endpoint, "openssl", config).unwrap();
        options.lookup_deadline = Duration::from_secs(20);
        options.back_off = (Duration::from_millis(10), Duration::from_millis(50));
        options
    };
    let worker = attached(options(
        &house.client(Some(&house.authority.leaf(&["a.test"]))),
    ))
    .await;
    let connection = established(&worker, b"a");
    connection.shutdown();
    drop(connection);
    assert!(found(&worker, b"a").await);
    // The daemon accepts the connection, but no rule matches: each lookup misses and no handshake
    // fails.
    let stranger = Worker::connect(options(
        &house.client(Some(&house.authority.leaf(&["b.test"]))),
    ));
    assert!(!found(&stranger, b"a").await);
    house.daemon.stop().await;
}

#[tokio::test]
async fn large_messages_and_many_calls_at_once_pass_over_tls() {
    let house = House::with(&rule("dns:a.test", "*", "worker")).await;
    let channel = house.over_tls(&house.authority.leaf(&["a.test"])).await;
    let mut guest = Guest::new(&channel);
    let [client, server] = guest.pair().await;
    let said: Vec<u8> = (0..1 << 19)
        .map(|place: u32| place.to_le_bytes()[0])
        .collect();
    for _ in 0..3 {
        let told = guest
            .exchange(&client, Default::default(), said.clone().into())
            .await;
        let heard = guest
            .exchange(&server, told.ciphertext, Default::default())
            .await;
        assert!(heard.plaintext == said);
    }
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let mut guest = Guest::new(&channel);
        all.spawn(async move { guest.open("").await });
    }
    while let Some(opened) = all.join_next().await {
        opened.unwrap().unwrap();
    }
    house.daemon.stop().await;
}
