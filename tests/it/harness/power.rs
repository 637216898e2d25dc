//! Takes back what a killed server had written and not synced: the power cut that kill -9 is not.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};

/// A disk sector: the unit in which an unsynced write may reach the disk or not.
const SECTOR_BYTES: usize = 512;

/// How long a disk may hang before something was written.
const HANG_MAX: Duration = Duration::from_secs(60);

/// Kinds of records, as the shim numbers them.
const TRUNCATE: u8 = 2;
const SYNC: u8 = 3;
const RENAME: u8 = 4;

/// One change that the shim wrote down.
struct Change {
    path: PathBuf,
    offset: u64,
    old_size: u64,
    old: Vec<u8>,
    fresh: Vec<u8>,
    truncate: bool,
}

/// How much of what was not synced is lost.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    /// All of it.
    Everything,
    /// Each sector of each unsynced write reaches the disk or not, by this seed.
    SomeSectors(u64),
}

/// Compiles the shim into `folder`.
fn build_shim(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/shim/power_cut.c");
    let shim = folder.join("power_cut.so");
    let built = Command::new("cc")
        .args(["-O2", "-shared", "-fPIC", "-o"])
        .args([shim.as_os_str(), source.as_os_str()])
        .arg("-lpthread")
        .status()
        .expect("a C compiler is installed by `make test`");
    assert!(built.success(), "the power-cut shim does not compile");
    shim
}

/// The environment of a process whose files below `watched` can lose power. Its log, `power.log`,
/// and the place for orders to its disk, `fault`, lie in `folder`.
pub fn variables(folder: &Path, watched: &Path) -> BTreeMap<String, String> {
    let text = |path: &Path| path.display().to_string();
    let pairs = [
        ("LD_PRELOAD", build_shim(folder)),
        ("POWER_CUT_DIR", watched.to_owned()),
        ("POWER_CUT_LOG", log(folder)),
        ("POWER_CUT_FAULT", folder.join("fault")),
    ];
    let owned = |(name, path): (&str, PathBuf)| (name.to_owned(), text(&path));
    pairs.into_iter().map(owned).collect()
}

/// Where [`variables`] tell the shim to write the changes down.
pub fn log(folder: &Path) -> PathBuf {
    folder.join("power.log")
}

/// Has every sync of the disk under this folder hang, and waits until one does, with something written that
/// is not synced: the moment before the power goes. [`cut`] mends the disk.
pub fn hang(folder: &Path) {
    std::fs::write(folder.join("fault"), "sync HANG").unwrap();
    let began = Instant::now();
    while unsynced(&log(folder)).values().all(Vec::is_empty) {
        assert!(began.elapsed() < HANG_MAX, "nothing was written");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What was changed and not synced, by its file.
fn unsynced(log: &Path) -> BTreeMap<PathBuf, Vec<Change>> {
    let mut unsynced: BTreeMap<PathBuf, Vec<Change>> = BTreeMap::new();
    let bytes = std::fs::read(log).unwrap_or_default();
    let mut rest = bytes.as_slice();
    while let Some((kind, change)) = next_record(&mut rest) {
        match kind {
            SYNC => drop(unsynced.remove(&change.path)),
            RENAME => {
                let moved = unsynced.remove(&change.path).unwrap_or_default();
                let to = String::from_utf8(change.fresh).expect("paths here are text");
                unsynced.insert(PathBuf::from(to), moved);
            }
            _ => unsynced
                .entry(change.path.clone())
                .or_default()
                .push(change),
        }
    }
    unsynced
}

/// Applies the power cut to the files below the watched folder. Answers how many changes had not
/// been synced.
pub fn cut(log: &Path, loss: Loss) -> usize {
    let unsynced = unsynced(log);
    let count = unsynced.values().map(Vec::len).sum();
    for (path, changes) in &unsynced {
        if changes.is_empty() || !path.exists() {
            continue;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        for change in changes.iter().rev() {
            file.set_len(change.old_size).unwrap();
            file.write_all_at(&change.old, change.offset).unwrap();
        }
        if let Loss::SomeSectors(seed) = loss {
            redo_some(&file, changes, seed);
        }
    }
    // The next life of the server starts with a new log, on a disk that was mended.
    for gone in [log, &log.with_file_name("fault")] {
        let _never_there = std::fs::remove_file(gone);
    }
    count
}

fn redo_some(file: &File, changes: &[Change], seed: u64) {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    for change in changes {
        if change.truncate {
            if rng.random_bool(0.5) {
                file.set_len(change.offset).unwrap();
            }
            continue;
        }
        for (index, sector) in change.fresh.chunks(SECTOR_BYTES).enumerate() {
            if rng.random_bool(0.5) {
                let at = change.offset + (index * SECTOR_BYTES) as u64;
                file.write_all_at(sector, at).unwrap();
            }
        }
    }
}

/// The next whole record; a torn one at the end is where the kill struck, before the change.
fn next_record(rest: &mut &[u8]) -> Option<(u8, Change)> {
    let mut cursor = *rest;
    let kind = take(&mut cursor, 1)?[0];
    let path_len = u16::from_le_bytes(take(&mut cursor, 2)?.try_into().ok()?);
    let path = std::str::from_utf8(take(&mut cursor, path_len.into())?).ok()?;
    let offset = u64::from_le_bytes(take(&mut cursor, 8)?.try_into().ok()?);
    let old_size = u64::from_le_bytes(take(&mut cursor, 8)?.try_into().ok()?);
    let old_len = u32::from_le_bytes(take(&mut cursor, 4)?.try_into().ok()?);
    let old = take(&mut cursor, old_len as usize)?.to_vec();
    let fresh_len = u32::from_le_bytes(take(&mut cursor, 4)?.try_into().ok()?);
    let fresh = take(&mut cursor, fresh_len as usize)?.to_vec();
    let change = Change {
        path: PathBuf::from(path),
        offset,
        old_size,
        old,
        fresh,
        truncate: kind == TRUNCATE,
    };
    *rest = cursor;
    Some((kind, change))
}

fn take<'a>(cursor: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, tail) = cursor.split_at_checked(n)?;
    *cursor = tail;
    Some(head)
}
