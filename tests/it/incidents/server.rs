//! Incidents in which a server resumed a session of another server or of another policy.

use std::time::Duration;

use tls_sessiond_proto as pb;

use super::{At, Site, Then, VERSIONS, Visitor, asks, at, serves, worker};

#[tokio::test]
async fn nginx_cve_2014_3616_a_session_of_another_virtual_host() {
    // CVE-2014-3616, nginx: server blocks that shared a session cache or ticket key resumed each
    // other's sessions. So a peer whose packets were diverted to another host took that host for
    // the one that it had verified.
    for version in VERSIONS {
        let site = Site::start(version, &[("a", serves("a")), ("b", serves("b"))]).await;
        let (a, b) = (At("a", "a.test"), At("b", "a.test"));
        // In a resumption the client would not have seen the certificate that it refuses now.
        apart(
            &site,
            &Visitor::new(&site, None),
            a,
            b,
            Then::Refused("bad_certificate"),
        )
        .await;
        worker::bindings_apart(&site, a, "host a", "host b").await;
        site.daemon.stop().await;
    }
}

// Invariant 3.
#[tokio::test]
async fn nginx_cve_2025_23419_certificate_for_the_default_server() {
    // CVE-2025-23419, nginx: a session that the default server had made with a client certificate
    // was resumed by another server block. Its own authority does not vouch for that certificate.
    for version in VERSIONS {
        let contexts = [
            ("default", asks("ab", "require", "one")),
            ("other", asks("ab", "require", "two")),
        ];
        let site = Site::start(version, &contexts).await;
        let alice = Visitor::new(&site, Some("alice"));
        let default = At("default", "a.test");
        for name in ["a.test", "b.test"] {
            let refused = Then::Refused("certificate_required");
            apart(&site, &alice, default, At("other", name), refused).await;
        }
        worker::bindings_apart(&site, default, "verified by one", "verified by two").await;
        site.daemon.stop().await;
    }
}

#[tokio::test]
async fn cloudflare_2025_01_a_client_certificate_of_another_zone() {
    // Cloudflare, January 2025: mTLS zones shared the state that decides about resumptions. So a
    // client with a certificate for one zone was resumed at another, which took over the verdict of
    // the first.
    for version in VERSIONS {
        for (auth, then) in [
            ("request", Then::Full),
            ("require", Then::Refused("certificate_required")),
        ] {
            // Zones of one context differ by server name, zones of two contexts by context.
            let edge = asks("ab", auth, "one");
            let contexts = [
                ("zone", format!("{edge}session_id_context = \"zone\"\n")),
                ("edge", edge),
            ];
            let site = Site::start(version, &contexts).await;
            let alice = Visitor::new(&site, Some("alice"));
            for zone in [
                At("edge", "b.test"),
                At("zone", "a.test"),
                At("zone", "b.test"),
            ] {
                apart(&site, &alice, At("edge", "a.test"), zone, then).await;
            }
            worker::bindings_apart(&site, At("edge", "a.test"), "zone one", "zone two").await;
            site.daemon.stop().await;
        }
    }
}

#[tokio::test]
async fn apache_cve_2025_23048_a_client_of_another_virtual_host() {
    // CVE-2025-23048, Apache mod_ssl: with different client authorities per virtual host, a client
    // that one host trusted got access to the other by resuming there. The fix was a digest of the
    // policy.
    for version in VERSIONS {
        let contexts = [
            ("one", asks("ab", "require", "one")),
            ("two", asks("ab", "require", "two")),
        ];
        let site = Site::start(version, &contexts).await;
        let (alice, bob) = (
            Visitor::new(&site, Some("alice")),
            Visitor::new(&site, Some("bob")),
        );
        let refused = Then::Refused("certificate_required");
        apart(
            &site,
            &alice,
            At("one", "a.test"),
            At("two", "b.test"),
            refused,
        )
        .await;
        apart(
            &site,
            &bob,
            At("two", "b.test"),
            At("one", "a.test"),
            refused,
        )
        .await;
        worker::bindings_apart(&site, At("one", "a.test"), "policy 1", "policy 2").await;
        site.daemon.stop().await;
    }
}

#[tokio::test]
async fn wolfssl_cve_2026_11703_one_check_for_ids_and_for_tickets() {
    // CVE-2026-11703, wolfSSL: a resumption by ticket compared server name and ALPN, a resumption
    // by session id did not.
    for version in VERSIONS {
        let alpn = |list: &str| format!("{}alpn = {list}\n", serves("ab"));
        let contexts = [
            ("web", alpn("[\"h2\", \"http/1.1\"]")),
            ("h2", alpn("[\"h2\"]")),
            ("mail", alpn("[\"imap\"]")),
        ];
        let site = Site::start(version, &contexts).await;
        let mut client = Visitor::new(&site, None);
        client.config.alpn_protocols = ["h2", "http/1.1", "imap"].map(Into::into).into();
        apart(
            &site,
            &client,
            At("web", "a.test"),
            At("web", "b.test"),
            Then::Full,
        )
        .await;
        for other in [At("h2", "a.test"), At("mail", "a.test")] {
            apart(&site, &client, At("web", "a.test"), other, Then::Full).await;
        }
        worker::bindings_apart(&site, At("web", "a.test"), "h2", "imap").await;

        // A server with several protocols negotiates ALPN in each handshake, in a resumption too.
        let mut client = Visitor::new(&site, None);
        for (protocol, resumed) in [("h2", false), ("h2", true), ("http/1.1", true)] {
            client.config.alpn_protocols = vec![protocol.into()];
            let visit = client.visit(&site, At("web", "a.test")).await;
            visit.established(resumed);
            assert_eq!(visit.server.alpn, protocol);
        }
        client.config.alpn_protocols = vec!["imap".into()];
        let refused = client.stray(&site, At("web", "a.test")).await;
        assert_eq!(
            refused.alert.as_deref(),
            Some("no_application_protocol"),
            "{:?}",
            refused.server
        );
        site.daemon.stop().await;
    }
}

#[tokio::test]
async fn haproxy_2026_08_a_session_made_under_another_certificate() {
    // HAProxy 5d5f12376, August 2026: one session id context served all certificates of a listener.
    for version in VERSIONS {
        let both = serves("a")
            .replace("\"a.crt\"", "[\"a.crt\", \"b.crt\"]")
            .replace("\"a.key\"", "[\"a.key\", \"b.key\"]");
        let site = Site::start(
            version,
            &[
                ("one", serves("a")),
                ("two", serves("other-a")),
                ("both", both),
            ],
        )
        .await;
        let client = Visitor::new(&site, None);
        for other in ["two", "both"] {
            let (one, other) = (At("one", "a.test"), At(other, "a.test"));
            apart(&site, &client, one, other, Then::Full).await;
            apart(&site, &client, other, one, Then::Full).await;
        }
        // The full handshake shows the certificate of the place where it is made.
        client.forget();
        let home = client.visit(&site, At("one", "a.test")).await;
        let away = client.stray(&site, At("two", "a.test")).await;
        assert!(home.shown.is_some() && away.shown.is_some());
        assert_ne!(home.shown, away.shown);
        site.daemon.stop().await;
    }
}

#[tokio::test]
async fn haproxy_2026_08_a_session_made_under_another_sni_filter() {
    // HAProxy 52bdd0d02, August 2026: lines of one certificate list with different SNI filters
    // resumed each other's sessions.
    for version in VERSIONS {
        let listed = "certificate = [\"a.crt\", \"b.crt\", \"wild.crt\"]\nkey = [\"a.key\", \"b.key\", \"wild.key\"]\n";
        let site = Site::start(version, &[("list", listed.into())]).await;
        let names = ["a.test", "b.test", "x.wild.test", "y.wild.test", ""];
        for here in names {
            let client = Visitor::new(&site, None);
            for there in names.into_iter().filter(|there| *there != here) {
                apart(
                    &site,
                    &client,
                    At("list", here),
                    At("list", there),
                    Then::Full,
                )
                .await;
            }
        }
        site.daemon.stop().await;
    }
}

#[tokio::test]
async fn haproxy_2026_08_a_session_of_another_client_auth_policy() {
    // HAProxy 4a8f76220, August 2026: lines with different verification of clients, or different
    // authorities for it, shared one session id context. So the laxest line decided for all.
    for version in VERSIONS {
        let policies = [
            ("anybody", serves("a"), None, Then::Full),
            (
                "may-one",
                asks("a", "request", "one"),
                Some("alice"),
                Then::Full,
            ),
            (
                "must-one",
                asks("a", "require", "one"),
                Some("alice"),
                Then::Refused("certificate_required"),
            ),
            (
                "may-two",
                asks("a", "request", "two"),
                Some("bob"),
                Then::Full,
            ),
            (
                "must-two",
                asks("a", "require", "two"),
                Some("bob"),
                Then::Refused("certificate_required"),
            ),
        ];
        let contexts = policies.clone().map(|(name, lines, ..)| (name, lines));
        let site = Site::start(version, &contexts).await;
        for (here, _, certificate, _) in &policies {
            let client = Visitor::new(&site, *certificate);
            for (there, _, _, then) in policies.iter().filter(|(there, ..)| there != here) {
                apart(
                    &site,
                    &client,
                    At(here, "a.test"),
                    At(there, "a.test"),
                    *then,
                )
                .await;
            }
            worker::bindings_apart(&site, At(here, "a.test"), "verify none", "verify required")
                .await;
        }
        // Under a policy with optional client certificates, a client without one is not promoted.
        let stranger = Visitor::new(&site, None);
        apart(
            &site,
            &stranger,
            At("may-one", "a.test"),
            At("must-one", "a.test"),
            policies[2].3,
        )
        .await;
        site.daemon.stop().await;
    }
}

#[tokio::test]
async fn postfix_2026_07_tickets_and_ids_of_another_service() {
    // Postfix, July 2026 (tls_server.c): the cache of session ids was partitioned by service,
    // tickets were not. So any service of master.cf accepted them.
    for version in VERSIONS {
        let service = asks("a", "request", "one");
        let alone = format!("{service}session_id_context = \"\"\n");
        let contexts = [
            ("smtps", alone.clone()),
            ("submission", alone),
            ("in", service.clone()),
            ("out", service),
        ];
        let site = Site::start(version, &contexts).await;
        let alice = Visitor::new(&site, Some("alice"));
        apart(
            &site,
            &alice,
            At("smtps", "a.test"),
            At("submission", "a.test"),
            Then::Full,
        )
        .await;
        apart(
            &site,
            &alice,
            At("smtps", "a.test"),
            At("in", "a.test"),
            Then::Full,
        )
        .await;
        // Only the service keeps them apart. Services with one `session_id_context` share tickets
        // and ids.
        alice.forget();
        alice
            .visit(&site, At("in", "a.test"))
            .await
            .established(false);
        alice
            .visit(&site, At("out", "a.test"))
            .await
            .established(true);
        site.daemon.stop().await;
    }
}

#[tokio::test]
async fn stunnel_cve_2015_3644_redirect_of_a_resumed_stranger() {
    // CVE-2015-3644, stunnel 5.00 to 5.13: `redirect` sends clients without a valid certificate
    // elsewhere. But a resumed session carried no verdict, so such a client was let in when it came
    // back.
    for version in VERSIONS {
        let contexts = [
            ("redirect", asks("a", "request", "one")),
            ("inside", asks("a", "require", "one")),
        ];
        let site = Site::start(version, &contexts).await;
        let gate = At("redirect", "a.test");
        let clients = [Some("alice"), Some("carol"), None].map(|name| Visitor::new(&site, name));
        let mut first = Vec::new();
        for resumed in [false, true, true] {
            let mut verdicts = Vec::new();
            for client in &clients {
                let visit = client.visit(&site, gate).await;
                visit.established(resumed);
                let session = site.session("redirect", &visit.server.session_id).await;
                assert_eq!(
                    session.peer, visit.server.peer,
                    "the session has the verdict"
                );
                verdicts.push((session.peer, session.authenticate_time));
            }
            let names = verdicts
                .iter()
                .map(|(peer, _)| peer.as_ref().map(|peer| peer.dns_names[0].as_str()));
            assert!(
                names.eq([Some("alice.one.test"), Some("carol.one.test"), None]),
                "{verdicts:?}"
            );
            if resumed {
                assert_eq!(verdicts, first, "a resumption does not authenticate again");
            }
            first = verdicts;
            site.daemon.clock.advance(Duration::from_secs(60));
        }
        // Where a certificate is required, neither the session of alice nor that of the client
        // without one counts. Both clients are asked for a certificate.
        let refused = Then::Refused("certificate_required");
        for client in [&clients[2], &clients[0]] {
            apart(&site, client, gate, At("inside", "a.test"), refused).await;
        }
        site.daemon.stop().await;
    }
}

/// Asserts that a session made at `here` resumes at `here`, and not at `there`, on any path.
async fn apart(site: &Site, client: &Visitor, here: At, there: At, then: Then) {
    eprintln!("{:?}: from {here:?} to {there:?}", site.version.version);
    // The client offers it by session id or by ticket.
    client.forget();
    let home = client.visit(site, here).await;
    home.established(false);
    let again = client.visit(site, here).await;
    again.established(true);
    assert_eq!(
        (&again.server.peer, &again.shown),
        (&home.server.peer, &home.shown)
    );
    assert_eq!(
        again.server.peer.is_some(),
        client.bag.certificate.is_some()
    );

    let misses = site.misses(there.0).await;
    let away = client.stray(site, there).await;
    away.went(then);
    assert_eq!(
        away.server.peer, None,
        "the client has not authenticated here"
    );
    assert_eq!(
        site.misses(there.0).await,
        misses + 1,
        "the session was offered"
    );
    let last = client.visit(site, here).await;
    last.established(true);

    // The caller names the session. Another context refuses it, and the same context does not
    // resume it for another name.
    let named = last.server.session_id;
    assert!(!named.is_empty());
    if here.0 == there.0 {
        let request = pb::NewRequest {
            session_id: named,
            ..at(there, pb::Role::Server)
        };
        let server = site.open(request).await.id;
        client.stray_to(site, &server, there.1).await.went(then);
    } else {
        site.refuses(&at(there, pb::Role::Server), &named).await;
    }
    worker::servers_apart(site, here, there).await;
}
