//! What the terminal or file behind stdout can show.

use std::io::IsTerminal;

/// Whether to use colour and characters beyond ASCII.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Colours may be used.
    pub color: bool,
    /// The locale is UTF-8.
    pub unicode: bool,
}

impl Style {
    /// Neither colour nor characters beyond ASCII.
    pub const PLAIN: Self = Self {
        color: false,
        unicode: false,
    };

    /// What fits stdout: colour on a terminal unless `NO_COLOR` is set or
    /// `TERM` is `dumb`, other characters in a UTF-8 locale.
    pub fn of_stdout() -> Self {
        let var = |name: &str| std::env::var(name).unwrap_or_default();
        Self {
            color: std::io::stdout().is_terminal()
                && var("NO_COLOR").is_empty()
                && var("TERM") != "dumb",
            unicode: is_utf8(&var("LC_ALL"), &var("LC_CTYPE"), &var("LANG")),
        }
    }

    /// `fancy` in a UTF-8 locale, else `plain`.
    pub fn pick(self, fancy: &'static str, plain: &'static str) -> &'static str {
        if self.unicode { fancy } else { plain }
    }
}

/// Whether the first of these that is set names a UTF-8 locale.
fn is_utf8(lc_all: &str, lc_ctype: &str, lang: &str) -> bool {
    let locale = [lc_all, lc_ctype, lang]
        .into_iter()
        .find(|value| !value.is_empty())
        .unwrap_or_default()
        .to_ascii_lowercase();
    locale.ends_with("utf-8") || locale.ends_with("utf8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_locale_variable_that_is_set_decides() {
        assert!(is_utf8("", "", "en_US.UTF-8"));
        assert!(is_utf8("", "C.utf8", "C"));
        assert!(!is_utf8("C", "C.utf8", "en_US.UTF-8"));
        assert!(!is_utf8("", "", ""));
    }
}
