//! The shape of the sources: which room imports which, and how long files are.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{layers, lengths};
use crate::{cmd, workspace::Workspace};

/// Says each thing that is wrong, and fails if there is one.
pub fn check(workspace: &Workspace) -> Result<()> {
    cmd::say("structure");
    let mut files = Vec::new();
    collect(&workspace.root, &mut files)?;
    files.sort_unstable();
    let mut sources = Vec::new();
    let mut lines = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        let path = path.strip_prefix(&workspace.root).unwrap_or(&path);
        lines.push((path.display().to_string(), text.lines().count()));
        if let Ok(path) = path.strip_prefix(layers::FOLDER) {
            sources.push((path.to_owned(), text));
        }
    }
    let mut problems = layers::problems(&sources);
    problems.extend(lengths::problems(&lines));
    for problem in &problems {
        eprintln!("    {problem}");
    }
    match problems.len() {
        0 => Ok(()),
        1 => bail!("one thing is wrong, see above"),
        count => bail!("{count} things are wrong, see above"),
    }
}

/// The Rust files below a folder, but for what is built and what is hidden.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("{} cannot be read", folder.display()))?;
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let kind = entry
            .file_type()
            .with_context(|| format!("{} cannot be looked at", path.display()))?;
        if kind.is_dir() && name != "target" && !name.starts_with('.') {
            collect(&path, files)?;
        } else if kind.is_file() && path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
