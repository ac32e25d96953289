//! The import graph of `probe-user`: no arrow back.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::source::{self, Mentions};

/// The folder whose files these are.
pub const FOLDER: &str = "probe-user/src";

/// The rooms of `probe-user`, the lowest first. A room may import those of lower
/// layers. It may import one of its own layer as long as that makes no circle.
/// **Each new room gets its place here.**
const LAYERS: &[&[&str]] = &[
    &["config", "model", "logging"],
    &["kernel"],
    &["loader"],
    &["attribution"],
    &["collector"],
    &["sampler"],
    &["export", "table"],
    &["serve"],
    &["top", "doctor", "cli"],
    &["commands"],
];

/// Files that belong to no room: they declare all of them, and call one.
const ROOTS: [&str; 2] = ["lib.rs", "main.rs"];

/// What is wrong with the imports of the files below [`FOLDER`], which are paths
/// relative to it and their source; a line for each.
pub fn problems(files: &[(PathBuf, String)]) -> Vec<String> {
    problems_of(LAYERS, files)
}

/// One room imports another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arrow {
    from: String,
    to: String,
    /// The first place that does so.
    file: PathBuf,
    line: usize,
}

fn problems_of(layers: &[&[&str]], files: &[(PathBuf, String)]) -> Vec<String> {
    let layer = |room: &str| layers.iter().position(|rooms| rooms.contains(&room));
    let rooms: BTreeSet<String> = files.iter().filter_map(|(path, _)| room(path)).collect();
    let mut problems = Vec::new();
    for room in rooms.iter().filter(|room| layer(room).is_none()) {
        problems.push(format!(
            "{FOLDER}: the room `{room}` is in no layer: give it its place in \
             xtask/src/lint/layers.rs"
        ));
    }
    let arrows = arrows(files, &rooms);
    let mut level = Vec::new();
    for arrow in &arrows {
        let (Some(from), Some(to)) = (layer(&arrow.from), layer(&arrow.to)) else {
            continue;
        };
        if to > from {
            let why = format!("which is above it ({})", layers[to].join(", "));
            problems.push(describe(arrow, &why));
        } else if to == from {
            level.push(arrow);
        }
    }
    for arrow in &level {
        if leads(&level, &arrow.to, &arrow.from) {
            let why = format!("which imports `{}` in turn: a circle", arrow.from);
            problems.push(describe(arrow, &why));
        }
    }
    problems
}

fn describe(arrow: &Arrow, why: &str) -> String {
    let Arrow {
        from,
        to,
        file,
        line,
    } = arrow;
    let file = file.display();
    format!("{FOLDER}/{file}:{line}: `{from}` imports `{to}`, {why}")
}

/// Whether a way leads along arrows.
fn leads(arrows: &[&Arrow], from: &str, to: &str) -> bool {
    let mut reached = BTreeSet::from([from]);
    loop {
        let new: Vec<&str> = arrows
            .iter()
            .filter(|arrow| reached.contains(&*arrow.from) && !reached.contains(&*arrow.to))
            .map(|arrow| &*arrow.to)
            .collect();
        if new.is_empty() {
            return reached.contains(to);
        }
        reached.extend(new);
    }
}

/// Every line that imports another room.
fn arrows(files: &[(PathBuf, String)], rooms: &BTreeSet<String>) -> Vec<Arrow> {
    let read: BTreeMap<&Path, Mentions> = files
        .iter()
        .map(|(path, source)| (&**path, source::read(source, module(path).len())))
        .collect();
    let for_tests: BTreeSet<Vec<String>> = read
        .iter()
        .flat_map(|(path, mentions)| {
            let inside = |name: &String| [module(path), vec![name.clone()]].concat();
            mentions.test_modules.iter().map(inside)
        })
        .collect();
    let is_for_tests = |path: &Path| {
        let module = module(path);
        (1..=module.len()).any(|length| for_tests.contains(&module[..length]))
    };
    let mut arrows = Vec::new();
    for (path, mentions) in read.iter().filter(|(path, _)| !is_for_tests(path)) {
        let Some(from) = room(path) else { continue };
        for mention in &mentions.of {
            if rooms.contains(&mention.module) && mention.module != from {
                arrows.push(Arrow {
                    from: from.clone(),
                    to: mention.module.clone(),
                    file: path.to_path_buf(),
                    line: mention.line,
                });
            }
        }
    }
    arrows
}

/// The room that a file belongs to.
fn room(path: &Path) -> Option<String> {
    module(path).into_iter().next()
}

/// The module that a file is: `["config", "file"]` for `config/file.rs`, none for
/// the roots.
fn module(path: &Path) -> Vec<String> {
    if ROOTS.iter().any(|root| path == Path::new(root)) {
        return Vec::new();
    }
    let path = path.with_extension("");
    let mut module: Vec<String> = path
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    module.pop_if(|last| last == "mod");
    module
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: &[&[&str]] = &[&["config", "model"], &["kernel"], &["cli"]];

    fn problems(files: &[(&str, &str)]) -> Vec<String> {
        let own = |(path, source): &(&str, &str)| (PathBuf::from(path), (*source).to_owned());
        problems_of(THREE, &files.iter().map(own).collect::<Vec<_>>())
    }

    #[test]
    fn arrows_down_and_from_the_roots_are_right() {
        let files = [
            ("lib.rs", "pub mod cli;\nuse crate::cli::x;\n"),
            ("config.rs", "use crate::model::X;\nuse crate::Y;\n"),
            ("model.rs", ""),
            ("kernel/mod.rs", "use crate::config::X;\n"),
            ("cli.rs", "use crate::{config, kernel::btf};\n"),
        ];
        assert_eq!(problems(&files), Vec::<String>::new());
    }

    #[test]
    fn an_arrow_back_names_file_line_and_rooms() {
        let files = [
            ("cli.rs", ""),
            ("config/file.rs", "\n\nfn f() -> crate::cli::X {}\n"),
        ];
        assert_eq!(
            problems(&files),
            ["probe-user/src/config/file.rs:3: `config` imports `cli`, which is above it (cli)"]
        );
    }

    #[test]
    fn rooms_of_one_layer_make_no_circle() {
        let files = [
            ("config.rs", "use super::model::X;\n"),
            ("model/delta.rs", "use crate::config::Y;\n"),
        ];
        let circle = "in turn: a circle";
        let found = problems(&files);
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|one| one.ends_with(circle)), "{found:?}");
        assert!(problems(&files[..1]).is_empty());
    }

    #[test]
    fn tests_may_import_what_they_like() {
        let files = [
            ("cli.rs", ""),
            (
                "config.rs",
                "#[cfg(test)]\nmod checks;\n#[cfg(test)]\nmod inner { use crate::cli; }\n",
            ),
            ("config/checks.rs", "use crate::cli::X;\n"),
            ("config/checks/deep.rs", "use crate::cli::X;\n"),
        ];
        assert_eq!(problems(&files), Vec::<String>::new());
    }

    #[test]
    fn a_room_without_a_layer_is_said() {
        let found = problems(&[("spare/x.rs", "")]);
        assert!(found[0].contains("the room `spare` is in no layer"));
    }
}
