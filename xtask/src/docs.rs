//! `cargo xtask docs`: the documents that are generated from the code.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{cmd, setup, workspace::Workspace};

/// A document, and the example of `probe-user` that prints it.
struct Document {
    /// Below the workspace's root.
    path: &'static str,
    example: &'static str,
}

const DOCUMENTS: [Document; 1] = [Document {
    path: "docs/metrics.md",
    example: "metrics_reference",
}];

/// Writes each document.
pub fn write(workspace: &Workspace) -> Result<()> {
    for document in &DOCUMENTS {
        let text = document.generate(workspace)?;
        let path = document.file(workspace);
        fs::write(&path, text).with_context(|| format!("{} cannot be written", document.path))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Fails where a document is not what [`write`] would write.
pub fn check(workspace: &Workspace) -> Result<()> {
    for document in &DOCUMENTS {
        let path = document.path;
        let generated = document.generate(workspace)?;
        let file = document.file(workspace);
        let written = fs::read_to_string(&file)
            .with_context(|| format!("{path} cannot be read: {UPDATE}"))?;
        if let Some(line) = first_difference(&written, &generated) {
            bail!("{path}:{line} is not what the code says: {UPDATE}");
        }
    }
    Ok(())
}

const UPDATE: &str = "run `cargo xtask docs` and commit the file";

impl Document {
    fn file(&self, workspace: &Workspace) -> PathBuf {
        workspace.root.join(self.path)
    }

    fn generate(&self, workspace: &Workspace) -> Result<String> {
        setup::ensure(workspace)?;
        let mut command = workspace.cargo();
        command
            .args(["run", "--quiet", "--locked", "--package", "probe-user"])
            .args(["--example", self.example]);
        let text = cmd::piped(&format!("generating {}", self.path), &mut command)?;
        if text.is_empty() {
            bail!("`{}` printed nothing", cmd::line(&command));
        }
        Ok(text)
    }
}

/// The first line, counted from 1, that differs.
fn first_difference(left: &str, right: &str) -> Option<usize> {
    if left == right {
        return None;
    }
    let same = left
        .split('\n')
        .zip(right.split('\n'))
        .take_while(|(left, right)| left == right);
    Some(same.count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_differs_is_found() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some(2));
        assert_eq!(first_difference("a\n", "a"), Some(2));
        assert_eq!(first_difference("", "a"), Some(1));
        assert_eq!(first_difference("a\nb", "a\nb\nc"), Some(3));
    }
}
