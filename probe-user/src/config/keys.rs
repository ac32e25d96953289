//! The keys of the configuration, each declared once: its section, name, type,
//! default, bounds and flag. The structs, the reading of the file, the environment
//! variables, the checks and what `docs/configuration.md` must say follow.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{
    Config, DEFAULT_SOCKET, XdpMode,
    setting::{Setting, within},
    validate::{absolute, interface_names},
};

/// A key, as documents, the environment and the checks see it.
#[derive(Debug)]
pub struct Key {
    /// The table of the file that it is in.
    pub section: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// What a value is, in a word or three.
    pub type_name: &'static str,
    /// What it does, in a sentence.
    pub sentence: &'static str,
    /// The flag that wins over it.
    pub flag: Option<&'static str>,
    /// Least and greatest value, as they are written.
    pub bounds: Option<(&'static str, &'static str)>,
    /// What stands for the default where that is no value.
    unset: &'static str,
    is_list: bool,
    get: fn(&Config) -> String,
    pub(super) set: fn(&mut Config, &str) -> Result<(), String>,
    pub(super) checks: &'static [fn(&Config) -> anyhow::Result<()>],
}

impl Key {
    /// Its section and name, such as `metrics.max_series`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The environment variable that wins over the file; a list has none.
    pub fn variable(&self) -> Option<String> {
        (!self.is_list).then(|| self.variable_name())
    }

    /// Its value in a configuration, as a variable would have it; empty where it
    /// has none.
    pub fn value(&self, config: &Config) -> String {
        (self.get)(config)
    }

    /// Its default, in words where that is no value.
    pub fn default_text(&self) -> String {
        let value = self.value(&Config::default());
        if value.is_empty() {
            self.unset.to_owned()
        } else {
            value
        }
    }

    /// What the variables of its section begin with.
    pub(super) fn variable_prefix(&self) -> String {
        format!("EDGEPROBE_{}_", self.section.to_uppercase())
    }

    pub(super) fn variable_name(&self) -> String {
        self.variable_prefix() + &self.name.to_uppercase()
    }
}

/// Makes the structs of the sections and [`KEYS`].
macro_rules! keys {
    (@first $value:expr $(, $rest:expr)?) => { $value };
    ($(
        $(#[doc = $about:literal])+
        $section:ident: $Section:ident {
            $(
                $(#[doc = $sentence:literal])+
                $key:ident: $type:ty = $default:expr
                    $(, unset $unset:literal)?
                    $(, from $least:literal to $greatest:literal)?
                    $(, check $check:path)?
                    $(, flag $flag:literal)?;
            )+
        }
    )+) => {
        $(
            $(#[doc = $about])+
            #[derive(Clone, Debug, PartialEq, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $Section {
                $(
                    $(#[doc = $sentence])+
                    #[serde(deserialize_with = "Setting::from_toml")]
                    pub $key: $type,
                )+
            }

            impl Default for $Section {
                fn default() -> Self {
                    Self { $($key: $default),+ }
                }
            }
        )+

        /// All of them, in the order of their declaration.
        pub const KEYS: &[Key] = &[$($(Key {
            section: stringify!($section),
            name: stringify!($key),
            type_name: <$type as Setting>::TYPE,
            sentence: concat!($($sentence),+).trim_ascii(),
            flag: keys!(@first $(Some($flag),)? None),
            bounds: keys!(@first $(Some(($least, $greatest)),)? None),
            unset: keys!(@first $($unset,)? ""),
            is_list: <$type as Setting>::IS_LIST,
            get: |config| config.$section.$key.to_text(),
            set: |config, text| {
                config.$section.$key = Setting::from_text(text)?;
                Ok(())
            },
            checks: &[
                $(|config| within(&config.$section.$key, $least, $greatest),)?
                $(|config| $check(&config.$section.$key),)?
            ],
        }),+),+];
    };
}

keys! {
    /// The daemon itself.
    daemon: Daemon {
        /// Path of the Unix socket.
        socket: PathBuf = DEFAULT_SOCKET.into(), check absolute, flag "--socket";
        /// Group that may use the socket.
        socket_group: Option<String> = None,
            unset "edgeprobe where that group exists, else root only", flag "--socket-group";
        /// Time between two snapshots.
        snapshot_interval: Duration = Duration::from_secs(1), from "100ms" to "60s";
    }

    /// The metrics.
    metrics: Metrics {
        /// Where the daemon serves HTTP.
        listen: Option<SocketAddr> = None, unset "no HTTP", flag "--listen";
        /// Largest number of series; what does not fit is folded into `other`.
        max_series: usize = 10_000, from "100" to "1000000";
        /// Whether the time in the accept queue ends when `accept()` returns, at the
        /// price of a program on every system call.
        accept_queue_exact: bool = false;
        /// Whether the series have a label for the owner.
        owner_label: bool = false;
        /// Whether the series have a label for the network namespace.
        netns_label: bool = false;
    }

    /// Packets seen at an interface.
    packets: Packets {
        /// Interfaces that get an XDP program.
        interfaces: Vec<String> = Vec::new(), unset "empty",
            check interface_names, flag "--interface";
        /// How the XDP program is attached.
        xdp_mode: XdpMode = XdpMode::Auto, flag "--xdp-mode";
        /// Entries of the flow table.
        flows: u32 = 65_536, from "1" to "16777216";
        /// How long a flow without packets keeps its entry once the table is half full.
        flow_idle: Duration = Duration::from_secs(30), from "1s" to "1h";
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::config::DEFAULT_GROUP;

    /// The cells of a row of a table in Markdown, without marks of code.
    fn cells(line: &str) -> Option<Vec<String>> {
        let inside = line.strip_prefix('|')?.strip_suffix('|')?;
        let plain = inside.replace('`', "");
        Some(
            plain
                .split('|')
                .map(|cell| cell.trim().to_owned())
                .collect(),
        )
    }

    #[test]
    fn the_document_has_each_key_with_its_default() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let text = std::fs::read_to_string(path).unwrap();
        let mut rows: HashMap<String, Vec<String>> = text
            .lines()
            .filter_map(cells)
            .filter(|cells| cells[0].contains('.') && cells.len() == 6)
            .map(|cells| (cells[0].clone(), cells))
            .collect();
        for key in KEYS {
            let row = rows.remove(&key.path());
            let row = row.unwrap_or_else(|| panic!("{} has no row", key.path()));
            let [_, type_name, default, range, variable, flag] = &row[..] else {
                panic!("{row:?}");
            };
            assert_eq!(type_name, key.type_name, "{}", key.path());
            assert_eq!(*default, key.default_text(), "{}", key.path());
            assert_eq!(*variable, key.variable().unwrap_or_default());
            let flag = flag.split(' ').next().unwrap_or_default();
            assert_eq!(flag, key.flag.unwrap_or_default(), "{}", key.path());
            if let Some((least, greatest)) = key.bounds {
                let range = range.replace(',', "");
                assert_eq!(range, format!("{least} to {greatest}"), "{}", key.path());
            }
        }
        assert!(rows.is_empty(), "no such keys: {:?}", rows.keys());
    }

    #[test]
    fn the_table_says_what_documents_need() {
        let flows = KEYS.iter().find(|key| key.path() == "packets.flows");
        let flows = flows.unwrap();
        assert_eq!(flows.sentence, "Entries of the flow table.");
        assert_eq!(flows.type_name, "number");
        assert_eq!(flows.default_text(), "65536");
        assert_eq!(flows.bounds, Some(("1", "16777216")));
        assert_eq!(flows.variable().as_deref(), Some("EDGEPROBE_PACKETS_FLOWS"));
        assert_eq!(flows.flag, None);
        for key in KEYS {
            let path = key.path();
            assert!(key.sentence.ends_with('.'), "{path}: {}", key.sentence);
            assert_ne!(key.default_text(), "", "{path}: no words for no value");
        }
        let group = KEYS.iter().find(|key| key.name == "socket_group");
        assert!(group.unwrap().default_text().starts_with(DEFAULT_GROUP));
    }
}
