//! How long the Rust files are.

/// No file has more lines, blank ones counted.
const MOST: usize = 500;
/// Half of the files have no more lines than this.
const MEDIAN: usize = 200;

/// What is wrong with the files' numbers of lines; a line for each.
pub fn problems(files: &[(String, usize)]) -> Vec<String> {
    let mut problems: Vec<String> = files
        .iter()
        .filter(|(_, lines)| *lines > MOST)
        .map(|(path, lines)| {
            format!("{path}: {lines} lines, at most {MOST}: split it along its purposes")
        })
        .collect();
    let mut lengths: Vec<usize> = files.iter().map(|(_, lines)| *lines).collect();
    lengths.sort_unstable();
    let median = lengths.get(lengths.len() / 2).copied().unwrap_or_default();
    if median > MEDIAN {
        problems.push(format!(
            "the median of {} Rust files is {median} lines, at most {MEDIAN}",
            lengths.len()
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(lengths: &[usize]) -> Vec<(String, usize)> {
        let named = |(index, lines): (usize, &usize)| (format!("{index}.rs"), *lines);
        lengths.iter().enumerate().map(named).collect()
    }

    #[test]
    fn the_bounds_themselves_are_right() {
        assert!(problems(&files(&[500, 200, 1])).is_empty());
        assert!(problems(&[]).is_empty());
    }

    #[test]
    fn one_long_file_and_many_middling_ones_are_wrong() {
        let found = problems(&files(&[501, 1, 1]));
        assert_eq!(
            found,
            ["0.rs: 501 lines, at most 500: split it along its purposes"]
        );
        let found = problems(&files(&[201, 201, 1]));
        assert_eq!(
            found,
            ["the median of 3 Rust files is 201 lines, at most 200"]
        );
    }
}
