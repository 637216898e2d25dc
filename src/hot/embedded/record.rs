//! What a batch changed, as one packed row of the log: written once, read at start.
//!
//! # Shape
//! ```text
//! row    = version u8 · nonce u64 · at i64 · change* · crc32 u32     (fixed integers: little endian)
//! change = ENVELOPE id[16]               the changes that follow are this envelope's
//!        | CREATED terms                 | LOADED offset count amount*
//!        | OPENED | OPENING_SEEN | OVER reason
//!        | TAKEN share amount person     | DECLINED share amount person
//!        | WRONG_TRY person | FROZEN | UNFROZEN | BROKEN | REMOVED
//!        | SETTLED count delta*          which older rows the ledger has
//! ```
//! Numbers are LEB128 variable-length integers, texts have their length in front. A grab of a
//! hot envelope takes 5 bytes and the grabber's name.
//!
//! # Bounds
//! A length is believed only as far as the row reaches, so a damaged row can't ask for memory.
//!
//! # Ordering
//! The checksum covers the row's number, so a row in another's place is damaged too.
//!
//! # Not here
//! Where rows are kept (`log`), what a change means (`index`).

use std::sync::Arc;

use crate::domain::envelope::{CloseReason, LOAD_CHUNK_SHARES_MAX, Terms};
use crate::domain::grab::{Grant, OutboxRecord};
use crate::domain::id::{EnvelopeId, PersonId, UnixMs};
use crate::hot::Mark;

/// The layout above. A reader that meets another one refuses.
const VERSION: u8 = 1;

const ENVELOPE: u8 = 1;
const CREATED: u8 = 2;
const LOADED: u8 = 3;
const OPENED: u8 = 4;
const OPENING_SEEN: u8 = 5;
const OVER: u8 = 6;
const TAKEN: u8 = 7;
const DECLINED: u8 = 8;
const WRONG_TRY: u8 = 9;
const FROZEN: u8 = 10;
const UNFROZEN: u8 = 11;
const REMOVED: u8 = 12;
const SETTLED: u8 = 13;
const BROKEN: u8 = 14;

/// What happened to an envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// It begins to be Funding, without shares.
    Created(Arc<Terms>),
    /// Shares were put down.
    Loaded {
        offset: u32,
        amounts_minor: Vec<i64>,
    },
    /// It is Live.
    Opened,
    /// A call saw that `opens_at` had passed.
    OpeningSeen,
    /// It is over.
    Over(CloseReason),
    /// A share was taken, or declined.
    Taken {
        grabber: PersonId,
        grant: Grant,
        declined: bool,
    },
    /// A passphrase was wrong.
    WrongTry(PersonId),
    /// The mark as it now stands.
    Frozen(Option<Mark>),
    /// It is forgotten.
    Removed,
}

/// One change to one envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub envelope: EnvelopeId,
    pub what: What,
}

/// A batch as the log keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Tells this row from another one under the same number.
    pub nonce: u64,
    /// When the batch was decided.
    pub at: UnixMs,
    /// In the order of the decisions.
    pub changes: Vec<Change>,
    /// Numbers of older rows that the ledger has, ascending.
    pub settled: Vec<u64>,
}

impl Row {
    /// The row's debts to the ledger. Leaves the row without them.
    pub fn take_records(&mut self) -> Vec<OutboxRecord> {
        let debt = |change: Change| match change.what {
            What::Taken {
                grabber,
                grant,
                declined,
            } => Some(OutboxRecord {
                envelope: change.envelope,
                grabber,
                grant,
                declined,
            }),
            _ => None,
        };
        std::mem::take(&mut self.changes)
            .into_iter()
            .filter_map(debt)
            .collect()
    }
}

/// Bytes that are no row of this release.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    /// The checksum is wrong: the bytes are not those that were written.
    #[error("the checksum is wrong")]
    Checksum,
    /// Another release wrote it.
    #[error("it was written in layout {0}, and this release reads layout {VERSION} only")]
    Version(u8),
    /// The checksum is right, but the content is not: a writer's bug.
    #[error("{0}")]
    Content(&'static str),
}

/// Packs a row under its number.
pub(super) fn encode(seq: u64, row: &Row, out: &mut Vec<u8>) {
    out.clear();
    out.push(VERSION);
    out.extend_from_slice(&row.nonce.to_le_bytes());
    out.extend_from_slice(&row.at.0.to_le_bytes());
    let mut current = None;
    for change in &row.changes {
        if current != Some(change.envelope) {
            out.push(ENVELOPE);
            out.extend_from_slice(&change.envelope.to_bytes());
            current = Some(change.envelope);
        }
        put_change(out, &change.what);
    }
    if !row.settled.is_empty() {
        out.push(SETTLED);
        put_count(out, row.settled.len());
        let mut last = 0;
        for seq in &row.settled {
            put_number(out, seq.saturating_sub(last));
            last = *seq;
        }
    }
    seal(seq, out);
}

fn put_change(out: &mut Vec<u8>, what: &What) {
    match what {
        What::Created(terms) => {
            out.push(CREATED);
            put_text(out, &terms.to_json());
        }
        What::Loaded {
            offset,
            amounts_minor,
        } => {
            out.push(LOADED);
            put_number(out, u64::from(*offset));
            put_amounts(out, amounts_minor);
        }
        What::Opened => out.push(OPENED),
        What::OpeningSeen => out.push(OPENING_SEEN),
        What::Over(reason) => out.extend_from_slice(&[OVER, reason_code(*reason)]),
        What::Taken {
            grabber,
            grant,
            declined,
        } => {
            out.push(if *declined { DECLINED } else { TAKEN });
            put_number(out, u64::from(grant.share));
            put_amount(out, grant.amount_minor);
            put_text(out, grabber.as_str());
        }
        What::WrongTry(grabber) => {
            out.push(WRONG_TRY);
            put_text(out, grabber.as_str());
        }
        What::Frozen(Some(Mark::Books)) => out.push(FROZEN),
        What::Frozen(Some(Mark::Broken)) => out.push(BROKEN),
        What::Frozen(None) => out.push(UNFROZEN),
        What::Removed => out.push(REMOVED),
    }
}

/// Unpacks a row.
///
/// # Errors
/// The bytes are not what [`encode`] wrote under this number.
pub(super) fn decode(seq: u64, bytes: &[u8]) -> Result<Row, Damage> {
    let mut rest = Reader::unseal(seq, bytes)?;
    let version = rest.byte()?;
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    let nonce = u64::from_le_bytes(rest.array()?);
    let at = UnixMs(i64::from_le_bytes(rest.array()?));
    let mut row = Row {
        nonce,
        at,
        changes: Vec::new(),
        settled: Vec::new(),
    };
    let mut current = None;
    while !rest.is_empty() {
        match rest.byte()? {
            ENVELOPE => current = Some(EnvelopeId::from_bytes(rest.array()?)),
            SETTLED => row.settled = rest.ascending()?,
            tag => {
                let envelope = current.ok_or(Damage::Content("a change without an envelope"))?;
                let what = rest.change(tag, at)?;
                row.changes.push(Change { envelope, what });
            }
        }
    }
    Ok(row)
}

/// Ends a body with the checksum over its key and itself.
pub(super) fn seal(key: u64, body: &mut Vec<u8>) {
    let crc = checksum(key, body);
    body.extend_from_slice(&crc.to_le_bytes());
}

fn checksum(key: u64, body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(body);
    crc.update(&key.to_le_bytes());
    crc.finalize()
}

pub(super) fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

pub(super) fn put_count(out: &mut Vec<u8>, count: usize) {
    put_number(out, u64::try_from(count).expect("usize is at most 64 bits"));
}

/// Amounts are at least 1 wherever the store lets them in; what is not reads back as damage.
pub(super) fn put_amount(out: &mut Vec<u8>, amount_minor: i64) {
    put_number(out, u64::try_from(amount_minor).unwrap_or(0));
}

pub(super) fn put_amounts(out: &mut Vec<u8>, amounts_minor: &[i64]) {
    put_count(out, amounts_minor.len());
    for amount in amounts_minor {
        put_amount(out, *amount);
    }
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn reason_code(reason: CloseReason) -> u8 {
    match reason {
        CloseReason::Empty => 1,
        CloseReason::Expired => 2,
        CloseReason::Recalled => 3,
    }
}

/// What is left of a body that is being read.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Checks the checksum of [`seal`] and takes it off.
    pub fn unseal(key: u64, bytes: &'a [u8]) -> Result<Self, Damage> {
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or(Damage::Checksum)?;
        if checksum(key, body) != u32::from_le_bytes(*crc) {
            return Err(Damage::Checksum);
        }
        Ok(Self(body))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> Result<u8, Damage> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(Damage::Content("it ends too early"))?;
        self.0 = rest;
        Ok(*head)
    }

    pub fn number(&mut self) -> Result<u64, Damage> {
        let mut value = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if (part << shift) >> shift != part {
                break;
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Damage::Content("a number has too many bits"))
    }

    pub fn share(&mut self) -> Result<u32, Damage> {
        u32::try_from(self.number()?).map_err(|_| Damage::Content("a share's number is too large"))
    }

    pub fn amount(&mut self) -> Result<i64, Damage> {
        match i64::try_from(self.number()?) {
            Ok(amount @ 1..) => Ok(amount),
            _ => Err(Damage::Content("an amount is not positive")),
        }
    }

    /// How many elements follow, each of at least one byte.
    pub fn count(&mut self) -> Result<usize, Damage> {
        match usize::try_from(self.number()?) {
            Ok(count) if count <= self.0.len() => Ok(count),
            _ => Err(Damage::Content("a length reaches beyond the end")),
        }
    }

    pub fn amounts(&mut self, max: usize) -> Result<Vec<i64>, Damage> {
        let count = self.count()?;
        if count > max {
            return Err(Damage::Content("too many amounts in one place"));
        }
        (0..count).map(|_| self.amount()).collect()
    }

    fn ascending(&mut self) -> Result<Vec<u64>, Damage> {
        let mut last = 0_u64;
        (0..self.count()?)
            .map(|_| {
                last = last
                    .checked_add(self.number()?)
                    .ok_or(Damage::Content("a row's number is too large"))?;
                Ok(last)
            })
            .collect()
    }

    fn text(&mut self) -> Result<&'a str, Damage> {
        let count = self.count()?;
        let (text, rest) = self.0.split_at(count);
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| Damage::Content("a text is not UTF-8"))
    }

    pub fn person(&mut self) -> Result<PersonId, Damage> {
        PersonId::parse(self.text()?).map_err(|_| Damage::Content("a grabber's name is no name"))
    }

    pub fn terms(&mut self) -> Result<Arc<Terms>, Damage> {
        let terms = Terms::from_json(self.text()?);
        terms
            .map(Arc::new)
            .map_err(|_| Damage::Content("the terms can't be read by this release"))
    }

    pub fn reason(&mut self) -> Result<CloseReason, Damage> {
        match self.byte()? {
            1 => Ok(CloseReason::Empty),
            2 => Ok(CloseReason::Expired),
            3 => Ok(CloseReason::Recalled),
            _ => Err(Damage::Content("an unknown reason of the end")),
        }
    }

    fn change(&mut self, tag: u8, at: UnixMs) -> Result<What, Damage> {
        Ok(match tag {
            CREATED => What::Created(self.terms()?),
            LOADED => What::Loaded {
                offset: self.share()?,
                amounts_minor: self.amounts(LOAD_CHUNK_SHARES_MAX)?,
            },
            OPENED => What::Opened,
            OPENING_SEEN => What::OpeningSeen,
            OVER => What::Over(self.reason()?),
            TAKEN | DECLINED => {
                let grant = Grant {
                    share: self.share()?,
                    amount_minor: self.amount()?,
                    at,
                };
                What::Taken {
                    grabber: self.person()?,
                    grant,
                    declined: tag == DECLINED,
                }
            }
            WRONG_TRY => What::WrongTry(self.person()?),
            FROZEN => What::Frozen(Some(Mark::Books)),
            BROKEN => What::Frozen(Some(Mark::Broken)),
            UNFROZEN => What::Frozen(None),
            REMOVED => What::Removed,
            _ => return Err(Damage::Content("an unknown change")),
        })
    }
}
