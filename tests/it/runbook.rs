//! docs/at-3-am.md, the alert rules and the dashboard: each names only what exists.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

use crate::command::{run, text};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Returns the anchors of the headings of a document, as GitHub makes them.
fn anchors(document: &str) -> BTreeSet<String> {
    let headings = document.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let plain = line.trim_start_matches('#').trim().to_lowercase();
            let kept = plain
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.collect::<String>().replace(' ', "-")
        })
        .collect()
}

/// Returns what stands between `begin` and `end`, wherever both are.
fn between<'t>(text: &'t str, begin: &'t str, end: &'t str) -> impl Iterator<Item = &'t str> {
    text.split(begin)
        .skip(1)
        .filter_map(move |rest| Some(rest.split_once(end)?.0))
}

#[test]
fn links_of_the_page_and_of_alerts_lead_to_sections() {
    let page = read("docs/at-3-am.md");
    for link in between(&page, "](", ")") {
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let document = match file {
            "" => page.clone(),
            file => read(&format!("docs/{file}")),
        };
        assert!(
            anchor.is_empty() || anchors(&document).contains(anchor),
            "{link}"
        );
    }
    let rules = read("deploy/prometheus/rules.yaml");
    let mut seen = 0;
    for url in between(&rules, "runbook_url: docs/at-3-am.md#", "\n") {
        assert!(anchors(&page).contains(url), "{url}");
        seen += 1;
    }
    assert!(
        seen >= 20 && seen == rules.matches("- alert: ").count(),
        "{seen}"
    );
}

#[test]
fn commands_of_the_page_exist() {
    let page = read("docs/at-3-am.md");
    let commands: BTreeSet<_> = between(&page, "`tls-sessiond", "`")
        .filter_map(|rest| rest.strip_prefix(' '))
        .collect();
    assert!(commands.len() >= 10, "{commands:?}");
    for command in commands {
        let words: Vec<_> = command.split_whitespace().collect();
        let is_word = |word: &&&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        let is_argument = |word: &&&str| word.starts_with('-') || !is_word(word);
        let mut args: Vec<_> = words
            .iter()
            .take_while(|word| !is_argument(word))
            .copied()
            .collect();
        // The level of the log is an argument in lower case.
        if args.first() == Some(&"log-level") {
            args.truncate(1);
        }
        args.push("--help");
        let output = run(&args);
        let help = text(&output.stdout);
        assert!(output.status.success(), "{command}: {help}");
        for option in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(*option), "{command}: {option}");
        }
    }
}

#[test]
fn page_explains_every_state_and_every_reason() {
    let page = read("docs/at-3-am.md");
    let types = read("proto/tls/sessiond/v1/types.proto");
    for (prefix, title) in [
        ("CONNECTION_STATE_", "Connection states"),
        ("REMOVAL_REASON_", "Removal reasons"),
        ("MISS_REASON_", "Miss reasons"),
    ] {
        let (_, below) = page.split_once(&format!("\n## {title}\n")).unwrap();
        let table = below.split("\n## ").next().unwrap();
        let found: BTreeSet<_> = between(table, "\n| `", "`")
            .map(ToOwned::to_owned)
            .collect();
        let values = types
            .lines()
            .filter_map(|line| line.trim().strip_prefix(prefix));
        let wanted: BTreeSet<_> = values
            .filter_map(|value| value.split_once(" = "))
            .filter(|(_, number)| *number != "0;")
            .map(|(name, _)| name.to_lowercase())
            .collect();
        assert_eq!(found, wanted, "{title}");
    }
}

/// Returns the expressions of the dashboard, with its variables replaced.
pub(crate) fn expressions() -> Vec<String> {
    let board: Value = serde_json::from_str(&read("deploy/grafana/dashboard.json")).unwrap();
    let panels = board["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let annotations = board["annotations"]["list"].as_array().unwrap();
    let all = targets
        .chain(annotations)
        .map(|target| target["expr"].as_str().unwrap());
    all.map(|expression| {
        let mut plain = expression.replace("$__rate_interval", "5m");
        for variable in ["$job", "$instance", "$context"] {
            plain = plain.replace(variable, ".*");
        }
        assert!(!plain.contains('$'), "{plain}");
        plain
    })
    .collect()
}

#[test]
fn panels_have_a_unit_and_a_description_and_name_metrics_that_exist() {
    let board: Value = serde_json::from_str(&read("deploy/grafana/dashboard.json")).unwrap();
    let panels = board["panels"].as_array().unwrap();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = &panel["title"];
        assert!(
            panel["description"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{title}"
        );
        assert!(
            panel["fieldConfig"]["defaults"]["unit"].is_string(),
            "{title}"
        );
    }
    let documents = read("docs/operations.md") + &read("docs/proxy.md");
    let documented: BTreeSet<_> = between(&documents, "\n| `", "`")
        .map(ToOwned::to_owned)
        .collect();
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut seen = 0;
    for expression in expressions() {
        for word in expression.split(|c| !is_part(c)) {
            let prefixes = ["tls_sessiond_", "rpc_server_", "process_"];
            // A label has the name of the job too.
            if !prefixes.iter().any(|prefix| word.starts_with(prefix)) {
                continue;
            }
            let base = ["_bucket", "_count", "_sum"]
                .iter()
                .find_map(|end| word.strip_suffix(end));
            let known =
                documented.contains(word) || base.is_some_and(|base| documented.contains(base));
            assert!(known, "{word} in {expression}");
            seen += 1;
        }
    }
    assert!(seen >= 40, "{seen}");
}
