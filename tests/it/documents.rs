//! Tests that the documents agree with the code.

use std::{collections::HashSet, fs, path::Path};

use tls_sessiond::config::{Config, Endpoint};
use tls_sessiond_core::context::ContextConfig;

const REFERENCE: &str = include_str!("../../docs/configuration.md");
const ROBUSTNESS: &str = include_str!("../../docs/robustness.md");
const SECURITY: &str = include_str!("../../SECURITY.md");
const ARCHITECTURE: &str = include_str!("../../ARCHITECTURE.md");
const INVARIANTS: &str = include_str!("../../docs/invariants.md");
const TOUR: &str = include_str!("../../docs/tour-of-the-code.md");

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

// Invariant 13.
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
    assert_eq!(
        (said.unix, &said.tls, &said.access),
        (real.unix, &real.tls, &real.access)
    );
    assert_eq!(said.limits, real.limits);
    assert_eq!(said.drain, real.drain);
    assert_eq!(said.log, real.log);
    // A context in a file does not make its own certificate.
    let real = ContextConfig {
        self_made: false,
        ..real.contexts[0].clone()
    };
    assert_eq!(format!("{:?}", said.contexts), format!("{:?}", [real]));
}

// Invariant 13.
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
    let rings: toml::Table = section("## ticket_keys").parse().unwrap();
    let proxies: toml::Table = section("## proxy").parse().unwrap();
    let proxy = proxies["proxy"][0].as_table().unwrap();
    let sections = [
        (
            "no_such_key",
            and(and(and(keys(&table), "access"), "ticket_keys"), "proxy"),
        ),
        (
            "listen.no_such_key",
            and(keys(table["listen"].as_table().unwrap()), "tls"),
        ),
        (
            "listen.tls.no_such_key",
            keys(own["listen"]["tls"].as_table().unwrap()),
        ),
        (
            "access.0.no_such_key",
            keys(access["access"][0].as_table().unwrap()),
        ),
        (
            "ticket_keys.0.no_such_key",
            keys(rings["ticket_keys"][0].as_table().unwrap()),
        ),
        ("proxy.0.no_such_key", keys(proxy)),
        (
            "proxy.0.route.0.no_such_key",
            keys(proxy["route"][0].as_table().unwrap()),
        ),
        (
            "limits.no_such_key",
            keys(table["limits"].as_table().unwrap()),
        ),
        (
            "drain.no_such_key",
            keys(table["drain"].as_table().unwrap()),
        ),
        ("log.no_such_key", keys(table["log"].as_table().unwrap())),
        ("otlp.no_such_key", keys(table["otlp"].as_table().unwrap())),
        (
            "store.no_such_key",
            keys(table["store"].as_table().unwrap()),
        ),
        (
            "store.redis.no_such_key",
            keys(table["store"]["redis"].as_table().unwrap()),
        ),
        ("context.0.no_such_key", keys(context)),
    ];
    for (unknown, said) in sections {
        // The error names the keys that exist.
        let refusal = load(reference(), &[&format!("{unknown}=1")]).unwrap_err();
        let (_, expected) = refusal
            .split_once("expected ")
            .unwrap_or_else(|| panic!("{refusal}"));
        let real: HashSet<_> = expected
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect();
        assert_eq!(said, real, "{unknown}");
    }
}

// Invariant 13.
#[test]
fn reference_of_the_proxy_shows_the_defaults() {
    let text = section("## proxy");
    let (without_routes, _) = text.split_once("\n# Clients by server name").unwrap();
    let said = load(without_routes, &[]).unwrap();
    let backend = "[[proxy]]\nbackend = \"tcp://127.0.0.1:8080\"\n";
    assert_eq!(said.proxies, load(backend, &[]).unwrap().proxies);
    load(text, &[]).unwrap();
}

/// Returns the names of tests in the last column of a document's tables.
fn named_tests(text: &'static str) -> Vec<&'static str> {
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| --- "));
    let cells = rows.filter_map(|row| row.trim_end_matches(" |").rsplit(" | ").next());
    cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect()
}

#[test]
fn tests_that_the_documents_name_exist() {
    let sources: String = sources().into_iter().map(|(_, text)| text).collect();
    let (_, limits) = SECURITY.split_once("\n## Limits\n").unwrap();
    let (limits, _) = limits.split_once("\n## ").unwrap();
    for (document, text) in [("docs/robustness.md", ROBUSTNESS), ("SECURITY.md", limits)] {
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

/// Returns all Rust files of the crates and of the tests, with their texts. Paths start at the root.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["src", "crates", "clients", "tests"] {
        read(&root().join(folder), &mut found);
    }
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(folder: &Path, into: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            read(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            into.push((
                path.strip_prefix(root()).unwrap().display().to_string(),
                text,
            ));
        }
    }
}

/// Returns the items of a document's numbered list, each with its number and its text in one line.
fn numbered_items(text: &str) -> Vec<(u32, String)> {
    let mut items: Vec<(u32, String)> = Vec::new();
    for line in text.lines() {
        let number = line
            .split_once(". ")
            .and_then(|(number, rest)| Some((number.parse::<u32>().ok()?, rest)));
        if let Some((number, rest)) = number {
            items.push((number, rest.to_owned()));
        } else if let (true, Some((_, item))) = (line.starts_with("  "), items.last_mut()) {
            item.push(' ');
            item.push_str(line.trim());
        }
    }
    items
}

/// Returns the numbers in a comment that names invariants: `// Invariant 4.`, or
/// `// Invariants 3 and 15.`. Returns `None` for any other line.
fn invariants_of(line: &str) -> Option<Vec<u32>> {
    let numbers = line.trim_start().strip_prefix("// Invariant")?;
    Some(
        numbers
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect(),
    )
}

/// Returns whether the lines begin with a test function. Tests under the scheduler have no attribute.
fn begins_with_test(path: &str, lines: &[&str]) -> bool {
    let line = lines.first().map_or("", |line| line.trim());
    match path.starts_with("crates/core/tests/shuttle/") {
        true => line.starts_with("fn "),
        false => line == "#[test]" || line.starts_with("#[tokio::test"),
    }
}

#[test]
fn every_invariant_has_a_test_that_names_it() {
    let known: Vec<_> = numbered_items(INVARIANTS)
        .into_iter()
        .map(|(number, _)| number)
        .collect();
    assert!(
        known.iter().copied().eq(1..=26),
        "the invariants of docs/invariants.md: {known:?}"
    );
    let (mut named, mut broken) = (HashSet::new(), Vec::new());
    for (path, text) in sources() {
        let lines: Vec<_> = text.lines().collect();
        for (place, line) in lines.iter().enumerate() {
            let Some(numbers) = invariants_of(line) else {
                continue;
            };
            let unknown = numbers.iter().any(|number| !known.contains(number));
            if numbers.is_empty() || unknown {
                broken.push(format!(
                    "{path}:{}: no such invariant: {}",
                    place + 1,
                    line.trim()
                ));
            }
            if !begins_with_test(&path, &lines[place + 1..]) {
                broken.push(format!(
                    "{path}:{}: not directly above a test: {}",
                    place + 1,
                    line.trim()
                ));
            }
            named.extend(numbers);
        }
    }
    let untested = known.iter().filter(|number| !named.contains(*number));
    broken.extend(
        untested.map(|number| format!("docs/invariants.md: no test names invariant {number}")),
    );
    let (_, section) = ARCHITECTURE.split_once("\n## Invariants\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let important: Vec<u32> = section
        .split("**Invariant ")
        .skip(1)
        .filter_map(|rest| rest.split_once('.')?.0.parse().ok())
        .collect();
    assert_eq!(
        important.len(),
        8,
        "the invariants of ARCHITECTURE.md: {important:?}"
    );
    let unknown = important
        .iter()
        .filter(|number| !known.contains(*number) || !named.contains(*number));
    broken.extend(unknown.map(|number| format!("ARCHITECTURE.md: invariant {number} has no test")));
    assert!(
        broken.is_empty(),
        "invariants and tests that do not agree:\n{}",
        broken.join("\n")
    );
}

#[test]
fn comments_that_name_invariants_are_read() {
    assert_eq!(invariants_of("    // Invariant 4."), Some(vec![4]));
    assert_eq!(
        invariants_of("// Invariants 3, 5 and 15."),
        Some(vec![3, 5, 15])
    );
    assert_eq!(invariants_of("// Invariants hold."), Some(Vec::new()));
    assert_eq!(invariants_of("//! Invariants:"), None);
    assert!(begins_with_test(
        "tests/it/a.rs",
        &["    #[tokio::test(flavor = \"multi_thread\")]"]
    ));
    assert!(begins_with_test(
        "crates/core/tests/shuttle/a.rs",
        &["fn a() {"]
    ));
    assert!(!begins_with_test("tests/it/a.rs", &["", "#[test]"]));
    assert!(!begins_with_test("tests/it/a.rs", &[]));
}

/// Returns what is wrong with one answer of the tour: it needs a place, then the line that is there.
fn wrong_in_tour(answer: &str) -> Option<String> {
    let spans: Vec<_> = answer.split('`').skip(1).step_by(2).collect();
    let [place, quote] = spans.as_slice() else {
        return Some(format!(
            "expected a place and the quoted line, both in backticks: {answer}"
        ));
    };
    let Some((path, number)) = place.rsplit_once(':') else {
        return Some(format!("expected `path:line`, found `{place}`"));
    };
    let Ok(text) = fs::read_to_string(root().join(path)) else {
        return Some(format!("{place}: there is no such file"));
    };
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.contains(quote.trim()));
    let lines: Vec<_> = lines.map(|(at, _)| (at + 1).to_string()).collect();
    if lines.iter().any(|line| line == number) {
        return None;
    }
    Some(match lines.is_empty() {
        true => format!("{place}: no line of the file contains `{quote}`"),
        false => format!("{place}: `{quote}` is in line {}", lines.join(" or ")),
    })
}

#[test]
fn tour_of_the_code_quotes_the_lines_it_names() {
    let answers = numbered_items(TOUR);
    let numbers: Vec<_> = answers.iter().map(|(number, _)| *number).collect();
    assert!(
        numbers.iter().copied().eq(1..=10),
        "the answers of docs/tour-of-the-code.md: {numbers:?}"
    );
    let broken: Vec<_> = answers
        .iter()
        .filter_map(|(_, answer)| wrong_in_tour(answer))
        .collect();
    assert!(
        broken.is_empty(),
        "docs/tour-of-the-code.md:\n{}",
        broken.join("\n")
    );
}

#[test]
fn tour_names_the_new_line_of_a_moved_quote() {
    let wrong = |answer| wrong_in_tour(answer).unwrap();
    let moved = wrong("`docs/invariants.md:2` has it: `# Invariants`");
    assert!(moved.ends_with("is in line 1"), "{moved}");
    let gone = wrong("`docs/invariants.md:1` has it: `no such line`");
    assert!(gone.contains("no line of the file contains"), "{gone}");
    assert!(wrong("`no/such.rs:1` has it: `x`").contains("no such file"));
    assert!(wrong("`README.md` has it: `x`").contains("expected `path:line`"));
    assert!(wrong("`README.md:1` has it").contains("expected a place"));
    assert_eq!(
        wrong_in_tour("`docs/invariants.md:1` has it: `# Invariants`"),
        None
    );
}
