//! What passed, failed and was skipped, summed over many test programs.

use std::{fmt, ops::AddAssign, process::ExitCode};

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Ran and held.
    pub passed: u64,
    /// Ran and did not hold.
    pub failed: u64,
    /// Could not run here; each has printed why.
    pub skipped: u64,
}

impl Tally {
    /// One that failed.
    pub const FAILURE: Self = Self {
        passed: 0,
        failed: 1,
        skipped: 0,
    };

    /// Success only where nothing failed.
    pub fn exit_code(self) -> ExitCode {
        if self.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    /// Reads what libtest printed with `--show-output`. A test that printed a
    /// line `SKIPPED: why` counts as skipped, not as passed.
    pub fn from_libtest(output: &str) -> Self {
        let mut tally = Self::default();
        // Whether the lines are those of a test that passed and was not yet
        // counted as skipped.
        let mut may_skip = false;
        let mut skipped = 0;
        let mut succeeded = false;
        for line in output.lines() {
            if line == "successes:" || line == "failures:" {
                succeeded = line == "successes:";
                may_skip = false;
            } else if line.starts_with("---- ") {
                may_skip = succeeded;
            } else if may_skip && line.starts_with("SKIPPED:") {
                skipped += 1;
                may_skip = false;
            } else if let Some(result) = line.strip_prefix("test result: ") {
                tally += Self::from_result(result);
            }
        }
        // The sums come last, and they count such a test as passed.
        tally.passed = tally.passed.saturating_sub(skipped);
        tally.skipped += skipped;
        tally
    }

    /// Reads `ok. 3 passed; 0 failed; 1 ignored; …`.
    fn from_result(result: &str) -> Self {
        let numbers = result.split_once(". ").map_or("", |(_, numbers)| numbers);
        let number = |what: &str| {
            numbers
                .split("; ")
                .find_map(|part| part.strip_suffix(what)?.trim().parse().ok())
                .unwrap_or(0)
        };
        Self {
            passed: number("passed"),
            failed: number("failed"),
            skipped: number("ignored"),
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_programs_and_moves_skips_out_of_passed() {
        let output = "\
running 4 tests
test a ... ok
test b ... ok
test c ... FAILED
test d ... ignored

successes:

---- a stdout ----
SKIPPED: no IPv6 here
SKIPPED: and no IPv4

---- b stdout ----
this is not SKIPPED: it ran


successes:
    a
    b

failures:

---- c stdout ----
SKIPPED: half of it, and then it failed

failures:
    c

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s

running 2 tests
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.00s
";
        let tally = Tally::from_libtest(output);
        assert_eq!(tally.to_string(), "3 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn a_program_that_printed_no_result_counts_nothing() {
        assert_eq!(
            Tally::from_libtest("error: could not compile\n"),
            Tally::default()
        );
    }
}
