//! BPF objects of processes.

use std::{collections::BTreeSet, fs};

/// A BPF object of the kernel: what it is and its number.
pub type KernelObject = (&'static str, u32);

/// BPF objects that a process holds, as `/proc` shows them.
pub fn kernel_objects(pid: u32) -> BTreeSet<KernelObject> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return BTreeSet::new();
    };
    let texts = entries.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    texts.filter_map(|text| kernel_object(&text)).collect()
}

fn kernel_object(text: &str) -> Option<KernelObject> {
    // A link shows the number of its program too: ask for it first.
    ["link_id", "map_id", "prog_id"]
        .into_iter()
        .find_map(|kind| {
            let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
            Some((kind, line.trim_start_matches(':').trim().parse().ok()?))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_not_taken_for_its_program() {
        let link = "pos:\t0\nlink_type:\ttracing\nlink_id:\t7\nprog_tag:\tx\nprog_id:\t9\n";
        assert_eq!(kernel_object(link), Some(("link_id", 7)));
        assert_eq!(
            kernel_object("prog_type:\t1\nprog_id:\t9\n"),
            Some(("prog_id", 9))
        );
        assert_eq!(kernel_object("pos:\t0\n"), None);
    }
}
