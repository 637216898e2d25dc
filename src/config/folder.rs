//! Claims the data folder for one process: made 0700, locked, with its keys.
//!
//! # Ordering
//! Folder, lock, keys, and only then the stores. The lock is the kernel's (flock on `lock`), so it
//! ends with the process, however that ends; the file itself stays and means nothing.
//!
//! # If it crashes here
//! A folder without `seal.key` gets one at the next start, unless a store is there already: its
//! seeds could not be opened with a new key, so that start is refused.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::keys::{KEY_FILE, Keys};
use super::{ConfigError, error};

/// Who may enter: the owner.
const FOLDER_MODE: u32 = 0o700;
/// Bits that must not be set: others' right to write into the folder.
const FOLDER_FORBIDDEN: u32 = 0o022;

const LOCK_FILE: &str = "lock";
const PORTS_FILE: &str = "ports.json";

/// The ports on which a process listens, for whoever started it on port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ports {
    /// Clients; none where they are not served.
    pub grpc: Option<u16>,
    /// Operators.
    pub admin: u16,
    /// Probes.
    pub http: u16,
}

/// The data folder, ours until this is dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder if it is missing, and locks it.
    ///
    /// # Errors
    /// It can't be made or written, others can write into it, or another process has it.
    pub fn claim(path: &Path) -> Result<Self, ConfigError> {
        let shown = path.display();
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(FOLDER_MODE);
        if let Err(why) = builder.create(path) {
            return error(format!(
                "the data folder {shown} can't be made: {why}. Name another with --data-dir"
            ));
        }
        let metadata = std::fs::metadata(path)
            .map_err(|e| ConfigError(format!("the data folder {shown} can't be read: {e}")))?;
        if metadata.mode() & FOLDER_FORBIDDEN != 0 {
            return error(format!(
                "others can write into the data folder {shown} (mode {:o}); run chmod 700 {shown}",
                metadata.mode() & 0o777
            ));
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK_FILE))
            .map_err(|e| ConfigError(format!("the data folder {shown} can't be written: {e}")))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return error(format!(
                    "the data folder {shown} is in use by another red-envelope. Stop that one, \
                     or name another folder with --data-dir"
                ));
            }
            Err(TryLockError::Error(why)) => {
                return error(format!(
                    "the data folder {shown} can't be locked: {why}. It must be on a disk whose \
                     file system has locks"
                ));
            }
        }
        let folder = Self {
            path: path.to_owned(),
            _lock: lock,
        };
        folder.forget_ports();
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The keys in `named`, which must be there, or else in the folder, where the first start makes
    /// them. `random` fills a buffer from the system's generator.
    ///
    /// # Errors
    /// The file is damaged, others can read it, or it is missing beside a store.
    pub fn keys(
        &self,
        named: Option<&Path>,
        random: impl FnMut(&mut [u8]),
    ) -> Result<Keys, ConfigError> {
        if let Some(file) = named {
            return Keys::read(file);
        }
        let file = self.path.join(KEY_FILE);
        if file.exists() {
            return Keys::read(&file);
        }
        let stores = std::fs::read_dir(&self.path)
            .map_err(|e| ConfigError(format!("{} can't be read: {e}", self.path.display())))?
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .find(|name| name.contains(".sqlite") || name.ends_with(".db"));
        if let Some(store) = stores {
            return error(format!(
                "{} is missing, but {store} is there: without the key that sealed its seeds no \
                 envelope can be published or proven. Put {KEY_FILE} back from the backup",
                file.display()
            ));
        }
        Keys::make(&file, random)
    }

    /// Tells `ports.json` on which ports we serve: written beside, then renamed, so that a reader
    /// sees all of it or nothing.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn announce(&self, ports: Ports) -> std::io::Result<()> {
        let fresh = self.path.join("ports.json.new");
        let mut file = File::create(&fresh)?;
        serde_json::to_writer(&mut file, &ports)?;
        file.write_all(b"\n")?;
        std::fs::rename(fresh, self.path.join(PORTS_FILE))
    }

    /// Takes the announcement back: nobody serves here.
    pub fn forget_ports(&self) {
        // Missing is what we want; a folder that became unreadable fails elsewhere, and louder.
        let _missing = std::fs::remove_file(self.path.join(PORTS_FILE));
    }
}
