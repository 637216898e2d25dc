//! The server's secrets: the keys that seal seeds, and the pepper of passphrases.
//!
//! # Shape
//! ```text
//! red-envelope keys 1
//! seal 1 64-hex-digits
//! pepper 64-hex-digits
//! ```
//! One `seal` line a key, its number before it: the highest seals, all open. To rotate, add a line
//! with the next number and restart. The pepper can't change while locked envelopes live.
//!
//! # Bounds
//! A file of at most [`KEY_FILE_BYTES_MAX`].

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use zeroize::Zeroizing;

use super::{ConfigError, error};
use crate::domain::audience::Pepper;
use crate::domain::fairness::{SEAL_KEYS_MAX, SealKey, SealKeys};

/// The file's name in the data folder.
pub(super) const KEY_FILE: &str = "seal.key";

/// 64 keys of 80 bytes are 5 KB.
pub const KEY_FILE_BYTES_MAX: u64 = 16 << 10;

const FIRST_LINE: &str = "red-envelope keys 1";
const KEY_BYTES: usize = 32;
/// Bits that must not be set: anybody else's rights.
const FORBIDDEN: u32 = 0o077;

/// What the file holds.
pub struct Keys {
    /// What seals and opens seeds.
    pub seal: SealKeys,
    /// The server's part of passphrase locks.
    pub pepper: Pepper,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// Makes the file, with mode 0600 from its first byte, synced with its folder before any seed
    /// is sealed under it.
    pub(super) fn make(
        file: &Path,
        mut random: impl FnMut(&mut [u8]),
    ) -> Result<Self, ConfigError> {
        let mut secret = Zeroizing::new([0; 2 * KEY_BYTES]);
        random(secret.as_mut_slice());
        let (seal, pepper) = secret.split_at(KEY_BYTES);
        let text = Zeroizing::new(format!(
            "{FIRST_LINE}\nseal 1 {}\npepper {}\n",
            HEXLOWER.encode(seal),
            HEXLOWER.encode(pepper)
        ));
        let fresh = file.with_extension("key.new");
        write_synced(&fresh, &text)
            .and_then(|()| std::fs::rename(&fresh, file))
            .and_then(|()| match file.parent() {
                Some(folder) => File::open(folder)?.sync_all(),
                None => Ok(()),
            })
            .map_err(|e| ConfigError(format!("{} can't be written: {e}", file.display())))?;
        Self::read(file)
    }

    /// Reads the file.
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let shown = path.display();
        let unreadable = |e: std::io::Error| ConfigError(format!("{shown} can't be read: {e}"));
        let mut file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.mode() & FORBIDDEN != 0 {
            return error(format!(
                "others can read {shown} (mode {:o}): run chmod 600 {shown}, and if others may \
                 have read it, add a new seal line",
                metadata.mode() & 0o777
            ));
        }
        if metadata.len() > KEY_FILE_BYTES_MAX {
            return error(format!("{shown} is larger than {KEY_FILE_BYTES_MAX} bytes"));
        }
        let mut text = Zeroizing::new(String::new());
        file.read_to_string(&mut text).map_err(unreadable)?;
        parse(&text).map_err(|why| ConfigError(format!("{shown}: {why}")))
    }
}

fn write_synced(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Errors name lines, never what is in them.
fn parse(text: &str) -> Result<Keys, String> {
    let mut lines = text.lines().enumerate();
    if lines.next().map(|(_, line)| line.trim_end()) != Some(FIRST_LINE) {
        return Err(format!("the first line must be {FIRST_LINE:?}"));
    }
    let mut seal = Vec::new();
    let mut pepper = None;
    for (index, line) in lines {
        let bad = |why: &str| format!("line {}: {why}", index + 1);
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            [word, ..] if word.starts_with('#') => {}
            ["seal", number, key] => {
                let number = number
                    .parse()
                    .map_err(|_| bad("the key's number is no number"))?;
                if seal.len() == SEAL_KEYS_MAX {
                    return Err(bad("there are too many seal keys"));
                }
                seal.push(SealKey::new(number, *secret(key).map_err(bad)?));
            }
            ["pepper", key] if pepper.is_none() => {
                pepper = Some(Pepper(*secret(key).map_err(bad)?));
            }
            _ => return Err(bad("expected `seal NUMBER KEY` or one `pepper KEY`")),
        }
    }
    let seal = SealKeys::new(seal).map_err(|e| e.to_string())?;
    let pepper = pepper.ok_or("there is no pepper line")?;
    Ok(Keys { seal, pepper })
}

fn secret(digits: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, &'static str> {
    let bytes = HEXLOWER_PERMISSIVE
        .decode(digits.as_bytes())
        .map(Zeroizing::new)
        .map_err(|_| "the key is not hexadecimal")?;
    let key = <[u8; KEY_BYTES]>::try_from(bytes.as_slice());
    key.map(Zeroizing::new)
        .map_err(|_| "the key is not 64 hexadecimal digits")
}
