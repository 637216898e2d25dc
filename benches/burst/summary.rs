//! The figures for programs, of all benchmarks in one file, each with the second in which it was written.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Map, Value};

/// By figure: when it was written, in seconds since 1970. A figure that was not measured again stays as it was.
const WRITTEN_AT: &str = "written_at";

/// Puts figures beside those of the other benchmarks.
pub fn write(figures: Map<String, Value>) -> anyhow::Result<()> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    let folder = target.context("cargo's target folder")?.join("bench");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("summary.json");
    let mut all: Map<_, _> = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(_) => Map::new(),
    };
    #[expect(clippy::disallowed_methods, reason = "a benchmark runs in the present")]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let written: Map<_, _> = match all.remove(WRITTEN_AT) {
        Some(Value::Object(written)) => written,
        _ => Map::new(),
    };
    let these = figures
        .keys()
        .map(|name| (name.clone(), now.as_secs().into()));
    let written = written.into_iter().chain(these).collect();
    all.extend(figures);
    all.insert(WRITTEN_AT.to_owned(), Value::Object(written));
    std::fs::write(&path, serde_json::to_vec_pretty(&all)?)?;
    println!("figures for programs: {}", path.display());
    Ok(())
}
