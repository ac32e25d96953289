//! Judges what this process may do.

use super::examine::{Check, Group, Status, reading};
use super::facts::{Facts, Reading};

/// All of it.
pub fn checks(facts: &Facts) -> Vec<Check> {
    let mut checks = capabilities(facts);
    checks.push(unprivileged(&facts.unprivileged));
    checks.push(paranoid(&facts.paranoid));
    checks
}

fn capabilities(facts: &Facts) -> Vec<Check> {
    const EVERYTHING: &str = "everything";
    const NEEDED: [(&str, &str, &str); 6] = [
        ("CAP_BPF", "loads programs and maps", EVERYTHING),
        ("CAP_PERFMON", "loads programs on tracepoints", EVERYTHING),
        (
            "CAP_NET_ADMIN",
            "attaches XDP",
            "packets and flows of interfaces",
        ),
        (
            "CAP_SYS_ADMIN",
            "enters network namespaces, its own too",
            "all visits, since not even the daemon's own namespace can be entered: connections \
             from before the start, bytes of open ones, queues and drops of listeners, and XDP",
        ),
        (
            "CAP_SYS_PTRACE",
            "finds network namespaces of other users' processes",
            "namespaces without a name",
        ),
        (
            "CAP_DAC_READ_SEARCH",
            "finds the name of a control group by its number",
            "speed: all groups of the host are walked for each that is new",
        ),
    ];
    let mut advised = false;
    let held = |name: &str| facts.capabilities.iter().any(|held| held == name);
    NEEDED
        .iter()
        .map(|&(name, purpose, lost)| {
            if held(name) {
                return Check::new(
                    Group::Privileges,
                    name,
                    Status::Ok,
                    format!("held; {purpose}"),
                );
            }
            // CAP_SYS_ADMIN includes what was split off from it.
            if matches!(name, "CAP_BPF" | "CAP_PERFMON") && held("CAP_SYS_ADMIN") {
                return Check::new(
                    Group::Privileges,
                    name,
                    Status::Ok,
                    format!("held through CAP_SYS_ADMIN; {purpose}"),
                );
            }
            let found = format!("not held by this process; {purpose}");
            let check = Check {
                // An ordinary user starts no daemon.
                required: facts.root && lost == EVERYTHING,
                ..Check::new(Group::Privileges, name, Status::Missing, found)
                    .lost(&format!("{lost}, for a daemon started like this"))
            };
            if std::mem::replace(&mut advised, true) {
                check
            } else {
                check.remedy("start the daemon as root or give it these capabilities")
            }
        })
        .collect()
}

fn unprivileged(value: &Reading) -> Check {
    let name = "BPF for ordinary users";
    let absent = "unknown: this kernel does not say";
    reading(Group::Privileges, name, value, absent, |value| {
        let found = match value {
            "0" => "allowed; not used",
            "1" => "off until the next boot; not used",
            "2" => "off; not used",
            _ => "set to an unknown value; not used",
        };
        Check::new(Group::Privileges, name, Status::Note, found)
    })
}

fn paranoid(value: &Reading) -> Check {
    let name = "perf_event_paranoid";
    let absent = "absent; not used";
    reading(Group::Privileges, name, value, absent, |value| {
        let found = format!("{value}; does not matter to who holds CAP_PERFMON");
        Check::new(Group::Privileges, name, Status::Note, found)
    })
}
