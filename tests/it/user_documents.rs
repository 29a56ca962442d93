//! Tests that the documents for users agree with the repository: links, commands, configurations,
//! terms and reasons.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};
use serde_json::Value;
use tls_sessiond::config::Config;
use tls_sessiond_proto::FILE_DESCRIPTOR_SET;

const README: &str = include_str!("../../README.md");
const GLOSSARY: &str = include_str!("../../docs/glossary.md");
const TROUBLESHOOTING: &str = include_str!("../../docs/troubleshooting.md");

/// The documents that show commands or configurations. `documents.rs` has the tests of
/// docs/configuration.md.
const DOCUMENTS: [(&str, &str); 7] = [
    ("README.md", README),
    ("docs/drive.md", include_str!("../../docs/drive.md")),
    ("docs/glossary.md", GLOSSARY),
    (
        "docs/operations.md",
        include_str!("../../docs/operations.md"),
    ),
    (
        "docs/shared-store.md",
        include_str!("../../docs/shared-store.md"),
    ),
    ("docs/troubleshooting.md", TROUBLESHOOTING),
    ("docs/workers.md", include_str!("../../docs/workers.md")),
];

/// Documents that name files as they were.
const HISTORY: [&str; 2] = ["CHANGELOG.md", "docs/benchmarks-log.md"];

/// The folders of the repository whose files the documents name.
const FOLDERS: [&str; 9] = [
    "benches/", "clients/", "crates/", "deploy/", "docs/", "fuzz/", "proto/", "src/", "tests/",
];

/// The maximum number of words of README.md outside of code blocks.
const README_WORDS_MAX: usize = 1100;

/// All terms of the glossary, in its order.
const TERMS: [&str; 20] = [
    "binding",
    "close rule",
    "connection",
    "context",
    "drain",
    "engine",
    "family",
    "format",
    "hold",
    "identity",
    "open",
    "owner",
    "role",
    "scope",
    "session",
    "single-use",
    "ticket",
    "tombstone",
    "unclosed",
    "worker",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the paths of all files below a folder with this extension, without those of builds, tools
/// and git.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().unwrap().is_dir() {
                if !name.starts_with('.') && name != "target" {
                    folders.push(entry.path());
                }
            } else if entry
                .path()
                .extension()
                .is_some_and(|held| held == extension)
            {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// Returns the fenced blocks of a document, each with its language.
fn blocks(text: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            let block: Vec<_> = lines
                .by_ref()
                .take_while(|line| line.trim() != "```")
                .collect();
            found.push((language, block.join("\n")));
        }
    }
    found
}

/// Returns a document without its fenced blocks.
fn prose(text: &str) -> String {
    let mut inside = false;
    let mut kept = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            kept.push(line);
        }
    }
    kept.join("\n")
}

/// Splits a command line into words as a shell does, with quotes and backslashes. Ends at a pipe or a
/// comment.
fn words(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' => found.extend(word.take()),
            '|' | '#' if word.is_none() => break,
            '\'' => word
                .get_or_insert_default()
                .extend(chars.by_ref().take_while(|c| *c != '\'')),
            '"' => {
                let word = word.get_or_insert_default();
                while let Some(c) = chars.next().filter(|c| *c != '"') {
                    word.push(if c == '\\' {
                        chars.next().unwrap_or(c)
                    } else {
                        c
                    });
                }
            }
            _ => word.get_or_insert_default().push(c),
        }
    }
    found.extend(word);
    found
}

/// Returns the grpcurl commands of a document, as words. A use of the shell function `call`, which the
/// tour of README.md defines, is such a command too.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (language, block) in blocks(text) {
        if !["sh", "console"].contains(&language) {
            continue;
        }
        for line in block.lines() {
            let line = line.trim_start().trim_start_matches("$ ");
            if line.starts_with("grpcurl ") {
                found.push(words(line));
            }
            for (at, call) in line.match_indices("call ") {
                if let [method, data, ..] = words(&line[at + call.len()..]).as_slice() {
                    let method = format!("tls.sessiond.v1.{method}");
                    let command = [
                        "grpcurl",
                        "-d",
                        data.as_str(),
                        "127.0.0.1:50551",
                        method.as_str(),
                    ];
                    found.push(command.map(str::to_owned).to_vec());
                }
            }
        }
    }
    let text = prose(text);
    let inline = text
        .lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2));
    found.extend(
        inline
            .filter(|code| code.starts_with("grpcurl "))
            .map(words),
    );
    found
}

/// The methods, messages and enums of the contract and of `grpc.health.v1`, by full name.
#[derive(Default)]
struct Contract {
    /// The request message of each method. A method is named as grpcurl names it:
    /// `package.Service/Method`.
    methods: HashMap<String, String>,
    messages: HashMap<String, DescriptorProto>,
    /// The values of each enum.
    enums: HashMap<String, Vec<String>>,
}

impl Contract {
    fn read() -> Self {
        let mut contract = Self::default();
        for descriptors in [FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET] {
            for file in FileDescriptorSet::decode(descriptors).unwrap().file {
                contract.add(&file);
            }
        }
        contract
    }

    fn add(&mut self, file: &FileDescriptorProto) {
        let package = file.package();
        for service in &file.service {
            for method in &service.method {
                let name = format!("{package}.{}/{}", service.name(), method.name());
                self.methods
                    .insert(name, method.input_type().trim_start_matches('.').to_owned());
            }
        }
        for message in &file.message_type {
            self.messages
                .insert(format!("{package}.{}", message.name()), message.clone());
        }
        for kind in &file.enum_type {
            let values = kind
                .value
                .iter()
                .map(|value| value.name().to_owned())
                .collect();
            self.enums
                .insert(format!("{package}.{}", kind.name()), values);
        }
    }

    /// Checks that the method or symbol of a grpcurl command exists, and the fields of its request.
    fn check(&self, command: &[String]) -> Result<(), String> {
        let mut data = None;
        let mut rest = Vec::new();
        let mut words = command.iter().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "-plaintext" | "-unix" | "-emit-defaults" => {}
                "-authority" | "-cacert" | "-cert" | "-key" => {
                    words.next();
                }
                "-d" => data = words.next(),
                flag if flag.starts_with('-') => {
                    return Err(format!("the test does not know the flag {flag}"));
                }
                other => rest.push(other),
            }
        }
        match rest.as_slice() {
            [_, "list"] => Ok(()),
            [_, "describe", symbol] if self.has(symbol) => Ok(()),
            [_, "describe", symbol] => Err(format!("nothing is named {symbol}")),
            [_, method] => {
                let request = self
                    .methods
                    .get(*method)
                    .ok_or_else(|| format!("there is no method {method}"))?;
                let Some(data) = data else { return Ok(()) };
                let data: Value = serde_json::from_str(data)
                    .map_err(|err| format!("the request is not JSON: {err}"))?;
                self.check_fields(request, &data)
            }
            _ => Err("expected an address and a method".into()),
        }
    }

    fn check_fields(&self, message: &str, value: &Value) -> Result<(), String> {
        let Value::Object(given) = value else {
            return Err(format!("{message} must be an object"));
        };
        let known = self
            .messages
            .get(message)
            .ok_or_else(|| format!("there is no message {message}"))?;
        for (name, value) in given {
            let field = known
                .field
                .iter()
                .find(|field| field.name() == name.as_str() || field.json_name() == name.as_str())
                .ok_or_else(|| format!("{message} has no field {name}"))?;
            let kind = field.type_name().trim_start_matches('.');
            if let (Some(values), Value::String(word)) = (self.enums.get(kind), value)
                && !values.contains(word)
            {
                return Err(format!("{kind} has no value {word}"));
            }
            if value.is_object() {
                self.check_fields(kind, value)?;
            }
        }
        Ok(())
    }

    /// Returns whether a service, method, message or enum has this name.
    fn has(&self, symbol: &str) -> bool {
        let method = symbol
            .rsplit_once('.')
            .map(|(service, method)| format!("{service}/{method}"));
        self.messages.contains_key(symbol)
            || self.enums.contains_key(symbol)
            || method.is_some_and(|method| self.methods.contains_key(&method))
            || self
                .methods
                .keys()
                .any(|method| method.split('/').next() == Some(symbol))
    }
}

/// Returns the targets of the links of a document, without those in code blocks.
fn links(text: &str) -> Vec<String> {
    let text = prose(text);
    let targets = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

/// Returns the anchors of a document's headings, in the form that GitHub gives them.
fn anchors(text: &str) -> HashSet<String> {
    let text = prose(text);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|heading| {
            let heading = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = heading
                .chars()
                .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn relative_links_of_all_documents_resolve() {
    let (mut seen, mut broken) = (0, Vec::new());
    for file in files(root(), "md") {
        for link in links(&fs::read_to_string(&file).unwrap()) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link.as_str(), ""));
            let target = if path.is_empty() {
                file.clone()
            } else {
                file.parent().unwrap().join(path)
            };
            let resolves = target.exists()
                && (anchor.is_empty()
                    || anchors(&fs::read_to_string(&target).unwrap()).contains(anchor));
            if !resolves {
                broken.push(format!("{}: {link}", file.display()));
            }
        }
    }
    assert!(seen > 50, "the links were not found: {seen}");
    assert!(
        broken.is_empty(),
        "links without a target:\n{}",
        broken.join("\n")
    );
}

/// Returns the paths of files and folders that a document names in backticks, with their line
/// numbers, without those in code blocks.
fn paths(text: &str) -> Vec<(usize, String)> {
    let (mut found, mut inside) = (Vec::new(), false);
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        }
        if inside {
            continue;
        }
        for span in line.split('`').skip(1).step_by(2) {
            // `path:line` names a file too.
            let path = match span.rsplit_once(':') {
                Some((path, line)) if line.chars().all(|c| c.is_ascii_digit()) => path,
                _ => span,
            };
            let is_path = path
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            let is_known =
                FOLDERS.iter().any(|folder| path.starts_with(folder)) || path.ends_with(".rs");
            if is_path && is_known {
                found.push((at + 1, path.to_owned()));
            }
        }
    }
    found
}

#[test]
fn files_that_the_documents_name_exist() {
    let (mut seen, mut broken) = (0, Vec::new());
    for file in files(root(), "md") {
        let document = file.strip_prefix(root()).unwrap().display().to_string();
        if HISTORY.contains(&document.as_str()) {
            continue;
        }
        for (line, path) in paths(&fs::read_to_string(&file).unwrap()) {
            seen += 1;
            if !root().join(&path).exists() {
                broken.push(format!("{document}:{line}: `{path}`"));
            }
        }
    }
    assert!(seen > 50, "the paths were not found: {seen}");
    assert!(
        broken.is_empty(),
        "paths from the root of the repository without a file:\n{}",
        broken.join("\n")
    );
}

#[test]
fn paths_in_the_documents_are_seen() {
    let text =
        "`src/a.rs:12` and `b.rs`, `c.md`, `src/d e` and `docs/`\n```\n`src/f.rs`\n```\n`a::src/g`";
    let found = [(1_usize, "src/a.rs"), (1, "b.rs"), (1, "docs/")]
        .map(|(line, path)| (line, path.to_owned()));
    assert_eq!(paths(text), found);
}

#[test]
fn readme_is_short_and_begins_with_commands() {
    let words = prose(README).split_whitespace().count();
    assert!(
        words <= README_WORDS_MAX,
        "README.md has {words} words; at most {README_WORDS_MAX} are allowed"
    );
    let blocks = blocks(README);
    assert!(
        blocks[0].1.starts_with("$ cargo run --release "),
        "{}",
        blocks[0].1
    );
}

#[test]
fn configurations_in_the_documents_load() {
    let mut seen = 0;
    for (document, text) in DOCUMENTS {
        for (language, block) in blocks(text) {
            // A block of a Cargo.toml is no configuration of the daemon.
            if language != "toml" || block.starts_with("[dependencies]") {
                continue;
            }
            seen += 1;
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("tls-sessiond.toml");
            fs::write(&file, &block).unwrap();
            if let Err(err) = Config::load(Some(&file), std::iter::empty(), &[]) {
                panic!("a configuration in {document} does not load: {err}");
            }
        }
    }
    assert!(seen > 1, "the configurations were not found: {seen}");
}

#[test]
fn grpcurl_commands_in_the_documents_fit_the_contract() {
    let contract = Contract::read();
    let (mut seen, mut broken) = (0, Vec::new());
    for (document, text) in DOCUMENTS {
        for command in commands(text) {
            seen += 1;
            if let Err(err) = contract.check(&command) {
                broken.push(format!("{document}: {}: {err}", command.join(" ")));
            }
        }
    }
    assert!(seen > 20, "the commands were not found: {seen}");
    assert!(
        broken.is_empty(),
        "commands that cannot work:\n{}",
        broken.join("\n")
    );
}

#[test]
fn grpcurl_commands_with_mistakes_are_found() {
    let contract = Contract::read();
    for (command, fault) in [
        (
            "grpcurl -plaintext HOST tls.sessiond.v1.SessionService/Explain",
            "there is no method",
        ),
        (
            "grpcurl -d '{\"id\": \"\"}' HOST tls.sessiond.v1.ConnectionService/Free",
            "has no field id",
        ),
        (
            "grpcurl -d \"{\\\"role\\\": \\\"SERVER\\\"}\" HOST tls.sessiond.v1.ConnectionService/New",
            "no value",
        ),
        (
            "grpcurl -d '{\"shutdown\": {\"a\": true}}' HOST tls.sessiond.v1.ConnectionService/SetShutdown",
            "has no field a",
        ),
        (
            "grpcurl -d '{' HOST tls.sessiond.v1.ConnectionService/New",
            "not JSON",
        ),
        (
            "grpcurl HOST describe tls.sessiond.v1.SessionService.Explain",
            "nothing is named",
        ),
        ("grpcurl -v HOST list", "flag -v"),
        ("grpcurl HOST | cat list", "expected an address"),
    ] {
        let refusal = contract.check(&words(command)).unwrap_err();
        assert!(refusal.contains(fault), "{command}: {refusal}");
    }
}

#[test]
fn glossary_defines_each_term_once() {
    let sections = GLOSSARY.split("\n## ").skip(1);
    let defined: Vec<_> = sections
        .map(|section| section.split_once("\n\n").unwrap())
        .collect();
    let terms: Vec<_> = defined
        .iter()
        .map(|(term, _)| term.to_lowercase())
        .collect();
    assert_eq!(terms, TERMS);
    for (term, definition) in defined {
        assert!(
            definition.split_whitespace().count() > 5,
            "{term} has no definition"
        );
    }
}

#[test]
fn troubleshooting_has_all_reasons_of_misses_and_removals() {
    let contract = Contract::read();
    for kind in [
        "tls.sessiond.v1.MissReason",
        "tls.sessiond.v1.RemovalReason",
    ] {
        for value in &contract.enums[kind] {
            let rows = TROUBLESHOOTING
                .matches(&format!("\n| `{value}` | "))
                .count();
            assert_eq!(rows, 1, "rows for {value}");
        }
    }
}

#[test]
fn troubleshooting_names_only_reasons_that_exist() {
    let mut sources = String::new();
    for file in files(&root().join("src"), "rs") {
        sources.push_str(&fs::read_to_string(file).unwrap());
    }
    let (_, errors) = TROUBLESHOOTING
        .split_once("\n## Errors of calls\n")
        .unwrap();
    let (errors, _) = errors.split_once("\n## ").unwrap();
    let reasons: Vec<_> = errors
        .lines()
        .filter_map(|row| row.strip_prefix("| `")?.split_once('`'))
        .collect();
    assert!(reasons.len() > 8, "the reasons were not found: {reasons:?}");
    for (reason, _) in reasons {
        assert!(
            sources.contains(&format!("\"{reason}\"")),
            "no error has the reason {reason}"
        );
    }
}
