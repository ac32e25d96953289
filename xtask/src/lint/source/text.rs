//! Comments, strings and characters, which are no code.

/// The same text with blanks for comments and for what is in quotes; lines stay
/// where they are.
pub fn without(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let is_inside_word = at > 0 && is_word(bytes[at - 1]);
        let length = match rest {
            [b'/', b'/', ..] => until(rest, b"\n"),
            [b'/', b'*', ..] => comment(rest),
            [b'"', ..] => quoted(rest),
            [b'r' | b'b' | b'c', ..] if !is_inside_word => raw(rest),
            [b'\'', ..] => character(rest),
            _ => 0,
        };
        for byte in &mut code[at..at + length] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at += length.max(1);
    }
    // Whole characters became blanks, so that it is still UTF-8.
    String::from_utf8(code).unwrap_or_default()
}

fn until(text: &[u8], end: &[u8]) -> usize {
    text.windows(end.len())
        .position(|window| window == end)
        .unwrap_or(text.len())
}

/// Length of `/* … */`, which may hold others.
fn comment(text: &[u8]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        match &text[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at.min(text.len())
}

/// Length of `"…"`.
fn quoted(text: &[u8]) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

/// Length of `r"…"`, `br#"…"#` and the like; 0 where it is only a word.
fn raw(text: &[u8]) -> usize {
    let prefix = text.iter().take_while(|byte| is_word(**byte)).count();
    if !matches!(&text[..prefix], b"r" | b"br" | b"cr") {
        return 0;
    }
    let hashes = text[prefix..]
        .iter()
        .take_while(|byte| **byte == b'#')
        .count();
    let begin = prefix + hashes + 1;
    if text.get(begin - 1) != Some(&b'"') {
        return 0;
    }
    let end = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    (begin + until(&text[begin..], &end) + end.len()).min(text.len())
}

/// Length of `'x'` or `'\n'`; 0 for a lifetime.
fn character(text: &[u8]) -> usize {
    match text {
        [b'\'', b'\\', _, rest @ ..] => (3 + until(rest, b"'") + 1).min(text.len()),
        [b'\'', first, ..] => {
            let width = match first {
                0..0x80 => 1,
                0x80..0xe0 => 2,
                0xe0..0xf0 => 3,
                _ => 4,
            };
            if text.get(1 + width) == Some(&b'\'') {
                width + 2
            } else {
                0
            }
        }
        _ => 0,
    }
}

/// Whether a byte can be part of a name.
pub fn is_word(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of a line, without the blanks.
    fn code(source: &str) -> String {
        let code = without(source);
        assert_eq!(code.len(), source.len());
        assert_eq!(code.lines().count(), source.lines().count());
        code.split_whitespace().collect()
    }

    #[test]
    fn comments_go_and_lines_stay() {
        assert_eq!(code("a // b\nc /* d /* e\n */ f */ g\n/// h\n"), "acg");
        assert_eq!(code("a /* open"), "a");
    }

    #[test]
    fn strings_go_with_their_quotes() {
        assert_eq!(code(r#"a("\" b", b"c\\", d)"#), "a(,b,d)");
        assert_eq!(code("a(r#\"\" b\"#, br\"c\", r, br)"), "a(,,r,br)");
        assert_eq!(code("a(\"open"), "a(");
    }

    #[test]
    fn characters_go_and_lifetimes_stay() {
        assert_eq!(code("a('\"', 'ü', '\\'', '\\u{1}', b'x')"), "a(,,,,b)");
        assert_eq!(code("fn a<'b>(c: &'b d) {}"), "fna<'b>(c:&'bd){}");
    }
}
