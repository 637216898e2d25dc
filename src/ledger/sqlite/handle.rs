//! Opens the books, and hands work to who writes and to those who read.

use super::*;

impl SqliteLedger {
    /// Opens or founds the books at `path`. `rng` makes the secrets of seed leaves: it must be a
    /// cryptographic generator seeded by the operating system.
    ///
    /// # Errors
    /// The file is not ours, of a later release, of another number of partitions, sealed with
    /// other keys, or can't be used.
    pub fn open(
        path: &Path,
        clock: Arc<dyn Clock>,
        keys: SealKeys,
        mut rng: Entropy,
    ) -> Result<Self, OpenError> {
        let keys = Arc::new(keys);
        let db = open::writing(path, PartitionCount::ONE, clock.now())?;
        open::check_keys(&db, &keys)?;
        commit_first(&db, clock.now(), &keys, &mut rng)?;
        let identity = open::identity(&db)?;
        let readers = Readers::open(path)?;
        let writer = Writer::start(db, Arc::clone(&clock), Arc::clone(&keys), rng)?;
        Ok(Self {
            clock,
            keys,
            identity,
            make_good: Arc::default(),
            readers,
            writer,
        })
    }

    /// Which books these are, as 32 hexadecimal digits: a copy or a backup has the same, books that
    /// were founded anew have others.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Waits until the writer has stopped by itself, and says why. The process must end then.
    pub async fn stopped(&self) -> String {
        self.writer.stopped().await
    }

    pub(super) fn cap(&self) -> MakeGood {
        self.make_good.read().clone()
    }

    pub(super) async fn write<T, F>(&self, work: F) -> Result<T, LedgerError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Books<'_>) -> Result<T, LedgerError> + Send + 'static,
    {
        self.writer.call(CALL_COST, work).await
    }

    pub(super) async fn read<T, F>(&self, work: F) -> Result<T, LedgerError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, LedgerError> + Send + 'static,
    {
        self.readers.read(work).await
    }
}
