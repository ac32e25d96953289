//! Judges the facts.

use serde::Serialize;

use super::facts::{Facts, Reading};
use probe_common::{
    hooks::{HookType, PROGRAMS, ProgramInfo, Use},
    kfunc::DYNPTR_FROM_SKB,
};

use super::hooks::{ARGUMENTS, OWNER, OWNER_LOST, PAYLOAD_LOST};
use super::interfaces::Interface;
use super::privileges;
use crate::kernel::btf::{self, Btf};
use crate::kernel::{
    cgroup, layout,
    shield::{self, Shield},
};

/// Version of the serialised form.
pub const SCHEMA: u32 = 1;
/// Oldest kernel that is supported.
const OLDEST: (u32, u32) = (6, 1);
/// The same as the tables name it.
const OLDEST_NAME: &str = "6.1";

/// The verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of the program.
    pub version: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Whether nothing that is required is missing.
    pub usable: bool,
    /// The checks.
    pub checks: Vec<Check>,
    /// The interfaces of this network namespace.
    pub interfaces: Vec<Interface>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it belongs to.
    pub group: Group,
    /// What it is.
    pub name: String,
    /// The result.
    pub status: Status,
    /// Whether the tool is of no use without it.
    pub required: bool,
    /// What was found.
    pub found: String,
    /// What is lost, where something is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Groups of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Group {
    Kernel,
    Privileges,
    Hooks,
    Setup,
    Interfaces,
}

/// Result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// There.
    Ok,
    /// Not there.
    Missing,
    /// Cannot be told.
    Unknown,
    /// Neither good nor bad.
    Note,
}

impl Check {
    pub(super) fn new(group: Group, name: &str, status: Status, found: impl Into<String>) -> Self {
        Self {
            group,
            name: name.to_owned(),
            status,
            required: false,
            found: found.into(),
            lost: None,
            remedy: None,
        }
    }

    pub(super) fn required(mut self) -> Self {
        self.required = true;
        self
    }

    pub(super) fn lost(mut self, lost: &str) -> Self {
        self.lost = Some(lost.to_owned());
        self
    }

    pub(super) fn remedy(mut self, remedy: &str) -> Self {
        self.remedy = Some(remedy.to_owned());
        self
    }
}

impl Report {
    /// Adds checks.
    pub fn extend(&mut self, checks: Vec<Check>) {
        self.checks.extend(checks);
        self.usable = are_usable(&self.checks);
    }
}

/// Whether nothing that is required is missing.
fn are_usable(checks: &[Check]) -> bool {
    !checks
        .iter()
        .any(|check| check.required && check.status == Status::Missing)
}

/// Judges the facts; `only` names the interfaces to look at, empty for all.
pub fn examine(facts: &Facts, only: &[String]) -> Report {
    let mut checks = vec![release(&facts.release), btf_file(facts), jit(facts)];
    checks.extend([lockdown(facts), bpffs(&facts.mounts), cgroup(&facts.mounts)]);
    checks.push(process_1(facts));
    checks.extend(privileges::checks(facts));
    checks.extend(hooks(facts.btf.as_ref().ok(), &facts.release));
    let (interfaces, failed) = interfaces(facts, only);
    checks.extend(failed);
    Report {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: facts.release.clone(),
        usable: are_usable(&checks),
        checks,
        interfaces,
    }
}

fn release(release: &str) -> Check {
    let check = |status| Check::new(Group::Kernel, "Linux 6.1 or later", status, release);
    match number_of(release) {
        Some(version) if version >= OLDEST => check(Status::Ok),
        Some(_) => check(Status::Missing)
            .lost("nothing is tested on this kernel; the hooks below say what it has")
            .remedy("use Linux 6.1 or later"),
        None => check(Status::Unknown),
    }
}

/// Major and minor number of a release.
fn number_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse().ok();
    number().zip(number())
}

fn btf_file(facts: &Facts) -> Check {
    let check = |status, found: String| Check::new(Group::Kernel, "BTF", status, found).required();
    match &facts.btf {
        Ok(_) => check(Status::Ok, btf::VMLINUX.to_owned()),
        Err(btf::BtfError::Read { source, .. })
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            check(Status::Unknown, unknown(facts.root).to_owned())
        }
        Err(error) => check(Status::Missing, error.to_string())
            .lost("everything: the programs find the kernel's fields through it")
            .remedy("use a kernel built with CONFIG_DEBUG_INFO_BTF=y"),
    }
}

/// What to say of a thing that this user may not read.
fn unknown(root: bool) -> &'static str {
    if root {
        "unknown: not permitted here, although this is root"
    } else {
        "unknown: needs root"
    }
}

/// A check of a file whose value `judge` judges.
pub(super) fn reading(
    group: Group,
    name: &str,
    reading: &Reading,
    absent: &str,
    judge: impl FnOnce(&str) -> Check,
) -> Check {
    let check = |found: &str| Check::new(group, name, Status::Unknown, found);
    match reading {
        Reading::Value(value) => judge(value),
        Reading::Absent => check(absent),
        Reading::Denied => check(unknown(false)),
        Reading::Failed(error) => check(&format!("unknown: {error}")),
    }
}

fn jit(facts: &Facts) -> Check {
    let name = "BPF JIT compiler";
    reading(
        Group::Kernel,
        name,
        &facts.jit,
        "unknown: only the first network namespace shows net.core.bpf_jit_enable",
        |value| match value {
            "0" => Check::new(Group::Kernel, name, Status::Missing, "off")
                .lost("speed: the programs are interpreted and cost several times as much")
                .remedy("sysctl net.core.bpf_jit_enable=1"),
            value => Check::new(
                Group::Kernel,
                name,
                Status::Ok,
                format!("on (bpf_jit_enable = {value})"),
            ),
        },
    )
}

fn lockdown(facts: &Facts) -> Check {
    let name = "lockdown";
    reading(
        Group::Kernel,
        name,
        &facts.lockdown,
        "unknown: securityfs is not mounted, or this kernel has no lockdown",
        |value| {
            let mode = value
                .split_once('[')
                .and_then(|(_, rest)| rest.split_once(']'))
                .map_or(value, |(mode, _)| mode);
            let check = |status| Check::new(Group::Kernel, name, status, mode);
            match mode {
                "confidentiality" => check(Status::Missing)
                    .required()
                    .lost("everything: the programs copy packet headers, which is refused")
                    .remedy("boot with lockdown=integrity or without lockdown"),
                _ => check(Status::Ok),
            }
        },
    )
}

fn bpffs(mounts: &Reading) -> Check {
    let name = "bpffs";
    let found = match mounts {
        Reading::Value(mounts) => mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields.get(2) == Some(&"bpf"))
            .and_then(|fields| fields.get(1).map(|path| format!("on {path}")))
            .unwrap_or_else(|| "not mounted".to_owned()),
        _ => "unknown: /proc is not mounted".to_owned(),
    };
    let found = format!("{found}; not used: nothing is pinned");
    Check::new(Group::Kernel, name, Status::Note, found)
}

fn cgroup(mounts: &Reading) -> Check {
    let check = |status, found: String| Check::new(Group::Kernel, "cgroup v2", status, found);
    match mounts {
        Reading::Value(mounts) => match cgroup::mount_point(mounts) {
            Some(path) => check(Status::Ok, format!("on {}", path.display())),
            None => check(Status::Missing, "not mounted".to_owned())
                .lost(OWNER_LOST)
                .remedy("mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1"),
        },
        _ => check(Status::Unknown, "unknown: /proc is not mounted".to_owned()),
    }
}

/// Whether the programs see what interrupts do while process 1 is current.
fn process_1(facts: &Facts) -> Check {
    let check = |status, found: String| Check::new(Group::Kernel, "process 1", status, found);
    let shielded = |counted: String| {
        let found = format!(
            "shielded by this kernel, which shows BPF programs nothing while a thread of it is \
             current; {counted}"
        );
        check(Status::Missing, found)
            .lost("what interrupts do on its time, mostly the handling of received segments")
    };
    match (&facts.shield, &facts.hidden_events) {
        (Shield::Absent, _) => check(Status::Ok, "not shielded".to_owned()),
        (Shield::Unknown(_), _) if !facts.root => check(Status::Unknown, unknown(false).to_owned()),
        (Shield::Unknown(why), _) => check(Status::Unknown, format!("unknown: {why}")),
        (Shield::Present, Ok(())) => {
            let hooks: Vec<_> = shield::counted().map(|(_, hook)| hook).collect();
            shielded(format!(
                "counted as edgeprobe_events_lost_total{{cause=\"shielded\"}}, at most so many, at {}",
                hooks.join(", ")
            ))
        }
        (Shield::Present, Err(why)) => shielded(format!("not counted: {why}")),
    }
}

/// The programs whose hooks are looked for: of those of a send one is enough, and
/// what is attached only where it is asked for is no matter of the kernel.
fn hooked(btf: Option<&Btf>) -> impl Iterator<Item = &'static ProgramInfo> {
    let tells_of_begun = |info: &ProgramInfo| {
        info.used == Use::SendsBegun && btf.is_none_or(|btf| btf.has_tracepoint(info.hook))
    };
    let send = if PROGRAMS.iter().any(tells_of_begun) {
        Use::SendsBegun
    } else {
        Use::SendsReturned
    };
    PROGRAMS.iter().filter(move |info| match info.used {
        Use::Always | Use::Owners | Use::OnDemand => true,
        Use::SendsBegun | Use::SendsReturned => info.used == send,
        Use::AcceptExit | Use::Device => false,
    })
}

fn hook(info: &ProgramInfo, btf: Option<&Btf>) -> Check {
    let name = match info.hook_type {
        HookType::Iterator => format!("{}/{}", info.hook_type.prefix(), info.hook),
        HookType::Tracepoint | HookType::Xdp => info.hook.to_owned(),
    };
    let Some(btf) = btf else {
        return Check::new(Group::Hooks, &name, Status::Unknown, "unknown: no BTF");
    };
    let found = match info.hook_type {
        HookType::Iterator => {
            // The function by which BTF knows an iterator.
            let function = format!("bpf_iter_{}", info.hook);
            btf.has_func(&function).then(|| "there".to_owned())
        }
        HookType::Tracepoint | HookType::Xdp => btf
            .tracepoint_args(info.hook)
            .map(|args| format!("({})", args.join(", "))),
    };
    match found {
        Some(found) => Check::new(Group::Hooks, &name, Status::Ok, found),
        None => missing(&name, info.since).lost(info.without),
    }
}

fn hooks(btf: Option<&Btf>, release: &str) -> Vec<Check> {
    let mut checks: Vec<Check> = hooked(btf)
        .map(|info| Check {
            required: info.required,
            ..hook(info, btf)
        })
        .collect();
    let Some(btf) = btf else {
        return checks;
    };
    let payload = DYNPTR_FROM_SKB.name;
    // Before 6.12 it is kept from programs on tracepoints.
    let is_lent = number_of(release).is_some_and(|version| version >= (6, 12));
    checks.push(if is_lent && btf.has_func(payload) {
        Check::new(Group::Hooks, payload, Status::Ok, "there")
    } else {
        missing(payload, "6.12").lost(PAYLOAD_LOST)
    });
    checks.push(if btf.field(OWNER).is_some() {
        Check::new(Group::Hooks, OWNER, Status::Ok, "there")
    } else {
        Check::new(Group::Hooks, OWNER, Status::Missing, "not on this kernel")
            .lost(OWNER_LOST)
            .remedy("use a kernel built with CONFIG_CGROUP_BPF")
    });
    for argument in ARGUMENTS {
        // Without the tracepoint its arguments are no news.
        let Some(args) = btf.tracepoint_args(argument.hook) else {
            continue;
        };
        let name = format!("{} argument {}", argument.hook, argument.name);
        checks.push(if args.iter().any(|arg| arg == argument.name) {
            Check::new(Group::Hooks, &name, Status::Ok, "there")
        } else {
            let found = format!("not on this kernel: {} has it", argument.since);
            Check::new(Group::Hooks, &name, Status::Missing, found).lost(argument.lost)
        });
    }
    let fields =
        |status, found| Check::new(Group::Hooks, "kernel fields", status, found).required();
    checks.push(match layout::resolve(btf) {
        Ok(_) => fields(Status::Ok, "all found".to_owned()),
        Err(error) => {
            let found = match error {
                layout::LayoutError::Missing(name) => format!("{name} is not on this kernel"),
                error @ layout::LayoutError::Size { .. } => error.to_string(),
            };
            fields(Status::Missing, found)
                .lost("everything: the programs read it")
                .remedy("report the release of this kernel to the project")
        }
    });
    checks
}

/// A hook or function that this kernel lacks, and `since` which kernel there is one.
fn missing(name: &str, since: &str) -> Check {
    let found = match since {
        OLDEST_NAME => "not on this kernel".to_owned(),
        since => format!("not on this kernel: {since} has it"),
    };
    Check::new(Group::Hooks, name, Status::Missing, found)
        .remedy("use a kernel built with CONFIG_BPF_SYSCALL, CONFIG_TRACEPOINTS and CONFIG_INET")
}

fn interfaces(facts: &Facts, only: &[String]) -> (Vec<Interface>, Vec<Check>) {
    let check =
        |name: &str, status, found: String| Check::new(Group::Interfaces, name, status, found);
    match &facts.links {
        Ok(links) => {
            let wanted = |name: &String| only.is_empty() || only.contains(name);
            let absent = only
                .iter()
                .filter(|name| !links.iter().any(|link| link.name == **name))
                .map(|name| {
                    check(name, Status::Missing, "no such interface here".to_owned())
                        .remedy("`ip link` lists the interfaces of this network namespace")
                })
                .collect();
            let found = links.iter().filter(|link| wanted(&link.name));
            (found.map(Interface::from).collect(), absent)
        }
        Err(error) => {
            let found = format!("unknown: {error}");
            (
                Vec::new(),
                vec![check("interfaces", Status::Unknown, found)],
            )
        }
    }
}
