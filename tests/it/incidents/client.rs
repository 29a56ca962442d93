//! Incidents in which a client offered a session to a server that had not made it, or under another
//! identity.

use tls_sessiond_proto as pb;

use super::{At, Site, Then, VERSIONS, asks, at, serves, worker};
use crate::harness::reason;

#[tokio::test]
async fn node_cve_2020_8172_a_session_of_an_unverified_server() {
    // CVE-2020-8172, Node: an agent kept a session before it verified the server's certificate. The
    // next connection resumed that session without a verification.
    for version in VERSIONS {
        let contexts = [
            ("strict", String::new()),
            ("lenient", "ca = \"rogue.pem\"\n".into()),
            ("rogue", serves("rogue-a")),
            ("web", serves("a")),
        ];
        let site = Site::start(version, &contexts).await;
        let (strict, lenient) = (At("strict", "a.test"), At("lenient", "a.test"));
        // A failed verification leaves no session behind, so the next connection offers none.
        for _ in 0..2 {
            let refused = meet(&site, at(strict, pb::Role::Client), "rogue").await;
            refused.went(Then::Refused("unknown_ca"));
            assert_eq!(
                (
                    refused.offered.as_str(),
                    site.sessions(pb::Role::Client).await
                ),
                ("", 0)
            );
        }
        // A server that another context verified is not verified for this one.
        apart(
            &site,
            ("rogue", lenient),
            ("rogue", strict),
            Then::Refused("unknown_ca"),
        )
        .await;
        apart(
            &site,
            ("web", strict),
            ("web", lenient),
            Then::Refused("unknown_ca"),
        )
        .await;

        site.forget(pb::Role::Client).await;
        // A worker may put a session before it verifies the server. The alert that it reports
        // removes the session.
        for verified in [true, false] {
            let id = site.open(worker::worker(strict, pb::Role::Client)).await.id;
            let put = pb::PutSessionRequest {
                session_id: String::new(),
                ..worker::to_put(&site, &id, "", b"")
            };
            let put = site
                .daemon
                .sessions()
                .put_session(put)
                .await
                .unwrap()
                .into_inner()
                .session
                .unwrap();
            let newest = pb::LookupSessionRequest {
                session_id: String::new(),
                ..worker::lookup(&put, strict)
            };
            if verified {
                worker::assert_found(&site, newest.clone()).await;
            } else {
                let alert = Some(pb::Alert {
                    code: 48,
                    ..Default::default()
                });
                let report = pb::ReportAlertRequest {
                    connection_id: id.clone(),
                    alert,
                };
                site.daemon
                    .connections()
                    .report_alert(report)
                    .await
                    .unwrap();
                worker::assert_miss(&site, strict, worker::lookup(&put, strict)).await;
            }
            site.remove(&put).await;
            site.close(&id).await;
            worker::assert_miss(&site, strict, newest).await;
        }
        site.daemon.stop().await;
    }
}

#[tokio::test]
async fn curl_cve_2021_22890_a_ticket_of_the_proxy() {
    // CVE-2021-22890, curl: a ticket that an HTTPS proxy sent late was kept as a ticket of the host
    // behind it. So the proxy could impersonate the host: a resumption does not verify the
    // certificate again.
    for version in VERSIONS {
        let contexts = [
            ("client", String::new()),
            ("proxy", serves("a")),
            ("host", serves("b")),
        ];
        let site = Site::start(version, &contexts).await;
        let (to_proxy, to_host) = (At("client", "a.test"), At("client", "b.test"));

        // The tunnel is established, but the proxy's last flight with its tickets has not arrived
        // yet.
        let outer = site.open(at(to_proxy, pb::Role::Client)).await.id;
        let proxy = site
            .open(at(At("proxy", "a.test"), pb::Role::Server))
            .await
            .id;
        let mut late = Vec::new();
        let mut bytes = site
            .daemon
            .exchange(&outer, b"", b"")
            .await
            .unwrap()
            .ciphertext;
        while !bytes.is_empty() {
            let answer = site.daemon.exchange(&proxy, &bytes, b"").await.unwrap();
            if version.version == rustls::ProtocolVersion::TLSv1_3
                && answer.connection.unwrap().state() == pb::ConnectionState::Established
            {
                late = answer.ciphertext.to_vec();
                break;
            }
            bytes = site
                .daemon
                .exchange(&outer, &answer.ciphertext, b"")
                .await
                .unwrap()
                .ciphertext;
        }
        assert_ne!(
            late.is_empty(),
            site.daemon.get(&outer).await.session_id.is_empty()
        );

        // It arrives during the host's handshake through the tunnel. The proxy answers that
        // handshake itself.
        let inner = site.open(at(to_host, pb::Role::Client)).await.id;
        let hello = site.daemon.exchange(&inner, b"", b"").await.unwrap();
        assert_eq!(hello.connection.unwrap().session_id, "");
        let sent = site
            .daemon
            .exchange(&outer, &late, &hello.ciphertext)
            .await
            .unwrap()
            .ciphertext;
        let seen = site
            .daemon
            .exchange(&proxy, &sent, b"")
            .await
            .unwrap()
            .plaintext;
        assert_eq!(seen, hello.ciphertext);
        let posing = site
            .open(at(At("proxy", "b.test"), pb::Role::Server))
            .await
            .id;
        let posed = site.carry(&inner, &posing, seen.to_vec()).await;
        assert_eq!(
            posed.as_deref(),
            Some("bad_certificate"),
            "the proxy's certificate is not the host's"
        );
        assert!(
            !site.daemon.get(&posing).await.session_reused
                && !site.daemon.get(&inner).await.session_reused
        );
        let made = site.daemon.get(&outer).await.session_id;
        assert_eq!(site.session("client", &made).await.server_name, "a.test");
        for id in [outer, proxy, inner, posing] {
            site.close(&id).await;
        }

        // The proxy's sessions resume with the proxy only.
        apart(&site, ("proxy", to_proxy), ("host", to_host), Then::Full).await;
        apart(
            &site,
            ("proxy", to_proxy),
            ("proxy", to_host),
            Then::Refused("bad_certificate"),
        )
        .await;

        // A worker cannot store a session of the proxy's connection under the host's name, as curl
        // did.
        site.forget(pb::Role::Client).await;
        let id = site
            .open(worker::worker(to_proxy, pb::Role::Client))
            .await
            .id;
        let of_proxy = pb::PutSessionRequest {
            session_id: String::new(),
            ..worker::to_put(&site, &id, "", b"")
        };
        let misfiled = pb::PutSessionRequest {
            server_name: to_host.1.into(),
            ..of_proxy.clone()
        };
        let refused = site
            .daemon
            .sessions()
            .put_session(misfiled)
            .await
            .expect_err("it is stored under the host");
        assert_eq!(reason(&refused), "SERVER_NAME_OTHER");
        let put = site
            .daemon
            .sessions()
            .put_session(of_proxy)
            .await
            .unwrap()
            .into_inner()
            .session
            .unwrap();
        let newest = |place| pb::LookupSessionRequest {
            session_id: String::new(),
            ..worker::lookup(&put, place)
        };
        worker::assert_miss(&site, to_host, newest(to_host)).await;
        worker::assert_found(&site, newest(to_proxy)).await;
        site.close(&id).await;
        site.daemon.stop().await;
    }
}

#[tokio::test]
async fn curl_cve_2016_5419_a_session_of_another_client_certificate() {
    // CVE-2016-5419, curl: a connection with another client certificate, or without one, resumed a
    // session that had been made with the first certificate.
    for version in VERSIONS {
        let shows = |name: &str| {
            format!(
                "client_certificates = [{{ certificate = \"{name}.crt\", key = \"{name}.key\" }}]\n"
            )
        };
        let contexts = [
            ("alice", shows("alice")),
            ("carol", shows("carol")),
            ("nocert", String::new()),
            ("may", asks("a", "request", "one")),
            ("must", asks("a", "require", "one")),
        ];
        let site = Site::start(version, &contexts).await;
        let place = |context| At(context, "a.test");
        for (first, then) in [
            ("alice", "carol"),
            ("alice", "nocert"),
            ("carol", "alice"),
            ("nocert", "carol"),
        ] {
            let met = apart(
                &site,
                ("may", place(first)),
                ("may", place(then)),
                Then::Full,
            )
            .await;
            let shown = met.server.peer.map(|peer| peer.dns_names[0].clone());
            assert_eq!(
                shown,
                Some(format!("{then}.one.test")).filter(|_| then != "nocert")
            );
        }
        let refused = Then::Refused("certificate_required");
        apart(
            &site,
            ("must", place("alice")),
            ("must", place("nocert")),
            refused,
        )
        .await;
        site.daemon.stop().await;
    }
}

#[tokio::test]
async fn haproxy_3195_a_session_of_another_sni() {
    // HAProxy issue 3195 (5702009c8): HAProxy kept one session per backend server and offered it
    // for any server name. So a request went to the host of the previous name.
    for version in VERSIONS {
        let site = Site::start(version, &[("client", String::new()), ("web", serves("ab"))]).await;
        let (a, b) = (At("client", "a.test"), At("client", "b.test"));
        for (here, there) in [(a, b), (b, a)] {
            let met = apart(&site, ("web", here), ("web", there), Then::Full).await;
            assert_eq!(
                (
                    met.server.server_name.as_str(),
                    met.client.server_name.as_str()
                ),
                (there.1, there.1)
            );
        }
        site.daemon.stop().await;
    }
}

#[tokio::test]
async fn envoy_46243_an_upstream_session_of_another_host() {
    // Envoy issue 46243: the key of a cluster's cache of upstream sessions had no SNI. So one host
    // of the cluster was offered the session of another and resumed it.
    for version in VERSIONS {
        let contexts = [
            ("cluster", String::new()),
            ("other", "session_id_context = \"other\"\n".into()),
            ("host-a", serves("a")),
            ("host-b", serves("b")),
            ("host-ab", serves("ab")),
        ];
        let site = Site::start(version, &contexts).await;
        let (a, b) = (At("cluster", "a.test"), At("cluster", "b.test"));
        for (here, there) in [("host-a", "host-b"), ("host-ab", "host-ab")] {
            apart(&site, (here, a), (there, b), Then::Full).await;
            apart(&site, (there, b), (here, a), Then::Full).await;
        }
        apart(
            &site,
            ("host-a", a),
            ("host-a", At("other", "a.test")),
            Then::Full,
        )
        .await;
        // Another host with the same name did not make the session. It makes a full handshake and
        // shows its certificate.
        site.forget(pb::Role::Client).await;
        meet(&site, at(a, pb::Role::Client), "host-a")
            .await
            .went(Then::Full);
        let met = meet(&site, at(a, pb::Role::Client), "host-ab").await;
        assert_ne!(met.offered, "");
        met.went(Then::Full);
        assert_eq!(met.client.peer.unwrap().dns_names, ["a.test", "b.test"]);
        site.daemon.stop().await;
    }
}

/// The result of one handshake of the daemon's own client.
#[derive(Debug)]
struct Met {
    client: pb::Connection,
    server: pb::Connection,
    /// The session that the client offered, or empty.
    offered: String,
    alert: Option<String>,
}

impl Met {
    /// Asserts that the handshake did not resume, and that it ended as expected.
    #[track_caller]
    fn went(&self, then: Then) {
        let state = match then {
            Then::Full => pb::ConnectionState::Established,
            Then::Refused(_) => pb::ConnectionState::Failed,
        };
        let alert = match then {
            Then::Full => None,
            Then::Refused(alert) => Some(alert),
        };
        assert_eq!(
            (self.server.state(), self.alert.as_deref()),
            (state, alert),
            "{self:?}"
        );
        assert!(
            !self.client.session_reused && !self.server.session_reused,
            "{self:?}"
        );
    }

    #[track_caller]
    fn resumed(&self) {
        assert!(
            self.client.session_reused && self.server.session_reused && self.alert.is_none(),
            "{self:?}"
        );
    }
}

/// Makes a handshake of a client with a server of a context. Then both are closed and freed.
async fn meet(site: &Site, client: pb::NewRequest, server: &str) -> Met {
    let client = site.open(client).await.id;
    let server = site.daemon.open_in(server, pb::Role::Server).await;
    let hello = site.daemon.exchange(&client, b"", b"").await.unwrap();
    let offered = hello.connection.unwrap().session_id;
    let alert = site
        .carry(&client, &server, hello.ciphertext.to_vec())
        .await;
    let met = Met {
        client: site.daemon.get(&client).await,
        server: site.daemon.get(&server).await,
        offered,
        alert,
    };
    site.close(&client).await;
    site.close(&server).await;
    met
}

/// Asserts that a client offers its session at the place where it got it, and at no other place, on
/// any path. A place is the server's context and the client's.
async fn apart(site: &Site, here: (&str, At), there: (&str, At), then: Then) -> Met {
    eprintln!("{:?}: from {here:?} to {there:?}", site.version.version);
    site.forget(pb::Role::Client).await;
    let client = |place: At| at(place, pb::Role::Client);
    // The cache chooses the session by server name.
    meet(site, client(here.1), here.0).await.went(Then::Full);
    let again = meet(site, client(here.1), here.0).await;
    again.resumed();
    let met = meet(site, client(there.1), there.0).await;
    assert_eq!(met.offered, "");
    met.went(then);

    // The caller names the session, at the place where it is valid and at the other one.
    let session_id = again.client.session_id;
    site.refuses(&client(there.1), &session_id).await;
    let named = meet(
        site,
        pb::NewRequest {
            session_id: session_id.clone(),
            ..client(here.1)
        },
        here.0,
    )
    .await;
    assert_eq!(named.offered, session_id);
    named.resumed();
    worker::clients_apart(site, here.1, there.1).await;
    met
}
