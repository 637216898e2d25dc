//! The figures for programs, of all benchmarks in one file.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Map, Value};

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
    all.extend(figures);
    std::fs::write(&path, serde_json::to_vec_pretty(&all)?)?;
    println!("figures for programs: {}", path.display());
    Ok(())
}
