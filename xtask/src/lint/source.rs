//! Rust source as text: which modules of its crate a file names.

mod text;

use text::is_word;

/// A module of the crate's root that a file names, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mention {
    /// Counted from 1.
    pub line: usize,
    /// Such as `config` of `crate::config::Config`.
    pub module: String,
}

/// What [`read`] found in one file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mentions {
    /// In the order of the file.
    pub of: Vec<Mention>,
    /// Modules that the file declares for tests only.
    pub test_modules: Vec<String>,
}

/// Finds `crate::…` paths, in `use` lines and elsewhere, and `super::…` paths that
/// reach the root from `depth` modules below it. What is only there for tests
/// (`#[cfg(test)]`) is left out, as are comments and strings.
pub fn read(source: &str, depth: usize) -> Mentions {
    let mut code = text::without(source);
    let test_modules = take_tests(&mut code);
    let mut of = Vec::new();
    let mut at = 0;
    while let Some((begin, word)) = next_word(&code, at) {
        at = begin + word.len();
        let root = match word {
            "crate" => after_colons(&code, at),
            "super" => above(&code, at, depth),
            _ => None,
        };
        if let Some(path) = root {
            at = path;
            for (offset, module) in first_segments(&code, path) {
                let line = code[..offset].matches('\n').count() + 1;
                of.push(Mention { line, module });
            }
        }
    }
    Mentions { of, test_modules }
}

/// Blanks what stands below `#[cfg(test)]`; returns the modules whose files are
/// for tests only.
fn take_tests(code: &mut String) -> Vec<String> {
    const TEST: &str = "#[cfg(test)]";
    let mut modules = Vec::new();
    while let Some(begin) = code.find(TEST) {
        let mut item = begin + TEST.len();
        // Other attributes.
        while code[item..].trim_start().starts_with("#[") {
            item += code[item..].find(']').map_or(0, |end| end + 1);
        }
        let declared = code[item..].trim_start().strip_prefix("mod ");
        if let Some((name, rest)) = declared.and_then(|rest| rest.split_once([';', '{', ' ']))
            && code[..code.len() - rest.len()].ends_with(';')
        {
            modules.push(name.to_owned());
        }
        let end = item + item_length(&code[item..]);
        let blank: String = code[begin..end]
            .chars()
            .map(|c| if c == '\n' { '\n' } else { ' ' })
            .collect();
        code.replace_range(begin..end, &blank);
    }
    modules
}

/// Length of the item at the beginning of `code`: to its `;` or its last `}`.
fn item_length(code: &str) -> usize {
    let is_use = code.trim_start().starts_with("use ");
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 && !is_use {
                    return at + 1;
                }
            }
            b';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// The first word at or after `from`, and where it begins.
fn next_word(code: &str, from: usize) -> Option<(usize, &str)> {
    let begin = from + code.as_bytes()[from..].iter().position(|b| is_word(*b))?;
    let length = (code.as_bytes()[begin..].iter())
        .take_while(|byte| is_word(**byte))
        .count();
    Some((begin, &code[begin..begin + length]))
}

/// What comes after `::` at `at`.
fn after_colons(code: &str, at: usize) -> Option<usize> {
    let rest = code[at..].trim_start();
    let rest = rest.strip_prefix("::")?.trim_start();
    Some(code.len() - rest.len())
}

/// What comes after `super::`, so often that it is the root; one stood before `at`.
fn above(code: &str, at: usize, depth: usize) -> Option<usize> {
    let mut path = after_colons(code, at)?;
    for _ in 1..depth {
        let rest = code[path..].strip_prefix("super")?;
        path = after_colons(code, code.len() - rest.len())?;
    }
    Some(path)
}

/// The first words of a path, several where it is a group: `a` and `b` of
/// `{a::{x, y}, b::z}`.
fn first_segments(code: &str, path: usize) -> Vec<(usize, String)> {
    let mut segments = Vec::new();
    let mut take = |at: usize| {
        if let Some((begin, word)) = next_word(code, at)
            && code[at..begin].trim().is_empty()
        {
            segments.push((begin, word.to_owned()));
        }
    };
    if !code[path..].starts_with('{') {
        take(path);
        return segments;
    }
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(path) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        match (byte, depth) {
            (b'{' | b',', 1) => take(at + 1),
            (_, 0) => break,
            _ => {}
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(source: &str, depth: usize) -> Vec<(usize, String)> {
        let mentions = read(source, depth).of.into_iter();
        mentions.map(|one| (one.line, one.module)).collect()
    }

    fn lines(expected: &[(usize, &str)]) -> Vec<(usize, String)> {
        let own = |(line, module): &(usize, &str)| (*line, (*module).to_owned());
        expected.iter().map(own).collect()
    }

    #[test]
    fn uses_groups_and_paths_in_code_are_found() {
        let source = "use crate::config::Config;\n\
                      use crate::{\n    kernel::{btf, layout},\n    model,\n};\n\
                      pub(crate) fn f(x: &crate::loader::Loaded) {}\n\
                      use self::crates::x;\n";
        let expected = [(1, "config"), (3, "kernel"), (4, "model"), (6, "loader")];
        assert_eq!(modules(source, 1), lines(&expected));
    }

    #[test]
    fn what_is_for_tests_only_is_left_out() {
        let source = "use crate::a;\n\
                      #[cfg(test)]\n#[path = \"x.rs\"]\nmod tests;\n\
                      #[cfg(test)]\nuse crate::{b, c::{d}};\n\
                      #[cfg(test)]\nmod inner {\n    use crate::e;\n    fn f() { crate::g(); }\n}\n\
                      use crate::h;\n";
        let mentions = read(source, 1);
        assert_eq!(modules(source, 1), lines(&[(1, "a"), (12, "h")]));
        assert_eq!(mentions.test_modules, ["tests"]);
    }

    #[test]
    fn super_reaches_the_root_from_where_it_is() {
        assert_eq!(modules("use super::a::B;\n", 1), lines(&[(1, "a")]));
        assert_eq!(modules("use super::a::B;\n", 2), []);
        let source = "use super::super::{a, b};\n";
        assert_eq!(modules(source, 2), lines(&[(1, "a"), (1, "b")]));
        assert_eq!(modules(source, 3), []);
    }
}
