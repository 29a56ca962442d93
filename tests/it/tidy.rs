//! Holds the architecture within the crates: which room imports which, and which words stay in which room.
//!
//! The manifests say which crate knows which library, and `clippy.toml` which functions a crate may not call. This file says the
//! rest. Its rules are for the code that ships: comments, texts and test modules are blanked out first.

use std::{fs, path::Path};

/// A crate: the folder of its sources, its name in paths, its rooms from left to right, and its leaves. A room imports only rooms
/// to its right, and leaves. A leaf imports leaves that stand after it.
struct Crate {
    folder: &'static str,
    name: &'static str,
    arrow: &'static [&'static str],
    leaves: &'static [&'static str],
}

const CRATES: [Crate; 7] = [
    Crate {
        folder: "src/",
        name: "tls_sessiond",
        arrow: &[
            "main", "cli", "proxy", "daemon", "otlp", "admin", "server", "api", "rings", "store",
        ],
        leaves: &["doctor", "supervisor", "trace", "log", "config", "shutdown"],
    },
    Crate {
        folder: "clients/rust/src/",
        name: "tls_sessiond_client",
        arrow: &[
            "openssl",
            "rustls",
            "engine",
            "worker",
            "connection",
            "stream",
            "lookup",
            "outbox",
            "breaker",
        ],
        leaves: &[
            "framing", "found", "message", "options", "counters", "endpoint",
        ],
    },
    Crate {
        folder: "crates/core/src/",
        name: "tls_sessiond_core",
        arrow: &[
            "state",
            "connection",
            "context",
            "cache",
            "fleet",
            "session",
            "store",
        ],
        leaves: &["pem", "access", "clock", "sync"],
    },
    Crate {
        folder: "crates/keys/src/",
        name: "tls_sessiond_keys",
        arrow: &["shared", "saved", "ticket", "ring", "epoch"],
        leaves: &[],
    },
    Crate {
        folder: "crates/proto/src/",
        name: "tls_sessiond_proto",
        arrow: &["codec", "convert", "transport", "wire"],
        leaves: &[],
    },
    Crate {
        folder: "crates/store/src/",
        name: "tls_sessiond_store",
        arrow: &["keeper", "seal", "script", "layout"],
        leaves: &[],
    },
    Crate {
        folder: "crates/types/src/",
        name: "tls_sessiond_types",
        arrow: &[
            "client_hello",
            "alert",
            "cipher_suite",
            "hex",
            "role",
            "secret",
            "server_name",
            "version",
        ],
        leaves: &[],
    },
];

/// Words that only some files of a crate may say, where no manifest and no lint can say so. A name in the list is a room, or a file
/// below the sources of the crate.
const WORDS: [(&str, &[&str], &[&str]); 30] = [
    (
        "src/",
        &[
            "tonic_health",
            "tonic_reflection",
            "tonic_types",
            "http_body",
        ],
        &["server", "api", "cli/remote"],
    ),
    (
        "src/",
        &["tonic", "prost"],
        &["otlp", "server", "api", "cli/remote"],
    ),
    (
        "src/",
        &["prost_types"],
        &["otlp", "admin", "server", "api", "cli/remote"],
    ),
    ("src/", &["hyper_util"], &["otlp", "admin", "cli/remote"]),
    ("src/", &["axum"], &["admin", "proxy/probes.rs"]),
    ("src/", &["prometheus_client"], &["otlp", "admin"]),
    (
        "src/",
        &["opentelemetry", "opentelemetry_sdk"],
        &["otlp", "trace"],
    ),
    ("src/", &["opentelemetry_proto"], &["otlp"]),
    ("src/", &["prost_reflect"], &["cli/remote/message.rs"]),
    ("src/", &["h2"], &["server/http"]),
    (
        "src/",
        &["tokio_rustls"],
        &[
            "otlp/collector.rs",
            "server/tls.rs",
            "store",
            "cli/remote/tls.rs",
        ],
    ),
    ("src/", &["redis"], &["store", "config"]),
    (
        "src/",
        &["Instant::now"],
        &[
            "proxy",
            "otlp",
            "admin",
            "server",
            "api",
            "store",
            "daemon.rs",
        ],
    ),
    ("src/", &["clap"], &["cli"]),
    ("src/", &["ratatui", "crossterm"], &["cli/remote/top"]),
    ("src/", &["SystemTime::now"], &[]),
    ("src/", &["unsafe"], &[]),
    (
        "src/",
        &["tokio", "async", "await"],
        &[
            "cli",
            "proxy",
            "daemon.rs",
            "otlp",
            "admin",
            "server",
            "api",
            "rings",
            "store",
        ],
    ),
    ("crates/core/src/", &["async", "await"], &[]),
    (
        "crates/core/src/",
        &["rcgen", "x509_parser", "rustls_native_certs"],
        &["context"],
    ),
    (
        "crates/core/src/",
        &["clock_gettime", "SystemTime::now"],
        &["clock.rs"],
    ),
    ("crates/core/src/", &["unsafe"], &[]),
    ("crates/proto/src/", &["Instant::now"], &["transport"]),
    ("crates/proto/src/", &["SystemTime::now", "unsafe"], &[]),
    (
        "crates/types/src/",
        &["Instant", "SystemTime", "unsafe"],
        &[],
    ),
    (
        "crates/store/src/",
        &["Instant", "SystemTime", "async", "await", "unsafe"],
        &[],
    ),
    (
        "crates/keys/src/",
        &["Instant", "SystemTime", "async", "await", "unsafe"],
        &[],
    ),
    ("clients/rust/src/", &["unsafe"], &["openssl/ffi.rs"]),
    (
        "clients/rust/src/",
        &["Instant::now"],
        &["worker.rs", "lookup.rs", "breaker", "stream"],
    ),
    // When a certificate expires is told by the wall clock.
    ("clients/rust/src/", &["SystemTime::now"], &["rustls"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a folder with this extension, with their texts; paths start at the root.
fn files(folder: &str, extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if entry
                .path()
                .extension()
                .is_some_and(|held| held == extension)
            {
                found.push((
                    relative(&entry.path()),
                    fs::read_to_string(entry.path()).unwrap(),
                ));
            }
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// The sources of one crate that ship: without test files, blanked. Paths start at the crate's sources.
fn shipped(krate: &Crate) -> Vec<(String, String)> {
    let shipped: Vec<_> = files(krate.folder, "rs")
        .into_iter()
        .filter(|(path, _)| !path.ends_with("/tests.rs") && !path.ends_with("_tests.rs"))
        .map(|(path, text)| {
            (
                path[krate.folder.len()..].to_owned(),
                without_test_modules(&blank(&text)),
            )
        })
        .collect();
    assert!(shipped.len() > 4, "{} was not found", krate.folder);
    shipped
}

/// Replaces comments and what stands in quotes by blanks; lines stay where they are.
fn blank(text: &str) -> String {
    let text: Vec<char> = text.chars().collect();
    let mut out = text.clone();
    let hide = |out: &mut [char], from: usize, to: usize| {
        out[from..to]
            .iter_mut()
            .filter(|c| **c != '\n')
            .for_each(|c| *c = ' ');
    };
    let starts = |at: usize, what: &str| {
        what.chars()
            .enumerate()
            .all(|(i, c)| text.get(at + i) == Some(&c))
    };
    let mut at = 0;
    while at < text.len() {
        let from = at;
        if starts(at, "//") {
            while at < text.len() && text[at] != '\n' {
                at += 1;
            }
        } else if starts(at, "/*") {
            let mut depth = 0;
            loop {
                let step = if starts(at, "/*") {
                    depth += 1;
                    2
                } else if starts(at, "*/") {
                    depth -= 1;
                    2
                } else {
                    1
                };
                at += step;
                if depth == 0 || at >= text.len() {
                    break;
                }
            }
        } else if let Some((open, hashes)) = raw_string(&text, at) {
            at = open;
            while at < text.len()
                && !(text[at] == '"' && (1..=hashes).all(|i| text.get(at + i) == Some(&'#')))
            {
                at += 1;
            }
            at += 1 + hashes;
        } else if text[at] == '"' {
            at += 1;
            while at < text.len() && text[at] != '"' {
                at += if text[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if text[at] == '\''
            && (text.get(at + 1) == Some(&'\\') || text.get(at + 2) == Some(&'\''))
        {
            // A character; what has no second quote is a lifetime.
            at += if text[at + 1] == '\\' { 3 } else { 2 };
            while at < text.len() && text[at] != '\'' {
                at += 1;
            }
            at += 1;
        } else {
            at += 1;
            continue;
        }
        at = at.min(text.len());
        hide(&mut out, from, at);
    }
    out.into_iter().collect()
}

/// Whether `r"`, `r#"` ... begins here: where its text begins, and how many hashes it has.
fn raw_string(text: &[char], at: usize) -> Option<(usize, usize)> {
    let joined =
        at > 0 && (text[at - 1].is_alphanumeric() || text[at - 1] == '_') && text[at - 1] != 'b';
    if text[at] != 'r' || joined {
        return None;
    }
    let hashes = text[at + 1..].iter().take_while(|c| **c == '#').count();
    (text.get(at + 1 + hashes) == Some(&'"')).then_some((at + 2 + hashes, hashes))
}

/// Blanks `#[cfg(test)] mod name { ... }`.
fn without_test_modules(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut code = code.to_owned();
    let mut from = 0;
    while let Some(at) = code[from..].find(MARK).map(|at| from + at) {
        from = at + MARK.len();
        let rest = &code[from..];
        let (Some(open), end) = (rest.find('{'), rest.find(';').unwrap_or(usize::MAX)) else {
            continue;
        };
        if end < open || !rest.trim_start().starts_with("mod ") {
            continue;
        }
        let mut depth = 0;
        let close = rest[open..].find(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0
        });
        let to = close.map_or(code.len(), |close| from + open + close + 1);
        let blanked: String = code[at..to]
            .chars()
            .map(|c| if c == '\n' { c } else { ' ' })
            .collect();
        code.replace_range(at..to, &blanked);
        from = at;
    }
    code
}

fn line(code: &str, at: usize) -> usize {
    1 + code[..at].matches('\n').count()
}

/// Where a word stands, apart from words that it is only a part of.
fn places<'c>(code: &'c str, word: &'c str) -> impl Iterator<Item = usize> + 'c {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| {
            !code[..at].ends_with(part) && !code[at + word.len()..].starts_with(part)
        })
}

/// The module path of a file of a crate: `rpc/mod.rs` is `["rpc"]`, `rpc/page.rs` is `["rpc", "page"]`.
fn module(path: &str) -> Vec<String> {
    let path = path.trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/').map(str::to_owned).collect()
}

/// What a path imports from the root of the crate: the names after `crate::`, or after enough `super::`.
fn imports(krate: &Crate, path: &str, code: &str) -> Vec<(usize, String)> {
    let module = module(path);
    let mut found = Vec::new();
    for start in ["crate", krate.name] {
        for at in places(code, start) {
            if let Some(rest) = code[at + start.len()..].strip_prefix("::") {
                names(rest)
                    .into_iter()
                    .for_each(|name| found.push((line(code, at), name)));
            }
        }
    }
    for at in places(code, "super") {
        if code[..at].ends_with("super::") {
            continue;
        }
        let mut rest = &code[at..];
        let mut here = module.as_slice();
        while let Some(further) = rest.strip_prefix("super::") {
            rest = further;
            here = here.split_last().map_or(&[][..], |(_, parents)| parents);
        }
        if here.is_empty() {
            names(rest)
                .into_iter()
                .for_each(|name| found.push((line(code, at), name)));
        }
    }
    found
}

/// The first name of a path, or of each path in braces.
fn names(rest: &str) -> Vec<String> {
    let name = |text: &str| {
        let text = text.trim_start();
        text[..text
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(text.len())]
            .to_owned()
    };
    let Some(group) = rest.trim_start().strip_prefix('{') else {
        return vec![name(rest)];
    };
    let mut found = vec![name(group)];
    let mut depth = 1;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => found.push(name(&group[at + 1..])),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

fn may_import(krate: &Crate, room: &str, wanted: &str) -> bool {
    let place = |rooms: &[&str], name: &str| rooms.iter().position(|room| *room == name);
    let (here, there) = (place(krate.arrow, room), place(krate.arrow, wanted));
    let (leaf, leaf_wanted) = (place(krate.leaves, room), place(krate.leaves, wanted));
    if room == wanted {
        return true;
    }
    match (here, there, leaf, leaf_wanted) {
        (Some(here), Some(there), ..) => here < there,
        (Some(_), None, _, Some(_)) => true,
        (None, None, Some(leaf), Some(wanted)) => leaf < wanted,
        _ => false,
    }
}

fn report(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

// Invariant 10.
#[test]
fn rooms_import_only_rooms_to_their_right() {
    let mut broken = Vec::new();
    for krate in &CRATES {
        for (path, code) in shipped(krate) {
            let room = module(&path)[0].clone();
            if room == "lib" {
                continue;
            }
            for (line, wanted) in imports(krate, &path, &code) {
                // Types that `lib.rs` exports from a leaf have names of their own.
                if wanted.starts_with(char::is_lowercase) && !may_import(krate, &room, &wanted) {
                    broken.push(format!(
                        "{}{path}:{line}: {room} imports {wanted}",
                        krate.folder
                    ));
                }
            }
        }
    }
    report(
        "a room imports rooms to its right and leaves: CRATES in tests/it/tidy.rs",
        broken,
    );
}

#[test]
fn every_room_has_its_place() {
    let mut broken = Vec::new();
    for krate in &CRATES {
        for (path, _) in files(krate.folder, "rs") {
            let room = module(&path[krate.folder.len()..])[0].clone();
            if room != "lib" && !krate.arrow.contains(&&*room) && !krate.leaves.contains(&&*room) {
                broken.push(format!(
                    "{path}:1: `{room}` has no place in CRATES of tests/it/tidy.rs"
                ));
            }
        }
    }
    report(
        "a new room gets a place in ARCHITECTURE.md and here",
        broken,
    );
}

// Invariants 8 and 9.
#[test]
fn words_stay_in_their_rooms() {
    let mut broken = Vec::new();
    for krate in &CRATES {
        for (file, code) in shipped(krate) {
            for (folder, words, homes) in WORDS {
                let is_home = |home: &&str| file == **home || file.starts_with(&format!("{home}/"));
                if folder != krate.folder || homes.iter().any(is_home) {
                    continue;
                }
                for word in words {
                    for at in places(&code, word) {
                        let line = line(&code, at);
                        broken.push(format!(
                            "{folder}{file}:{line}: `{word}` belongs to {}",
                            homes.join(", ")
                        ));
                    }
                }
            }
        }
    }
    report("these words are said in their rooms alone", broken);
}

/// Types that grow with what callers bring.
const COLLECTIONS: [&str; 7] = [
    "DashMap",
    "HashMap",
    "HashSet",
    "BTreeMap",
    "BTreeSet",
    "VecDeque",
    "BinaryHeap",
];

/// Fields of structs, and structs over one value, whose type is a collection.
fn collections(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut depth = 0;
    let mut structure: Option<i32> = None;
    for line in code.lines() {
        let has = COLLECTIONS
            .iter()
            .any(|name| places(line, name).any(|at| line[at + name.len()..].starts_with('<')));
        let text = line
            .trim_start()
            .trim_start_matches("pub(super) ")
            .trim_start_matches("pub(crate) ")
            .trim_start_matches("pub ");
        if let Some(rest) = text.strip_prefix("struct ") {
            let name = &rest[..rest
                .find(|c: char| !c.is_alphanumeric())
                .unwrap_or(rest.len())];
            if has {
                found.push(name.to_owned());
            }
            structure = line.contains('{').then_some(depth);
        } else if let (true, Some(_), Some((field, _))) = (has, structure, text.split_once(':')) {
            found.push(field.to_owned());
        }
        depth += i32::try_from(line.matches('{').count()).unwrap()
            - i32::try_from(line.matches('}').count()).unwrap();
        if structure.is_some_and(|outside| depth <= outside) {
            structure = None;
        }
    }
    found
}

#[test]
fn collections_that_callers_fill_have_a_limit() {
    let security = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let (_, limits) = security.split_once("\n## Limits\n").unwrap();
    let (limits, _) = limits.split_once("\n## ").unwrap();
    let mut broken = Vec::new();
    let mut seen = 0;
    // A worker's own memory is not at the mercy of callers.
    for krate in CRATES
        .iter()
        .filter(|krate| krate.folder != "clients/rust/src/")
    {
        for (file, code) in shipped(krate) {
            for name in collections(&code) {
                seen += 1;
                if !limits.contains(&format!("`{file} {name}`")) {
                    let folder = krate.folder;
                    broken.push(format!(
                        "{folder}{file}: `{file} {name}` stands in no row of SECURITY.md, Limits"
                    ));
                }
            }
        }
    }
    assert!(seen > 25, "the collections were not found: {seen}");
    report(
        "every collection that can grow has a limit, which SECURITY.md names",
        broken,
    );
}

#[test]
fn collections_are_seen_in_structs_alone() {
    let code = "struct A {\n    one: DashMap<u8, u8>,\n    two: Vec<u8>,\n}\npub struct B(VecDeque<u8>);\nfn f(x: HashMap<u8, u8>) {\n    \
                let y: BTreeMap<u8, u8> = z;\n}\npub(super) struct C<T> {\n    pub(super) three: Mutex<HashSet<T>>,\n}\n";
    assert_eq!(collections(code), ["one", "B", "three"]);
}

#[test]
fn nothing_is_left_for_later() {
    // Written in two halves, so that this file does not find itself.
    let later = [["TO", "DO"].concat(), ["FIX", "ME"].concat()];
    let code = [["dbg", "!"].concat(), ["#[", "ignore"].concat()];
    let mut broken = Vec::new();
    let mut sources = Vec::new();
    for folder in [
        "src",
        "crates",
        "clients",
        "tests",
        "benches",
        "examples",
        "fuzz/src",
        "fuzz/targets",
    ] {
        sources.extend(files(folder, "rs"));
    }
    for (path, text) in &sources {
        let blanked = blank(text);
        for mark in &code {
            blanked.match_indices(mark).for_each(|(at, _)| {
                broken.push(format!("{path}:{}: {mark}", line(&blanked, at)));
            });
        }
    }
    sources.extend(files("proto", "proto"));
    for (path, text) in &sources {
        for mark in &later {
            places(text, mark)
                .for_each(|at| broken.push(format!("{path}:{}: {mark}", line(text, at))));
        }
    }
    report(
        "what is to be done is done, or is no comment in the code",
        broken,
    );
}

#[test]
fn every_dependency_says_what_it_is_for() {
    let mut broken = Vec::new();
    for (path, least) in [
        ("Cargo.toml", 21),
        ("clients/rust/Cargo.toml", 15),
        ("crates/core/Cargo.toml", 14),
        ("crates/store/Cargo.toml", 6),
        ("crates/types/Cargo.toml", 2),
        ("crates/proto/Cargo.toml", 14),
        ("fuzz/Cargo.toml", 5),
    ] {
        let text = fs::read_to_string(root().join(path)).unwrap();
        let (mut inside, mut above, mut seen) = (false, "", 0);
        for (place, line) in text.lines().enumerate() {
            if line.starts_with('[') {
                inside = line.trim_matches(['[', ']']).ends_with("dependencies")
                    && line != "[workspace.dependencies]";
            } else if inside
                && line.starts_with(|c: char| c.is_ascii_alphabetic())
                && line.contains('=')
            {
                seen += 1;
                if !above.starts_with('#') {
                    broken.push(format!("{path}:{}: {line}", place + 1));
                }
            }
            above = line;
        }
        assert!(seen >= least, "the dependencies of {path} were not found");
    }
    report(
        "every dependency has a comment above it that says why",
        broken,
    );
}

#[test]
fn tidy_sees_what_it_looks_for() {
    let code = "use crate::{a::{x, y}, b};\nuse super::super::c;\n// crate::d\nlet s = \"crate::e\"; let q = '\"'; \
                crate::f::g();\n#[cfg(test)]\nmod tests {\n use crate::h;\n}\nuse crate::i as j; let r = r#\"crate::k\"#;\
                /* crate::l /* */ crate::m */ fn f<'a>(x: &'a str) { crate::n::o(x) } use super::p;";
    let blanked = without_test_modules(&blank(code));
    let mut found: Vec<_> = imports(&CRATES[0], "api/page.rs", &blanked)
        .into_iter()
        .map(|(line, name)| format!("{line}{name}"))
        .collect();
    found.sort();
    assert_eq!(found, ["1a", "1b", "2c", "4f", "9i", "9n"]);
    assert_eq!(
        places("tokio::x tokio_util tokio", "tokio").collect::<Vec<_>>(),
        [0, 20]
    );
    for (place, room, wanted, may) in [
        (0, "api", "config", true),
        (0, "config", "api", false),
        (0, "api", "server", false),
        (0, "cli", "daemon", true),
        (0, "daemon", "cli", false),
        (0, "log", "config", true),
        (0, "config", "log", false),
        (1, "worker", "stream", true),
        (1, "stream", "worker", false),
        (2, "context", "cache", true),
        (2, "cache", "context", false),
        (2, "store", "session", false),
        (2, "session", "clock", true),
        (2, "clock", "access", false),
        (2, "session", "elsewhere", false),
    ] {
        assert_eq!(
            may_import(&CRATES[place], room, wanted),
            may,
            "{room} imports {wanted}"
        );
    }
}
