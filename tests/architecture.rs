//! The direction of the arrows: inside a crate, a module imports from its own row or a lower one, never from a higher
//! one; only islands are unsafe; only the system-call modules name libc and nix.
//!
//! The rows are those drawn at the head of each crate's `lib.rs`. What is compared is code: comments, strings and
//! `#[cfg(test)]` items do not count. A new file fails the test until it has its place in the table.

#![allow(clippy::unwrap_used, reason = "the helpers of tests, too")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of `executor-core`, from the top.
const CORE: &[&[&str]] = &[
    &["thread_pool"],
    &["executor"],
    &["map", "call"],
    &["future", "wait", "current"],
    &["host"],
    &["task"],
    &["owner"],
    &["admission", "counters", "stats"],
    &["codec", "worker_local", "trace"],
    &["error", "panic_report", "fork", "os", "sync"],
];

/// The modules of `executor-process`, from the top.
const PROCESS: &[&[&str]] = &[
    &["builder", "pool", "fuzz"],
    &["dispatcher"],
    &["shared"],
    &["worker", "job"],
    &["zygote", "startup"],
    &["worker_main"],
    &["call", "wire", "gate", "ring", "bell", "bulk", "share", "descriptor", "attach"],
    &["image", "sys", "sync"],
];

/// What a module may name of its crate's root: there it is a function of no row.
const ROOT_ITEMS: &[&str] = &["usable_processors"];

/// The files that may be unsafe; a folder stands for all in it.
const ISLANDS: &[&str] = &[
    "executor-core/src/fork.rs",
    "executor-core/src/os.rs",
    "executor-core/src/task.rs",
    "executor-core/src/task/store.rs",
    "executor-core/src/thread_pool/injector.rs",
    "executor-core/src/thread_pool/join.rs",
    "executor-core/src/thread_pool/scope.rs",
    "executor-core/src/thread_pool/slice.rs",
    "executor-process/src/call.rs",
    "executor-process/src/share.rs",
    "executor-process/src/startup.rs",
    "executor-process/src/sys/",
    "executor-process/src/worker_main.rs",
    "executor-process/src/zygote.rs",
    "executor-process/src/zygote/server.rs",
];

/// The files that may name libc and nix.
const SYSTEM_CALLS: &[&str] = &[
    "executor-core/src/fork.rs",
    "executor-core/src/os.rs",
    "executor-process/src/sys.rs",
    "executor-process/src/sys/",
];

/// Every crate of the workspace.
const CRATES: &[&str] = &["src", "executor-core/src", "executor-process/src", "executor-macros/src"];

#[test]
fn no_import_of_the_core_points_up() {
    check_rows("executor-core", CORE);
}

#[test]
fn no_import_of_the_process_side_points_up() {
    check_rows("executor-process", PROCESS);
}

#[test]
fn only_islands_are_unsafe() {
    check_named_only_in(ISLANDS, &["unsafe"]);
}

#[test]
fn only_system_call_modules_name_libc_and_nix() {
    check_named_only_in(SYSTEM_CALLS, &["libc", "nix"]);
}

/// Each module has a place, and each of its paths leads to its own row or a lower one.
#[track_caller]
fn check_rows(package: &str, rows: &[&[&str]]) {
    let row_of: BTreeMap<&str, usize> = rows
        .iter()
        .enumerate()
        .flat_map(|(row, modules)| modules.iter().map(move |module| (*module, row)))
        .collect();
    let root = workspace().join(package).join("src");
    let mut problems = Vec::new();
    let mut found = BTreeSet::new();
    for file in files(&root) {
        let path = module_path(file.strip_prefix(&root).unwrap());
        let Some(module) = path.first() else { continue }; // lib.rs, which only re-exports
        let shown = file.strip_prefix(workspace()).unwrap().display();
        let Some(&row) = row_of.get(module.as_str()) else {
            problems.push(format!("{shown}: `{module}` has no place in the table"));
            continue;
        };
        found.insert(module.clone());
        for (line, target) in targets(&tokens(&fs::read_to_string(&file).unwrap()), &path) {
            match row_of.get(target.as_str()) {
                Some(&to) if to < row => {
                    problems.push(format!("{shown}:{line}: `{module}` points up, to `{target}`"));
                }
                Some(_) => {}
                None if ROOT_ITEMS.contains(&target.as_str()) => {}
                None => problems
                    .push(format!("{shown}:{line}: names `{target}` of the crate's root, not of a module")),
            }
        }
    }
    for module in row_of.keys().filter(|module| !found.contains(**module)) {
        problems.push(format!("{package}: there is no `{module}`, but it has a place in the table"));
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// The words stand in the files allowed, and each of these has one of them.
#[track_caller]
fn check_named_only_in(allowed: &[&str], words: &[&str]) {
    let mut problems = Vec::new();
    let mut unused: BTreeSet<&str> = allowed.iter().copied().collect();
    for file in CRATES.iter().flat_map(|folder| files(&workspace().join(folder))) {
        let shown = file.strip_prefix(workspace()).unwrap().to_str().unwrap().replace('\\', "/");
        let place = allowed
            .iter()
            .find(|place| shown == **place || (place.ends_with('/') && shown.starts_with(**place)));
        // Macros name keywords in `Token![unsafe]`.
        let tokens = tokens(&fs::read_to_string(&file).unwrap());
        let named = tokens.iter().enumerate().filter(|(at, token)| {
            let is_in_token_macro = *at >= 3 && tokens[at - 3].text == "Token" && tokens[at - 2].text == "!";
            words.contains(&token.text.as_str()) && !is_in_token_macro
        });
        for (_, token) in named {
            match place {
                Some(place) => drop(unused.remove(place)),
                None => problems.push(format!("{shown}:{}: names `{}`", token.line, token.text)),
            }
        }
    }
    problems.extend(
        unused.into_iter().map(|place| format!("{place}: is allowed to and does not; take it off the list")),
    );
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust files below `folder` that are not tests alone.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_tests = path.file_stem().is_some_and(|stem| stem == "tests" || stem == "loom");
        if is_tests {
            continue;
        }
        if path.is_dir() {
            files.extend(self::files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// `thread_pool/mod.rs` is `[thread_pool]`, `thread_pool/pool.rs` is `[thread_pool, pool]`.
fn module_path(file: &Path) -> Vec<String> {
    let mut path: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if path.last().is_some_and(|last| last == "mod" || last == "lib") {
        path.pop();
    }
    path
}

#[derive(Clone, Debug, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

/// The words and signs of a file, without comments, strings, and `#[cfg(test)]` items. `::` is one sign.
fn tokens(source: &str) -> Vec<Token> {
    without_tests(&lex(source))
}

fn lex(source: &str) -> Vec<Token> {
    let text: Vec<char> = source.chars().collect();
    let at = |index: usize| text.get(index).copied().unwrap_or('\0');
    let (mut tokens, mut here, mut line) = (Vec::new(), 0, 1);
    while here < text.len() {
        let start = here;
        match (at(here), at(here + 1)) {
            ('/', '/') => {
                while here < text.len() && at(here) != '\n' {
                    here += 1;
                }
            }
            ('/', '*') => {
                let mut depth = 1;
                here += 2;
                while here < text.len() && depth > 0 {
                    match (at(here), at(here + 1)) {
                        ('/', '*') => (depth, here) = (depth + 1, here + 2),
                        ('*', '/') => (depth, here) = (depth - 1, here + 2),
                        _ => here += 1,
                    }
                }
            }
            ('"', _) => here = end_of_string(&text, here),
            ('\'', next) => {
                // A lifetime is a quote before a word that no quote ends.
                let is_lifetime = (next.is_alphabetic() || next == '_') && at(here + 2) != '\'';
                here += 1;
                if !is_lifetime {
                    here += if at(here) == '\\' { 2 } else { 1 };
                    while here < text.len() && at(here) != '\'' {
                        here += 1;
                    }
                    here += 1;
                }
            }
            (sign, _) if sign.is_alphabetic() || sign == '_' => {
                while at(here).is_alphanumeric() || at(here) == '_' {
                    here += 1;
                }
                let word: String = text[start..here].iter().collect();
                let hashes = text[here..].iter().take_while(|sign| **sign == '#').count();
                if matches!(word.as_str(), "r" | "br" | "cr") && at(here + hashes) == '"' {
                    here = end_of_raw_string(&text, here + hashes, hashes);
                } else if matches!(word.as_str(), "r") && hashes == 1 {
                    here += 1; // `r#word`: the word follows
                } else {
                    tokens.push(Token { text: word, line });
                }
            }
            (':', ':') => {
                tokens.push(Token { text: "::".to_owned(), line });
                here += 2;
            }
            (sign, _) => {
                if !sign.is_whitespace() {
                    tokens.push(Token { text: sign.to_string(), line });
                }
                here += 1;
            }
        }
        line += text[start..here.min(text.len())].iter().filter(|sign| **sign == '\n').count();
    }
    tokens
}

fn end_of_string(text: &[char], quote: usize) -> usize {
    let mut here = quote + 1;
    while here < text.len() && text[here] != '"' {
        here += if text[here] == '\\' { 2 } else { 1 };
    }
    here + 1
}

fn end_of_raw_string(text: &[char], quote: usize, hashes: usize) -> usize {
    let mut here = quote + 1;
    while here < text.len() {
        let ends =
            text[here] == '"' && text[here + 1..].iter().take_while(|sign| **sign == '#').count() >= hashes;
        here += 1;
        if ends {
            return here + hashes;
        }
    }
    here
}

/// Leaves out each item behind `#[cfg(test)]`: up to its `;`, or to the end of its block.
fn without_tests(tokens: &[Token]) -> Vec<Token> {
    const CFG_TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut here = 0;
    while let Some(token) = tokens.get(here) {
        let is_test =
            tokens[here..].iter().map(|token| token.text.as_str()).take(CFG_TEST.len()).eq(CFG_TEST);
        if !is_test {
            kept.push(token.clone());
            here += 1;
            continue;
        }
        here += CFG_TEST.len();
        while tokens.get(here).is_some_and(|token| token.text == "#") {
            here = end_of_group(tokens, here + 1);
        }
        while let Some(token) = tokens.get(here) {
            match token.text.as_str() {
                ";" => {
                    here += 1;
                    break;
                }
                "{" => {
                    here = end_of_group(tokens, here);
                    break;
                }
                "(" | "[" => here = end_of_group(tokens, here),
                _ => here += 1,
            }
        }
    }
    kept
}

/// Behind the group that opens at `open`.
fn end_of_group(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index + 1;
        }
    }
    tokens.len()
}

/// What the paths in the module at `path` lead to: names in the crate's root, with their line.
fn targets(tokens: &[Token], path: &[String]) -> Vec<(usize, String)> {
    let mut targets = Vec::new();
    let mut inline = Vec::new(); // the depths at which modules inside the file began
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate() {
        let before = index.checked_sub(1).map_or("", |before| tokens[before].text.as_str());
        match token.text.as_str() {
            "{" => {
                if index >= 2 && tokens[index - 2].text == "mod" {
                    inline.push(depth);
                }
                depth += 1;
            }
            "}" => {
                depth -= 1;
                if inline.last() == Some(&depth) {
                    inline.pop();
                }
            }
            // `pub(crate)` has no path behind it.
            "crate" if is_path(tokens, index) && before != "::" => {
                targets.extend(heads(tokens, index + 2));
            }
            "super" if before != "::" => {
                let (mut up, mut here) = (1, index);
                while is_path(tokens, here) && tokens.get(here + 2).is_some_and(|token| token.text == "super")
                {
                    (up, here) = (up + 1, here + 2);
                }
                if !is_path(tokens, here) {
                    continue; // `pub(super)`
                }
                // From inside this file's own modules, the first steps lead to the file.
                match (path.len() + inline.len()).checked_sub(up) {
                    Some(0) => targets.extend(heads(tokens, here + 2)),
                    Some(_) => {} // inside the same module of the root
                    None => targets.push((token.line, "super".to_owned())),
                }
            }
            _ => {}
        }
    }
    targets
}

fn is_path(tokens: &[Token], index: usize) -> bool {
    tokens.get(index + 1).is_some_and(|token| token.text == "::")
}

/// The first names of what stands at `index`: a name, or a group of them, `{a, b::c}`.
fn heads(tokens: &[Token], index: usize) -> Vec<(usize, String)> {
    let Some(first) = tokens.get(index) else { return Vec::new() };
    if first.text != "{" {
        return vec![(first.line, first.text.clone())];
    }
    let group = &tokens[index + 1..end_of_group(tokens, index) - 1];
    let mut heads = Vec::new();
    let (mut depth, mut is_first) = (0_usize, true);
    for token in group {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 0 => is_first = true,
            _ if depth == 0 && is_first => {
                heads.push((token.line, token.text.clone()));
                is_first = false;
            }
            _ => {}
        }
    }
    heads
}

/// The test is tested: what it must see, and what it must not.
mod of_the_scan {
    use super::*;

    fn found(source: &str, path: &[&str]) -> Vec<String> {
        let path: Vec<String> = path.iter().map(|part| (*part).to_owned()).collect();
        targets(&tokens(source), &path).into_iter().map(|(_, target)| target).collect()
    }

    #[test]
    fn every_form_of_a_path_is_seen() {
        assert_eq!(found("use crate::a::B;", &["m"]), ["a"]);
        assert_eq!(found("use crate::{a, b::{c, d}, e as f};", &["m"]), ["a", "b", "e"]);
        assert_eq!(found("fn f() -> crate::a::B { super::c::d() }", &["m"]), ["a", "c"]);
        assert_eq!(found("use super::super::a::B;", &["m", "n"]), ["a"]);
        assert_eq!(found("mod inner { use super::super::a; use super::b; }", &["m"]), ["a"]);
        assert_eq!(found("pub(in crate::a) struct B;", &["m"]), ["a"]);
    }

    #[test]
    fn what_is_no_path_upwards_is_not() {
        assert!(found("pub(crate) fn f() {} pub(super) fn g() {}", &["m", "n"]).is_empty());
        assert!(found("use super::sibling::B;", &["m", "n"]).is_empty());
        assert!(found("// crate::a\n/* crate::b /* */ crate::c */ /// [crate::d]\n", &["m"]).is_empty());
        assert!(
            found(r##"const S: &str = "crate::a \" crate::b"; const R: &str = r#"crate::c"#;"##, &["m"])
                .is_empty()
        );
        assert!(found("#[cfg(test)]\nmod tests { use crate::a; }", &["m"]).is_empty());
        assert!(found("#[cfg(test)] #[path = \"x\"] use crate::a::{b, c};", &["m"]).is_empty());
        assert!(found("#[cfg(test)] let (a, b) = crate::c(); ", &["m"]).is_empty());
    }

    #[test]
    fn words_are_told_from_strings_and_lifetimes() {
        let words: Vec<String> = tokens(
            "fn f<'a>(c: &'a char) { 'x'; '\\''; b\"unsafe\"; \"unsafe\" /* unsafe */ } // unsafe\nlast",
        )
        .into_iter()
        .map(|token| token.text)
        .collect();
        assert!(!words.contains(&"unsafe".to_owned()), "{words:?}");
        assert_eq!(words.last().unwrap(), "last");
        assert_eq!(lex("a\n\"b\nc\"\nd").last().unwrap().line, 4);
    }
}
