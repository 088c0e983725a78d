//! The commands that the documents show are commands that banger takes.

use std::fs;
use std::path::{Path, PathBuf};

use banger_e2e::Home;

#[test]
fn every_command_in_the_documents_parses() {
    let Some(home) = Home::empty() else { return };
    let mut seen = 0;
    for file in documents() {
        let text = fs::read_to_string(&file).unwrap();
        for (number, line) in code_lines(&text) {
            for mut command in commands(line) {
                // `--help` is answered once everything before it was understood.
                let end = command
                    .iter()
                    .position(|word| word == "--")
                    .unwrap_or(command.len());
                command.insert(end, "--help".to_owned());
                let output = home.banger(command[1..].iter().map(String::as_str)).run();
                assert_eq!(
                    output.status.code(),
                    Some(0),
                    "{}:{number}: `{line}`: {output:?}",
                    file.display()
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 20, "only {seen} commands were found");
}

fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = vec![root.join("README.md")];
    let pages = fs::read_dir(root.join("docs")).expect("there are documents");
    files.extend(pages.flatten().map(|page| page.path()));
    files.retain(|file| file.extension().is_some_and(|extension| extension == "md"));
    files.sort();
    files
}

/// The lines inside fences, with their numbers.
fn code_lines(text: &str) -> Vec<(usize, &str)> {
    let mut inside = false;
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if inside {
            lines.push((index + 1, line));
        }
    }
    lines
}

/// The commands of a shell's line that start banger, split into words.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote = None;
    for letter in line.trim_start_matches("$ ").chars().chain([' ']) {
        match (quote, letter) {
            (Some(open), _) if open == letter => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(letter),
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ' ' | '|' | '&' | ';' | '>' | '<') => {
                commands
                    .last_mut()
                    .expect("never empty")
                    .extend(word.take());
                if letter != ' ' {
                    commands.push(Vec::new());
                }
            }
            (None, _) => word.get_or_insert_default().push(letter),
        }
    }
    commands.retain(|words| words.first().is_some_and(|word| word == "banger"));
    commands
}

#[test]
fn lines_of_a_shell_are_split_as_a_shell_splits_them() {
    assert_eq!(
        commands("$ tar c . | banger vm exec a -- sh -c 'tar x; ls' >list # note"),
        [["banger", "vm", "exec", "a", "--", "sh", "-c", "tar x; ls"]]
    );
    assert_eq!(commands("make test"), Vec::<Vec<String>>::new());
    assert_eq!(commands("# banger vm list"), Vec::<Vec<String>>::new());
}
