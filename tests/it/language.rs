//! Measures of the project's language: riddle words in comments and documents, and type names that are used twice.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Words that name no thing as the subject of a sentence.
const RIDDLES: [&str; 7] = [
    "who",
    "whom",
    "whoever",
    "nobody",
    "somebody",
    "everybody",
    "whosoever",
];
/// At most so many of these words in 1,000.
const RIDDLES_MAX: f64 = 0.5;
/// At most so many type names of a crate, in 100, may be defined more than once.
const REPEATED_MAX: f64 = 5.0;

const CRATES: [&str; 6] = [
    "src",
    "crates/core/src",
    "crates/proto/src",
    "crates/store/src",
    "crates/types/src",
    "clients/rust/src",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns all files below a folder, or the file itself, with one of these extensions.
fn files(path: &Path, extensions: &[&str], to: &mut Vec<PathBuf>) {
    if path.is_symlink() || path.ends_with("target") || path.ends_with("corpus") {
        return;
    }
    match fs::read_dir(path) {
        Ok(entries) => entries.for_each(|entry| files(&entry.unwrap().path(), extensions, to)),
        Err(_)
            if path
                .extension()
                .is_some_and(|found| extensions.iter().any(|wanted| found == *wanted)) =>
        {
            to.push(path.to_owned());
        }
        Err(_) => {}
    }
}

/// Returns the comments of a source file, or all of a document.
fn prose(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    if path.extension().is_some_and(|extension| extension == "md") {
        return text;
    }
    let comments = text
        .lines()
        .filter_map(|line| line.split_once("//"))
        .map(|(_, comment)| comment);
    comments.collect::<Vec<_>>().join("\n")
}

#[test]
fn prose_names_its_subjects() {
    let mut found = Vec::new();
    for folder in [
        "src",
        "crates",
        "clients",
        "tests",
        "benches",
        "examples",
        "fuzz/src",
        "fuzz/targets",
        "docs",
    ] {
        files(&root().join(folder), &["rs", "md", "proto"], &mut found);
    }
    files(&root().join("proto"), &["proto"], &mut found);
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ] {
        found.push(root().join(document));
    }
    // This file must write the words that it looks for.
    found.retain(|path| !path.ends_with("tests/it/language.rs"));
    let (mut words, mut riddles) = (0_u32, Vec::new());
    for path in &found {
        for (place, line) in prose(path).lines().enumerate() {
            for word in line.split(|c: char| !c.is_alphanumeric() && c != '_') {
                words += u32::from(word.len() > 1);
                if RIDDLES.contains(&&*word.to_lowercase()) {
                    riddles.push(format!(
                        "{}: comment line {}: {}",
                        path.display(),
                        place + 1,
                        line.trim()
                    ));
                }
            }
        }
    }
    assert!(words > 100_000, "the prose was not found: {words} words");
    let share = 1000.0 * f64::from(u32::try_from(riddles.len()).unwrap()) / f64::from(words);
    println!("{} of {words} words: {share:.2} in 1,000", riddles.len());
    assert!(
        share <= RIDDLES_MAX,
        "{share:.2} in 1,000:\n{}",
        riddles.join("\n")
    );
}

/// Returns the names of the types that a source file defines outside of tests.
fn types(text: &str) -> Vec<String> {
    let text = text
        .split("\n#[cfg(test)]\nmod ")
        .next()
        .unwrap_or_default();
    let mut found = Vec::new();
    for line in text.lines() {
        let visible = line.trim_start();
        let line = match visible.split_once(") ") {
            Some((before, after)) if before.starts_with("pub(") => after,
            _ => visible.strip_prefix("pub ").unwrap_or(visible),
        };
        for keyword in ["struct ", "enum ", "trait ", "union "] {
            if let Some(rest) = line.strip_prefix(keyword) {
                let end = rest
                    .find(|c: char| !c.is_alphanumeric())
                    .unwrap_or(rest.len());
                found.push(rest[..end].to_owned());
            }
        }
    }
    found
}

#[test]
fn a_type_name_means_one_thing_in_its_crate() {
    for krate in CRATES {
        let mut sources = Vec::new();
        files(&root().join(krate), &["rs"], &mut sources);
        let mut defined: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for path in sources.iter().filter(|path| !path.ends_with("tests.rs")) {
            for name in types(&fs::read_to_string(path).unwrap()) {
                defined
                    .entry(name)
                    .or_default()
                    .push(path.display().to_string());
            }
        }
        let all = defined.len();
        defined.retain(|_, places| places.len() > 1);
        let count = |number: usize| f64::from(u32::try_from(number).unwrap());
        let share = 100.0 * count(defined.len()) / count(all);
        println!(
            "{krate}: {} of {all} type names: {share:.1} %",
            defined.len()
        );
        assert!(all > 5, "{krate}: the types were not found");
        assert!(
            share <= REPEATED_MAX,
            "{krate}: {share:.1} % of the type names are defined twice: {defined:#?}"
        );
    }
}

#[test]
fn types_are_seen_where_they_are_defined() {
    let text = "pub struct A;\npub(crate) enum B {}\n    struct C<T>(T);\n// struct D\nimpl A {}\n#[cfg(test)]\nmod tests {\nstruct E;";
    assert_eq!(types(text), ["A", "B", "C"]);
}
