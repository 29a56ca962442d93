//! Tests that the documents agree with the code.

use std::{collections::HashSet, fs, path::Path};

use tls_sessiond::config::{Config, Endpoint};
use tls_sessiond_core::context::ContextConfig;

const REFERENCE: &str = include_str!("../../docs/configuration.md");
const ROBUSTNESS: &str = include_str!("../../docs/robustness.md");
const SECURITY: &str = include_str!("../../SECURITY.md");
const ARCHITECTURE: &str = include_str!("../../ARCHITECTURE.md");

fn load(text: &str, set: &[&str]) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("reference.toml");
    fs::write(&file, text).unwrap();
    let set: Vec<_> = set.iter().map(|set| (*set).to_owned()).collect();
    Config::load(Some(&file), std::iter::empty(), &set).map_err(|err| err.to_string())
}

/// Returns the first TOML block, which has every key with its default.
fn reference() -> &'static str {
    let (_, block) = REFERENCE.split_once("```toml\n").unwrap();
    block.split_once("\n```").unwrap().0
}

/// Returns the first TOML block below a heading.
fn section(heading: &str) -> &'static str {
    let (_, below) = REFERENCE.split_once(&format!("{heading}\n")).unwrap();
    let (_, block) = below.split_once("```toml\n").unwrap();
    block.split_once("\n```").unwrap().0
}

#[test]
fn configuration_reference_shows_the_defaults() {
    let (said, real) = (load(reference(), &[]).unwrap(), Config::defaults());
    // A Unix socket that the file names is required, the default one is optional. So only the names
    // are compared.
    let names = |api: &[Endpoint]| {
        api.iter()
            .map(|endpoint| match endpoint {
                Endpoint::Tcp(address) | Endpoint::Tls(address) => address.to_string(),
                Endpoint::Systemd => "systemd".into(),
                Endpoint::Unix { path, .. } => path.display().to_string(),
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&said.api), names(&real.api));
    assert_eq!((said.unix, &said.tls, &said.access), (real.unix, &real.tls, &real.access));
    assert_eq!(said.limits, real.limits);
    assert_eq!(said.drain, real.drain);
    assert_eq!(said.log, real.log);
    // A context in a file does not make its own certificate.
    let real = ContextConfig { self_made: false, ..real.contexts[0].clone() };
    assert_eq!(format!("{:?}", said.contexts), format!("{:?}", [real]));
}

#[test]
fn configuration_reference_has_every_key() {
    let table: toml::Table = reference().parse().unwrap();
    let context = table["context"][0].as_table().unwrap();
    let keys = |table: &toml::Table| table.keys().cloned().collect::<HashSet<_>>();
    // A key without a default has its own section.
    let and = |mut keys: HashSet<String>, key: &str| {
        keys.insert(key.to_owned());
        keys
    };
    let own: toml::Table = section("## listen.tls").parse().unwrap();
    let access: toml::Table = section("## access").parse().unwrap();
    let sections = [
        ("no_such_key", and(keys(&table), "access")),
        ("listen.no_such_key", and(keys(table["listen"].as_table().unwrap()), "tls")),
        ("listen.tls.no_such_key", keys(own["listen"]["tls"].as_table().unwrap())),
        ("access.0.no_such_key", keys(access["access"][0].as_table().unwrap())),
        ("limits.no_such_key", keys(table["limits"].as_table().unwrap())),
        ("drain.no_such_key", keys(table["drain"].as_table().unwrap())),
        ("log.no_such_key", keys(table["log"].as_table().unwrap())),
        ("context.0.no_such_key", keys(context)),
    ];
    for (unknown, said) in sections {
        // The error names the keys that exist.
        let refusal = load(reference(), &[&format!("{unknown}=1")]).unwrap_err();
        let (_, expected) = refusal.split_once("expected ").unwrap_or_else(|| panic!("{refusal}"));
        let real: HashSet<_> = expected.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert_eq!(said, real, "{unknown}");
    }
}

/// Returns the names of tests in the last column of a document's tables.
fn named_tests(text: &'static str) -> Vec<&'static str> {
    let rows = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| --- "));
    let cells = rows.filter_map(|row| row.trim_end_matches(" |").rsplit(" | ").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn tests_that_the_documents_name_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = String::new();
    for folder in ["src", "crates", "clients", "tests"] {
        read(&root.join(folder), &mut sources);
    }
    let (_, invariants) = ARCHITECTURE.split_once("## Invariants").unwrap();
    let (_, limits) = SECURITY.split_once("\n## Limits\n").unwrap();
    let (limits, _) = limits.split_once("\n## ").unwrap();
    let documents =
        [("ARCHITECTURE.md", invariants), ("docs/robustness.md", ROBUSTNESS), ("SECURITY.md", limits)];
    for (document, text) in documents {
        let names = named_tests(text);
        assert!(names.len() > 15, "the tables of {document} are gone");
        for name in names {
            assert!(
                sources.contains(&format!("fn {name}(")),
                "{document} names the test {name}: there is none"
            );
        }
    }
}

fn read(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            read(&entry.path(), into);
        } else if entry.path().extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(entry.path()).unwrap());
        }
    }
}
