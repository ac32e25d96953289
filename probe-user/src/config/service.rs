//! Services and groups of peers: which sockets have which name.

use ipnet::IpNet;
use serde::Deserialize;

/// A service with a name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Value of the label `svc`.
    pub name: String,
    /// Which end of the connection is looked at.
    #[serde(default)]
    pub side: ServiceSide,
    /// Ports; empty: any.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Only in this network namespace, by name or path.
    pub netns: Option<String>,
    /// Only sockets of this control group or one below it, by path.
    pub cgroup: Option<String>,
    /// Only sockets of this unit's control group or one below it.
    pub unit: Option<String>,
    /// Only with the service at one of these addresses; empty: any.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
}

impl Service {
    /// The control groups that narrow it; any of them will do.
    pub fn owners(&self) -> impl Iterator<Item = CgroupPattern> {
        let path = self.cgroup.clone().map(CgroupPattern::Path);
        let unit = self.unit.clone().map(CgroupPattern::Unit);
        path.into_iter().chain(unit)
    }
}

/// The end of a connection at which a service is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceSide {
    /// It listens here.
    Server,
    /// It is called from here.
    Client,
    /// Either.
    #[default]
    Any,
}

/// A group of peers with a name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Value of the label `peer`.
    pub name: String,
    /// Their addresses.
    pub cidrs: Vec<IpNet>,
}

/// Which control groups a service is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CgroupPattern {
    /// The one of this path, and those below it.
    Path(String),
    /// Those of this unit, wherever it is, and those below them.
    Unit(String),
}

impl CgroupPattern {
    /// Whether a path is one of them.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Path(whole) => path
                .strip_prefix(whole.trim_end_matches('/'))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Self::Unit(unit) => path.split('/').any(|part| part == unit),
        }
    }

    /// What the path, or the name of the folder, of the topmost is.
    pub fn text(&self) -> &str {
        match self {
            Self::Path(text) | Self::Unit(text) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_take_whole_parts() {
        let path = |text: &str| CgroupPattern::Path(text.to_owned());
        let unit = |text: &str| CgroupPattern::Unit(text.to_owned());
        for (pattern, matching, other) in [
            (path("/a/b"), "/a/b", "/a/bc"),
            (path("/a/b"), "/a/b/c", "/x/a/b"),
            (path("/a/b/"), "/a/b", "/a"),
            (unit("n.service"), "/s/n.service", "/s/xn.service"),
            (unit("n.service"), "/s/n.service/b", "/s/n.service2"),
        ] {
            assert!(pattern.matches(matching), "{pattern:?} {matching}");
            assert!(!pattern.matches(other), "{pattern:?} {other}");
        }
        assert!(path("/").matches("/") && path("/").matches("/a"));
    }
}
