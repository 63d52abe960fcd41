//! Holds the repository to the rules that neither the compiler nor clippy checks.
//!
//! Each test names its rule; a failure lists every place that breaks it. Nothing here needs Postgres.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;

/// Functions that are longer than the limit, as "path name". The list may only shrink.
const LONG_FUNCTIONS: &[&str] = &[
    // A literal model of the rules it checks, kept in one piece.
    "engine/src/page/chain_tests.rs chain",
];

/// Words of file names that say nothing about what is inside.
const BANNED_FILE_WORDS: &[&str] =
    &["util", "utils", "helper", "helpers", "common", "misc", "manager", "handler", "service", "v2"];

/// Words of comments that tell history or postpone work.
const BANNED_COMMENT_WORDS: &[&str] = &["TODO", "FIXME", "XXX", "HACK", "previously", "formerly", "in the past", "legacy"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the engine lies in the workspace").to_path_buf()
}

/// Every file of the repository as a path relative to its root, build output and git's own files left out.
fn files() -> Vec<String> {
    fn walk(dir: &Path, root: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_symlink() || name == "target" || name == ".git" {
                continue;
            } else if path.is_dir() {
                walk(&path, root, found);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &root(), &mut found);
    found.sort();
    found
}

fn files_ending(suffix: &str) -> Vec<String> {
    files().into_iter().filter(|path| path.ends_with(suffix)).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn report(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}\n  {}", broken.join("\n  "));
}

/// Rust source taken apart: `code` with the contents of comments, strings and character literals blanked, `comments` with
/// everything but the comments blanked. Both keep every line at its place.
struct Source {
    code: String,
    comments: String,
}

impl Source {
    fn of(text: &str) -> Source {
        let bytes = text.as_bytes();
        let mut source = Source { code: String::new(), comments: String::new() };
        let mut at = 0;
        while at < bytes.len() {
            let (end, is_comment) = match literal_end(bytes, at) {
                Some(found) => found,
                None => {
                    source.put(bytes[at], true, false);
                    at += 1;
                    continue;
                }
            };
            for &byte in &bytes[at..end] {
                source.put(byte, false, is_comment);
            }
            at = end;
        }
        source
    }

    fn put(&mut self, byte: u8, is_code: bool, is_comment: bool) {
        let shown = |wanted: bool| if byte == b'\n' || (wanted && byte.is_ascii()) { byte as char } else { ' ' };
        self.code.push(shown(is_code));
        self.comments.push(shown(is_comment));
    }
}

/// Where the comment, string or character literal that starts at `at` ends, and whether it is a comment.
fn literal_end(bytes: &[u8], at: usize) -> Option<(usize, bool)> {
    let rest = &bytes[at..];
    let find = |needle: &[u8], from: usize| {
        rest[from..].windows(needle.len()).position(|w| w == needle).map_or(bytes.len(), |p| at + from + p + needle.len())
    };
    let in_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if rest.starts_with(b"//") {
        Some((at + rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()), true))
    } else if rest.starts_with(b"/*") {
        Some((find(b"*/", 2), true))
    } else if rest[0] == b'"' {
        Some((quoted_end(bytes, at), false))
    } else if rest[0] == b'r' && (!in_word || bytes[at - 1] == b'b') {
        let hashes = rest[1..].iter().take_while(|&&b| b == b'#').count();
        let closing: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
        (rest.get(1 + hashes) == Some(&b'"')).then(|| (find(&closing, 2 + hashes), false))
    } else if rest.starts_with(b"'\\") {
        Some((find(b"'", 3), false))
    } else if rest[0] == b'\'' {
        // Everything else behind a quote is a lifetime or a label.
        let width = String::from_utf8_lossy(&rest[1..rest.len().min(5)]).chars().next().map_or(1, char::len_utf8);
        (rest.get(1 + width) == Some(&b'\'')).then_some((at + width + 2, false))
    } else {
        None
    }
}

fn quoted_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    bytes.len().min(at + 1)
}

/// The index behind the brace that closes the first one at or after `from`; None when a `;` comes first.
fn block_end(code: &str, from: usize) -> Option<usize> {
    let mut depth = 0;
    for (index, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            // The `;` of an array type stands inside brackets, before any brace.
            b'[' | b'(' if depth <= 0 => depth -= 1,
            b']' | b')' if depth < 0 => depth += 1,
            b';' if depth == 0 => return None,
            b'{' if depth >= 0 => depth += 1,
            b'}' if depth > 0 => {
                depth -= 1;
                if depth == 0 {
                    return Some(index + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// (start, name) of every word that follows the keyword `fn`.
fn functions(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, _) in code.match_indices("fn ") {
        let name: String = code[index + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if (index == 0 || is_boundary(code.as_bytes()[index - 1])) && !name.is_empty() {
            found.push((index, name));
        }
    }
    found
}

fn is_boundary(byte: u8) -> bool {
    !(byte.is_ascii_alphanumeric() || byte == b'_')
}

fn line_of(text: &str, index: usize) -> usize {
    text[..index].bytes().filter(|&b| b == b'\n').count() + 1
}

/// The code outside modules and items marked `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut kept = code.to_string();
    while let Some(start) = kept.find("#[cfg(test)]") {
        let end = block_end(&kept, start + "#[cfg(test)]".len()).unwrap_or(start + "#[cfg(test)]".len());
        let blank: String = kept[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        kept.replace_range(start..end, &blank);
    }
    kept
}

fn is_test_file(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs") || path.ends_with("_tests.rs")
}

fn contains_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let bytes = text.as_bytes();
        (at == 0 || is_boundary(bytes[at - 1])) && bytes.get(at + word.len()).is_none_or(|&b| is_boundary(b))
    })
}

#[test]
fn every_module_says_what_it_owns() {
    let broken = files_ending(".rs").into_iter().filter(|path| {
        let text = read(path);
        let paragraph: Vec<&str> = text.lines().map_while(|l| l.strip_prefix("//! ")).collect();
        !paragraph.join(" ").contains('.')
    });
    report("a .rs file starts with `//!` and a sentence", broken.collect());
}

#[test]
fn files_are_short() {
    let broken = files_ending(".rs").into_iter().filter_map(|path| {
        let lines = read(&path).lines().count();
        (lines > FILE_LINES_MAX).then(|| format!("{path}: {lines} lines"))
    });
    report("a .rs file has at most 800 lines", broken.collect());
}

#[test]
fn functions_are_short() {
    let mut broken = Vec::new();
    let mut unused: BTreeSet<&str> = LONG_FUNCTIONS.iter().copied().collect();
    for path in files_ending(".rs") {
        let code = Source::of(&read(&path)).code;
        for (start, name) in functions(&code) {
            let Some(end) = block_end(&code, start) else { continue };
            let lines = line_of(&code, end) - line_of(&code, start) + 1;
            let entry = format!("{path} {name}");
            if lines > FUNCTION_LINES_MAX && !unused.remove(entry.as_str()) && !LONG_FUNCTIONS.contains(&entry.as_str()) {
                broken.push(format!("{entry}: {lines} lines"));
            }
        }
    }
    broken.extend(unused.into_iter().map(|entry| format!("{entry}: short now; take it off LONG_FUNCTIONS")));
    report("a function has at most 70 lines", broken);
}

#[test]
fn file_names_say_something() {
    let broken = files_ending(".rs")
        .into_iter()
        .filter(|path| path.trim_end_matches(".rs").split(['/', '_']).any(|word| BANNED_FILE_WORDS.contains(&word)));
    report("file and folder names are nouns of the subject", broken.collect());
}

#[test]
fn comments_tell_no_history() {
    let mut broken = Vec::new();
    for path in files() {
        let text = match path.rsplit('.').next() {
            _ if path == "engine/tests/tidy.rs" => continue,
            Some("rs") => Source::of(&read(&path)).comments,
            Some("sql" | "sh" | "spec" | "toml") => read(&path),
            _ => continue,
        };
        for (number, line) in text.lines().enumerate() {
            for word in BANNED_COMMENT_WORDS.iter().filter(|word| contains_word(line, word)) {
                broken.push(format!("{path}:{}: {word}", number + 1));
            }
        }
    }
    report("comments say why, in the present tense; open work stands in no comment", broken);
}

#[test]
fn links_between_documents_resolve() {
    let mut broken = Vec::new();
    for path in files_ending(".md") {
        let folder = Path::new(&path).parent().unwrap().to_path_buf();
        let mut in_code = false;
        let mut titles = 0;
        for (number, line) in read(&path).lines().enumerate() {
            in_code ^= line.trim_start().starts_with("```");
            titles += usize::from(!in_code && line.starts_with("# "));
            let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            for target in targets.filter(|_| !in_code) {
                let file = target.split('#').next().unwrap();
                if !file.is_empty() && !target.contains("://") && !root().join(&folder).join(file).exists() {
                    broken.push(format!("{path}:{}: {target}", number + 1));
                }
            }
        }
        if titles != 1 {
            broken.push(format!("{path}: {titles} titles"));
        }
    }
    report("relative links lead somewhere, and a document has one title", broken);
}

/// The texts between single backquotes, on one line each.
fn quoted_names(text: &str) -> Vec<&str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn architecture_names_what_exists() {
    let text = read("ARCHITECTURE.md");
    let sources: String = files_ending(".rs").iter().map(|path| Source::of(&read(path)).code).collect();
    let defined: BTreeSet<String> = functions(&sources).into_iter().map(|(_, name)| name).collect();
    let mut broken = Vec::new();
    for name in quoted_names(&text) {
        if let Some(function) = name.strip_suffix("()") {
            let function = function.rsplit("::").next().unwrap();
            if !defined.contains(function) {
                broken.push(format!("{name}: no such function"));
            }
        } else if ["engine/", "pg/", "sql/", "tests/", "docs/"].iter().any(|top| name.starts_with(top))
            && !root().join(name).exists()
        {
            broken.push(format!("{name}: no such file"));
        }
    }
    report("ARCHITECTURE.md names functions and files that exist", broken);
}

#[test]
fn every_kind_of_error_is_documented() {
    let code = Source::of(&read("engine/src/error.rs")).code;
    let start = code.find("enum ErrorKind").expect("the kinds of error");
    let body = &code[start..block_end(&code, start).expect("a block")];
    let kinds: Vec<&str> =
        body[body.find('{').unwrap() + 1..body.len() - 1].split(',').map(str::trim).filter(|k| !k.is_empty()).collect();
    let documented = read("docs/errors.md");
    let broken = kinds.iter().filter(|kind| !documented.contains(&format!("| {kind} |"))).map(|kind| kind.to_string());
    report("docs/errors.md has a row for every ErrorKind", broken.collect());
    assert!(kinds.contains(&"Corrupt"), "the kinds were not found: {kinds:?}");
}

#[test]
fn texts_name_no_home_directory() {
    let home = ["/root/", "/home/"];
    let broken = files().into_iter().filter(|path| {
        // What is not text (a fixture) names nothing.
        path != "engine/tests/tidy.rs"
            && fs::read_to_string(root().join(path)).is_ok_and(|text| home.iter().any(|dir| text.contains(dir)))
    });
    report("no file names a directory of one machine", broken.collect());
}

/// Every input of a Postgres test driver has its expected output, a place in the schedule and a comment on top.
fn check_suite(folder: &str, inputs: &str, ending: &str, comment: &str) {
    let stems = |dir: &str, ending: &str| -> BTreeSet<String> {
        let prefix = format!("{folder}/{dir}/");
        let inside = files().into_iter().filter_map(|path| path.strip_prefix(&prefix).map(str::to_string));
        inside.filter_map(|name| name.strip_suffix(ending).map(str::to_string)).collect()
    };
    let tests = stems(inputs, ending);
    let expected = stems("expected", ".out");
    let schedule = read(&format!("{folder}/schedule"));
    let scheduled: BTreeSet<String> = schedule
        .lines()
        .filter_map(|line| line.strip_prefix("test:"))
        .flat_map(|names| names.split_whitespace().map(str::to_string))
        .collect();
    let mut broken = Vec::new();
    broken.extend(tests.difference(&expected).map(|name| format!("{name}: no expected output")));
    broken.extend(tests.symmetric_difference(&scheduled).map(|name| format!("{name}: schedule and files differ")));
    // name_1.out is a second right answer of `name`.
    let is_variant = |name: &&String| name.rsplit_once('_').is_some_and(|(test, _)| tests.contains(test));
    broken.extend(expected.difference(&tests).filter(|n| !is_variant(n)).map(|n| format!("{n}.out: no such test")));
    for name in &tests {
        if !read(&format!("{folder}/{inputs}/{name}{ending}")).starts_with(comment) {
            broken.push(format!("{name}: does not start with a comment that says what it proves"));
        }
    }
    report(folder, broken);
    assert!(!tests.is_empty(), "{folder} has no tests");
}

#[test]
fn sql_tests_are_complete() {
    check_suite("tests/pg_regress", "sql", ".sql", "--");
}

#[test]
fn isolation_tests_are_complete() {
    check_suite("tests/isolation", "specs", ".spec", "#");
}

/// Package name → names it depends on, from Cargo.lock.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut package = String::new();
    for line in read("Cargo.lock").lines() {
        if let Some(name) = line.strip_prefix("name = ") {
            package = name.trim_matches('"').to_string();
        } else if let Some(name) = line.strip_prefix(" \"") {
            // `name`, or `name version` where several versions are in use.
            let name = name.trim_end_matches(['"', ',']).split(' ').next().unwrap();
            graph.entry(package.clone()).or_default().insert(name.to_string());
        }
    }
    graph
}

#[test]
fn engine_does_not_know_postgres() {
    let graph = dependencies();
    let mut reached = BTreeSet::new();
    let mut open = vec!["kalamdb-engine".to_string()];
    while let Some(package) = open.pop() {
        if reached.insert(package.clone()) {
            open.extend(graph.get(&package).into_iter().flatten().cloned());
        }
    }
    let broken = reached.iter().filter(|name| name.starts_with("pgrx") || name.starts_with("postgres"));
    report("the engine depends on nothing of Postgres", broken.cloned().collect());
    assert!(reached.contains("rocksdb"), "the dependency graph was not read: {reached:?}");
}

#[test]
fn unsafe_code_of_the_engine_stays_in_the_cache() {
    let broken = files_ending(".rs").into_iter().filter(|path| {
        path.starts_with("engine/src/")
            && !path.starts_with("engine/src/cache/")
            && contains_word(&Source::of(&read(path)).code, "unsafe")
    });
    report("only engine/src/cache/ may be unsafe", broken.collect());
}

#[test]
fn nothing_unwraps_outside_tests() {
    let mut broken = Vec::new();
    for path in files_ending(".rs").into_iter().filter(|path| !is_test_file(path)) {
        let code = without_tests(&Source::of(&read(&path)).code);
        broken.extend(code.match_indices(".unwrap()").map(|(at, _)| format!("{path}:{}", line_of(&code, at))));
    }
    report("errors are handled, or `expect` says why they cannot happen", broken);
}

#[test]
fn sql_scripts_end_at_the_version_of_the_control_file() {
    let control = read("kalamdb.control");
    let version = control.lines().find_map(|l| l.strip_prefix("default_version = ")).expect("a default version");
    let version = version.trim().trim_matches('\'');
    assert!(
        files().contains(&format!("sql/kalamdb--{version}.sql")),
        "sql/kalamdb--{version}.sql, the script of the default version, is missing"
    );
    assert!(
        read("Cargo.toml").contains(&format!("version = \"{version}\"")),
        "the control file says {version}, Cargo.toml something else"
    );
}

#[test]
fn source_is_taken_apart_rightly() {
    let text =
        "fn a<'x>(s: [u8; 3]) { let q = '{'; let n = '\\''; \"}\\\"{\" /* } */; r#\"{\"#; // unsafe\n}\nfn b();\nfn c() {}\n";
    let source = Source::of(text);
    assert!(contains_word(&source.comments, "unsafe") && !contains_word(&source.code, "unsafe"));
    let names: Vec<String> = functions(&source.code).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let ends: Vec<Option<usize>> = functions(&source.code).iter().map(|(at, _)| block_end(&source.code, *at)).collect();
    assert_eq!(ends, [Some(text.find("\nfn b").unwrap()), None, Some(text.len() - 1)]);
    assert_eq!(without_tests("a #[cfg(test)] mod t { b } c").split_whitespace().collect::<Vec<_>>(), ["a", "c"]);
}

/// Details and hints of errors are sentences, as Postgres' style guide asks.
#[test]
fn details_and_hints_are_sentences() {
    let mut broken = Vec::new();
    for path in files_ending(".rs").into_iter().filter(|path| path.starts_with("pg/") || path.starts_with("engine/src/")) {
        let text = read(&path);
        for call in ["with_detail(", "with_hint("] {
            for (at, _) in text.match_indices(call) {
                let argument = text[at + call.len()..].trim_start();
                let argument = argument.strip_prefix("format!(").unwrap_or(argument).trim_start();
                let Some(literal) = argument.strip_prefix('"') else { continue };
                let escaped = |end: usize| literal[..end].ends_with('\\');
                let end = literal.match_indices('"').map(|(end, _)| end).find(|end| !escaped(*end));
                let sentence = &literal[..end.expect("a string literal ends")];
                if sentence.starts_with(|first: char| first.is_lowercase()) || !sentence.ends_with('.') {
                    broken.push(format!("{path}: {sentence}"));
                }
            }
        }
    }
    report("a detail or hint begins with a capital letter and ends with a full stop", broken);
}
