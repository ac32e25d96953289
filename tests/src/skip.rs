//! What a test needs before it can say anything: root, tools, and its turn.

use std::{
    env, fs,
    path::PathBuf,
    sync::{Mutex, MutexGuard, Once, PoisonError},
};

static TURN: Mutex<()> = Mutex::new(());

/// Says that a test is left out, and why. Where `CI=true` promises that all is
/// there, it fails instead.
///
/// # Panics
///
/// Under `CI=true`.
#[track_caller]
pub fn skipped(test: &str, reason: &str) {
    println!("SKIPPED: {test}: {reason}");
    assert!(
        env::var_os("CI").is_none_or(|ci| ci != "true"),
        "{test} cannot be left out where CI=true: {reason}"
    );
}

/// Says that a test means nothing on this kernel or machine, and why; no failure
/// anywhere. For a module that may be missing there is [`not_built`].
pub fn impossible(test: &str, reason: &str) {
    println!("SKIPPED: {test}: {reason}");
}

/// Says that this kernel was built without a module that a test needs, and
/// which. The guests have all of them: there it fails.
///
/// # Panics
///
/// In a guest.
#[track_caller]
pub fn not_built(test: &str, reason: &str) {
    assert!(
        !is_emulated(),
        "{test}: the guests have every module: {reason}"
    );
    impossible(test, reason);
}

/// Root and the only test of this process that runs now; `None`, said loudly,
/// for an ordinary user.
///
/// The tests share the processors and the kernel: one after the other, each
/// gets the full speed that it wants to measure at.
#[track_caller]
#[must_use]
pub fn turn(test: &str) -> Option<MutexGuard<'static, ()>> {
    // SAFETY: the call has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        skipped(test, "needs root");
        return None;
    }
    if !root_is_mounted() {
        // All for the same reason: one message will do.
        static SAID: Once = Once::new();
        SAID.call_once(|| skipped(test, NO_MOUNT));
        return None;
    }
    Some(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What is wrong where `/` is not mounted.
const NO_MOUNT: &str = "and all others: `/` is no mount point, as in a plain chroot, so `ip netns` \
                        cannot work: `mount --bind` the root on itself before going in";

/// Whether `/` is a mount point, as `ip netns` needs it to be.
fn root_is_mounted() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    has_root(&mounts)
}

fn has_root(mountinfo: &str) -> bool {
    mountinfo
        .lines()
        .any(|line| line.split(' ').nth(4) == Some("/"))
}

/// The path of a program, or `None`, said loudly.
#[track_caller]
#[must_use]
pub fn tool(test: &str, name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file());
    if found.is_none() {
        skipped(test, &format!("{name} is not installed"));
    }
    found
}

/// Whether this runs in a virtual machine with emulated processors.
pub fn is_emulated() -> bool {
    env::var_os("EP_GUEST").is_some()
}

/// How much of the full load to make, from `EP_SCALE`: slow machines set less
/// than 1.
///
/// # Panics
///
/// Where the variable is no positive number.
pub fn scaled(full: u32) -> u32 {
    let scale = env::var("EP_SCALE").map_or(1.0, |text| {
        text.parse::<f64>()
            .ok()
            .filter(|scale| *scale > 0.0)
            .unwrap_or_else(|| panic!("EP_SCALE={text} is no positive number"))
    });
    ((f64::from(full) * scale).round() as u32).max(1)
}

/// Major and minor version of the running kernel.
///
/// # Panics
///
/// Where the kernel does not say.
pub fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor),
        _ => panic!("the kernel's release is {release:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_found_by_its_mount_point() {
        let root = "22 1 0:21 / / rw,relatime - ext4 /dev/vda rw";
        let proc = "23 22 0:22 / /proc rw - proc proc rw";
        assert!(has_root(&format!("{proc}\n{root}\n")));
        assert!(!has_root(proc));
    }
}
