//! What makes the numbers incomplete, in lines for people.

use crate::model::Snapshot;
use crate::table::format::thousands;

/// From this fill on a map is called nearly full.
const NEARLY_FULL: f64 = 0.9;

/// What is degraded: programs that are not attached, lost events, maps that
/// are nearly full, interfaces without XDP.
pub fn problems(snapshot: &Snapshot) -> Vec<String> {
    let mut problems = Vec::new();
    let lost: u64 = snapshot.lost.iter().map(|lost| lost.count).sum();
    if lost > 0 {
        let mut causes: Vec<_> = snapshot.lost.iter().filter(|l| l.count > 0).collect();
        causes.sort_by_key(|lost| std::cmp::Reverse(lost.count));
        let most = causes
            .iter()
            .take(3)
            .map(|l| format!("{} {} {}", l.hook, l.cause, thousands(l.count)))
            .collect::<Vec<_>>()
            .join(", ");
        problems.push(format!("{} events lost: {most}", thousands(lost)));
    }
    for program in snapshot.programs.iter().filter(|p| !p.attached) {
        let note = match program.note.as_str() {
            "" => "no reason given",
            note => note,
        };
        problems.push(format!("{} not attached: {note}", program.hook));
    }
    for map in &snapshot.maps {
        let fill = map.entries as f64 / map.capacity.max(1) as f64;
        if fill >= NEARLY_FULL {
            problems.push(format!("map {} is {:.0} % full", map.map, fill * 100.0));
        }
    }
    for device in snapshot.devices.iter().filter(|d| d.xdp_mode.is_empty()) {
        problems.push(format!("no XDP program on {}", device.device));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sample;

    #[test]
    fn each_kind_of_trouble_is_named() {
        let mut snapshot = sample::snapshot();
        snapshot.devices[0].xdp_mode.clear();
        assert_eq!(
            problems(&snapshot),
            [
                "12 events lost: tcp_probe map_full 12",
                "tp_btf/tcp_send_reset not attached: \
                 this kernel has no reason argument (needs 6.10)",
                "map FLOWS is 93 % full",
                "no XDP program on eth1",
            ]
        );
    }

    #[test]
    fn a_sound_or_empty_snapshot_has_none() {
        assert!(problems(&Snapshot::default()).is_empty());
    }
}
