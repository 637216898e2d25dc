//! Opens the books, and starts what posts together.

use super::*;

impl PostgresLedger {
    /// Opens or founds the books in the database at `url`, whose schema is brought up to date. `rng`
    /// makes the secrets of seed leaves: it must be a cryptographic generator seeded by the operating
    /// system.
    ///
    /// # Errors
    /// The server is out of reach, too old or forgetful; the schema is of a later release; the books
    /// are sealed with other keys.
    pub async fn open(
        url: &str,
        clock: Arc<dyn Clock>,
        keys: SealKeys,
        rng: Entropy,
    ) -> Result<Self, OpenError> {
        let pool = open::pool(url)?;
        let desk = Desk {
            clock,
            keys,
            rng: Mutex::new(rng),
            known: Known::new(),
            secrets: Secrets::new(),
            make_good: RwLock::default(),
        };
        let mut client = open::connect(&pool).await?;
        open::migrate_on(&mut client).await?;
        drop(client);
        // A connection that has prepared nothing against the schema as it was.
        let mut client = pool.get().await.map_err(Fault::from)?;
        let identity = open::found(&mut client, &desk).await?;
        drop(client);
        let books = Arc::new(Books {
            pool,
            desk,
            trouble: Mutex::default(),
            forgetful: Mutex::default(),
        });
        Ok(Self {
            funds: Together::start(Arc::clone(&books)),
            marks: Together::start(Arc::clone(&books)),
            settlements: Settlements::start(&books),
            books,
            identity,
        })
    }

    /// Which books these are, as 32 hexadecimal digits: a copy or a backup has the same, books that
    /// were founded anew have others.
    pub fn identity(&self) -> &str {
        &self.identity
    }
}
