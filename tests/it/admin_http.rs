//! The admin address: metrics, probes and the status page.

use std::{fs, net::TcpListener, process::Stdio, time::Duration};

use tls_sessiond_proto as pb;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use crate::{
    binary::{Binary, PATIENCE},
    calls::{Worker, lookup, put, worker},
    harness::TestDaemon,
    pki::Authority,
};

/// A daemon with an admin address on a port of its own.
pub(crate) struct Watched {
    pub(crate) binary: Binary,
    pub(crate) admin: String,
}

impl Watched {
    pub(crate) async fn start(args: &[&str]) -> Self {
        let mut all = vec!["--set", "listen.admin=tcp://127.0.0.1:0"];
        all.extend(args);
        let mut binary = Binary::start(&all).await;
        let line = binary.line().await;
        let at = line
            .split("http://")
            .nth(1)
            .unwrap_or_else(|| panic!("{line}"));
        let admin = at.split('/').next().unwrap().to_owned();
        Self { binary, admin }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        get(&self.admin, path).await
    }
}

/// An answer over HTTP.
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: String,
    pub(crate) body: String,
}

pub(crate) async fn get(address: &str, path: &str) -> Answer {
    ask(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n"),
    )
    .await
}

/// Sends a request without the end of its head, and reads the answer.
async fn ask(address: &str, head: &str) -> Answer {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("{head}Connection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    let read = timeout(PATIENCE, socket.read_to_string(&mut text)).await;
    read.expect("no answer").unwrap();
    let (headers, body) = text.split_once("\r\n\r\n").unwrap();
    Answer {
        status: headers.split(' ').nth(1).unwrap().parse().unwrap(),
        headers: headers.to_lowercase(),
        body: body.to_owned(),
    }
}

/// Returns the value of a line of metrics.
fn value(metrics: &str, series: &str) -> Option<String> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series))?;
    line.strip_prefix(' ').map(ToOwned::to_owned)
}

#[tokio::test]
async fn metrics_count_what_the_daemon_did() {
    let watched = Watched::start(&[]).await;
    let daemon = TestDaemon::at(&watched.binary.address).await;
    let call = Worker(&daemon);
    let made = call.open(worker(pb::Role::Server)).await.id;
    call.put(put(&made, "aa")).await;
    assert!(call.lookup(lookup("aa")).await.found);
    assert!(!call.lookup(lookup("bb")).await.found);
    call.free(&made).await;
    let answer = watched.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(
        answer
            .headers
            .contains("content-type: application/openmetrics-text; version=1.0.0")
    );
    let metrics = &answer.body;
    assert!(metrics.contains("# EOF"), "{metrics}");
    for (series, wanted) in [
        ("tls_sessiond_ready", "1"),
        (
            "tls_sessiond_handshakes_total{context=\"default\",role=\"server\",version=\"1.2\",kind=\"full\"}",
            "1",
        ),
        (
            "tls_sessiond_lookups_total{context=\"default\",result=\"miss\",reason=\"unknown\"}",
            "1",
        ),
        (
            "tls_sessiond_removals_total{context=\"default\",reason=\"unclosed\"}",
            "1",
        ),
        (
            "tls_sessiond_sessions{context=\"default\",role=\"server\"}",
            "0",
        ),
        (
            "tls_sessiond_unclosed_connections_total{owner=\"local\"}",
            "1",
        ),
        (
            "rpc_server_call_duration_seconds_count{rpc_method=\"tls.sessiond.v1.SessionService/LookupSession\",rpc_response_status_code=\"OK\"}",
            "2",
        ),
        ("tls_sessiond_reloads_total{result=\"applied\"}", "0"),
        ("tls_sessiond_log_lines_dropped_total", "0"),
    ] {
        assert_eq!(
            value(metrics, series).as_deref(),
            Some(wanted),
            "{series}\n{metrics}"
        );
    }
    for series in [
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_start_time_seconds",
        "tls_sessiond_certificate_expiry_time_seconds{certificate=\"context default\"}",
    ] {
        let number: f64 = value(metrics, series)
            .unwrap_or_else(|| panic!("{series}"))
            .parse()
            .unwrap();
        assert!(number > 0.0, "{series}");
    }
    assert!(
        metrics.contains("tls_sessiond_build_info{version=\""),
        "{metrics}"
    );
    drop(daemon);
    watched.binary.kill().await;
}

#[tokio::test]
async fn probes_and_pages_answer_local_hosts_only() {
    let watched = Watched::start(&[]).await;
    for (path, body) in [
        ("/livez", "alive\n"),
        ("/readyz", "ready\n"),
        ("/startupz", "started\n"),
    ] {
        let answer = watched.get(path).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, body), "{path}");
    }
    for (path, kind) in [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
    ] {
        let answer = watched.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(
            answer.headers.contains(&format!("content-type: {kind}")),
            "{path}: {}",
            answer.headers
        );
        assert!(
            answer
                .headers
                .contains("content-security-policy: default-src 'none';")
        );
        assert!(answer.headers.contains("x-content-type-options: nosniff"));
    }
    for (head, status) in [
        ("GET /nowhere HTTP/1.1\r\nHost: localhost\r\n", 404),
        (
            "POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n",
            405,
        ),
        ("DELETE / HTTP/1.1\r\nHost: localhost\r\n", 405),
        ("GET / HTTP/1.1\r\nHost: 127.0.0.1:9551\r\n", 200),
        ("GET / HTTP/1.1\r\nHost: [::1]:9551\r\n", 200),
        ("GET / HTTP/1.1\r\nHost: evil.test\r\n", 421),
        (
            "GET /metrics HTTP/1.1\r\nHost: localhost.evil.test:9551\r\n",
            421,
        ),
        ("GET http://evil.test/ HTTP/1.1\r\nHost: localhost\r\n", 421),
        ("GET / HTTP/1.1\r\n", 421),
        (
            "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.test\r\n",
            421,
        ),
        ("GET / HTTP/1.1\r\nHost: \u{fffd}\r\n", 421),
    ] {
        let answer = ask(&watched.admin, head).await;
        assert_eq!(answer.status, status, "{head}");
    }
    watched.binary.kill().await;
}

#[tokio::test]
async fn names_are_shown_only_to_an_observer() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    let rules = |role: &str| {
        format!("[[access]]\nidentity = \"local\"\ncontexts = [\"*\"]\nrole = \"{role}\"\n")
    };
    fs::write(&file, rules("worker")).unwrap();
    let watched = Watched::start(&["--config", file.to_str().unwrap()]).await;
    let daemon = TestDaemon::at(&watched.binary.address).await;
    assert!(!Worker(&daemon).lookup(lookup("bb")).await.found);
    let hidden = watched.get("/metrics").await.body;
    assert!(
        !hidden.contains("context=") && !hidden.contains("owner="),
        "{hidden}"
    );
    let missed = "tls_sessiond_lookups_total{result=\"miss\",reason=\"unknown\"}";
    assert_eq!(value(&hidden, missed).as_deref(), Some("1"), "{hidden}");
    let events = first_events(&watched.admin).await;
    assert_eq!(events[1]["names"], false);
    assert_eq!(events[1]["contexts"][0]["name"], "");
    assert_eq!(events[1]["events"], serde_json::json!([]));
    fs::write(&file, rules("observer")).unwrap();
    watched.binary.signal("-HUP").await;
    let named = async {
        while !watched
            .get("/metrics")
            .await
            .body
            .contains("context=\"default\"")
        {}
    };
    timeout(PATIENCE, named)
        .await
        .expect("an observer sees names");
    let events = first_events(&watched.admin).await;
    assert_eq!(events[1]["contexts"][0]["name"], "default");
    assert_eq!(events[1]["events"][0]["kind"], "miss");
    watched.binary.kill().await;
}

/// Returns the data of the first two events of the page: the history, and a snapshot.
pub(crate) async fn first_events(address: &str) -> [serde_json::Value; 2] {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    socket.write_all(request).await.unwrap();
    let mut lines = BufReader::new(socket).lines();
    let mut found = Vec::new();
    let read = async {
        while found.len() < 2 {
            let line = lines.next_line().await.unwrap().expect("the stream ended");
            if let Some(data) = line.strip_prefix("data: ") {
                found.push(serde_json::from_str(data).unwrap());
            }
        }
    };
    timeout(PATIENCE, read).await.expect("no events");
    found.try_into().unwrap()
}

#[tokio::test]
async fn feed_begins_with_the_history_and_has_a_limit_of_pages() {
    let watched = Watched::start(&[]).await;
    let [history, snapshot] = first_events(&watched.admin).await;
    assert_eq!(history["step_seconds"]["hour"], 30);
    assert_eq!(history["hour"], serde_json::json!([]));
    assert_eq!(
        (&snapshot["state"], &snapshot["names"]),
        (&"serving".into(), &true.into())
    );
    assert_eq!(snapshot["verdict"]["level"], "ok", "{snapshot}");
    assert!(snapshot["resumption"]["minute"].is_null());
    let mut open = Vec::new();
    let full = async {
        loop {
            let mut socket = TcpStream::connect(&watched.admin).await.unwrap();
            let request = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n";
            socket.write_all(request).await.unwrap();
            let mut head = [0; 12];
            socket.read_exact(&mut head).await.unwrap();
            match &head[9..] {
                b"200" => open.push(socket),
                b"503" => return open.len(),
                other => panic!("{}", String::from_utf8_lossy(other)),
            }
        }
    };
    let pages = timeout(PATIENCE, full).await.expect("no limit");
    assert!((15..=16).contains(&pages), "{pages}");
    // Other answers are not held up.
    assert_eq!(watched.get("/readyz").await.status, 200);
    watched.binary.kill().await;
}

#[tokio::test]
async fn public_address_serves_metrics_and_probes_alone() {
    let public = [
        "--set",
        "listen.admin=tcp://0.0.0.0:0",
        "--set",
        "listen.admin_public=true",
    ];
    let watched = Watched::start(&public).await;
    let port = watched.admin.rsplit(':').next().unwrap().to_owned();
    let address = format!("127.0.0.1:{port}");
    let head = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: scraped.test\r\n");
    let metrics = ask(&address, &head("/metrics")).await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.body.contains("tls_sessiond_ready 1") && !metrics.body.contains("context="));
    assert_eq!(ask(&address, &head("/readyz")).await.status, 200);
    for path in ["/", "/page.js", "/events"] {
        assert_eq!(ask(&address, &head(path)).await.status, 404, "{path}");
    }
    watched.binary.kill().await;
}

#[tokio::test]
async fn admin_address_over_tls_needs_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("workers");
    authority
        .leaf(&["localhost"])
        .write(folder.path(), "server");
    fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
    let file = folder.path().join("c.toml");
    let config = "[listen.tls]\ncertificate = \"server.crt\"\nkey = \"server.key\"\nclient_ca = \"ca.pem\"\n\
                  [[access]]\nidentity = \"local\"\ncontexts = [\"*\"]\nrole = \"worker\"\n\
                  [[access]]\nidentity = \"dns:ops.test\"\ncontexts = [\"*\"]\nrole = \"observer\"\n";
    fs::write(&file, config).unwrap();
    let mut binary = Binary::start(&[
        "--set",
        "listen.admin=tls://127.0.0.1:0",
        "--config",
        file.to_str().unwrap(),
    ])
    .await;
    let line = binary.line().await;
    let at = line
        .split("https://")
        .nth(1)
        .unwrap_or_else(|| panic!("{line}"));
    let address = at.split('/').next().unwrap();
    for (name, sees_names) in [("ops.test", true), ("other.test", false)] {
        let leaf = authority.leaf(&[name]);
        let mut config = crate::doors::client(&authority.pem, Some(&leaf));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let socket = TcpStream::connect(address).await.unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config))
            .connect("localhost".try_into().unwrap(), socket)
            .await
            .unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        assert_eq!(text.contains("context=\"default\""), sees_names, "{name}");
    }
    let socket = TcpStream::connect(address).await.unwrap();
    let config = crate::doors::client(&authority.pem, None);
    let mut refused = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config))
        .connect("localhost".try_into().unwrap(), socket)
        .await
        .unwrap();
    assert!(
        refused.read(&mut [0; 1]).await.is_err(),
        "no certificate was shown"
    );
    binary.kill().await;
}

#[tokio::test]
async fn taken_admin_address_ends_the_daemon_only_if_it_was_set() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let set = format!("listen.admin=tcp://{}", taken.local_addr().unwrap());
    let output =
        crate::command::run(&["--set", "listen.api=[\"tcp://127.0.0.1:0\"]", "--set", &set]);
    let said = crate::command::text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("(listen.admin): Address already in use"),
        "{said}"
    );
    // The daemons of other tests have the default address for a while.
    let bind = async {
        loop {
            match TcpListener::bind("127.0.0.1:9551") {
                Ok(default) => return default,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let default = timeout(PATIENCE, bind)
        .await
        .expect("the address stays taken");
    let child = tokio::process::Command::new(env!("CARGO_BIN_EXE_tls-sessiond"))
        .args(["--set", "listen.api=[\"tcp://127.0.0.1:0\"]"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = child.unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let said = async {
        loop {
            let line = log.next_line().await.unwrap().expect("the daemon ended");
            if line.contains("cannot bind the default admin address") {
                return;
            }
        }
    };
    timeout(PATIENCE, said)
        .await
        .expect("no line about the address");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let greeting = timeout(PATIENCE, lines.next_line()).await;
    assert!(
        greeting
            .unwrap()
            .unwrap()
            .is_some_and(|line| line.starts_with("tls-sessiond"))
    );
    drop(default);
}

#[tokio::test]
async fn peers_that_are_slow_or_no_http_hold_nobody_up() {
    let watched = Watched::start(&[]).await;
    let mut held = Vec::new();
    let shapes: [&[u8]; 5] = [
        b"",
        b"GET / HT",
        b"PRI * HTTP/2.0\r\n",
        b"\x16\x03\x01\x00",
        b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ];
    for number in 0..200 {
        let mut socket = TcpStream::connect(&watched.admin).await.unwrap();
        // The daemon may have ended the connection already.
        let _ = socket.write_all(&shapes[number % 5].repeat(50)).await;
        held.push(socket);
        if number % 20 == 0 {
            let answer = timeout(Duration::from_secs(5), watched.get("/livez")).await;
            assert_eq!(answer.expect("held up").status, 200);
        }
    }
    // A head that is too large is refused.
    let large = format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n",
        "x".repeat(64 << 10)
    );
    let mut socket = TcpStream::connect(&watched.admin).await.unwrap();
    // The daemon may close before it has read all.
    let _ = socket.write_all(format!("{large}\r\n").as_bytes()).await;
    let mut text = Vec::new();
    let _ = socket.read_to_end(&mut text).await;
    assert!(
        text.is_empty() || text.starts_with(b"HTTP/1.1 431"),
        "{}",
        String::from_utf8_lossy(&text)
    );
    watched.binary.kill().await;
}
