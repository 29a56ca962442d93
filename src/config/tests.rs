use tls_sessiond_core::context::Trust;
use tls_sessiond_types::Version;

use super::*;

fn load(text: &str) -> Result<Config, String> {
    load_with(text, &[], &[])
}

fn load_with(text: &str, environment: &[(&str, &str)], set: &[&str]) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    std::fs::write(&path, text).unwrap();
    let environment = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let set: Vec<_> = set.iter().map(|set| (*set).to_owned()).collect();
    let folder = format!("{}/", folder.path().display());
    Config::load(Some(&path), environment, &set).map_err(|err| err.to_string().replace(&folder, ""))
}

#[test]
fn the_defaults_are_those_of_the_manual() {
    let config = Config::defaults();
    assert_eq!(config.api.len(), 2);
    assert_eq!(config.limits.message, 4 << 20);
    assert_eq!(config.drain.timeout, Duration::from_secs(30));
    let context = &config.contexts[0];
    assert_eq!(
        (context.name.as_str(), context.self_made, context.tickets),
        ("default", true, 2)
    );
    assert_eq!(context.versions, [Version::Tls12, Version::Tls13]);
    assert_eq!(context.session_timeout, Duration::from_secs(7200));
}

// Invariant 6.
#[test]
fn configuration_errors_name_key_and_line() {
    for (text, said) in [
        (
            "[listen]\napi = [\"tcp://0.0.0.0:1\"]\n",
            "c.toml:2: listen.api[0]: plaintext is served on loopback addresses and Unix sockets only",
        ),
        (
            "\n[lissten]\n",
            "c.toml:2: lissten: unknown field `lissten`, expected one of",
        ),
        (
            "[listen]\n\nadress = 1\n",
            "c.toml:3: listen.adress: unknown field `adress`, expected one of `api`, `unix_mode`, `unix_owner`, `admin`, `admin_public`, `proxy_admin`, `tls`",
        ),
        (
            "[limits]\nconnections = \"many\"\n",
            "c.toml:2: limits.connections: invalid type: string \"many\", expected a whole number that is not negative",
        ),
        (
            "[limits]\nstreams = -1\n",
            "c.toml:2: limits.streams: invalid value: integer `-1`, expected a whole number from 0 to 4294967295",
        ),
        (
            "limits = 3\n",
            "c.toml:1: limits: invalid type: integer `3`, expected a table `[limits]`",
        ),
        (
            "[listen]\napi = \"tcp://127.0.0.1:1\"\n",
            "c.toml:2: listen.api: invalid type: string \"tcp://127.0.0.1:1\", expected a list",
        ),
        (
            "[listen]\napi = []\n",
            "c.toml:2: listen.api: the list is empty, so no caller could reach the daemon",
        ),
        (
            "[limits]\n\n[\"1.3\"]\n",
            "c.toml:3: 1.3: unknown field `1.3`, expected one of",
        ),
        (
            "[limits]\n\"a[0].b\" = 1\n",
            "c.toml:2: limits.a[0].b: unknown field `a[0].b`, expected one of",
        ),
        (
            "[limits]\nstreams = 0\n",
            "c.toml:2: limits.streams: must be more than zero",
        ),
        (
            "[limits]\nstreams_non_worker = 0\n",
            "c.toml:2: limits.streams_non_worker: must be more than zero",
        ),
        (
            "[limits]\nmessage = \"4MB\"\n",
            "c.toml:2: limits.message: invalid size `4MB`",
        ),
        (
            "[drain]\n# a comment\ntimeout = \"soon\"\n",
            "c.toml:3: drain.timeout: `soon` does not begin with",
        ),
        (
            "[[context]]\n[[context]]\nname = \"b\"\nversions = [\n\"1.2\",\n\"1.1\"]",
            "c.toml:6: context[1].versions[1]: `1.1`",
        ),
        (
            "[[context]]\nname = \"a b\"\n",
            "c.toml:2: context[0].name: invalid name `a b`: expected 1 to 64",
        ),
        (
            "[[context]]\n[[context]]\n",
            "c.toml:2: context[1].name: a context named `default` is defined above",
        ),
        (
            "[[context]]\ncertificate = \"a.crt\"\n",
            "c.toml:1: context[0].key: 1 certificates, but 0 keys",
        ),
        (
            "[[context]]\noptions = [\"no-tickets\"]\n",
            "c.toml:2: context[0].options[0]: `no-tickets` is not known",
        ),
        (
            "[[context]]\nsession_timeout = \"8d\"\n",
            "c.toml:2: context[0].session_timeout: `8d` is not between 1s and 7d",
        ),
        (
            "[[context]]\nidle_timeout = \"25h\"\n",
            "c.toml:2: context[0].idle_timeout: `25h` is not between 1s and 24h",
        ),
        (
            "[[context]]\ntickets = 17\n",
            "c.toml:2: context[0].tickets: 17 is more than 16",
        ),
        (
            "[[context]]\ncertificate = 7\n",
            "c.toml:2: context[0].certificate: expected a file name or a list",
        ),
        ("a = [\n\n1\n", "c.toml:"),
    ] {
        let error = load(text).expect_err(text);
        assert!(
            error.starts_with(said),
            "{text:?}\n said: {error}\n want: {said}"
        );
    }
}

#[test]
fn unknown_keys_outside_the_file_are_named_by_their_source() {
    for (variable, set, said) in [
        (
            None,
            Some("limitz.sockets=1"),
            "--set limitz.sockets: limitz: unknown field",
        ),
        (None, Some("bogus=1"), "--set bogus: bogus: unknown field"),
        (
            None,
            Some("limits.bogus=1"),
            "--set limits.bogus: limits.bogus: unknown field",
        ),
        (
            Some("TLS_SESSIOND__LIMITZ__SOCKETS"),
            None,
            "environment variable TLS_SESSIOND__LIMITZ__SOCKETS: limitz: unknown field",
        ),
    ] {
        let environment: Vec<_> = variable.into_iter().map(|name| (name, "1")).collect();
        let set: Vec<_> = set.into_iter().collect();
        let error = load_with("[limits]\n", &environment, &set).unwrap_err();
        assert!(error.starts_with(said), "said: {error}\nwant: {said}");
    }
    // The file is at fault if it has the key.
    let error = load_with("\n[limitz]\n", &[], &["limitz.sockets=1"]).unwrap_err();
    assert!(
        error.starts_with("c.toml:2: limitz: unknown field"),
        "{error}"
    );
}

const TLS: &str =
    "[listen.tls]\ncertificate = \"a.crt\"\nkey = \"a.key\"\nclient_ca = \"ca.pem\"\n";

#[test]
fn listener_and_access_errors_name_key_and_line() {
    let rule = |identity: &str, contexts: &str, role: &str| {
        format!(
            "[[access]]\nidentity = \"{identity}\"\ncontexts = [{contexts}]\nrole = \"{role}\"\n"
        )
    };
    let good = rule("local", "\"*\"", "worker");
    for (text, said) in [
        (
            "[listen]\napi = [\"tls://127.0.0.1:1\"]\n".into(),
            "c.toml:2: listen.api[0]: plaintext is served on",
        ),
        (
            "[listen]\napi = [\n\"tcp://127.0.0.1:1\",\n\"tcp://192.0.2.1:1\"]\n".into(),
            "c.toml:4: listen.api[1]: plaintext is served on loopback",
        ),
        (
            "[listen]\napi = [\"tcp://[::]:1\"]\n".into(),
            "c.toml:2: listen.api[0]: plaintext is served on",
        ),
        (
            "[listen]\napi = [\"tcp://[::ffff:127.0.0.1]:1\"]\n".into(),
            "c.toml:2: listen.api[0]: plaintext is served on",
        ),
        (
            "[listen]\napi = [\"tls://a.test:1\"]\n".into(),
            "c.toml:2: listen.api[0]: `tls://a.test:1` is not tls://",
        ),
        (
            "[listen]\napi = [\"unix://api.sock\"]\n".into(),
            "c.toml:2: listen.api[0]: `unix://api.sock`: the path of",
        ),
        (
            "[listen]\napi = [\"Systemd\"]\n".into(),
            "c.toml:2: listen.api[0]: invalid address `Systemd`",
        ),
        (
            TLS.into(),
            "c.toml:1: listen.tls: there is no [[access]] rule",
        ),
        (
            format!("{TLS}ca = \"x\"\n{good}"),
            "c.toml:5: listen.tls.ca: unknown field `ca`, expected one of",
        ),
        (
            format!("{}{good}", TLS.replace("key = \"a.key\"\n", "")),
            "c.toml:1: listen.tls: missing field `key`",
        ),
        (
            "[listen]\n\nunix_mode = \"0770\"\n".into(),
            "c.toml:3: listen.unix_mode: invalid mode `0770`",
        ),
        (
            "[listen]\nunix_mode = \"rw\"\n".into(),
            "c.toml:2: listen.unix_mode: invalid mode `rw`",
        ),
        (
            "[listen]\nunix_owner = \"root:0\"\n".into(),
            "c.toml:2: listen.unix_owner: invalid owner `root:0`: expected UID:GID",
        ),
        (
            "[listen]\nunix_owner = \"0\"\n".into(),
            "c.toml:2: listen.unix_owner: invalid owner `0`: expected UID:GID",
        ),
        (
            rule("root", "\"*\"", "worker"),
            "c.toml:2: access[0].identity: invalid identity `root`: expected local, uid:N",
        ),
        (
            rule("uid:-1", "\"*\"", "worker"),
            "c.toml:2: access[0].identity: `uid:-1`: invalid number `-1`",
        ),
        (
            format!("{good}{}", rule("spiffe://a*", "\"*\"", "worker")),
            "c.toml:6: access[1].identity: `spiffe://a*`: a `*` is allowed only at the end, after a `/`",
        ),
        (
            rule("local", "", "worker"),
            "c.toml:3: access[0].contexts: must not be empty; use `[\"*\"]`",
        ),
        (
            rule("local", "\"default\", \"web\"", "worker"),
            "c.toml:3: access[0].contexts[1]: unknown context `web`",
        ),
        (
            rule("local", "\"*\"", "root"),
            "c.toml:4: access[0].role: `root` is not known; it may be `worker`, `observer`, `admin`, `keys`",
        ),
        (
            "[[access]]\nidentity = \"local\"\n".into(),
            "c.toml:1: access[0]: missing field `contexts`",
        ),
        (
            "[limits]\nconnections_per_owner = 0\n".into(),
            "c.toml:2: limits.connections_per_owner: must be more",
        ),
        (
            "[limits]\nmisses_per_second = -1\n".into(),
            "c.toml:2: limits.misses_per_second: invalid value",
        ),
    ] {
        let error = load(&text).expect_err(&text);
        assert!(
            error.starts_with(said),
            "{text:?}\n said: {error}\n want: {said}"
        );
    }
    let both = "[listen]\napi = [\"tcp://192.0.2.1:1\", \"tcp://127.0.0.1:1\", \"tls://127.0.0.1:2\", \"systemd\"]\n";
    let config = load(&format!("{both}{TLS}{good}")).unwrap();
    let [
        Endpoint::Tls(_),
        Endpoint::Tcp(_),
        Endpoint::Tls(_),
        Endpoint::Systemd,
    ] = config.api[..]
    else {
        panic!("{:?}", config.api)
    };
}

#[test]
fn command_line_over_environment_over_file() {
    let text =
        "[limits]\nstreams = 1\nconnections = 1\nmessage = \"1B\"\n[[context]]\nname = \"a\"\n";
    let environment = [
        ("TLS_SESSIOND__LIMITS__STREAMS", "2"),
        ("TLS_SESSIOND__LIMITS__CONNECTIONS", "2"),
    ];
    let config = load_with(
        text,
        &environment,
        &["limits.streams=3", "context.0.name=b"],
    )
    .unwrap();
    assert_eq!(
        (
            config.limits.streams,
            config.limits.connections,
            config.limits.message
        ),
        (3, 2, 1)
    );
    assert_eq!(config.contexts[0].name, "b");
    let config = load_with(text, &[], &["listen.api=[\"tcp://127.0.0.1:1\"]"]).unwrap();
    assert_eq!(config.api, [Endpoint::Tcp(([127, 0, 0, 1], 1).into())]);
}

#[test]
fn error_names_the_override_it_comes_from() {
    let error = load_with("", &[], &["limits.streams=0"]).unwrap_err();
    assert!(
        error.starts_with("--set limits.streams: limits.streams: must be"),
        "{error}"
    );
    let error = load_with("", &[("TLS_SESSIOND__DRAIN__DELAY", "x")], &[]).unwrap_err();
    assert!(
        error.starts_with("environment variable TLS_SESSIOND__DRAIN__DELAY: drain.delay: "),
        "{error}"
    );
    let error = load_with("", &[("TLS_SESSIOND__CONTEXT__0__TICKETS", "17")], &[]).unwrap_err();
    assert!(
        error.starts_with(
            "environment variable TLS_SESSIOND__CONTEXT__0__TICKETS: context[0].tickets:"
        ),
        "{error}"
    );
    assert!(load_with("", &[], &["context.1.name=b"]).is_err());
    assert!(load_with("", &[], &["limits"]).is_err());
}

#[test]
fn built_in_context_takes_single_keys_and_stays_built_in() {
    let config = load_with("", &[], &["context.0.tickets=4", "context.0.alpn=[\"h2\"]"]).unwrap();
    let context = &config.contexts[0];
    assert_eq!(
        (context.tickets, context.alpn.len(), context.self_made),
        (4, 1, true)
    );
    let config = load_with("[[context]]\n", &[], &["context.0.tickets=4"]).unwrap();
    assert!(
        !config.contexts[0].self_made,
        "a file that defines contexts defines all of them"
    );
    let config = load_with("context = []\n", &[], &["context.0.tickets=4"]).unwrap();
    assert!(
        config.contexts[0].self_made && config.contexts[0].tickets == 4,
        "an empty list means the built-in context"
    );
    assert!(load("context = []\n").unwrap() == Config::defaults());
}

#[test]
fn paths_start_at_the_folder_of_the_file() {
    let config =
        load("[[context]]\ncertificate = \"x/tls.crt\"\nkey = \"/tls.key\"\nca = \"ca.pem\"\n")
            .unwrap();
    let context = &config.contexts[0];
    assert!(
        context.certificates[0].0.is_absolute() && context.certificates[0].0.ends_with("x/tls.crt")
    );
    assert_eq!(context.certificates[0].1, Path::new("/tls.key"));
    assert!(matches!(&context.trust, Trust::File(path) if path.is_absolute()));
    assert!(!context.self_made);
}

#[test]
fn error_has_its_source_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    std::fs::write(&path, "[limits]\nstreams = 0\n").unwrap();
    let load = |set: &[String]| Config::load(Some(&path), std::iter::empty(), set).unwrap_err();
    let error = load(&[]);
    assert_eq!(
        (error.line(), error.key()),
        (Some((&*path, 2)), Some("limits.streams"))
    );
    let error = load(&["limits.streams=none".into()]);
    assert_eq!(
        error.origin(),
        Some(&Source::Argument("limits.streams".into()))
    );
    let pasted = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg".to_owned();
    let error = load(std::slice::from_ref(&pasted));
    assert!(!format!("{error:?} {error}").contains(&pasted), "{error:?}");
}

// Invariant 6.
#[test]
fn context_with_sealed_tickets_names_a_ring_of_its_own() {
    let with = |context: &str, ring: &str, rest: &str| {
        load(&format!(
            "[[context]]\n{context}\n[[context]]\nname = \"b\"\n[[ticket_keys]]\nname = \"web\"\n{ring}\n{rest}"
        ))
    };
    let sealed = "ticket_kind = \"sealed\"\nticket_ring = \"web\"";
    let waived = |context: &str| format!("context = \"{context}\"\nrule = \"waived\"");
    for ring in ["", &waived("default")] {
        let config = with(sealed, ring, "").unwrap();
        let rings: Vec<_> = config
            .contexts
            .iter()
            .map(|of| of.ticket_ring.clone())
            .collect();
        assert_eq!(rings, [Some("web".into()), None]);
    }
    for (context, ring, rest, said) in [
        (
            "ticket_kind = \"sealed\"",
            "",
            "",
            "c.toml:1: context[0].ticket_ring: required with ticket_kind",
        ),
        (
            "ticket_ring = \"web\"",
            "",
            "",
            "c.toml:2: context[0].ticket_ring: used with ticket_kind = \"sealed\" only",
        ),
        (
            "ticket_kind = \"stateless\"",
            "",
            "",
            "c.toml:2: context[0].ticket_kind: `stateless` is not known; it may be `stateful`, `sealed`",
        ),
        (
            "ticket_kind = \"sealed\"\nticket_ring = \"other\"",
            "",
            "",
            "c.toml:3: context[0].ticket_ring: unknown ring `other`",
        ),
        (
            sealed,
            &waived("b"),
            "",
            "c.toml:3: context[0].ticket_ring: the ring `web` belongs to context `b`",
        ),
    ] {
        let refused = with(context, ring, rest).unwrap_err();
        assert!(refused.starts_with(said), "{refused}");
    }
}
