//! The yardstick D: how many times a second this disk makes a small append durable.
//!
//! Disks differ by a factor of ten and more, so durable grab rates are told as a share of
//! D × grabs per sync.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// What one append writes: about the packed row of a small batch of grabs.
const APPEND_BYTES: usize = 512;

/// `fdatasync` calls per second on a file in `folder`, each after one small append.
pub fn rate(folder: &Path, span: Duration) -> anyhow::Result<f64> {
    let path = folder.join("yardstick-d");
    let mut file =
        File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let append = [0x5a_u8; APPEND_BYTES];
    let began = Instant::now();
    let mut syncs = 0_u32;
    while began.elapsed() < span {
        file.write_all(&append)?;
        file.sync_data()?;
        syncs += 1;
    }
    let rate = f64::from(syncs) / began.elapsed().as_secs_f64();
    drop(file);
    std::fs::remove_file(&path)?;
    Ok(rate)
}
