//! What people have won that waits for the ledger: one look through the outboxes for all who ask meanwhile.
//!
//! # Shape
//! Who asks first has a task begin to look; who asks while it looks waits for the next look, and is one of many in it.
//! A look asks which outboxes hold something, and reads those.
//!
//! # Bounds
//! A look is for [`TOGETHER_MAX`] names. Who waits is a call, of which the server admits so many, or was one when the look that is
//! on its way began.
//!
//! # Ordering
//! A look that answers somebody began after he asked. One that fails is told to everybody who waits by then: who asked
//! later would wait for another one that fails. Nobody's call is another's: who goes away takes nothing with him.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::core::Core;
use crate::domain::grab::OutboxRecord;
use crate::domain::id::{PersonId, TenantId};
use crate::hot::{HotError, PendingShare};

/// Names of one look: Redis compares each entry of the outboxes with every one of them, which makes a page of 128 KB so many
/// times dearer.
pub const TOGETHER_MAX: usize = 16;

type Answer = Result<Vec<OutboxRecord>, HotError>;
type Asker = (PersonId, oneshot::Sender<Answer>);

/// Those who ask.
#[derive(Default)]
pub struct Asked {
    waiting: Vec<Asker>,
    /// A task looks, and does so until nobody waits.
    looks: bool,
}

/// Where the task is broken off, who waits is told so, and the next who asks begins anew.
struct Looking<'a> {
    asked: &'a Mutex<Asked>,
    is_over: bool,
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            *self.asked.lock() = Asked::default();
        }
    }
}

impl Core {
    /// What somebody has won that waits for the ledger, declined shares aside.
    pub async fn pending(
        self: &Arc<Self>,
        tenant: &TenantId,
        grabber: &PersonId,
    ) -> Result<Vec<PendingShare>, HotError> {
        let ended =
            |_| HotError::Unavailable("the look through the outboxes was broken off".into());
        let mut own = self.ask_of(grabber).await.map_err(ended)??;
        own.retain(|record| !record.declined);
        let ids: Vec<_> = own.iter().map(|record| record.envelope).collect();
        let terms = self.terms_of(&ids).await?;
        let with_terms = own.into_iter().zip(terms).filter_map(|(record, terms)| {
            let terms = terms.filter(|terms| terms.tenant == *tenant)?;
            Some(PendingShare {
                envelope: record.envelope,
                terms,
                grant: record.grant,
            })
        });
        Ok(with_terms.collect())
    }

    fn ask_of(self: &Arc<Self>, grabber: &PersonId) -> oneshot::Receiver<Answer> {
        let (answer, answered) = oneshot::channel();
        let mut asked = self.asked.lock();
        asked.waiting.push((grabber.clone(), answer));
        if !std::mem::replace(&mut asked.looks, true) {
            tokio::spawn(look_until_nobody_waits(Arc::clone(self)));
        }
        answered
    }

    async fn records_of(&self, grabbers: &[Asker]) -> Result<Vec<OutboxRecord>, HotError> {
        let needle = |name: &str| {
            let mut needle = vec![u8::try_from(name.len()).expect("ids are short")];
            needle.extend_from_slice(name.as_bytes());
            needle
        };
        // Who asks again and again is looked for once.
        let names: BTreeSet<&str> = grabbers.iter().map(|(name, _)| name.as_str()).collect();
        let needles: Vec<_> = names.into_iter().map(needle).collect();
        let owing = self.owing(self.keys.count().all().collect()).await?;
        Ok(self.find(owing.into_iter(), &needles).await?.records)
    }
}

async fn look_until_nobody_waits(core: Arc<Core>) {
    let mut looking = Looking {
        asked: &core.asked,
        is_over: false,
    };
    loop {
        let together: Vec<Asker> = {
            let mut asked = core.asked.lock();
            asked.waiting.retain(|(_, answer)| !answer.is_closed());
            let count = asked.waiting.len().min(TOGETHER_MAX);
            if count == 0 {
                // Who comes now begins a look of his own.
                asked.looks = false;
                looking.is_over = true;
                return;
            }
            asked.waiting.drain(..count).collect()
        };
        let found = core.records_of(&together).await;
        let later = match &found {
            Ok(_) => Vec::new(),
            Err(_) => std::mem::take(&mut core.asked.lock().waiting),
        };
        for (grabber, answer) in together.into_iter().chain(later) {
            let own = found.as_ref().map_err(HotError::clone).map(|records| {
                let own = records.iter().filter(|record| record.grabber == grabber);
                own.cloned().collect()
            });
            // Who went away asks again if he wants to know.
            let _ = answer.send(own);
        }
    }
}
