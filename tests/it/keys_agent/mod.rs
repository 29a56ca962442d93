//! `keys agent` with real servers: nginx, HAProxy, Envoy and Go share a ring, and what goes wrong is said in words.

mod crossing;
mod fleet;
mod outages;
mod relay;
mod replica;
mod slow;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use tempfile::TempDir;
use tls_sessiond_proto::{self as pb, ticket_key_service_client::TicketKeyServiceClient};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    process::Command,
    time::{sleep, timeout},
};
use tonic::transport::Channel;

use replica::{Kind, Replica};

use crate::{
    harness::TestDaemon,
    pki,
    process::{PATIENCE, Process},
};

/// How long a ticket is accepted.
const LIFETIME: Duration = Duration::from_secs(2);
/// A ring that rotates as fast as it may.
const RING: &str = "[[ticket_keys]]\nname = \"web\"\nrotate = \"1s\"\nlifetime = \"2s\"\nmax_key_age = \"60s\"\nmembers_wait = \"1s\"\n";

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// Returns a folder in memory, with a certificate for localhost and its key.
fn memory() -> TempDir {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    pki::localhost(folder.path());
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    fs::write(
        folder.path().join("both.pem"),
        read("tls.crt") + &read("tls.key"),
    )
    .unwrap();
    folder
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// An agent, and what it writes to stderr.
struct Agent {
    process: Process,
    log: PathBuf,
}

impl Agent {
    fn start(address: &str, member: &str, args: &[&str], folder: &Path) -> Self {
        let binary = [env!("CARGO_BIN_EXE_tls-sessiond")];
        Self::start_within(&binary, address, member, args, folder)
    }

    /// Starts an agent with a command line that begins with `words`.
    fn start_within(
        words: &[&str],
        address: &str,
        member: &str,
        args: &[&str],
        folder: &Path,
    ) -> Self {
        let log = folder.join(format!("{member}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(["keys", "agent", "--ring", "web", "--member", member])
            .args(["--address", address])
            .args(args);
        Self {
            process: Process::logging(&mut command, file),
            log,
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Waits until a condition holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

async fn ring(channel: &Channel) -> pb::Ring {
    let mut client = TicketKeyServiceClient::new(channel.clone());
    let request = pb::GetRingRequest { ring: "web".into() };
    let got = client.get_ring(request).await.unwrap();
    got.into_inner().ring.unwrap()
}

async fn until_ring(channel: &Channel, what: &str, holds: impl Fn(&pb::Ring) -> bool) {
    let mut last = pb::Ring::default();
    let wait = async {
        loop {
            last = ring(channel).await;
            if holds(&last) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let held = timeout(PATIENCE, wait).await.is_ok();
    assert!(held, "never: {what}: {last:#?}");
}

fn member<'r>(ring: &'r pb::Ring, name: &str) -> Option<&'r pb::RingMember> {
    ring.members.iter().find(|member| member.name == name)
}

/// Asserts that no part of a key is in a text, in base64 or in hex.
fn has_no_key(said: &str, keys: &BTreeSet<Vec<u8>>) {
    let lower = said.to_lowercase();
    for key in keys {
        let coded = STANDARD.encode(key);
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        for part in coded.as_bytes().chunks_exact(12) {
            let part = std::str::from_utf8(part).unwrap();
            assert!(!said.contains(part), "a key in: {said}");
        }
        for part in hex.as_bytes().chunks_exact(16) {
            let part = std::str::from_utf8(part).unwrap();
            assert!(!lower.contains(part), "a key in: {said}");
        }
    }
}

/// Answers each connection to a socket with a text, or with silence.
fn answering(path: &Path, answer: Option<&'static str>) {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut question = [0; 256];
                drop(stream.read(&mut question).await);
                match answer {
                    Some(answer) => drop(stream.write_all(answer.as_bytes()).await),
                    None => sleep(PATIENCE).await,
                }
            });
        }
    });
}

#[tokio::test]
async fn servers_that_take_no_keys_are_named_with_words() {
    let daemon = TestDaemon::by_real_time(RING).await;
    let address = format!("tcp://{}", daemon.address);
    let folder = memory();
    let at = |name: &str| text(&folder.path().join(name));
    fs::write(at("dead.pid"), "999999999\n").unwrap();
    fs::write(at("self.pid"), std::process::id().to_string()).unwrap();
    fs::write(at("empty.pid"), "\n").unwrap();
    fs::create_dir(at("full")).unwrap();
    answering(
        &folder.path().join("garbage"),
        Some("220 mail.example.org ready\n"),
    );
    answering(&folder.path().join("weak"), Some("Permission denied\n"));
    answering(&folder.path().join("silent"), None);
    answering(&folder.path().join("closes"), Some(""));
    let mut broken = Replica::new(Kind::Nginx, "broken", folder.path());
    let broken_agent = broken.agent(&address);
    broken.start().await;
    until_ring(&daemon.channel, "nginx runs", |ring| {
        member(ring, "broken").is_some_and(|member| member.counted)
    })
    .await;
    drop(broken_agent);
    fs::rename(at("tls.key"), at("gone.key")).unwrap();
    let wait = ["--wait", "500ms"];
    let mut agents = Vec::new();
    let haproxy = |socket: &str| {
        let file = at(&format!("{socket}.keys"));
        vec!["--haproxy".into(), file, "--socket".into(), at(socket)]
    };
    let nginx =
        |prefix: &str, pid: &str| vec!["--nginx".into(), at(prefix), "--pid-file".into(), at(pid)];
    let shell = |script: &str| {
        let words = ["--command", "/bin/sh", "-c", script];
        words.map(str::to_owned).to_vec()
    };
    let cases = [
        ("nothing", haproxy("nothing"), "No such file or directory"),
        ("garbage", haproxy("garbage"), "is not that of HAProxy"),
        ("weak", haproxy("weak"), "needs `level admin`"),
        ("silent", haproxy("silent"), "gave no answer within 2s"),
        ("closes", haproxy("closes"), "closed without an answer"),
        ("dead", nginx("dead", "dead.pid"), "the server does not run"),
        ("self", nginx("self", "self.pid"), "it is no nginx master"),
        ("empty", nginx("empty", "empty.pid"), "has no process id"),
        (
            "no-pid",
            nginx("no-pid", "none"),
            "cannot read the pid file",
        ),
        ("no-folder", nginx("none/x", "none"), "cannot write"),
        (
            "broken",
            nginx("broken", "broken.pid"),
            "still has its old workers",
        ),
        (
            "fails",
            shell("echo one >&2; echo two >&2; exit 1"),
            "/bin/sh: two",
        ),
        ("mute", shell("exit 7"), "exit status: 7"),
        ("slow", shell("sleep 60"), "has not ended within 500ms"),
        ("tells", shell("cat >&2; exit 1"), "withheld"),
        (
            "absent",
            vec!["--command".into(), "/none".into()],
            "cannot run /none",
        ),
        (
            "envoy",
            vec![
                "--envoy".into(),
                at("envoy.json"),
                "--admin".into(),
                "http://127.0.0.1:1".into(),
            ],
            "it does not answer",
        ),
    ];
    for (name, args, _) in &cases {
        let args = wait.iter().copied().chain(args.iter().map(String::as_str));
        let args: Vec<_> = args.collect();
        agents.push(Agent::start(&address, name, &args, folder.path()));
    }
    // A tmpfs without room, and one that is read only, in a mount namespace of the agent.
    let binary = env!("CARGO_BIN_EXE_tls-sessiond");
    for (name, then) in [
        ("full", "head -c 4096 /dev/zero > \"$0\"/fill"),
        ("read-only", "mount -o remount,ro \"$0\""),
    ] {
        let script = format!("mount -t tmpfs -o size=4k tmpfs \"$0\" && {then} && exec \"$@\"");
        let mount = at("full");
        let words = [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
        ];
        let words: Vec<_> = words
            .into_iter()
            .chain([script.as_str(), mount.as_str(), binary])
            .collect();
        let (prefix, pid) = (at("full/x"), at("dead.pid"));
        let args = ["--nginx", &prefix, "--pid-file", &pid];
        agents.push(Agent::start_within(
            &words,
            &address,
            name,
            &args,
            folder.path(),
        ));
    }
    let good = ["--command", "/bin/true"];
    agents.push(Agent::start(&address, "good", &good, folder.path()));

    let mut wanted: Vec<_> = cases.iter().map(|(name, _, said)| (*name, *said)).collect();
    wanted.extend([
        ("full", "No space left on device"),
        ("read-only", "Read-only file system"),
    ]);
    for (name, said) in wanted {
        until_ring(&daemon.channel, &format!("{name}: {said}"), |ring| {
            member(ring, name).is_some_and(|member| member.trouble.contains(said))
        })
        .await;
    }
    // The ring goes on, but for the nginx that counted once: an operator fences it.
    let mut client = TicketKeyServiceClient::new(daemon.channel.clone());
    let fence = pb::FenceMemberRequest {
        ring: "web".into(),
        member: "broken".into(),
    };
    client.fence_member(fence).await.unwrap();
    let before = ring(&daemon.channel).await.rotations;
    until_ring(&daemon.channel, "the ring goes on", |ring| {
        ring.rotations > before && member(ring, "good").is_some_and(|member| member.counted)
    })
    .await;
    let mut keys = BTreeSet::new();
    broken.collect(&mut keys);
    agents
        .iter()
        .for_each(|agent| has_no_key(&agent.said(), &keys));
    // nginx goes on with its old keys, and is put right.
    fs::rename(at("gone.key"), at("tls.key")).unwrap();
    until_ring(&daemon.channel, "nginx is put right", |ring| {
        member(ring, "broken").is_some_and(|member| member.trouble.is_empty() && member.counted)
    })
    .await;
    daemon.stop().await;
}

#[tokio::test]
async fn keys_go_to_a_disk_only_if_allowed() {
    let daemon = TestDaemon::by_real_time(RING).await;
    let address = format!("tcp://{}", daemon.address);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (file, log) = (folder.path().join("keys"), folder.path());
    let args = ["--envoy", &text(&file), "--settle", "1ms"];
    let refused = Agent::start(&address, "refused", &args, log);
    let said = refused.log.clone();
    assert!(!refused.process.succeeds().await);
    let said = fs::read_to_string(said).unwrap();
    assert!(
        said.contains("is on a disk, where keys can be read"),
        "{said}"
    );
    assert!(said.contains("--allow-disk"), "{said}");
    assert!(!file.exists());
    let args = [&args[..], &["--allow-disk", "--mode", "0640"]].concat();
    let _allowed = Agent::start(&address, "allowed", &args, log);
    until_ring(&daemon.channel, "the file is written", |ring| {
        member(ring, "allowed").is_some_and(|member| member.counted)
    })
    .await;
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o640);
    let secret: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(secret["resources"][0]["name"], "web");
    daemon.stop().await;
}

/// Starts the daemon at a Unix socket.
async fn serve(folder: &Path, ring: &str) -> Process {
    let config = folder.join("daemon.toml");
    let socket = folder.join("api.sock");
    let listen = format!(
        "[listen]\napi = [\"unix://{}\"]\nadmin = \"\"\n",
        socket.display()
    );
    fs::write(&config, listen + ring).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
    let mut daemon = Process::start(command.arg("--config").arg(&config));
    daemon.says("listening on unix://").await;
    daemon
}

#[tokio::test]
async fn agent_outlives_its_daemon_and_tells_the_service_manager() {
    let folder = memory();
    let at = |name: &str| text(&folder.path().join(name));
    let manager = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    manager.set_nonblocking(true).unwrap();
    let address = format!("unix://{}", at("api.sock"));
    let script = format!("cat > {}", at("given"));
    let env = format!("NOTIFY_SOCKET={}", at("notify"));
    let words = ["env", &env, env!("CARGO_BIN_EXE_tls-sessiond")];
    let args = ["--layout", "32", "--command", "/bin/sh", "-c", &script];
    let agent = Agent::start_within(&words, &address, "one", &args, folder.path());
    let count = |words: &str| agent.said().matches(words).count();
    until("the daemon is missed", async || {
        count("not a member now") == 1
    })
    .await;
    let mut message = [0; 1024];
    assert!(manager.recv(&mut message).is_err());
    let mut daemon = serve(folder.path(), RING).await;
    let mut told = String::new();
    until("the agent is ready", async || {
        while let Ok(length) = manager.recv(&mut message) {
            told += std::str::from_utf8(&message[..length]).unwrap();
            told += "\n";
        }
        told.contains("READY=1\nSTATUS=one is a member of web")
    })
    .await;
    let given: Value = serde_json::from_slice(&fs::read(at("given")).unwrap()).unwrap();
    let key = STANDARD.decode(given["keys"][0]["key"].as_str().unwrap());
    assert_eq!(key.unwrap().len(), 32);
    for times in 2..=3 {
        daemon.kill().await;
        until("the daemon is missed once", async || {
            count("not a member now") == times
        })
        .await;
        // Long enough for several attempts.
        sleep(Duration::from_millis(1500)).await;
        assert_eq!(count("not a member now"), times, "{}", agent.said());
        daemon = serve(folder.path(), RING).await;
        until("the agent joins again", async || {
            count("joined the ring") == times
        })
        .await;
    }
    agent.process.signal("TERM").await;
    let log = agent.log.clone();
    assert!(agent.process.succeeds().await);
    let said = fs::read_to_string(log).unwrap();
    assert!(
        said.ends_with("left the ring ring=web member=one\n"),
        "{said}"
    );
    drop(daemon);
}

#[tokio::test]
async fn two_agents_with_one_name_are_told_so() {
    let daemon = TestDaemon::by_real_time(RING).await;
    let address = format!("tcp://{}", daemon.address);
    let folder = memory();
    let args = ["--command", "/bin/true"];
    let first = Agent::start(&address, "same", &args, folder.path());
    until_ring(&daemon.channel, "the first joins", |ring| {
        member(ring, "same").is_some_and(|member| member.counted)
    })
    .await;
    let _second = Agent::start(&address, "same", &args, folder.path());
    until("the agents say so", async || {
        first
            .said()
            .contains("another agent seems to have the same name")
    })
    .await;
    // Both write to one file: the first line of each, and the one above.
    assert!(first.said().contains("the ring has ended the membership: "));
    assert_eq!(ring(&daemon.channel).await.members.len(), 1);
    daemon.stop().await;
}
