//! Envoy takes the keys of a ring by its secret discovery service.

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use tls_sessiond_proto::{
    self as pb,
    envoy::{self, secret_discovery_service_client::SecretDiscoveryServiceClient},
    ticket_key_service_client::TicketKeyServiceClient,
};
use tokio::{
    net::TcpStream,
    process::Command,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::{
    harness::{TestDaemon, reason},
    pki::localhost,
    process::{PATIENCE, Process, peer, run},
};

/// A ring that rotates every two seconds, and tickets that live as long.
const RING: &str = "[[ticket_keys]]\nname = \"web\"\nrotate = \"2s\"\nlifetime = \"2s\"\nmax_key_age = \"60s\"\nmembers_wait = \"30s\"\n";

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// An Envoy that answers every request itself.
struct Proxy {
    _process: Process,
    port: u16,
}

impl Proxy {
    async fn start(folder: &TempDir, node: &str, daemon: &str) -> Self {
        let port = free_port();
        let file = folder.path().join(format!("{node}.json"));
        fs::write(&file, bootstrap(folder.path(), port, daemon).to_string()).unwrap();
        let mut command = peer("envoy");
        command
            .args(["--service-node", node, "--service-cluster", "test"])
            .args([
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "warn",
            ])
            .arg("--config-path")
            .arg(&file);
        let process = Process::start(&mut command);
        let proxy = Self {
            _process: process,
            port,
        };
        let begun = Instant::now();
        // It accepts, and cuts every handshake until it has its keys.
        while !matches!(proxy.shake(&["-no_ticket"]).await, Some(text) if text.contains("New")) {
            assert!(begun.elapsed() < PATIENCE, "Envoy does not serve");
            sleep(Duration::from_millis(50)).await;
        }
        proxy
    }

    /// Makes a handshake, and a request. Returns what openssl says.
    async fn shake(&self, args: &[&str]) -> Option<String> {
        let address = format!("127.0.0.1:{}", self.port);
        TcpStream::connect(&address).await.ok()?;
        let mut client = Command::new("openssl");
        client
            .args(["s_client", "-ign_eof", "-connect", &address])
            .args(["-servername", "localhost"])
            .args(args);
        let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let (said, _) = run(&mut client, request).await;
        Some(said)
    }
}

fn bootstrap(folder: &Path, port: u16, daemon: &str) -> Value {
    let file = |name: &str| json!({"filename": folder.join(name)});
    let (host, sds) = daemon.rsplit_once(':').unwrap();
    let sds: u16 = sds.parse().unwrap();
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "tls_certificates": [{"certificate_chain": file("tls.crt"), "private_key": file("tls.key")}],
            "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
        },
        "session_ticket_keys_sds_secret_config": {
            "name": "web",
            "sds_config": {
                "resource_api_version": "V3",
                "api_config_source": {
                    "api_type": "GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "sds"}}],
                },
            },
        },
    });
    let http = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test",
        "delayed_close_timeout": "0s",
        "route_config": {"virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "ok"}}}],
        }]},
        "http_filters": [{
            "name": "router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }],
    });
    json!({
        "static_resources": {
            "listeners": [{
                "name": "web",
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                "filter_chains": [{
                    "transport_socket": {"name": "tls", "typed_config": tls},
                    "filters": [{"name": "http", "typed_config": http}],
                }],
            }],
            "clusters": [{
                "name": "sds",
                "connect_timeout": "1s",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": {"http2_protocol_options": {}},
                    },
                },
                "load_assignment": {"cluster_name": "sds", "endpoints": [{"lb_endpoints": [{
                    "endpoint": {"address": {"socket_address": {"address": host, "port_value": sds}}},
                }]}]},
            }],
        },
    })
}

async fn ring(daemon: &TestDaemon) -> pb::Ring {
    let mut client = TicketKeyServiceClient::new(daemon.channel.clone());
    let request = pb::GetRingRequest { ring: "web".into() };
    client
        .get_ring(request)
        .await
        .unwrap()
        .into_inner()
        .ring
        .unwrap()
}

#[tokio::test]
async fn envoys_resume_each_others_clients_over_rotations() {
    let folder = tempfile::tempdir().unwrap();
    localhost(folder.path());
    let daemon = TestDaemon::with(RING).await;
    let one = Proxy::start(&folder, "envoy-1", &daemon.address).await;
    let two = Proxy::start(&folder, "envoy-2", &daemon.address).await;
    let began = ring(&daemon).await;
    let names: Vec<_> = began.members.iter().map(|member| &*member.name).collect();
    assert_eq!(names, ["envoy-1", "envoy-2"]);
    let file = folder.path().join("session").display().to_string();
    let (mut resumed, mut lost) = (0, Vec::new());
    let begun = Instant::now();
    // At least three rotations, each with tickets of before, during and after it.
    while ring(&daemon).await.rotations < began.rotations + 3 || resumed < 12 {
        assert!(begun.elapsed() < PATIENCE, "the ring does not rotate");
        for version in ["-tls1_2", "-tls1_3"] {
            for (from, to) in [(&one, &two), (&two, &one)] {
                let made = from.shake(&[version, "-sess_out", &file]).await.unwrap();
                assert!(made.contains("New, "), "{made}");
                let back = to.shake(&[version, "-sess_in", &file]).await.unwrap();
                match back.contains("Reused, ") {
                    true => resumed += 1,
                    false => lost.push(format!("{version} {:?}", begun.elapsed())),
                }
            }
        }
    }
    println!("resumed {resumed}, lost {}", lost.len());
    assert!(lost.is_empty(), "{lost:?}");
    let ended = ring(&daemon).await;
    assert!(
        ended
            .members
            .iter()
            .all(|member| member.counted && member.trouble.is_empty())
    );
    daemon.stop().await;
}

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

fn first(node: &str, names: &[&str]) -> envoy::DiscoveryRequest {
    envoy::DiscoveryRequest {
        node: Some(envoy::Node { id: node.into() }),
        resource_names: names.iter().map(|&name| name.to_owned()).collect(),
        type_url: SECRET.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn refusal_of_envoy_is_one_of_the_member() {
    let daemon = TestDaemon::with(RING).await;
    let mut client = SecretDiscoveryServiceClient::new(daemon.channel.clone());
    let (says, said) = mpsc::channel(4);
    says.send(first("envoy-1", &["web"])).await.unwrap();
    let told = client.stream_secrets(ReceiverStream::new(said)).await;
    let mut told = told.unwrap().into_inner();
    let answer = timeout(PATIENCE, told.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(answer.resources.len(), 1);
    let refused = envoy::DiscoveryRequest {
        response_nonce: answer.nonce,
        error_detail: Some(envoy::ErrorDetail {
            code: 3,
            message: "Length 79, expected length 80.".into(),
        }),
        ..first("envoy-1", &["web"])
    };
    says.send(refused).await.unwrap();
    let begun = Instant::now();
    while ring(&daemon).await.members[0].trouble != "Length 79, expected length 80." {
        assert!(begun.elapsed() < PATIENCE);
        sleep(Duration::from_millis(5)).await;
    }
    assert!(!ring(&daemon).await.members[0].counted);
    daemon.stop().await;
}

#[tokio::test]
async fn changed_secrets_are_told_one_by_one() {
    let daemon = TestDaemon::with(RING).await;
    let mut client = SecretDiscoveryServiceClient::new(daemon.channel.clone());
    let (says, said) = mpsc::channel(4);
    let subscribe = envoy::DeltaDiscoveryRequest {
        node: Some(envoy::Node { id: "delta".into() }),
        type_url: SECRET.into(),
        resource_names_subscribe: vec!["web".into()],
        ..Default::default()
    };
    says.send(subscribe.clone()).await.unwrap();
    let told = client.delta_secrets(ReceiverStream::new(said)).await;
    let mut told = told.unwrap().into_inner();
    let mut versions = Vec::new();
    while versions.len() < 3 {
        let answer = timeout(PATIENCE, told.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        versions.push(answer.resources[0].version.clone());
        let acknowledged = envoy::DeltaDiscoveryRequest {
            response_nonce: answer.nonce,
            ..Default::default()
        };
        says.send(acknowledged).await.unwrap();
    }
    versions.dedup();
    assert_eq!(versions.len(), 3);
    let fetched = client.fetch_secrets(first("", &["web"])).await.unwrap();
    assert_eq!(fetched.into_inner().resources[0].type_url, SECRET);
    daemon.stop().await;
}

#[tokio::test]
async fn envoy_is_refused_what_it_may_not_have() {
    let daemon = TestDaemon::with(RING).await;
    let mut client = SecretDiscoveryServiceClient::new(daemon.channel.clone());
    let many: Vec<_> = (0..65).map(|_| "web").collect();
    let other = envoy::DiscoveryRequest {
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".into(),
        ..first("envoy-1", &["web"])
    };
    for (request, code, why) in [
        (first("", &["web"]), Code::InvalidArgument, "MEMBER_INVALID"),
        (
            first("envoy-1", &["other"]),
            Code::NotFound,
            "RING_NOT_FOUND",
        ),
        (other, Code::InvalidArgument, "MEMBER_INVALID"),
    ] {
        let told = client.stream_secrets(tokio_stream::once(request)).await;
        let refused = told.unwrap().into_inner().message().await.unwrap_err();
        assert_eq!((refused.code(), &*reason(&refused)), (code, why));
    }
    let refused = client.fetch_secrets(first("", &many)).await.unwrap_err();
    assert_eq!(reason(&refused), "MEMBER_LIMIT");
    daemon.stop().await;
}
