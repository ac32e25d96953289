//! The verdict as text.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::examine::{Check, Group, Report, Status};
use super::interfaces::Interface;
use crate::table::Style;
use crate::table::format::Value;
use crate::table::{Basis, Column, Table, columns};

/// Writes the verdict for people.
pub fn text(report: &Report, style: Style) -> String {
    let mut text = format!("edgeprobe {} on Linux {}\n", report.version, report.kernel);
    for (group, title) in [
        (Group::Kernel, "kernel"),
        (Group::Privileges, "privileges of this process"),
        (Group::Hooks, "hooks"),
        (Group::Setup, "set-up"),
    ] {
        if !report.checks.iter().any(|check| check.group == group) {
            continue;
        }
        let _ = writeln!(text, "\n{title}");
        write_checks(&mut text, report, group, style);
    }
    let _ = writeln!(text, "\ninterfaces");
    write_interfaces(&mut text, &report.interfaces, style);
    write_checks(&mut text, report, Group::Interfaces, style);
    let _ = writeln!(text, "\n{}", verdict(report));
    text
}

/// What follows from all of it.
fn verdict(report: &Report) -> String {
    let missing = |wanted: fn(&Check) -> bool| {
        let missing = report
            .checks
            .iter()
            .filter(|one| one.status == Status::Missing);
        let names: BTreeSet<&str> = missing
            .filter(|one| wanted(one))
            .map(|one| one.name.as_str())
            .collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    };
    let is_of_kernel = |one: &Check| matches!(one.group, Group::Kernel | Group::Hooks);
    let required = |one: &&Check| one.required && one.status == Status::Missing;
    let hidden = |one: &Check| one.required && one.status == Status::Unknown;
    if report.checks.iter().filter(required).any(is_of_kernel) {
        return "edgeprobe does not work on this kernel: something that is required is missing."
            .to_owned();
    }
    let kernel = if report.checks.iter().any(hidden) {
        "Nothing that is required of the kernel is known to be missing; ask again as root."
    } else {
        "This kernel has all that edgeprobe needs."
    };
    if !report.usable {
        let names = missing(|one| one.required);
        return format!("{kernel} A daemon started like this would not start: {names}.");
    }
    let lacked = missing(|one| one.group == Group::Privileges);
    if lacked.is_empty() {
        kernel.to_owned()
    } else {
        format!("{kernel} A daemon started like this would lack {lacked}.")
    }
}

fn write_checks(text: &mut String, report: &Report, group: Group, style: Style) {
    let checks = || report.checks.iter().filter(|check| check.group == group);
    let width = checks().map(|check| check.name.len()).max().unwrap_or(0);
    for check in checks() {
        let required = if check.required && check.status == Status::Missing {
            " (required)"
        } else {
            ""
        };
        let _ = writeln!(
            text,
            "  {} {:width$}  {}{required}",
            mark(check, style),
            check.name,
            check.found
        );
        let margin = " ".repeat(width + 7);
        for (title, more) in [("lost", &check.lost), ("do", &check.remedy)] {
            if let Some(more) = more {
                let _ = writeln!(text, "{margin}{title}: {more}");
            }
        }
    }
}

/// Two columns wide.
fn mark(check: &Check, style: Style) -> String {
    const GREEN: &str = "32";
    const RED: &str = "31";
    const YELLOW: &str = "33";
    let (mark, color) = match check.status {
        Status::Ok => (style.pick("✓ ", "ok"), GREEN),
        Status::Missing if check.required => (style.pick("✗ ", "NO"), RED),
        Status::Missing => (style.pick("✗ ", "no"), YELLOW),
        Status::Unknown => ("? ", YELLOW),
        Status::Note => (style.pick("· ", "- "), ""),
    };
    if style.color && !color.is_empty() {
        format!("\u{1b}[{color}m{mark}\u{1b}[0m")
    } else {
        mark.to_owned()
    }
}

fn write_interfaces(text: &mut String, interfaces: &[Interface], style: Style) {
    let columns: &[Column<Interface>] = columns![Interface;
        "name" Plain 0 |i, _| Value::Text(i.name.clone());
        "driver" Plain 0 |i, _| i.driver.clone().map_or(Value::Missing, Value::Text);
        "MTU" Plain 0 |i, _| Value::Count(i.mtu.into());
        "XDP" Plain 0 |i, _| Value::Text(i.xdp.text().to_owned());
        "note" Plain 0 |i, _| Value::Text(i.note.clone());
    ];
    if interfaces.is_empty() {
        return;
    }
    let table = Table::build("", "", "", columns, interfaces, Basis::Totals);
    let layout = table.lay_out(None, None, style);
    for line in [layout.heading].iter().chain(&layout.rows) {
        let _ = writeln!(text, "  {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::examine::examine;
    use super::super::facts::{Facts, Reading};
    use super::super::links::{AttachedXdp, Link};
    use super::*;
    use crate::kernel::{btf, shield::Shield};

    const UTF8: Style = Style {
        color: false,
        unicode: true,
    };

    fn value(text: &str) -> Reading {
        Reading::Value(text.to_owned())
    }

    fn link(name: &str, driver: &str, mtu: u32, xdp_features: u64) -> Link {
        Link {
            name: name.to_owned(),
            driver: Some(driver.to_owned()).filter(|driver| !driver.is_empty()),
            mtu,
            xdp_features: Some(xdp_features),
            attached: None,
        }
    }

    /// A host on which much is missing: BTF with nothing in it, no JIT,
    /// lockdown, few capabilities.
    fn poor() -> Facts {
        let mut attached = link("eth0", "virtio_net", 1500, 1);
        attached.attached = Some(AttachedXdp {
            mode: "generic",
            program: Some(12),
        });
        Facts {
            release: "5.10.0-30-amd64".to_owned(),
            btf: Ok(btf::Btf::parse(empty_btf(), None).unwrap()),
            jit: value("0"),
            unprivileged: value("2"),
            paranoid: value("3"),
            lockdown: value("none integrity [confidentiality]"),
            mounts: value("bpf /sys/fs/bpf bpf rw 0 0"),
            capabilities: vec!["CAP_NET_ADMIN".to_owned()],
            shield: Shield::Present,
            hidden_events: Ok(()),
            root: true,
            links: Ok(vec![link("lo", "", 65536, 0), attached]),
        }
    }

    /// What an ordinary user sees of a host that hides all it can.
    fn hidden_host() -> Facts {
        Facts {
            release: "6.12.117-cloud-amd64".to_owned(),
            btf: Err(btf::BtfError::Read {
                path: btf::VMLINUX.to_owned(),
                source: std::io::ErrorKind::PermissionDenied.into(),
            }),
            jit: Reading::Denied,
            unprivileged: Reading::Absent,
            paranoid: Reading::Failed("input/output error".to_owned()),
            lockdown: Reading::Denied,
            mounts: Reading::Absent,
            capabilities: Vec::new(),
            shield: Shield::Unknown("needs CAP_SYS_PTRACE to read /proc/1/exe".to_owned()),
            hidden_events: Ok(()),
            root: false,
            links: Err("Operation not permitted".to_owned()),
        }
    }

    fn empty_btf() -> Vec<u8> {
        let mut data = 0xeb9f_u16.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        for word in [24_u32, 0, 0, 0, 1] {
            data.extend(word.to_ne_bytes());
        }
        data.push(0);
        data
    }

    #[test]
    fn what_is_missing_is_named_with_what_is_lost() {
        let report = examine(&poor(), &[]);
        assert!(!report.usable);
        insta::assert_snapshot!(text(&report, UTF8));
    }

    #[test]
    fn the_last_line_agrees_with_what_is_above_it() {
        let last = |facts: &Facts, more: Vec<Check>| {
            let mut report = examine(facts, &[]);
            report.checks.retain(|one| one.group != Group::Hooks);
            report.extend(more);
            let text = text(&report, Style::PLAIN);
            (report.usable, text.lines().last().unwrap().to_owned())
        };
        let mut facts = poor();
        facts.lockdown = value("[none]");
        // As root, without what everything needs.
        let (usable, line) = last(&facts, Vec::new());
        assert!(!usable);
        assert_eq!(
            line,
            "This kernel has all that edgeprobe needs. A daemon started like this would not \
             start: CAP_BPF, CAP_PERFMON."
        );
        // An ordinary user starts none, but is told what is lacking.
        facts.root = false;
        let (usable, line) = last(&facts, Vec::new());
        assert!(usable);
        assert!(line.ends_with("CAP_SYS_ADMIN, CAP_SYS_PTRACE."), "{line}");
        facts.capabilities = [
            "CAP_NET_ADMIN",
            "CAP_SYS_ADMIN",
            "CAP_SYS_PTRACE",
            "CAP_DAC_READ_SEARCH",
        ]
        .map(str::to_owned)
        .into();
        let (_, line) = last(&facts, Vec::new());
        assert_eq!(line, "This kernel has all that edgeprobe needs.");
        let wrong = Check::new(Group::Setup, "configuration", Status::Missing, "x").required();
        let (usable, line) = last(&facts, vec![wrong]);
        assert!(!usable);
        assert!(line.ends_with("would not start: configuration."), "{line}");
    }

    #[test]
    fn what_cannot_be_seen_is_unknown_and_no_failure() {
        let report = examine(&hidden_host(), &[]);
        assert!(report.usable);
        insta::assert_snapshot!(text(&report, Style::PLAIN));
    }

    #[test]
    fn a_shielded_process_1_is_no_failure_and_says_why_it_is_not_counted() {
        let line = |shield, hidden: Result<(), &str>| {
            let facts = Facts {
                shield,
                hidden_events: hidden.map_err(str::to_owned),
                root: true,
                ..hidden_host()
            };
            let report = examine(&facts, &[]);
            let mut checks = report.checks.into_iter();
            let check = checks.find(|one| one.name == "process 1").unwrap();
            assert!(!check.required);
            (check.status, check.found)
        };
        let absent = line(Shield::Absent, Ok(()));
        assert_eq!(absent, (Status::Ok, "not shielded".to_owned()));
        let why = "needs CAP_SYS_PTRACE to read /proc/1/exe";
        let unknown = line(Shield::Unknown(why.to_owned()), Ok(()));
        assert_eq!(unknown, (Status::Unknown, format!("unknown: {why}")));
        let (status, found) = line(Shield::Present, Err("no tracefs"));
        assert_eq!(status, Status::Missing);
        assert!(found.ends_with("; not counted: no tracefs"), "{found}");
    }

    #[test]
    fn without_btf_nothing_works() {
        let mut facts = hidden_host();
        facts.btf = Err(btf::BtfError::Read {
            path: btf::VMLINUX.to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        });
        let report = examine(&facts, &[]);
        assert!(!report.usable);
        assert!(text(&report, Style::PLAIN).contains("NO BTF"));
    }

    #[test]
    fn interfaces_are_chosen_by_name_and_absent_ones_are_reported() {
        let report = examine(&poor(), &["eth0".to_owned(), "eth7".to_owned()]);
        let names: Vec<_> = report.interfaces.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["eth0"]);
        let text = text(&report, UTF8);
        assert!(text.contains("✗  eth7  no such interface here"), "{text}");
    }

    #[test]
    fn the_running_kernel_has_what_it_takes() {
        let facts = Facts::gather();
        let report = examine(&facts, &[]);
        let has_btf = std::path::Path::new(btf::VMLINUX).exists();
        assert_eq!(report.usable, has_btf, "{}", text(&report, UTF8));
        assert!(report.interfaces.iter().any(|i| i.name == "lo"));
    }

    #[test]
    fn colour_marks_only_where_it_may() {
        let report = examine(&poor(), &[]);
        assert!(!text(&report, UTF8).contains('\u{1b}'));
        let colored = Style {
            color: true,
            ..UTF8
        };
        assert!(text(&report, colored).contains("\u{1b}[31m✗ \u{1b}[0m"));
    }

    #[test]
    fn the_json_form_has_a_version_and_plain_words() {
        let json = serde_json::to_value(examine(&poor(), &[])).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["usable"], false);
        assert_eq!(json["checks"][0]["status"], "missing");
        assert_eq!(json["checks"][0]["group"], "kernel");
        assert_eq!(json["interfaces"][1]["xdp"], "native_likely");
        assert_eq!(json["interfaces"][1]["attached_program"], 12);
    }
}
