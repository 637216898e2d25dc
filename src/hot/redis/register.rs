//! Puts the function library on the server and registers the server for the partitions.
//!
//! # Ordering
//! The library is replaced only where the server's text is another one: a REPLACE clears the fence,
//! and until the next registration nothing is granted by anybody. One of a later revision stays: two
//! releases that run together would else replace each other's library in turn, and nobody would grant.
//!
//! # Not here
//! Which epoch: the ledger decides (`publish::registrar`).

use redis::Value;

use super::core::{Call, Core};
use super::keys::{LAYOUT, LAYOUT_KEY};
use super::reply::{self, Reply};
use crate::domain::id::{Epoch, Partition};
use crate::hot::{HotError, Standing};

/// The functions: one file, one library.
pub const LIBRARY: &str = include_str!("library.lua");
/// Its name on the server; it never changes.
const LIBRARY_NAME: &str = "redenvelope";

impl Core {
    /// Which process answers, and what epochs its data carry. Brings the library first.
    ///
    /// # Errors
    /// A Redis that other books or another count of partitions began: it is left as it is.
    pub async fn standing(&self) -> Result<Standing, HotError> {
        self.check_layout().await?;
        self.bring_library().await?;
        let mut server = redis::cmd("INFO");
        server.arg("server");
        let mut commands = vec![server];
        commands.extend(self.keys.count().all().map(|partition| {
            let mut get = redis::cmd("GET");
            get.arg(self.keys.epoch(partition));
            get
        }));
        let mut values = self.run_all(commands).await?.into_iter();
        let info = values.next().unwrap_or(Value::Nil);
        let text = String::from_utf8_lossy(reply::bytes(&info)?).into_owned();
        let run_id = text.lines().find_map(|line| line.strip_prefix("run_id:"));
        let server = run_id
            .ok_or_else(|| reply::nonsense(&info))?
            .trim()
            .to_owned();
        let epoch = |value| match value {
            Value::BulkString(text) => {
                let text = String::from_utf8(text).ok();
                text.and_then(|text| text.parse().ok()).map(Epoch)
            }
            _ => None,
        };
        let epochs = values.map(epoch).collect();
        Ok(Standing { server, epochs })
    }

    async fn bring_library(&self) -> Result<(), HotError> {
        let mut list = redis::cmd("FUNCTION");
        list.arg("LIST")
            .arg("LIBRARYNAME")
            .arg(LIBRARY_NAME)
            .arg("WITHCODE");
        let there = self.run_all(vec![list]).await?.pop().unwrap_or(Value::Nil);
        let there = text_of(&there).unwrap_or_default();
        if stays(there, LIBRARY.as_bytes()) {
            return Ok(());
        }
        let mut load = redis::cmd("FUNCTION");
        load.arg("LOAD").arg("REPLACE").arg(LIBRARY);
        self.run_all(vec![load]).await?;
        tracing::info!("the function library was put on Redis");
        Ok(())
    }

    /// Lets partitions grant under these epochs, if who was `standing` there is still who answers, with
    /// the same data: the process is asked first, so that nothing is written to another one, and both
    /// again by each call of the function.
    pub async fn register(
        &self,
        standing: &Standing,
        epochs: &[(Partition, Epoch)],
    ) -> Result<(), HotError> {
        self.claim_layout().await?;
        if self.standing().await?.server != standing.server {
            return Err(HotError::Unavailable(
                "Redis was restarted meanwhile".into(),
            ));
        }
        let calls = epochs.iter().map(|(partition, epoch)| {
            let carried = standing.epochs.get(usize::from(partition.index()));
            let carried = carried.copied().flatten().unwrap_or(Epoch(0));
            Call::writing(self, "register_2", *partition)
                .key(self.keys.outbox(*partition))
                .key(self.keys.index(*partition))
                .under(*epoch)
                .arg(standing.server.as_str())
                .number(carried.0)
        });
        let replies = self.call_all(calls.collect()).await?;
        for ((partition, epoch), (code, items)) in epochs.iter().zip(replies) {
            match code {
                Reply::Ok => {
                    self.learn(*partition, *epoch);
                }
                Reply::Epoch => {
                    let why = "Redis was restarted, emptied or registered anew meanwhile";
                    return Err(HotError::Unavailable(why.into()));
                }
                _ => {
                    let key = items.first().map_or(Ok(&[][..]), reply::bytes)?;
                    let key = String::from_utf8_lossy(key);
                    let why = format!(
                        "the key {key} in Redis is not ours: another program writes there. Give \
                         the service a Redis of its own, or remove the key"
                    );
                    return Err(HotError::Unavailable(why));
                }
            }
        }
        if self
            .keys
            .count()
            .all()
            .all(|partition| self.epoch(partition) != Epoch(0))
        {
            self.now_registered();
        }
        Ok(())
    }

    /// Records how many partitions this Redis has and for which books, or finds that it has others.
    async fn claim_layout(&self) -> Result<(), HotError> {
        // Looked for first: a full Redis refuses to be told what it knows.
        if self.check_layout().await? {
            return Ok(());
        }
        let mut set = redis::cmd("SET");
        set.arg(LAYOUT_KEY).arg(self.own_layout()).arg("NX");
        self.run_all(vec![set]).await?;
        self.check_layout().await.map(drop)
    }

    /// That this Redis is ours (true), or nobody's yet.
    async fn check_layout(&self) -> Result<bool, HotError> {
        let mut get = redis::cmd("GET");
        get.arg(LAYOUT_KEY);
        let there = self.run_all(vec![get]).await?.pop().unwrap_or(Value::Nil);
        let own = self.own_layout();
        if matches!(there, Value::Nil) {
            return Ok(false);
        }
        if reply::bytes(&there)? == own.as_bytes() {
            return Ok(true);
        }
        let recorded = String::from_utf8_lossy(reply::bytes(&there)?);
        Err(HotError::Unavailable(format!(
            "this Redis was begun with {recorded}, and this service has {own}: start with the \
             number that it was begun with (hot.partitions) and on the books whose grabs it \
             keeps, or use an empty Redis"
        )))
    }

    fn own_layout(&self) -> String {
        let count = self.keys.count().get();
        format!("layout {LAYOUT}, {count} partitions, books {}", self.books)
    }
}

/// The text of a library that stands somewhere in a reply.
fn text_of(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => bytes.starts_with(b"#!lua").then_some(bytes),
        Value::Array(items) => items.iter().find_map(text_of),
        Value::Map(pairs) => pairs.iter().find_map(|(_, item)| text_of(item)),
        _ => None,
    }
}

/// Whether a library that is there stays: of two the later one, and of two texts with one revision always the
/// same one, so that two builds don't replace each other's in turn.
fn stays(there: &[u8], ours: &[u8]) -> bool {
    (revision(there), there) >= (revision(ours), ours)
}

/// The number that a library's text gives itself; 0 where it has none.
fn revision(text: &[u8]) -> u32 {
    let mut lines = text.split(|byte| *byte == b'\n');
    let number = lines.find_map(|line| line.strip_prefix(b"--")?.strip_prefix(b" revision "));
    let number = number.and_then(|number| std::str::from_utf8(number).ok());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The revision, and the CRC-32 of the text that has it.
    const TOLD: (u32, u32) = (5, 0x554e65d1);

    #[test]
    fn of_two_libraries_one_stays_whoever_looks_first() {
        let (old, new) = (
            &b"#!lua\n-- revision 1\na"[..],
            &b"#!lua\n-- revision 2\na"[..],
        );
        let twin = &b"#!lua\n-- revision 1\nb"[..];
        for (one, other) in [(old, new), (old, twin), (b"", old)] {
            assert!(stays(other, one) && !stays(one, other));
            assert!(stays(one, one));
        }
    }

    #[test]
    fn another_text_of_the_library_has_another_revision() {
        let (number, crc) = (
            revision(LIBRARY.as_bytes()),
            crc32fast::hash(LIBRARY.as_bytes()),
        );
        assert_eq!(
            (number, crc),
            TOLD,
            "count the revision up, and note here which text has it"
        );
    }
}
