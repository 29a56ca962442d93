//! Programs that watch the daemon: Prometheus, a parser of OpenMetrics, and a browser.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use tls_sessiond_proto as pb;
use tokio::{
    process::Command,
    time::{sleep, timeout},
};

use crate::{
    admin_http::{Watched, get},
    binary::PATIENCE,
    calls::{Worker, lookup, put, worker},
    harness::TestDaemon,
    process::{Process, run},
};

/// How long a browser may look at the page in four views.
const LOOK: Duration = Duration::from_secs(300);

fn peers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".peers")
}

/// Makes a connection with a session, a resumption of it, a miss and an unclosed end.
async fn some_traffic(daemon: &TestDaemon, number: u32) {
    let call = Worker(daemon);
    let id = format!("{number:08x}");
    let made = call.open(worker(pb::Role::Server)).await.id;
    call.put(put(&made, &id)).await;
    let resumed = pb::NewRequest {
        session_id: id.clone(),
        ..worker(pb::Role::Server)
    };
    assert!(call.lookup(lookup(&id)).await.found);
    call.open(resumed).await;
    assert!(!call.lookup(lookup("ffff")).await.found);
    let client = daemon.open(pb::Role::Client).await;
    let server = daemon.open(pb::Role::Server).await;
    daemon.handshake(&client, &server).await;
    call.free(&client).await;
}

#[tokio::test]
async fn every_line_of_the_metrics_is_openmetrics() {
    let watched = Watched::start(&[]).await;
    let daemon = TestDaemon::at(&watched.binary.address).await;
    some_traffic(&daemon, 1).await;
    let metrics = watched.get("/metrics").await.body;
    // A chunked body has its lengths between the lines.
    let script = "import sys, urllib.request\n\
                  from prometheus_client.openmetrics.parser import text_string_to_metric_families\n\
                  text = urllib.request.urlopen(sys.argv[1]).read().decode()\n\
                  families = list(text_string_to_metric_families(text))\n\
                  print(len(families), sum(len(family.samples) for family in families))\n";
    let url = format!("http://{}/metrics", watched.admin);
    let mut python = Command::new(peers().join("venv/bin/python"));
    let (said, good) = run(python.args(["-c", script, &url]), "").await;
    assert!(good, "{said}\n{metrics}");
    let numbers: Vec<usize> = said
        .split_whitespace()
        .map(|number| number.parse().unwrap())
        .collect();
    assert!(numbers[0] >= 30 && numbers[1] >= 60, "{said}");
    watched.binary.kill().await;
}

#[tokio::test]
async fn prometheus_scrapes_and_answers_queries() {
    let watched = Watched::start(&[]).await;
    let daemon = TestDaemon::at(&watched.binary.address).await;
    some_traffic(&daemon, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "global: {{scrape_interval: 500ms}}\nscrape_configs:\n  - job_name: daemon\n    static_configs: [{{targets: ['{}']}}]\n",
        watched.admin
    );
    fs::write(folder.path().join("prometheus.yml"), config).unwrap();
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let prometheus = Process::start(
        Command::new("prometheus")
            .arg(format!(
                "--config.file={}",
                folder.path().join("prometheus.yml").display()
            ))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={free}")),
    );
    let query = |text: &'static str| {
        let address = free.to_string();
        async move {
            if tokio::net::TcpStream::connect(&address).await.is_err() {
                return String::new();
            }
            get(&address, &format!("/api/v1/query?query={text}"))
                .await
                .body
        }
    };
    for (asked, answered) in [
        ("tls_sessiond_ready", "\"1\"]"),
        (
            "sum(tls_sessiond_handshakes_total%7Bkind=%22resumed%22%7D)",
            "\"1\"]",
        ),
        (
            "sum(tls_sessiond_lookups_total%7Bresult=%22miss%22%7D)",
            "\"1\"]",
        ),
        (
            "histogram_quantile(0.5,sum%20by(le)(rpc_server_call_duration_seconds_bucket))%3E0",
            "\"value\":[",
        ),
        ("tls_sessiond_build_info", "\"version\":\""),
    ] {
        let found = async {
            while !query(asked).await.contains(answered) {
                // A scrape is due twice in a second.
                sleep(Duration::from_millis(100)).await;
            }
        };
        if timeout(PATIENCE, found).await.is_err() {
            panic!("{asked}: {}", query(asked).await);
        }
    }
    for expression in crate::runbook::expressions() {
        let encoded: String = expression
            .bytes()
            .map(|byte| format!("%{byte:02X}"))
            .collect();
        let answer = get(&free.to_string(), &format!("/api/v1/query?query={encoded}")).await;
        assert!(
            answer.body.contains("\"status\":\"success\""),
            "{expression}: {}",
            answer.body
        );
    }
    prometheus.kill().await;
    watched.binary.kill().await;
}

#[tokio::test]
async fn status_page_lives_in_a_browser() {
    let watched = Watched::start(&[]).await;
    let daemon = TestDaemon::at(&watched.binary.address).await;
    // The page is opened later than the traffic began, and shows a history all the same. A step of
    // the history ends after 30 s.
    let mut number = 0;
    let history = async {
        while !crate::admin_http::first_events(&watched.admin).await[0]
            .to_string()
            .contains("full")
        {
            some_traffic(&daemon, number).await;
            number += 1;
            sleep(Duration::from_millis(500)).await;
        }
    };
    timeout(PATIENCE, history)
        .await
        .expect("no step of the history has ended");
    let folder = tempfile::tempdir_in(peers()).unwrap();
    // node looks for packages in the folders above a script.
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page/look.mjs"),
        folder.path().join("look.mjs"),
    )
    .unwrap();
    let shots = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/status-page");
    let mut browser = Command::new("node");
    let looks = browser
        .arg(folder.path().join("look.mjs"))
        .arg(format!("http://{}/", watched.admin))
        .arg(&shots)
        .kill_on_drop(true)
        .output();
    let looks = timeout(LOOK, looks);
    tokio::pin!(looks);
    let looked = loop {
        tokio::select! {
            looked = &mut looks => break looked.expect("the browser does not end").unwrap(),
            () = sleep(Duration::from_millis(500)) => {
                some_traffic(&daemon, number).await;
                number += 1;
            }
        }
    };
    let said = String::from_utf8_lossy(&looked.stdout);
    let error = String::from_utf8_lossy(&looked.stderr);
    assert!(looked.status.success(), "{said}{error}");
    for view in ["light-1280", "dark-1280", "light-360", "dark-360"] {
        assert!(shots.join(format!("{view}.png")).exists(), "{view}");
    }
    watched.binary.kill().await;
}

/// Commands of a README that need a program of a production host: systemd, or a Grafana.
const ELSEWHERE: [&str; 2] = ["sudo ", "curl "];

#[tokio::test]
async fn commands_for_prometheus_and_grafana_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut ran = Vec::new();
    for name in ["prometheus", "grafana"] {
        let folder = tempfile::tempdir().unwrap();
        let deploy = root.join("deploy").join(name);
        for file in fs::read_dir(&deploy).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
        let readme = fs::read_to_string(deploy.join("README.md")).unwrap();
        let commands = readme.lines().filter_map(|line| line.strip_prefix("$ "));
        for command in commands {
            if ELSEWHERE.iter().any(|other| command.starts_with(other)) {
                continue;
            }
            let mut shell = Command::new("sh");
            shell.args(["-euc", command]).current_dir(folder.path());
            let (said, good) = run(&mut shell, "").await;
            assert!(good, "{command}: {said}");
            ran.push(command.split(' ').next().unwrap().to_owned());
        }
        if name == "grafana" {
            let import = fs::read(folder.path().join("import.json")).unwrap();
            let import: serde_json::Value = serde_json::from_slice(&import).unwrap();
            assert_eq!(import["overwrite"], true);
            assert_eq!(import["dashboard"]["title"], "tls-sessiond");
        }
    }
    assert_eq!(ran, ["promtool", "promtool", "jq"]);
}
