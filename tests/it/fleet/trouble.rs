//! A store that refuses, that is full, or that is configured wrongly.

use std::{fs, path::Path, process::Command};

use tls_sessiond_proto as pb;

use super::{Kind, StoreServer, server::KEY};
use crate::{
    calls::{Worker, lookup, put, worker},
    harness::TestDaemon,
    pki::Authority,
    returning::Certificate,
};

/// Runs the binary. Returns its status, and what it wrote to stderr and stdout.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"))
        .args(arguments)
        .args(["--set", "listen.api=[\"tcp://127.0.0.1:0\"]"])
        .args(["--set", "listen.admin="])
        .env_clear()
        .output()
        .unwrap();
    let text = [output.stderr, output.stdout].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// Stores a session of a new connection. Returns its ID, unless the daemon did not store it.
async fn stored(daemon: &TestDaemon) -> Option<String> {
    let connection = Worker(daemon).open(worker(pb::Role::Server)).await.id;
    let id = connection[..8].to_owned();
    let response = Worker(daemon).put(put(&connection, &id)).await;
    response.reason.is_empty().then_some(id)
}

/// Checks that `check` and a start refuse a configuration with this error.
fn refused(folder: &Path, config: &str, key: &str, why: &str) {
    let file = folder.join("refused.toml");
    fs::write(&file, config).unwrap();
    let file = file.to_str().unwrap();
    for arguments in [&["check", file][..], &["--config", file]] {
        let (status, text) = run(arguments);
        assert_eq!(status, Some(78), "{arguments:?}: {text}");
        assert!(text.contains(key), "{arguments:?}: {key}: {text}");
        assert!(text.contains(why), "{arguments:?}: {why}: {text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    format!("{path:?}")
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_store_settings_are_refused_with_their_key() {
    let certificate = Certificate::new();
    let server = StoreServer::with(Kind::Redis, &["--requirepass", "hunter2"]);
    let folder = server.folder.path();
    let context = certificate.context();
    let keys = file(folder, "keys", KEY);
    let store = |lines: &str| {
        format!(
            "{context}[store]\nkind = \"redis\"\n[store.redis]\n{lines}\nsealing_keys = {keys}\n"
        )
    };
    let url = format!("urls = [\"redis://127.0.0.1:{}\"]", server.port);
    let cases = [
        ("urls = []".to_owned(), "store.redis.urls", "one URL"),
        (
            "urls = [\"redis://a.test:1\", \"redis://b.test:1\"]".into(),
            "store.redis.urls",
            "one server",
        ),
        (
            "urls = [\"http://a.test\"]".into(),
            "store.redis.urls",
            "unknown scheme",
        ),
        (
            "urls = [\"redis://user:hunter2@127.0.0.1\"]".into(),
            "store.redis.urls",
            "password_file",
        ),
        (
            "urls = [\"redis://redis.example.com\"]".into(),
            "store.redis.urls",
            "no encryption",
        ),
        (
            "urls = [\"redis://127.0.0.1:99999\"]".into(),
            "store.redis.urls",
            "not a port",
        ),
        (
            format!("{url}\nprefix = \"a:b\""),
            "store.redis.prefix",
            "invalid prefix",
        ),
        (
            format!("{url}\nuser = \"a\""),
            "store.redis.password_file",
            "required with store.redis.user",
        ),
        (
            format!("{url}\ncertificate = \"a.pem\""),
            "store.redis.key",
            "required",
        ),
        (
            format!("{url}\npassword_file = \"/nonexistent\""),
            "store.redis.password_file",
            "No such file",
        ),
        (
            format!("{url}\nca = \"\""),
            "store.redis.ca",
            "must be `system`",
        ),
        (
            format!("{url}\nca = \"ca.pem\""),
            "store.redis.ca",
            "with rediss:// only",
        ),
        // The server has a password, and the daemon has none or another.
        (
            url.clone(),
            "store.redis.password_file",
            "refused user and password",
        ),
        (
            format!(
                "{url}\npassword_file = {}",
                file(folder, "wrong", "wrong\n")
            ),
            "store.redis.password_file",
            "refused user and password",
        ),
    ];
    for (lines, key, why) in &cases {
        refused(folder, &store(lines), key, why);
    }
    for (text, why) in [
        ("", "there is no sealing key"),
        (&KEY[2..], "line 1"),
        ("hunter2", "line 1"),
    ] {
        let wrong = file(folder, "wrong-keys", text);
        let config = store(&url).replace(&keys, &wrong);
        refused(folder, &config, "store.redis.sealing_keys", why);
    }
    let none = store(&url).replace(&format!("sealing_keys = {keys}"), "");
    refused(folder, &none, "store.redis.sealing_keys", "required");
    let memory = store(&url).replace("kind = \"redis\"", "kind = \"memory\"");
    refused(
        folder,
        &memory,
        "store.redis.urls",
        "store.kind is `memory`",
    );
    // With the password, the check passes and warns.
    let right = file(folder, "right", "hunter2\n");
    let good = folder.join("good.toml");
    fs::write(&good, store(&format!("{url}\npassword_file = {right}"))).unwrap();
    let (status, text) = run(&["check", good.to_str().unwrap()]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("no `maxmemory`"), "{text}");
    assert!(text.contains("the user `default`"), "{text}");
    // A store that does not answer is refused by `check`. A daemon starts without it.
    let away = store("urls = [\"redis://127.0.0.1:1\"]");
    fs::write(&good, away).unwrap();
    let (status, text) = run(&["check", good.to_str().unwrap()]);
    assert_eq!(status, Some(78), "{text}");
    assert!(
        text.contains("cannot connect to redis://127.0.0.1:1"),
        "{text}"
    );
    let daemon = crate::binary::Binary::start(&["--config", good.to_str().unwrap()]).await;
    daemon.kill().await;
}

/// The user of docs/shared-store.md: it can do all that the daemon does, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn documented_acl_is_enough_and_no_word_of_it_is_too_much() {
    let line = include_str!("../../../docs/shared-store.md")
        .lines()
        .find(|line| line.starts_with("ACL SETUSER"))
        .expect("the ACL of the document");
    for kind in Kind::ALL {
        let (certificate, server) = (Certificate::new(), StoreServer::start(kind));
        let folder = server.folder.path();
        let password = file(folder, "password", "PASSWORD");
        let keys = format!("user = \"sessiond\"\npassword_file = {password}");
        let config = certificate.context() + &server.config_at(server.port, &keys);
        let path = folder.join("acl.toml");
        fs::write(&path, &config).unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let _: () = server.run(&words);
        let (status, text) = run(&["check", path.to_str().unwrap()]);
        assert_eq!(status, Some(0), "{text}");
        assert!(!text.contains("the user `default`"), "{text}");
        let daemon = TestDaemon::by_real_time(&config).await;
        let by = Worker(&daemon);
        by.established("aa").await;
        assert!(by.found("aa").await);
        drop(daemon);
        // Without any of its commands, the check refuses.
        for word in words.iter().filter(|word| word.starts_with('+')) {
            let without = word.replacen('+', "-", 1);
            let _: () = server.run(&["ACL", "SETUSER", "sessiond", &without]);
            let (status, text) = run(&["check", path.to_str().unwrap()]);
            assert_eq!(status, Some(78), "{kind:?} without {word}: {text}");
            let _: () = server.run(&["ACL", "SETUSER", "sessiond", word]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn store_over_mutual_tls_is_used_only_if_both_are_trusted() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    for (name, authority) in [("ours", &ours), ("theirs", &theirs)] {
        fs::write(at(&format!("{name}.pem")), &authority.pem).unwrap();
        authority.leaf(&["localhost"]).write(folder.path(), name);
    }
    let tls = StoreServer::free_port();
    let server = StoreServer::with(
        Kind::Redis,
        &[
            "--tls-port",
            &tls.to_string(),
            "--tls-cert-file",
            &at("ours.crt"),
            "--tls-key-file",
            &at("ours.key"),
            "--tls-ca-cert-file",
            &at("ours.pem"),
        ],
    );
    let certificate = Certificate::new();
    let config = |host: &str, keys: &[(&str, &str)]| {
        let keys: String = keys
            .iter()
            .map(|(key, name)| format!("{key} = {:?}\n", at(name)))
            .collect();
        let plain = format!("redis://127.0.0.1:{}", server.port);
        let secure = format!("rediss://{host}:{tls}");
        certificate.context()
            + &server
                .config_at(server.port, &keys)
                .replace(&plain, &secure)
    };
    let all = [
        ("ca", "ours.pem"),
        ("certificate", "ours.crt"),
        ("key", "ours.key"),
    ];
    let daemon = TestDaemon::by_real_time(&config("localhost", &all)).await;
    Worker(&daemon).established("aa").await;
    assert!(Worker(&daemon).found("aa").await);
    let wrong_authority = [("ca", "theirs.pem"), all[1], all[2]];
    let wrong_certificate = [all[0], ("certificate", "theirs.crt"), ("key", "theirs.key")];
    for (what, config, key) in [
        (
            "another authority",
            config("localhost", &wrong_authority),
            "ca",
        ),
        (
            "no certificate",
            config("localhost", &all[..1]),
            "certificate",
        ),
        (
            "another certificate",
            config("localhost", &wrong_certificate),
            "certificate",
        ),
        ("another name", config("127.0.0.1", &all), "ca"),
    ] {
        println!("{what}");
        let key = format!("store.redis.{key}");
        refused(folder.path(), &config, &key, "TLS with rediss://");
    }
}

#[tokio::test]
async fn full_store_refuses_puts_and_no_handshake() {
    let server = StoreServer::with(Kind::Valkey, &["--maxmemory-policy", "noeviction"]);
    let certificate = Certificate::new();
    let daemon = TestDaemon::by_real_time(&(certificate.context() + &server.config())).await;
    let by = Worker(&daemon);
    let open = by.established("aa").await;
    let _: () = server.run(&["CONFIG", "SET", "maxmemory", "1"]);
    let id = by.open(worker(pb::Role::Server)).await.id;
    let refused = by.put(put(&id, "bb")).await;
    assert_eq!(
        refused.not_stored_reason(),
        pb::NotStoredReason::StoreUnavailable
    );
    // Lookups, holds, removals and heartbeats go on.
    assert!(by.found("aa").await);
    let resumed = by
        .open(pb::NewRequest {
            session_id: "aa".into(),
            ..worker(pb::Role::Server)
        })
        .await;
    by.shutdown(&open).await;
    by.free(&open).await;
    assert!(by.found("aa").await);
    by.free(&resumed.id).await;
    assert_eq!(
        by.lookup(lookup("aa")).await.miss_reason(),
        pb::MissReason::Removed
    );
    let _: () = server.run(&["CONFIG", "SET", "maxmemory", "0"]);
    daemon
        .until("puts are stored again", async |daemon| {
            let id = Worker(daemon).open(worker(pb::Role::Server)).await.id;
            let stored = Worker(daemon).put(put(&id, "cc")).await;
            stored.reason.is_empty() || Worker(daemon).found("cc").await
        })
        .await;
}

#[tokio::test]
async fn eviction_of_sessions_or_heartbeats_is_a_miss_and_never_worse() {
    for policy in [
        "allkeys-lru",
        "allkeys-lfu",
        "allkeys-random",
        "volatile-lru",
        "volatile-lfu",
        "volatile-random",
        "volatile-ttl",
    ] {
        let server = StoreServer::with(Kind::Redis, &["--maxmemory-policy", policy]);
        let certificate = Certificate::new();
        let config = certificate.context() + &server.config();
        let (one, two) = tokio::join!(
            TestDaemon::by_real_time(&config),
            TestDaemon::by_real_time(&config)
        );
        let by = Worker(&one);
        let mut open = Vec::new();
        for number in 0..50 {
            open.push(by.established(&format!("{number:04x}")).await);
        }
        // The memory shrinks until something must go, and grows again.
        let used: String = server.run(&["INFO", "memory"]);
        let used = used
            .lines()
            .find_map(|line| line.strip_prefix("used_memory:"))
            .unwrap();
        let less = used.trim().parse::<u64>().unwrap() - 10_000;
        let _: () = server.run(&["CONFIG", "SET", "maxmemory", &less.to_string()]);
        for number in 50..60 {
            let id = by.open(worker(pb::Role::Server)).await.id;
            by.put(put(&id, &format!("{number:04x}"))).await;
        }
        let _: () = server.run(&["CONFIG", "SET", "maxmemory", "0"]);
        // Every connection ends unclosed: not one session is found then.
        for id in &open {
            by.free(id).await;
        }
        two.until("all are gone", async |daemon| {
            for number in 0..50 {
                if Worker(daemon).found(&format!("{number:04x}")).await {
                    return false;
                }
            }
            true
        })
        .await;
        one.until(
            "the daemon stores and finds again",
            async |daemon| match stored(daemon).await {
                Some(id) => Worker(daemon).found(&id).await,
                None => false,
            },
        )
        .await;
    }
}

#[tokio::test]
async fn changed_and_moved_values_are_misses() {
    let server = StoreServer::start(Kind::Redis);
    let certificate = Certificate::new();
    let daemon = TestDaemon::by_real_time(&(certificate.context() + &server.config())).await;
    let by = Worker(&daemon);
    let (first, second) = (by.established("aa").await, by.established("bb").await);
    let keys: Vec<String> = server.run(&["KEYS", "*:s:*"]);
    assert_eq!(keys.len(), 2);
    let value = |key: &str| server.run::<Vec<u8>>(&["GET", key]);
    let (one, two) = (value(&keys[0]), value(&keys[1]));
    let set = |key: &str, bytes: &[u8]| server.set(key, bytes);
    // Moved: each in the place of the other.
    set(&keys[0], &two);
    set(&keys[1], &one);
    for id in ["aa", "bb"] {
        assert!(!by.found(id).await, "moved: {id}");
    }
    // Changed by one bit, in the head, the holds and the sealed part.
    for place in [1, 2, 4, 7, 13, 15, 24, 26, 27, 31, 50, one.len() - 1] {
        let mut changed = one.clone();
        changed[place] ^= 1;
        set(&keys[0], &changed);
        set(&keys[1], &two);
        let found = [by.found("aa").await, by.found("bb").await];
        // Holds are not sealed, because the scripts write them: a store can cut them.
        let is_hold = (13..26).contains(&place);
        assert!(
            is_hold || found.iter().filter(|found| **found).count() == 1,
            "byte {place}: {found:?}"
        );
    }
    for bytes in [
        &b""[..],
        b"\x01",
        b"\x03garbage",
        &[1; 14],
        &[0xff; 300],
        &[2, 9],
    ] {
        set(&keys[0], bytes);
        set(&keys[1], bytes);
        for id in ["aa", "bb"] {
            assert!(!by.found(id).await, "{bytes:?}");
        }
    }
    // Another type of value.
    let _: i64 = server.run(&["DEL", &keys[0]]);
    let _: i64 = server.run(&["LPUSH", &keys[0], "x"]);
    by.found("aa").await;
    by.found("bb").await;
    by.free(&first).await;
    by.free(&second).await;
    set(&keys[0], &one);
    daemon
        .until("the daemon goes on", async |daemon| {
            stored(daemon).await.is_some()
        })
        .await;
}

/// The names in a pool are what the store says. One of another scope or role is not handed out.
#[tokio::test]
async fn session_of_another_role_is_not_found_through_a_pool() {
    let server = StoreServer::start(Kind::Valkey);
    let certificate = Certificate::new();
    let daemon = TestDaemon::by_real_time(&(certificate.context() + &server.config())).await;
    let by = Worker(&daemon);
    let client = by.open(worker(pb::Role::Client)).await.id;
    let request = |id: &str, data: &str| pb::PutSessionRequest {
        session_id: id.into(),
        data: data.to_owned().into(),
        server_name: "localhost".into(),
        ..put(&client, "")
    };
    assert_eq!(by.put(request("", "of the client")).await.reason, "");
    let pools: Vec<String> = server.run(&["KEYS", "*:p:*"]);
    assert_eq!(pools.len(), 1);
    let tag = pools[0].split(['{', '}']).nth(1).unwrap().to_owned();
    // Sessions of servers with the same name, until one lies in the bucket of the pool.
    for number in 0..2_000 {
        let id = by.open(worker(pb::Role::Server)).await.id;
        let request = pb::PutSessionRequest {
            connection_id: id,
            ..request(&format!("{number:08x}"), "of a server")
        };
        assert_eq!(by.put(request).await.reason, "");
        let keys: Vec<String> = server.run(&["KEYS", &format!("*{{{tag}}}:s:*")]);
        if keys.len() > 1 {
            for key in keys {
                let name = key.rsplit(':').next().unwrap();
                let bytes: Vec<u8> = (0..16)
                    .map(|at| u8::from_str_radix(&name[2 * at..2 * at + 2], 16).unwrap())
                    .collect();
                server.add_to_pool(&pools[0], &bytes);
            }
            break;
        }
    }
    let newest = pb::LookupSessionRequest {
        role: pb::Role::Client.into(),
        server_name: "localhost".into(),
        ..lookup("")
    };
    for _ in 0..3 {
        let found = by.lookup(newest.clone()).await;
        assert_eq!(found.data, "of the client");
    }
}

/// The files of deploy/shared-store, with other ports and paths.
#[tokio::test(flavor = "multi_thread")]
async fn deployed_files_of_the_shared_store_work() {
    let deployed = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/shared-store");
    let read = |name: &str| fs::read_to_string(deployed.join(name)).unwrap();
    let document = include_str!("../../../docs/shared-store.md");
    let rights = |text: &str, begins: &str| {
        let line = text.lines().find(|line| line.starts_with(begins)).unwrap();
        line.split_once(" on ").unwrap().1.to_owned()
    };
    assert_eq!(
        rights(&read("tls-sessiond.acl"), "user sessiond"),
        rights(document, "ACL SETUSER"),
        "the document and the file have one ACL"
    );
    let (authority, folder) = (Authority::new("deployed"), tempfile::tempdir().unwrap());
    let at = |name: &str| folder.path().join(name);
    for name in ["redis.conf", "tls-sessiond.acl", "tls-sessiond.toml"] {
        fs::copy(deployed.join(name), at(name)).unwrap();
    }
    fs::write(at("store-password"), "PASSWORD\n").unwrap();
    fs::write(at("sealing-keys"), KEY).unwrap();
    fs::write(at("ca.pem"), &authority.pem).unwrap();
    authority.leaf(&["localhost"]).write(folder.path(), "tls");
    for kind in Kind::ALL {
        let server = StoreServer::by_file(kind, &at("redis.conf"), &at("tls-sessiond.acl"));
        let url = format!("store.redis.urls=[\"redis://127.0.0.1:{}\"]", server.port);
        let file = at("tls-sessiond.toml");
        let (status, text) = run(&["check", file.to_str().unwrap(), "--set", &url]);
        assert_eq!(status, Some(0), "{kind:?}: {text}");
        assert!(!text.contains("warning"), "{kind:?}: {text}");
    }
}
