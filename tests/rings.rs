//! The arrows between the rings (ARCHITECTURE.md), enforced on the source text: who may name whom, where a clock, a
//! runtime, the wire and SQL may appear, and how long a file may be.
//!
//! It reads text, not meaning: comments and literals are taken out, then paths are looked at. The last tests feed it
//! sources that break each rule.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 600;

/// All modules of the crate, from the innermost ring to the outermost, with the other modules that each may name. A
/// module names only modules above it in this table, so no dependency points outward and there is no cycle.
const RINGS: [(&str, &[&str]); 24] = [
    ("domain", &[]),
    ("sync", &["domain"]),
    ("wire", &["domain", "sync"]),
    ("certificate_error", &[]),
    ("client", &["certificate_error", "domain", "sync", "wire"]),
    ("file_watch", &[]),
    ("catalog_file", &["domain"]),
    ("inventory_file", &["catalog_file", "domain"]),
    ("statistics", &["sync"]),
    ("live_rollout", &["sync"]),
    ("store", &["domain"]),
    ("identity", &["domain", "file_watch", "statistics"]),
    ("transport", &["certificate_error", "file_watch", "statistics"]),
    ("telemetry", &["statistics", "store", "sync"]),
    ("engine", &["domain", "statistics", "store", "sync", "telemetry"]),
    ("status", &["domain", "engine", "identity", "store", "sync", "wire"]),
    ("web", &["status", "wire"]),
    ("middleware", &["domain", "identity", "statistics", "status", "sync", "telemetry", "transport", "web", "wire"]),
    (
        "grpc",
        &[
            "domain",
            "engine",
            "identity",
            "live_rollout",
            "statistics",
            "status",
            "store",
            "sync",
            "telemetry",
            "transport",
            "wire",
        ],
    ),
    (
        "config",
        &["domain", "file_watch", "grpc", "identity", "middleware", "store", "sync", "telemetry", "transport", "web"],
    ),
    (
        "server",
        &[
            "catalog_file",
            "domain",
            "engine",
            "grpc",
            "identity",
            "live_rollout",
            "middleware",
            "statistics",
            "store",
            "sync",
            "telemetry",
            "transport",
            "web",
            "wire",
        ],
    ),
    (
        "cli",
        &[
            "catalog_file",
            "client",
            "config",
            "domain",
            "engine",
            "file_watch",
            "identity",
            "inventory_file",
            "live_rollout",
            "server",
            "statistics",
            "status",
            "store",
            "sync",
            "telemetry",
            "transport",
            "wire",
        ],
    ),
    ("lib", &[]),
    ("main", &["cli"]),
];
/// Modules that use the standard library only, are synchronous and have no clock.
const PURE: [&str; 2] = ["domain", "sync"];
const CLOCKS: [&str; 2] = ["Instant::now", "SystemTime::now"];
/// Modules that may use the generated messages and `tonic::Status`. The store encodes its own records with prost.
const WIRE_USERS: [&str; 7] = ["wire", "status", "web", "grpc", "middleware", "client", "cli"];
const SQL_ADAPTER: &str = "store/embedded";

struct Source {
    /// Below `src`, with forward slashes.
    path: String,
    text: String,
}

/// What the rules need to know of the crate: its modules and its dependencies, as they are named in paths.
struct Names {
    modules: BTreeSet<String>,
    crates: BTreeSet<String>,
}

#[test]
fn each_module_names_only_the_modules_that_its_ring_allows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = read_sources(&root.join("src"));
    assert!(sources.iter().any(|source| source.path == "domain/mod.rs"), "src was found");
    let names = Names { modules: modules(&sources), crates: dependencies(root) };
    assert!(names.crates.contains("tonic") && names.modules.contains("domain"));
    let violations: Vec<String> = sources.iter().flat_map(|source| violations(source, &names)).collect();
    assert!(violations.is_empty(), "\n  {}\n", violations.join("\n  "));
    let unused: Vec<_> = RINGS.iter().map(|(ring, _)| *ring).filter(|ring| !names.modules.contains(*ring)).collect();
    assert!(unused.is_empty(), "RINGS has entries for modules that do not exist: {unused:?}");
}

#[test]
fn a_ring_allows_only_modules_further_in() {
    for (index, (ring, allowed)) in RINGS.iter().enumerate() {
        for module in *allowed {
            let inner = RINGS[..index].iter().any(|(name, _)| name == module);
            assert!(inner, "{ring} allows {module}, which is not above it in RINGS");
        }
    }
}

#[test]
fn no_test_file_is_longer_than_a_source_file_may_be() {
    let files = read_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"));
    let long: Vec<_> = files.iter().filter_map(too_long).collect();
    assert!(long.is_empty(), "\n  {}\n", long.join("\n  "));
}

fn violations(source: &Source, names: &Names) -> Vec<String> {
    let mut found = Vec::from_iter(too_long(source));
    let code = code_only(&source.text);
    let paths = paths(&code);
    let ring = ring(&source.path);
    let mut report = |what: String| found.push(format!("src/{}: {what}", source.path));
    match RINGS.iter().find(|(name, _)| *name == ring) {
        Some((_, allowed)) => {
            let modules = paths.iter().filter_map(|path| named_module(path, source, names));
            for module in modules.filter(|module| *module != ring && !allowed.contains(module)) {
                report(format!("{ring} must not name {module}"));
            }
        }
        None => report(format!("add {ring} to RINGS")),
    }
    if PURE.contains(&ring) {
        for name in paths.iter().map(|path| root(path)).filter(|name| names.crates.contains(*name)) {
            report(format!("{ring} uses the standard library only, not {name}"));
        }
        for clock in CLOCKS.iter().filter(|clock| paths.iter().any(|path| ends_with(path, clock))) {
            report(format!("{clock}: time is an argument in {ring}"));
        }
        if words(&code).any(|word| word == "async" || word == "await") {
            report(format!("{ring} is synchronous"));
        }
    }
    if !WIRE_USERS.contains(&ring) {
        for path in paths.iter().filter(|path| is_of_the_wire(path)) {
            report(format!("only {} may use {path}", WIRE_USERS.join(", ")));
        }
    }
    if !source.path.starts_with(SQL_ADAPTER) && paths.iter().any(|path| root(path) == "rusqlite") {
        report(format!("only src/{SQL_ADAPTER} may use rusqlite"));
    }
    found
}

fn too_long(source: &Source) -> Option<String> {
    let lines = source.text.lines().count();
    (lines > LINES_MAX).then(|| format!("{}: {lines} lines; at most {LINES_MAX}", source.path))
}

fn is_of_the_wire(path: &str) -> bool {
    let generated = path == "tonic::include_proto" || path.contains("::wire::v1") || path.starts_with("wire::v1");
    generated || path == "tonic::Status" || path.starts_with("tonic::Status::")
}

/// The module of this crate that a path leads to, by `crate::` or by leaving its own module with `super::`.
fn named_module<'a>(path: &'a str, source: &Source, names: &Names) -> Option<&'a str> {
    let mut segments = path.split("::").peekable();
    match segments.next()? {
        "crate" | "slotcast" => {}
        "super" => {
            let mut levels = 1;
            while segments.next_if_eq(&"super").is_some() {
                levels += 1;
            }
            if levels < depth(&source.path) {
                return None;
            }
        }
        _ => return None,
    }
    segments.next().filter(|name| names.modules.contains(*name))
}

/// How many `super` lead from a file's module to the crate's root.
fn depth(path: &str) -> usize {
    let segments = path.split('/').count();
    if path.ends_with("/mod.rs") { segments - 1 } else { segments }
}

fn ring(path: &str) -> &str {
    path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
}

fn root(path: &str) -> &str {
    path.split("::").next().unwrap_or_default()
}

fn ends_with(path: &str, tail: &str) -> bool {
    path.strip_suffix(tail).is_some_and(|before| before.is_empty() || before.ends_with("::"))
}

fn read_sources(directory: &Path) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(next) = directories.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(directory).unwrap().to_str().unwrap().replace('\\', "/");
                sources.push(Source { path, text });
            }
        }
    }
    sources.sort_by(|one, other| one.path.cmp(&other.path));
    sources
}

fn modules(sources: &[Source]) -> BTreeSet<String> {
    sources.iter().map(|source| ring(&source.path).to_owned()).collect()
}

fn dependencies(root: &Path) -> BTreeSet<String> {
    let manifest: toml::Table = std::fs::read_to_string(root.join("Cargo.toml")).unwrap().parse().unwrap();
    let tables = ["dependencies", "dev-dependencies"].map(|kind| manifest[kind].as_table().unwrap());
    tables.iter().flat_map(|table| table.keys()).map(|name| name.replace('-', "_")).collect()
}

/// The source without comments and without what stands in literals.
fn code_only(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (kept, length) = match first {
            '/' if rest.starts_with("//") => ("", rest.find('\n').unwrap_or(rest.len())),
            '/' if rest.starts_with("/*") => (" ", block_comment(rest)),
            'r' if !ends_in_word(&code) && raw_string(rest).is_some() => ("\"\"", raw_string(rest).unwrap_or(1)),
            '"' => ("\"\"", string(rest)),
            '\'' if char_literal(rest).is_some() => ("' '", char_literal(rest).unwrap_or(1)),
            _ => (&rest[..first.len_utf8()], first.len_utf8()),
        };
        code.push_str(kept);
        rest = &rest[length..];
    }
    code
}

fn ends_in_word(code: &str) -> bool {
    // The `b` of a raw byte string is no word of its own.
    code.strip_suffix('b').unwrap_or(code).chars().next_back().is_some_and(is_word)
}

fn block_comment(text: &str) -> usize {
    let (mut open, mut at) = (1, 2);
    while open > 0 && at < text.len() {
        let bytes = &text.as_bytes()[at..];
        let (change, length) = if bytes.starts_with(b"/*") {
            (1, 2)
        } else if bytes.starts_with(b"*/") {
            (-1, 2)
        } else {
            (0, 1)
        };
        open += change;
        at += length;
    }
    at
}

fn raw_string(text: &str) -> Option<usize> {
    let hashes = text[1..].bytes().take_while(|byte| *byte == b'#').count();
    text[1 + hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let begin = 2 + hashes;
    Some(text[begin..].find(&end).map_or(text.len(), |at| begin + at + end.len()))
}

fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a literal such as 'x'; none for a lifetime.
fn char_literal(text: &str) -> Option<usize> {
    let after = &text[1..];
    if after.starts_with('\\') {
        return Some(3 + after[2..].find('\'')?);
    }
    let character = after.chars().next()?;
    after[character.len_utf8()..].starts_with('\'').then_some(2 + character.len_utf8())
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|character| !is_word(character)).filter(|word| !word.is_empty())
}

/// Every path of two or more segments, with the trees of `use` taken apart: `a::{b, c::d}` gives `a::b` and `a::c::d`;
/// `use a;` and `extern crate a;` give `a`.
fn paths(code: &str) -> Vec<String> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let starts = is_path_word(tokens[at]) && (at == 0 || tokens[at - 1] != "::");
        let imported = at > 0 && matches!(tokens[at - 1], "use" | "crate") && tokens.get(at + 1) != Some(&"::");
        if starts && (imported || tokens.get(at + 1) == Some(&"::")) {
            at = path(&tokens, at, "", &mut found);
        } else {
            at += 1;
        }
    }
    found
}

/// Reads one path or tree from `at` on, which stands after `prefix`; tells where it ends.
fn path(tokens: &[&str], mut at: usize, prefix: &str, found: &mut Vec<String>) -> usize {
    let mut whole = prefix.to_owned();
    while let Some(token) = tokens.get(at) {
        if *token == "{" && whole.ends_with("::") {
            return tree(tokens, at + 1, &whole, found);
        }
        if *token != "::" && !is_path_word(token) || is_path_word(token) && !whole.is_empty() && !whole.ends_with("::")
        {
            break;
        }
        whole.push_str(token);
        at += 1;
    }
    found.push(whole.trim_end_matches("::").to_owned());
    at
}

fn tree(tokens: &[&str], mut at: usize, prefix: &str, found: &mut Vec<String>) -> usize {
    while let Some(token) = tokens.get(at) {
        match *token {
            "}" => return at + 1,
            "self" => found.push(prefix.trim_end_matches("::").to_owned()),
            word if is_path_word(word) && tokens[at - 1] != "as" => {
                at = path(tokens, at, prefix, found);
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    at
}

fn is_path_word(token: &str) -> bool {
    token.chars().next().is_some_and(is_word) && !matches!(token, "use" | "as" | "pub" | "in")
}

/// Words, `::`, and every other visible character by itself.
fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            _ if is_word(first) => rest.find(|character| !is_word(character)).unwrap_or(rest.len()),
            ':' if rest.starts_with("::") => 2,
            _ => first.len_utf8(),
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}

/// Returns the violations in a source at a path of a crate with these modules and dependencies.
fn violations_in(path: &str, text: &str) -> Vec<String> {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let modules = ["catalog_file", "cli", "config", "domain", "engine", "grpc", "server", "store", "sync", "wire"];
    let crates = ["prost", "rusqlite", "serde", "tokio", "tonic"];
    let names = Names { modules: names(&modules), crates: names(&crates) };
    violations(&Source { path: path.to_owned(), text: text.to_owned() }, &names)
}

#[test]
fn each_violation_is_reported() {
    for (path, text, expected) in [
        ("domain/ids.rs", "use crate::sync::Moment;", "must not name sync"),
        ("domain/ids.rs", "use crate::{domain::Slot, store::Key};", "must not name store"),
        ("domain/ids.rs", "fn f() { crate::engine::mutate() }", "must not name engine"),
        ("domain/ids.rs", "use super::super::sync::Moment;", "must not name sync"),
        ("domain/mod.rs", "use super::sync::Moment;", "must not name sync"),
        ("domain/mod.rs", "use serde;", "not serde"),
        ("domain/stack.rs", "#[derive(serde::Serialize)] struct S;", "not serde"),
        ("domain/stack.rs", "extern crate serde;", "not serde"),
        ("sync/pacer.rs", "use tokio::time;", "not tokio"),
        ("sync/pacer.rs", "let now = std::time::Instant::now();", "Instant::now"),
        ("sync/pacer.rs", "let now = Instant :: now ();", "Instant::now"),
        ("sync/pacer.rs", "use std::time::SystemTime; fn f() { SystemTime::now(); }", "SystemTime::now"),
        ("sync/pacer.rs", "async fn wait() {}", "synchronous"),
        ("sync/frame.rs", "use crate::engine::Engine;", "must not name engine"),
        ("store/mod.rs", "use crate::sync::Cursor;", "must not name sync"),
        ("store/embedded/fold.rs", "use crate::{store::{Key, Store}, engine::Engine};", "must not name engine"),
        ("wire/frame.rs", "use crate::store::Key;", "must not name store"),
        ("engine/mod.rs", "use crate::{domain, grpc::stream};", "must not name grpc"),
        ("engine/mod.rs", "use crate::server;", "must not name server"),
        ("config/mod.rs", "use crate::server::ServerSettings;", "must not name server"),
        ("server.rs", "use crate::config::Config;", "must not name config"),
        ("engine/mod.rs", "use tonic::{Request, Status};", "tonic::Status"),
        ("engine/mod.rs", "fn f() -> tonic::Status { tonic::Status::internal(\"\") }", "tonic::Status"),
        ("server.rs", "use crate::wire::v1::Frame;", "wire::v1"),
        ("config.rs", "use crate::wire::{reason, v1::{self, Frame}};", "wire::v1"),
        ("domain/stack.rs", "#[derive(prost::Message)] struct S;", "not prost"),
        ("lib.rs", "tonic::include_proto!(\"slotcast.v1\");", "include_proto"),
        ("engine/mod.rs", "fn f(c: rusqlite::Connection) {}", "rusqlite"),
        ("store/postgres.rs", "use rusqlite::Connection;", "rusqlite"),
        ("cli/mod.rs", &"\n".repeat(601), "601 lines"),
    ] {
        let found = violations_in(path, text);
        assert!(
            found.iter().any(|violation| violation.contains(expected)),
            "{path}: {text:?} is not reported: {found:?}"
        );
    }
}

#[test]
fn conforming_sources_are_accepted() {
    for (path, text) in [
        ("domain/ids.rs", "use std::sync::Arc; use super::stack::Stack; use crate::domain::{Slot, ids as names};"),
        ("domain/ids.rs", "// use tokio::time;\n/* crate::sync /* async */ */ const A: &str = \"crate::store::Key\";"),
        (
            "domain/ids.rs",
            "const A: &str = r#\"a \"quoted\" tokio::x\"#; const Q: char = '\"'; const B: char = '\\''; type T<'a> = &'a u8;",
        ),
        ("domain/mod.rs", "pub mod tests { use super::*; use super::stack::Stack; }"),
        ("sync/frame.rs", "use crate::domain::{Contents, Epoch}; use super::pacer::Moment; let s = Self::now();"),
        ("store/embedded/mod.rs", "use rusqlite::Connection; use crate::{domain::Slot, store::Store};"),
        ("store/format/stored.rs", "#[derive(prost::Message)] struct Stored {}"),
        ("store/embedded.rs", "use rusqlite::Connection; use super::Store;"),
        ("engine/mod.rs", "use crate::{domain, store, sync}; async fn f() { tokio::spawn(g()).await }"),
        ("grpc/stream.rs", "use tonic::{Code, Status}; use crate::wire::v1::Frame; use prost::Message;"),
        ("server.rs", "use crate::{engine, grpc, store}; use tonic::transport::Server;"),
    ] {
        assert_eq!(violations_in(path, text), Vec::<String>::new(), "{path}: {text}");
    }
}
