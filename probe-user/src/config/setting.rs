//! Types of values, and how each is written: in one place for the file, the
//! environment and the documents.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{anyhow, ensure};
use serde::{Deserialize, Deserializer, de};

use super::XdpMode;

/// What a variable is told that is no key, or one that is a list.
pub(super) const NO_SUCH: &str = "there is no such setting";

/// A type that the value of a key can have.
pub(super) trait Setting: Sized {
    /// What documents call it.
    const TYPE: &'static str;
    /// Whether it is a list, which no environment variable holds.
    const IS_LIST: bool = false;

    /// Reads it from text.
    fn from_text(text: &str) -> Result<Self, String>;

    /// Reads it from the file: where TOML has no such type, from a string.
    fn from_toml<'de, D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        Self::from_text(&String::deserialize(input)?).map_err(de::Error::custom)
    }

    /// The text that is read as this value; empty where there is none.
    fn to_text(&self) -> String;
}

/// Checks that a value is in a range, whose ends are as a file has them.
pub(super) fn within<T: Setting + PartialOrd>(
    value: &T,
    least: &str,
    greatest: &str,
) -> anyhow::Result<()> {
    let read = |text| T::from_text(text).map_err(|error| anyhow!(error));
    ensure!(
        (read(least)?..=read(greatest)?).contains(value),
        "{} is not between {least} and {greatest}",
        value.to_text()
    );
    Ok(())
}

impl Setting for PathBuf {
    const TYPE: &'static str = "path";

    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.into())
    }

    fn to_text(&self) -> String {
        self.display().to_string()
    }
}

impl Setting for Option<String> {
    const TYPE: &'static str = "name";

    fn from_text(text: &str) -> Result<Self, String> {
        Ok(Some(text.to_owned()))
    }

    fn to_text(&self) -> String {
        self.clone().unwrap_or_default()
    }
}

impl Setting for Vec<String> {
    const TYPE: &'static str = "list of names";
    const IS_LIST: bool = true;

    fn from_text(_: &str) -> Result<Self, String> {
        Err(NO_SUCH.to_owned())
    }

    fn from_toml<'de, D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        Self::deserialize(input)
    }

    fn to_text(&self) -> String {
        self.join(", ")
    }
}

impl Setting for Duration {
    const TYPE: &'static str = "duration";

    fn from_text(text: &str) -> Result<Self, String> {
        parse_duration(text)
    }

    fn to_text(&self) -> String {
        humantime::format_duration(*self).to_string()
    }
}

impl Setting for Option<SocketAddr> {
    const TYPE: &'static str = "address";

    fn from_text(text: &str) -> Result<Self, String> {
        parse_listen(text).map(Some)
    }

    fn to_text(&self) -> String {
        self.map_or_else(String::new, |address| address.to_string())
    }
}

impl Setting for XdpMode {
    const TYPE: &'static str = "word";

    fn from_text(text: &str) -> Result<Self, String> {
        let mode = Self::ALL.into_iter().find(|mode| mode.name() == text);
        mode.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{text:?} is not one of {names}")
        })
    }

    fn to_text(&self) -> String {
        self.name().to_owned()
    }
}

/// A type that TOML has: its text is what `FromStr` takes.
macro_rules! of_toml {
    ($type:ty, $name:literal, $wrong:literal) => {
        impl Setting for $type {
            const TYPE: &'static str = $name;

            fn from_text(text: &str) -> Result<Self, String> {
                text.parse()
                    .map_err(|error| format!("{text:?} is {}: {error}", $wrong))
            }

            fn from_toml<'de, D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                Self::deserialize(input)
            }

            fn to_text(&self) -> String {
                self.to_string()
            }
        }
    };
}

of_toml!(bool, "boolean", "neither true nor false");
of_toml!(u32, "number", "not a number that fits");
of_toml!(usize, "number", "not a number that fits");

/// Reads a duration such as `500ms` or `1s`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{text:?} is not a duration such as \"500ms\" or \"1s\": {error}"))
}

/// Reads an address to listen on: `IP:PORT`, or `:PORT` for all addresses.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let full = match text.strip_prefix(':') {
        Some(port) => format!("[::]:{port}"),
        None => text.to_owned(),
    };
    full.parse().map_err(|_| {
        format!("{text:?} is not an address such as 127.0.0.1:9977, [::1]:9977 or :9977")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses() {
        assert_eq!(parse_listen(":80"), Ok("[::]:80".parse().unwrap()));
        assert_eq!(parse_listen("[::1]:80"), Ok("[::1]:80".parse().unwrap()));
        for bad in ["", "80", "localhost:80", "1.2.3.4", "1.2.3.4:70000"] {
            assert!(parse_listen(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        fn again<T: Setting>(text: &str) -> String {
            T::from_text(text).unwrap().to_text()
        }
        assert_eq!(again::<PathBuf>("/run/a b"), "/run/a b");
        assert_eq!(again::<Option<String>>("adm"), "adm");
        assert_eq!(again::<Duration>("1500ms"), "1s 500ms");
        assert_eq!(again::<Duration>("1s 500ms"), "1s 500ms");
        assert_eq!(again::<Option<SocketAddr>>(":80"), "[::]:80");
        assert_eq!(again::<Option<SocketAddr>>("[::]:80"), "[::]:80");
        assert_eq!(again::<bool>("true"), "true");
        assert_eq!(again::<u32>("7"), "7");
        assert_eq!(again::<usize>("4294967296"), "4294967296");
        for mode in XdpMode::ALL {
            assert_eq!(XdpMode::from_text(mode.name()), Ok(mode));
        }
    }

    #[test]
    fn both_ends_of_a_range_are_in_it() {
        for ok in ["100ms", "2s", "60s"] {
            let value = Duration::from_text(ok).unwrap();
            assert!(within(&value, "100ms", "60s").is_ok(), "{ok}");
        }
        let value = Duration::from_millis(60_001);
        assert_eq!(
            within(&value, "100ms", "60s").unwrap_err().to_string(),
            "1m 1ms is not between 100ms and 60s"
        );
        assert!(within(&0u32, "1", "2").is_err());
    }
}
