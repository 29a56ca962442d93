//! The binary: its output, its refusals and its exit status.

use std::{
    fs,
    process::{Command, Output},
};

use crate::pki;

pub(crate) fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tls-sessiond"))
        .args(args)
        .env_remove("TLS_SESSIOND_CONFIG")
        .output()
        .unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn help_shows_commands_options_and_examples() {
    let output = run(&["--help"]);
    assert!(output.status.success());
    let help = text(&output.stdout);
    for word in [
        "check",
        "serve",
        "--config",
        "--set",
        "grpcurl -plaintext",
        "-authority localhost",
        "Exit status",
    ] {
        assert!(help.contains(word), "--help does not say {word}:\n{help}");
    }
}

#[test]
fn check_names_the_fault_with_key_and_line() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    pki::Authority::new("other")
        .leaf(&["localhost"])
        .write(folder.path(), "other");
    fs::write(folder.path().join("empty.pem"), "").unwrap();
    let good = "[[context]]\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\nca = \"ca.pem\"\n";
    for (config, status, said) in [
        (good.to_owned(), 0, "good; contexts: default"),
        (
            "[listen]\nport = 1\n".into(),
            78,
            "c.toml:2: listen.port: unknown field",
        ),
        (
            good.replace("tls.crt", "nowhere.crt"),
            78,
            "c.toml:2: context[0].certificate: cannot read",
        ),
        (
            good.replace("tls.crt", "empty.pem"),
            78,
            "c.toml:2: context[0].certificate: ",
        ),
        (
            good.replace("tls.key", "other.key"),
            78,
            "c.toml:3: context[0].key: ",
        ),
        (
            good.replace("tls.key", "ca.pem"),
            78,
            "c.toml:3: context[0].key: ",
        ),
        (
            good.replace("ca.pem", "empty.pem"),
            78,
            "c.toml:4: context[0].ca: ",
        ),
        (
            format!("{good}cipher_suites = [\"TLS_RSA_WITH_RC4_128_MD5\"]\n"),
            78,
            "c.toml:5: context[0].cipher_suites: `TLS_RSA_WITH_RC4_128_MD5` is not known; it may be TLS",
        ),
        (
            format!("{good}key_exchange = [\"X448\"]\n"),
            78,
            "c.toml:5: context[0].key_exchange: `X448` is not known",
        ),
        (
            format!("{good}versions = [\"1.2\"]\ncipher_suites = [\"TLS_AES_128_GCM_SHA256\"]\n"),
            78,
            "c.toml:6: context[0].cipher_suites: one of the versions has no cipher suite",
        ),
        (
            format!(
                "{good}{good}name = \"b\"\nsession_id_context = \"default\"\ncache_entries_max = 5\n"
            ),
            78,
            "c.toml:11: context[1].cache_entries_max: this context shares the cache",
        ),
    ] {
        let file = folder.path().join("c.toml");
        fs::write(&file, &config).unwrap();
        let output = run(&["check", file.to_str().unwrap()]);
        let told = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{config}\n{told}");
        assert!(told.contains(said), "{config}\nsaid: {told}\nwant: {said}");
    }
    assert_eq!(run(&["check", "/nowhere/c.toml"]).status.code(), Some(78));
    assert_eq!(run(&["chekc"]).status.code(), Some(2));
}

#[test]
fn serve_refuses_addresses_that_it_cannot_use() {
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("listen.api=[\"tcp://{}\"]", busy.local_addr().unwrap());
    let output = run(&["--set", &taken]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("cannot listen on tcp://127.0.0.1:"),
        "{}",
        text(&output.stderr)
    );
    let output = run(&["serve", "--set", "listen.api=[\"tcp://192.0.2.1:1\"]"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(
        text(&output.stderr).contains("plaintext is served on loopback"),
        "{}",
        text(&output.stderr)
    );
    let output = run(&["--set", "listen.api=[]"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(
        text(&output.stderr).contains("listen.api: the list is empty"),
        "{}",
        text(&output.stderr)
    );
}
