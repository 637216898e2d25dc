//! Where a report goes: words to the terminal, JSON and a page to the files that were asked for.
//!
//! Files are opened before the run, since a path that can't be written should cost a second and not a run; and the
//! words come first, since nobody can take them back.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::html;
use crate::report::Report;

/// What was asked for.
pub struct Files {
    json: Option<Json>,
    html: Option<Opened>,
}

enum Json {
    Standard,
    File(Opened),
}

/// A file that can be written. What it holds stays until there is a report.
struct Opened {
    path: PathBuf,
    file: File,
}

impl Files {
    /// Makes sure that each can be written; `-` is standard output.
    pub fn open(json: Option<&Path>, html: Option<&Path>) -> anyhow::Result<Self> {
        let json = json.map(|path| match path.as_os_str() == "-" {
            true => Ok(Json::Standard),
            false => Opened::new(path).map(Json::File),
        });
        Ok(Self {
            json: json.transpose()?,
            html: html.map(Opened::new).transpose()?,
        })
    }

    /// Tells everybody. A file that can't be written keeps no other from it.
    pub fn tell(&self, report: &Report) -> anyhow::Result<()> {
        let words = report.words();
        let json = match &self.json {
            // Standard output belongs to the program that reads it.
            Some(Json::Standard) => {
                let _closed = writeln!(std::io::stderr(), "{words}");
                let json = report.json()?;
                write!(std::io::stdout(), "{json}").context("cannot write to standard output")
            }
            Some(Json::File(file)) => {
                let _closed = writeln!(std::io::stdout(), "{words}");
                file.write(&report.json()?)
            }
            None => {
                writeln!(std::io::stdout(), "{words}").context("cannot write to standard output")
            }
        };
        let page = self.html.as_ref();
        let page = page.map_or(Ok(()), |file| file.write(&html::page(report)));
        json.and(page)
    }
}

impl Opened {
    fn new(path: &Path) -> anyhow::Result<Self> {
        let mut options = File::options();
        let opened = options.write(true).create(true).truncate(false).open(path);
        Ok(Self {
            path: path.to_owned(),
            file: opened.with_context(|| format!("cannot write {}", path.display()))?,
        })
    }

    fn write(&self, text: &str) -> anyhow::Result<()> {
        let written = replace(&self.file, text);
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn replace(mut file: &File, text: &str) -> std::io::Result<()> {
    // A pipe or a device has no length.
    if file.metadata()?.is_file() {
        file.set_len(0)?;
        file.rewind()?;
    }
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_what_it_holds_until_there_is_a_report() {
        let name = format!("loadtest-files-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, "a longer report of before").unwrap();
        let opened = Opened::new(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"a longer report of before");
        opened.write("new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_path_that_cannot_be_written_is_refused_before_a_run() {
        let nowhere = Path::new("no/such/folder/report.json");
        for (json, html) in [(Some(nowhere), None), (None, Some(nowhere))] {
            let error = Files::open(json, html).err().unwrap();
            assert!(error.to_string().contains("no/such/folder"), "{error}");
        }
    }
}
