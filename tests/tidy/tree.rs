//! The source tree as the rules see it, and how a rule proves itself before it judges.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::pardons::PARDONS;
use crate::rust::Rust;

/// A file of ours is far smaller; a bigger one is a build's or a store's that strayed in.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// One text file of the repository.
pub struct File {
    /// From the repository's root, with `/`.
    pub path: String,
    pub text: String,
    /// For `.rs` files.
    pub rust: Option<Rust>,
}

impl File {
    pub fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            rust: path.ends_with(".rs").then(|| Rust::read(text)),
        }
    }

    pub fn line_of(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }

    pub fn finding(&self, at: usize, what: impl Into<String>) -> Finding {
        Finding {
            path: self.path.clone(),
            line: self.line_of(at),
            what: what.into(),
        }
    }

    /// Whether the path is one of these files, or below one of these folders (that end in `/`).
    pub fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| {
            self.path == *place || place.ends_with('/') && self.path.starts_with(place)
        })
    }
}

/// What a rule found, and where.
pub struct Finding {
    pub path: String,
    pub line: usize,
    pub what: String,
}

/// All text files, ordered by path.
pub struct Tree {
    pub files: Vec<File>,
}

impl Tree {
    /// The repository that this test was compiled from.
    pub fn of_the_repository() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let ignored = ignored_names(root);
        let mut files = Vec::new();
        walk(root, "", &ignored, &mut files);
        files.sort_by(|a, b| a.path.cmp(&b.path));
        assert!(
            files.iter().any(|f| f.path == "src/lib.rs"),
            "src/lib.rs is not below {}: what was read is not the repository",
            root.display()
        );
        Self { files }
    }

    pub fn of_one(path: &str, text: &str) -> Self {
        Self {
            files: vec![File::new(path, text)],
        }
    }

    pub fn rust(&self) -> impl Iterator<Item = (&File, &Rust)> {
        self.files
            .iter()
            .filter_map(|f| f.rust.as_ref().map(|rust| (f, rust)))
    }
}

/// The names that `.gitignore` keeps out. Only plain names are understood there, so that this file
/// needs no git and judges a tarball as it judges a clone.
fn ignored_names(root: &Path) -> Vec<String> {
    let text = fs::read_to_string(root.join(".gitignore")).expect(".gitignore is there");
    let mut names = vec![".git".to_owned()];
    for line in text
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        let name = line.trim_matches('/');
        assert!(
            !name.contains(['*', '?', '[', '!', '/']),
            ".gitignore: tidy reads plain names only, not `{line}`"
        );
        names.push(name.to_owned());
    }
    names
}

fn walk(folder: &Path, prefix: &str, ignored: &[String], files: &mut Vec<File>) {
    for entry in fs::read_dir(folder).expect("a folder of the repository can be read") {
        let entry = entry.expect("an entry of the repository can be read");
        let name = entry.file_name().to_string_lossy().into_owned();
        if ignored.contains(&name) {
            continue;
        }
        let path = format!("{prefix}{name}");
        let meta = entry.metadata().expect("an entry has metadata");
        if meta.is_dir() {
            walk(&entry.path(), &format!("{path}/"), ignored, files);
        } else if meta.is_file() && meta.len() <= FILE_BYTES_MAX {
            // What is not text is nobody's prose.
            if let Ok(text) = fs::read_to_string(entry.path()) {
                files.push(File::new(&path, &text));
            }
        }
    }
}

/// A file that exists only to prove a rule: its path and its text.
pub type Planted<'a> = (&'a str, &'a str);

/// Proves the rule on what is planted, then holds the repository to it.
///
/// A rule that does not flag each of `bad` can't fail, and one that flags any of `good` would be
/// switched off by the first who meets it.
pub fn hold<Rule: Fn(&Tree) -> Vec<Finding>>(
    judge: Rule,
    bad: &[Planted<'_>],
    good: &[Planted<'_>],
) {
    let rule = name_of::<Rule>();
    assert!(!bad.is_empty() && !good.is_empty(), "{rule}: plant both");
    for (path, text) in bad {
        let found = judge(&Tree::of_one(path, text));
        assert!(!found.is_empty(), "{rule} passes what it forbids: {text}");
    }
    for (path, text) in good {
        if let Some(f) = judge(&Tree::of_one(path, text)).first() {
            panic!("{rule} forbids what it allows: {}: {text}", f.what);
        }
    }

    let mut report = String::new();
    let mut used = vec![false; PARDONS.len()];
    for f in judge(&Tree::of_the_repository()) {
        let pardon = PARDONS
            .iter()
            .position(|p| p.rule == rule && p.path == f.path && f.what.contains(p.what));
        if let Some(i) = pardon {
            used[i] = true;
        } else {
            writeln!(report, "  {}:{}: {}", f.path, f.line, f.what).expect("a String takes it");
        }
    }
    for (p, used) in PARDONS.iter().zip(used) {
        assert!(!p.reason.is_empty(), "{}: a pardon says why", p.path);
        if p.rule == rule && !used {
            writeln!(report, "  {}: needs its pardon no more: {}", p.path, p.what)
                .expect("a String takes it");
        }
    }
    assert!(report.is_empty(), "{rule}\n{report}");
}

/// `tidy::layers::the_domain_is_pure` → `the_domain_is_pure`.
fn name_of<Rule>() -> &'static str {
    let path = std::any::type_name::<Rule>();
    path.rsplit("::").next().unwrap_or(path)
}
