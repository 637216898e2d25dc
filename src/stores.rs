//! Opens both stores as the configuration names them, and keeps watch over the one across a network.
//!
//! # Shape
//! | hot store | opened | watched |
//! |---|---|---|
//! | embedded | its file in the data folder | it says when it has stopped |
//! | Redis | nothing: it may come later | the registrar, and a check of its level every [`CHECK_EVERY`] |
//!
//! # Ordering
//! The books are opened first and say whose they are: another hot store, or another number of
//! partitions, would look for the same grabs in another place, so the process does not start.
//!
//! # Not here
//! What is joined between the stores and the sockets: `lib`.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::Config;
use crate::config::folder::Folder;
use crate::config::keys::Keys;
use crate::config::stores::{BooksUrl, HotUrl};
use crate::domain::audience::Pepper;
use crate::hot::HotStore;
use crate::hot::embedded::EmbeddedStore;
use crate::hot::redis::{LAYOUT as REDIS_LAYOUT, RedisStore, Timing};
use crate::ledger::postgres::{self, OpenError, PostgresLedger};
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{Entropy, HotLayout, Ledger, MakeGood};
use crate::publish::{Registrar, RegistrarError};

/// The file of the hot store in the data folder.
const HOT_FILE: &str = "hot.sqlite";
/// The file of the ledger in the data folder.
const LEDGER_FILE: &str = "ledger.sqlite";
/// The number of the embedded store's set of rows.
const EMBEDDED_LAYOUT: u16 = 1;
/// Between two checks whether Redis keeps the level in force: a change is seen within 10 s.
pub const CHECK_EVERY: Duration = Duration::from_secs(5);
/// The same while it does not: it was told what to change, and a restart ends by itself.
const CHECK_AGAIN: Duration = Duration::from_millis(250);

/// Why the stores can't be used. The process must not start, or must end.
#[derive(Debug, thiserror::Error)]
pub enum StoresError {
    /// A store could not be opened.
    #[error("{file} can't be opened: {why}")]
    Open {
        /// The file in the data folder, or the setting.
        file: &'static str,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The books belong to another hot store than the one that is configured.
    #[error("{0}")]
    Layout(String),
    /// A setting that no store can be opened with.
    #[error("{0}")]
    Setting(String),
    /// A store has stopped for good, since memory and disk may differ.
    #[error("{0}. Nothing that was acknowledged is lost: mend the disk and start again")]
    Stopped(String),
}

/// Where the process lives: its folder, its secrets, its sources of time and chance.
pub struct Place {
    /// The data folder, locked.
    pub folder: Folder,
    /// The keys in it.
    pub keys: Keys,
    /// What both stores decide by.
    pub clock: Arc<dyn Clock>,
    /// A cryptographic generator seeded by the operating system.
    pub entropy: Entropy,
}

/// What is grabbed from.
enum Hot {
    Embedded(Arc<EmbeddedStore>),
    Redis(Arc<RedisStore>),
}

/// What keeps the books.
enum Books {
    Sqlite(Arc<SqliteLedger>),
    Postgres(Arc<PostgresLedger>),
}

impl Books {
    fn identity(&self) -> &str {
        match self {
            Self::Sqlite(ledger) => ledger.identity(),
            Self::Postgres(ledger) => ledger.identity(),
        }
    }

    fn file(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => LEDGER_FILE,
            Self::Postgres(_) => "ledger.url",
        }
    }
}

/// Both stores, opened.
pub struct Stores {
    hot: Hot,
    ledger: Books,
}

fn failed(file: &'static str, why: String) -> StoresError {
    StoresError::Open { file, why }
}

fn not_opened(error: OpenError) -> StoresError {
    match error {
        OpenError::Ledger(error) => failed("ledger.url", error.to_string()),
        // What somebody has to change before a start can succeed.
        error => StoresError::Setting(error.to_string()),
    }
}

/// Runs what reads files on a thread of its own.
async fn blocking<T: Send + 'static>(
    open: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoresError> {
    let opened = tokio::task::spawn_blocking(open).await;
    opened.map_err(|e| StoresError::Stopped(format!("the stores can't be opened: {e}")))
}

impl Stores {
    /// Opens what the configuration names. Redis may come later; PostgreSQL must be there.
    ///
    /// # Errors
    /// A file or a database that can't be opened, or books that belong to another hot store.
    pub async fn open(
        place: Place,
        config: &Config,
    ) -> Result<(Self, Folder, Pepper), StoresError> {
        let Place {
            folder,
            keys,
            clock,
            entropy,
        } = place;
        let (ledger, folder) = match &config.ledger.url {
            BooksUrl::Sqlite => {
                let path = folder.path().join(LEDGER_FILE);
                let clock = Arc::clone(&clock);
                let open = move || SqliteLedger::open(&path, clock, keys.seal, entropy);
                let ledger = blocking(open).await?;
                let ledger = ledger.map_err(|e| failed(LEDGER_FILE, e.to_string()))?;
                (Books::Sqlite(Arc::new(ledger)), folder)
            }
            BooksUrl::Postgres(url) => {
                let clock = Arc::clone(&clock);
                let opened = PostgresLedger::open(url.expose(), clock, keys.seal, entropy).await;
                let ledger = opened.map_err(not_opened)?;
                (Books::Postgres(Arc::new(ledger)), folder)
            }
        };
        let hot = match &config.hot.url {
            HotUrl::Embedded => {
                let path = folder.path().join(HOT_FILE);
                let limits = crate::hot::embedded::Limits::default();
                let opened = blocking(move || EmbeddedStore::open(&path, clock, limits)).await?;
                let hot = opened.map_err(|e| failed(HOT_FILE, e.to_string()))?;
                Hot::Embedded(Arc::new(hot))
            }
            HotUrl::Redis(url) => {
                let (asked, partitions) = (config.hot.ack.0, config.hot.partitions());
                let books = ledger.identity().to_owned();
                let timing = timing(config);
                let hot = RedisStore::new(url.expose(), asked, partitions, timing, clock, books)
                    .map_err(|e| failed("hot.url", e.to_string()))?;
                Hot::Redis(Arc::new(hot))
            }
        };
        let stores = Self { hot, ledger };
        let currencies = config.currencies();
        let minor_max = currencies.and_then(|all| config.ledger.make_good_max(&all));
        stores.ledger().make_good_up_to(MakeGood {
            minor_max: minor_max.map_err(|error| StoresError::Setting(error.to_string()))?,
            records_max: config.ledger.make_good_records_max,
        });
        stores.belong_together().await?;
        Ok((stores, folder, keys.pepper))
    }

    /// That there are books: to restore them is not to found them.
    ///
    /// # Errors
    /// There are none, or the database can't be asked.
    pub async fn expect_books(place: &Place, config: &Config) -> Result<(), StoresError> {
        let (exist, missing) = match &config.ledger.url {
            BooksUrl::Sqlite => {
                let folder = place.folder.path();
                let why = format!(
                    "there are no books in {}: restore the folder first, or name it with --data-dir",
                    folder.display()
                );
                (folder.join(LEDGER_FILE).exists(), why)
            }
            BooksUrl::Postgres(url) => {
                let found = postgres::has_books(url.expose()).await;
                let why = "there are no books in the database of ledger.url: restore it first \
                           (pg_restore), or name another one with --ledger";
                (found.map_err(not_opened)?, why.to_owned())
            }
        };
        match exist {
            true => Ok(()),
            false => Err(StoresError::Setting(missing)),
        }
    }

    /// The door to the hot store.
    pub fn hot(&self) -> Arc<dyn HotStore> {
        match &self.hot {
            Hot::Embedded(hot) => Arc::clone(hot) as _,
            Hot::Redis(hot) => Arc::clone(hot) as _,
        }
    }

    /// The door to the books.
    pub fn ledger(&self) -> Arc<dyn Ledger> {
        match &self.ledger {
            Books::Sqlite(ledger) => Arc::clone(ledger) as _,
            Books::Postgres(ledger) => Arc::clone(ledger) as _,
        }
    }

    async fn belong_together(&self) -> Result<(), StoresError> {
        let hot = self.hot();
        let layout = match &self.hot {
            Hot::Embedded(_) => EMBEDDED_LAYOUT,
            Hot::Redis(_) => REDIS_LAYOUT,
        };
        let layout = HotLayout {
            store: hot.kind().to_owned(),
            layout,
            partitions: hot.partitions().get(),
        };
        let checked = self.registrar().check_layout(layout).await;
        checked.map_err(|error| match error {
            RegistrarError::Layout(why) => StoresError::Layout(why),
            other => StoresError::Open {
                file: self.ledger.file(),
                why: other.to_string(),
            },
        })
    }

    fn registrar(&self) -> Registrar {
        Registrar::new(self.hot(), self.ledger())
    }

    /// Checks and registers the hot store once, so that a server whose stores are well is ready
    /// when it says where it listens. What is not well yet, [`Stores::watch`] goes on with.
    pub async fn greet(&self) {
        if let Hot::Redis(hot) = &self.hot {
            hot.check().await;
            if let Err(error) = self.registrar().once().await {
                tracing::warn!(%error, "the hot store grants nothing yet");
            }
        }
    }

    /// Keeps watch until `shutdown`, as long as the process serves.
    ///
    /// # Errors
    /// A store has stopped for good: the process must end.
    pub async fn watch(&self, shutdown: CancellationToken) -> Result<(), StoresError> {
        let stopped = |why| Err(StoresError::Stopped(why));
        let jitter = |max| rand::rng().random_range(0..=max);
        let registrar = self.registrar();
        tokio::select! {
            why = self.hot_stopped() => stopped(format!("the hot store has stopped: {why}")),
            why = self.ledger_stopped() => stopped(format!("the ledger has stopped: {why}")),
            ended = registrar.run(jitter, shutdown.clone()) => match ended {
                Ok(()) => Ok(()),
                Err(error) => stopped(error.to_string()),
            },
            () = self.check_again_and_again() => Ok(()),
        }
    }

    async fn hot_stopped(&self) -> String {
        match &self.hot {
            Hot::Embedded(hot) => hot.stopped().await,
            Hot::Redis(_) => std::future::pending().await,
        }
    }

    async fn ledger_stopped(&self) -> String {
        match &self.ledger {
            Books::Sqlite(ledger) => ledger.stopped().await,
            Books::Postgres(_) => std::future::pending().await,
        }
    }

    /// Whether Redis keeps the level in force; never ends.
    async fn check_again_and_again(&self) {
        let Hot::Redis(hot) = &self.hot else {
            return std::future::pending().await;
        };
        loop {
            let rest = if hot.holds() {
                CHECK_EVERY
            } else {
                CHECK_AGAIN
            };
            tokio::time::sleep(rest).await;
            hot.check().await;
        }
    }

    /// Lets the hot store end in order.
    pub async fn shutdown(&self) {
        if let Hot::Embedded(hot) = &self.hot {
            hot.shutdown().await;
        }
    }

    /// What each store in the data folder takes on disk, with its write-ahead log.
    pub fn bytes(&self, folder: &Folder) -> Vec<(&'static str, u64)> {
        let mut files = Vec::new();
        if let Books::Sqlite(_) = &self.ledger {
            files.push(("ledger", LEDGER_FILE));
        }
        if let Hot::Embedded(_) = &self.hot {
            files.push(("hot", HOT_FILE));
        }
        let files = files.into_iter();
        files
            .map(|(store, file)| (store, bytes_of(&folder.path().join(file))))
            .collect()
    }
}

fn timing(config: &Config) -> Timing {
    let ms = Duration::from_millis;
    Timing {
        response: ms(config.redis.response_timeout_ms),
        connect: ms(config.redis.connect_timeout_ms),
        unacknowledged: ms(config.redis.user_timeout_ms),
        ..Timing::default()
    }
}

/// A store's file with its write-ahead log; 0 for what can't be looked at.
fn bytes_of(file: &std::path::Path) -> u64 {
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    let size = |path: &std::path::Path| std::fs::metadata(path).map_or(0, |m| m.len());
    size(file) + size(log.as_ref())
}
