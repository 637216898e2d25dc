//! How long a file and a function may be, and how a file begins.

use crate::tree::{Finding, Tree};

/// A file that a reader keeps in mind at once. The median of good code is 90–140 lines; what grows
/// past this wants a wall inside.
const FILE_LINES_MAX: usize = 500;

/// A function that fits on a screen with its signature.
const FUNCTION_LINES_MAX: usize = 70;

fn no_file_is_too_long(tree: &Tree) -> Vec<Finding> {
    tree.files
        .iter()
        .filter(|f| f.path.ends_with(".rs") || f.path.ends_with(".py"))
        .filter_map(|f| {
            let lines = f.text.lines().count();
            (lines > FILE_LINES_MAX).then(|| f.finding(0, format!("{lines} lines")))
        })
        .collect()
}

fn no_function_is_too_long(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (file, rust) in tree.rust() {
        for f in rust.functions() {
            let lines = file.line_of(f.end) - file.line_of(f.at) + 1;
            if lines > FUNCTION_LINES_MAX {
                found.push(file.finding(f.at, format!("`{}` has {lines} lines", f.name)));
            }
        }
    }
    found
}

fn a_file_begins_by_saying_what_it_is_for(tree: &Tree) -> Vec<Finding> {
    tree.files
        .iter()
        .filter(|f| {
            let mut lines = f.text.lines();
            let first = lines.next().unwrap_or("");
            let after_shebang = if first.starts_with("#!/") {
                lines.next().unwrap_or("")
            } else {
                first
            };
            let says = |mark: &str| {
                after_shebang
                    .strip_prefix(mark)
                    .is_some_and(|rest| rest.contains(' ') && rest.trim().len() > 3)
            };
            match f.path.rsplit('.').next() {
                Some("rs") => !says("//!"),
                Some("py") => !says("\"\"\"") && !says("r\"\"\""),
                Some("proto") => !says("//"),
                Some("sql") => !says("--"),
                _ => first.starts_with("#!/") && !says("#"),
            }
        })
        .map(|f| f.finding(0, "the first line says what the file is for"))
        .collect()
}

mod held {
    use crate::tree::hold;

    #[test]
    fn no_file_is_too_long() {
        let long = "// x\n".repeat(super::FILE_LINES_MAX + 1);
        let fits = "// x\n".repeat(super::FILE_LINES_MAX);
        hold(
            super::no_file_is_too_long,
            &[("src/hot/mod.rs", &long), ("tests/it/client.py", &long)],
            &[("src/hot/mod.rs", &fits), ("docs/API.md", &long)],
        );
    }

    #[test]
    fn no_function_is_too_long() {
        let body = |lines: usize| "    x('}', \"}\"); // }\n".repeat(lines);
        let long = format!("fn f(a: [u8; 2]) {{\n{}}}\n", body(69));
        let fits = format!("fn f() {{\n{}}}\nfn g();\n{}", body(68), body(90));
        hold(
            super::no_function_is_too_long,
            &[("src/hot/mod.rs", &long)],
            &[("src/hot/mod.rs", &fits)],
        );
    }

    #[test]
    fn a_file_begins_by_saying_what_it_is_for() {
        hold(
            super::a_file_begins_by_saying_what_it_is_for,
            &[
                ("src/hot/mod.rs", "use std::fmt;"),
                ("src/hot/mod.rs", "//!\n//! Who may take a share."),
                ("src/hot/embedded/schema.sql", "CREATE TABLE t(x);"),
                ("scripts/install", "#!/usr/bin/env bash\nset -e\n"),
                ("tests/it/client.py", "import grpc\n"),
            ],
            &[
                ("src/hot/mod.rs", "//! Who may take a share."),
                (
                    "scripts/install",
                    "#!/usr/bin/env bash\n# Installs the tools.\n",
                ),
                (
                    "tests/it/client.py",
                    "\"\"\"A client that knows only the proto files.\"\"\"\n",
                ),
            ],
        );
    }
}
