//! Incidents in which a policy changed while sessions of the old policy were still valid.

use tls_sessiond_proto as pb;

use super::{At, Site, Then, VERSIONS, Visitor, asks, at, serves, worker};

const HERE: At = At("default", "a.test");

/// Asserts that a visitor resumes under one policy, but not after the change to another, and not
/// after the change back.
async fn apart(
    site: &Site,
    visitor: &Visitor,
    before: &[(&str, String)],
    after: &[(&str, String)],
    then: Then,
) {
    site.reload(before);
    visitor.forget();
    visitor.visit(site, HERE).await.established(false);
    visitor.visit(site, HERE).await.established(true);
    let worker = worker::put(site, HERE, pb::Role::Server, b"").await;
    worker::assert_found(site, worker::lookup(&worker, HERE)).await;
    site.reload(after);
    visitor.stray(site, HERE).await.went(then);
    worker::assert_miss(site, HERE, worker::lookup(&worker, HERE)).await;
    site.reload(before);
    // Its sessions of the first policy are removed for good, because the policy was another in the
    // meantime.
    visitor.visit(site, HERE).await.established(false);
    visitor.visit(site, HERE).await.established(true);
    worker::assert_miss(site, HERE, worker::lookup(&worker, HERE)).await;
}

#[tokio::test]
async fn traefik_ghsa_gv8r_9rw9_9697_exchanged_client_authorities() {
    // GHSA-gv8r-9rw9-9697, Traefik: a copied configuration kept its ticket keys. So after a change
    // of the client authorities, clients that only the old authorities trusted resumed.
    for version in VERSIONS {
        let one = [("default", asks("ab", "require", "one"))];
        let two = [("default", asks("ab", "require", "two"))];
        let site = Site::start(version, &one).await;
        let alice = Visitor::new(&site, Some("alice"));
        apart(
            &site,
            &alice,
            &one,
            &two,
            Then::Refused("certificate_required"),
        )
        .await;
        site.daemon.stop().await;
    }
}

#[tokio::test]
async fn go_cve_2025_68121_changed_trust_in_servers_and_clients() {
    // CVE-2025-68121, Go crypto/tls: Config.Clone and GetConfigForClient carried session keys over
    // to a configuration with other ClientCAs or RootCAs, and a resumption verified against
    // neither.
    for version in VERSIONS {
        let request = |authority| [("default", asks("ab", "request", authority))];
        let site = Site::start(version, &request("one")).await;
        let alice = Visitor::new(&site, Some("alice"));
        apart(&site, &alice, &request("one"), &request("two"), Then::Full).await;

        // The client's side: a change of the authorities that it trusts.
        let trusts = |authority: &str| {
            [
                (
                    "client",
                    format!("ca = \"{authority}.pem\"\nsession_id_context = \"client\"\n"),
                ),
                ("default", serves("a")),
            ]
        };
        site.reload(&trusts("servers"));
        let meet = async || {
            let client = site
                .open(at(At("client", "a.test"), pb::Role::Client))
                .await
                .id;
            let server = site.open(at(HERE, pb::Role::Server)).await.id;
            let hello = site
                .daemon
                .exchange(&client, b"", b"")
                .await
                .unwrap()
                .ciphertext;
            let offered = site.daemon.get(&client).await.session_id;
            let alert = site.carry(&client, &server, hello.to_vec()).await;
            let resumed = site.daemon.get(&server).await.session_reused;
            site.close(&client).await;
            site.close(&server).await;
            (alert, resumed, !offered.is_empty())
        };
        assert_eq!(meet().await, (None, false, false));
        assert_eq!(meet().await, (None, true, true));
        site.reload(&trusts("rogue"));
        assert_eq!(meet().await, (Some("unknown_ca".into()), false, false));
        site.reload(&trusts("servers"));
        assert_eq!(meet().await, (None, false, false));
        site.daemon.stop().await;
    }
}

#[tokio::test]
async fn envoy_cve_2022_21654_validation_that_became_stricter() {
    // CVE-2022-21654, and for QUIC pull request 47381 of 2026, Envoy: the validation settings were
    // not part of the session context. So a session made under lax settings was resumed under
    // strict ones.
    for version in VERSIONS {
        let policies = [
            ("none", [("default", serves("ab"))]),
            ("request", [("default", asks("ab", "request", "one"))]),
            ("require", [("default", asks("ab", "require", "one"))]),
        ];
        let site = Site::start(version, &policies[0].1).await;
        let carol = Visitor::new(&site, Some("carol"));
        for (lax, before) in &policies {
            for (strict, after) in policies.iter().filter(|(strict, _)| strict != lax) {
                // Away from home the visitor shows no certificate.
                let then = match *strict {
                    "require" => Then::Refused("certificate_required"),
                    _ => Then::Full,
                };
                apart(&site, &carol, before, after, then).await;
            }
        }
        site.daemon.stop().await;
    }
}
