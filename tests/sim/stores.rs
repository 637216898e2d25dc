//! Both stores as the network reaches them, and the time.

use red_envelope::domain::grab::HeldShare;
use red_envelope::domain::id::{EnvelopeId, Epoch, Partition, UnixMs};

use crate::books::Books;
use crate::hot::Hot;
use crate::striped::Striped;

/// A rule that a store breaks. Those of the production are `red_envelope::rules`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// What was closed stays closed, also for a late loader.
    ClosedMark,
    /// A chunk may be loaded twice, and a live envelope stays as it is.
    IdempotentLoad,
    /// One claim a share, one a grabber.
    UniqueClaims,
    /// A number of the outbox that came back is another entry.
    Nonce,
    /// Every other stripe is halted before the first one has what is left.
    HaltedBefore,
    /// Only a first stripe that has what was left in all of them says that nothing is.
    EmptyIsWhole,
    /// A first stripe that was given what is left under other epochs is stale.
    StaleUnderOld,
    /// The first stripe grants nothing while it is read and rebuilt: it is halted before that, and who has a
    /// share in it is counted after it.
    FirstHalted,
    /// A close ends every stripe.
    CloseAll,
    /// Everybody asks at home first.
    HomeFirst,
    /// A first stripe that is over stays so, whatever who gathers knew before.
    OverStaysOver,
}

/// What survives every crash of a process.
pub struct Stores {
    /// The true time.
    pub now_ms: i64,
    /// How far the hot store's clock is off.
    pub hot_off_ms: i64,
    /// How far the ledger's is.
    pub books_off_ms: i64,
    pub hot: Hot,
    pub books: Books,
    /// Where dealt envelopes live, in histories that have them.
    pub striped: Option<Striped>,
    /// Whether who asked will hear the answer to what is done now.
    pub heard: bool,
    /// Which rule is off.
    pub off: Option<Rule>,
}

impl Stores {
    pub fn keep(&self, rule: Rule) -> bool {
        self.off != Some(rule)
    }

    pub fn striped_mut(&mut self) -> &mut Striped {
        self.striped.as_mut().expect("the history has stripes")
    }

    /// The books let a process of the store grant in a partition; `None`: another one has come after it.
    pub fn accept(&mut self, partition: Partition, life: u64) -> Option<Epoch> {
        let (epoch, news) = self.books.accept(partition, life)?;
        if news {
            let books = &self.books;
            let paid = |id: EnvelopeId, held: &HeldShare| books.has(id, held);
            let striped = self.striped.as_mut().expect("the history has stripes");
            striped.settle_losses(partition, paid);
        }
        Some(epoch)
    }

    pub fn hot_now(&self) -> UnixMs {
        UnixMs(self.now_ms + self.hot_off_ms)
    }

    pub fn books_now(&self) -> UnixMs {
        UnixMs(self.now_ms + self.books_off_ms)
    }
}
