//! The one table from what went wrong to what the caller is told: code, stable reason, retry.
//!
//! # Shape
//! Every failure of every RPC is an [`ApiError`]. [`ApiError::row`] is exhaustive: a new failure
//! does not compile until it has a code, a reason and a decision whether to retry.
//!
//! # Not here
//! Outcomes of grabs: losing is no error. What a refusal says: `domain::grab::Outcome`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt, pb};

use crate::clock::timer_now;
use crate::domain::envelope::CloseReason;
use crate::hot::HotError;
use crate::ledger::LedgerError;
use crate::publish::PublishError;
use crate::telemetry::Seldom;

/// `google.rpc.ErrorInfo.domain` of every error.
pub const ERROR_DOMAIN: &str = "redenvelope.v1";

/// A store that is away fails every call alike.
static UNANSWERED: Seldom = Seldom::new();

/// Retry soon: what stood in the way is over in the time of a few commits.
const RETRY_SOON: Duration = Duration::from_millis(50);
/// Retry when a queue has drained or a store has come back.
const RETRY_LATER: Duration = Duration::from_secs(1);
/// Retry when settlement may have caught up: it works off some 100,000 grabs a second.
const RETRY_BEHIND: Duration = Duration::from_secs(5);
/// Retry when a person may have acted.
const RETRY_MUCH_LATER: Duration = Duration::from_secs(30);

/// When to repeat the call, in milliseconds, beside the details' `RetryInfo`.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// One field that can't be served, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offence {
    /// As in the request's message: `total.minor_units`, `split.tiers.tiers[3].amount_minor`.
    pub field: Cow<'static, str>,
    /// A sentence for the person who wrote the call.
    pub says: String,
}

/// A bound of this process that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The hot store's queue.
    HotStore,
    /// The queue of ids that nobody here knows yet.
    LookUps,
    /// Envelopes or watchers of WatchEnvelope.
    Watchers,
    /// Envelopes that are being published.
    Publishes,
    /// Audits that run.
    Audits,
    /// Calls that end something.
    Closes,
    /// Grabs, before they reach the hot store.
    Grabs,
    /// Calls that bring money in or make an envelope.
    Creates,
    /// Calls that look.
    Looks,
    /// Answers that their clients have not taken.
    Untaken,
}

/// What is turned away while settlement is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// New envelopes.
    Creates,
    /// Grabs.
    Grabs,
}

/// Why a call has no answer.
#[derive(Clone, Debug)]
pub enum ApiError {
    /// These fields can't be served; nothing was written.
    Invalid(Vec<Offence>),
    /// No such envelope, or not for this caller.
    NotFound,
    /// No such dead letter.
    DeadLetterNotFound,
    /// Something may be owed by the dead letter, so it can't be dismissed.
    DeadLetterStands,
    /// The dead letter is done with already.
    DeadLetterSettled,
    /// The hot store has not granted what the dead letter says, so no amount of it is to be corrected.
    DeadLetterNotGranted,
    /// Another body under the same request id.
    RequestIdReused,
    /// The account has less than the call takes.
    InsufficientFunds {
        /// What is there.
        available_minor: i64,
        /// What the call takes.
        needed_minor: i64,
    },
    /// The account can't hold so much.
    BalanceTooLarge,
    /// The share went to somebody else, and the reserve pays no more for now.
    MakeGoodCapped,
    /// The envelope is over, and not by this call.
    AlreadyOver(CloseReason),
    /// The share was grabbed and can't be declined.
    AlreadyGrabbed,
    /// Only shares of EXCLUSIVE envelopes can be declined.
    NotExclusive,
    /// The proof is not out yet.
    NotClosed,
    /// The answer would not fit a message: ask for fewer.
    TooMuch,
    /// More than one call adds up.
    TooMany,
    /// The shares are not published yet.
    Funding,
    /// Nothing moves until an operator acts.
    Frozen,
    /// A bound is reached: too busy.
    Shed(Full),
    /// Settlement is behind: nothing new until it has caught up.
    Behind(Behind),
    /// A store is out of reach, or the outcome is unknown. The words are for the log.
    Unavailable(String),
    /// The hot store has stopped for good and the process is about to end. For the log.
    Stopped(String),
    /// The caller's time is over; the call may still take effect, once.
    Deadline,
    /// Our bug or a damaged file. The words are for the log.
    Internal(String),
}

/// What the table says of one failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// gRPC's code.
    pub code: Code,
    /// Stable, upper case.
    pub reason: &'static str,
    /// For people.
    pub message: Cow<'static, str>,
    /// When to repeat the same call. `None`: repeating it changes nothing.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// One field is wrong.
    pub fn invalid(field: impl Into<Cow<'static, str>>, says: impl Into<String>) -> Self {
        Self::Invalid(vec![Offence {
            field: field.into(),
            says: says.into(),
        }])
    }

    /// The table.
    pub fn row(&self) -> Row {
        let (code, reason, retry_after) = match self {
            Self::Invalid(_) => (Code::InvalidArgument, "INVALID_ARGUMENT", None),
            Self::NotFound => (Code::NotFound, "ENVELOPE_NOT_FOUND", None),
            Self::DeadLetterNotFound => (Code::NotFound, "DEAD_LETTER_NOT_FOUND", None),
            Self::DeadLetterStands => (Code::FailedPrecondition, "DEAD_LETTER_STANDS", None),
            Self::DeadLetterSettled => (Code::FailedPrecondition, "DEAD_LETTER_SETTLED", None),
            Self::DeadLetterNotGranted => {
                (Code::FailedPrecondition, "DEAD_LETTER_NOT_GRANTED", None)
            }
            Self::RequestIdReused => (Code::FailedPrecondition, "REQUEST_ID_REUSED", None),
            Self::InsufficientFunds { .. } => {
                (Code::FailedPrecondition, "INSUFFICIENT_FUNDS", None)
            }
            Self::BalanceTooLarge => (Code::FailedPrecondition, "BALANCE_TOO_LARGE", None),
            Self::MakeGoodCapped => (Code::FailedPrecondition, "MAKE_GOOD_CAPPED", None),
            Self::AlreadyOver(_) => (Code::FailedPrecondition, "ALREADY_OVER", None),
            Self::AlreadyGrabbed => (Code::FailedPrecondition, "ALREADY_GRABBED", None),
            Self::NotExclusive => (Code::FailedPrecondition, "NOT_EXCLUSIVE", None),
            Self::NotClosed => (Code::FailedPrecondition, "NOT_CLOSED", None),
            Self::TooMuch => (Code::ResourceExhausted, "RESPONSE_TOO_LARGE", None),
            Self::TooMany => (Code::FailedPrecondition, "TOO_MANY_SHARES", None),
            Self::Funding => (Code::Unavailable, "ENVELOPE_FUNDING", Some(RETRY_SOON)),
            Self::Frozen => (Code::Unavailable, "ENVELOPE_FROZEN", Some(RETRY_MUCH_LATER)),
            Self::Shed(_) => (Code::ResourceExhausted, "SHED", Some(RETRY_LATER)),
            Self::Behind(_) => (Code::Unavailable, "SETTLEMENT_BEHIND", Some(RETRY_BEHIND)),
            Self::Unavailable(_) => (Code::Unavailable, "STORE_UNAVAILABLE", Some(RETRY_LATER)),
            Self::Stopped(_) => (Code::Unavailable, "STORE_STOPPED", Some(RETRY_LATER)),
            Self::Deadline => (
                Code::DeadlineExceeded,
                "DEADLINE_EXCEEDED",
                Some(RETRY_SOON),
            ),
            Self::Internal(_) => (Code::Internal, "INTERNAL", None),
        };
        Row {
            code,
            reason,
            message: self.says(),
            retry_after,
        }
    }

    /// For people. Never the words that are for the log.
    fn says(&self) -> Cow<'static, str> {
        let says = match self {
            Self::Invalid(offences) => return told(offences).into(),
            Self::InsufficientFunds {
                available_minor,
                needed_minor,
            } => {
                let are = format!("{available_minor} minor units are available");
                return format!("{are}, {needed_minor} are needed").into();
            }
            Self::NotFound => "there is no such envelope for this caller",
            Self::DeadLetterNotFound => "there is no such dead letter",
            Self::DeadLetterStands => {
                "something may be owed by this dead letter: seed, terms or hot store don't contradict it"
            }
            Self::DeadLetterSettled => {
                "the dead letter was paid, or its share was by another claim"
            }
            Self::DeadLetterNotGranted => {
                "the hot store has not granted what this dead letter says: dismiss it"
            }
            Self::RequestIdReused => {
                "this request_id was used before with another request: choose a new one"
            }
            Self::BalanceTooLarge => "the account can't hold so much money",
            Self::MakeGoodCapped => {
                "the share went to somebody else, and no more is made good for now: raise ledger.make_good_max"
            }
            Self::AlreadyOver(_) => "the envelope is over already",
            Self::AlreadyGrabbed => "the share was grabbed and can no longer be declined",
            Self::NotExclusive => "only shares of EXCLUSIVE envelopes can be declined",
            Self::NotClosed => "the proof is out once the books are closed",
            Self::TooMuch => "the answer does not fit a message: ask for fewer envelopes",
            Self::TooMany => {
                "more than one call adds up: page through ListSentEnvelopes and ListReceivedShares"
            }
            Self::Funding => "the shares are being published",
            Self::Frozen => "the envelope stands still until an operator acts",
            Self::Shed(full) => full.says(),
            Self::Behind(_) => "nothing was done: money that was won before is paid first",
            Self::Unavailable(_) => "the outcome is unknown: repeat the same call to learn it",
            Self::Stopped(_) => "this server is about to restart: repeat the same call",
            Self::Deadline => "the time is over: repeat the same call to learn the outcome",
            Self::Internal(_) => "an error of the server",
        };
        says.into()
    }

    /// As a status with details. What is ours to mend is logged here, once, under an id that the
    /// caller is told instead of the words; that a store is away, seldom.
    pub fn to_status(&self) -> Status {
        let row = self.row();
        let mut metadata = HashMap::new();
        let message = match self {
            Self::Internal(words) => {
                let error_id = error_id();
                tracing::error!(error_id, error = words, "a call failed by our fault");
                let message = format!("{}; error id {error_id}", row.message);
                metadata.insert("error_id".to_owned(), error_id);
                message
            }
            Self::Unavailable(words) | Self::Stopped(words) => {
                if let Some(unsaid) = UNANSWERED.say(timer_now()) {
                    let (reason, error) = (row.reason, words);
                    tracing::warn!(reason, error, unsaid, "a call got no answer");
                }
                row.message.into_owned()
            }
            Self::AlreadyOver(reason) => {
                metadata.insert("close_reason".to_owned(), close_reason(*reason).to_owned());
                row.message.into_owned()
            }
            Self::InsufficientFunds {
                available_minor,
                needed_minor,
            } => {
                metadata.insert("available_minor".to_owned(), available_minor.to_string());
                metadata.insert("needed_minor".to_owned(), needed_minor.to_string());
                row.message.into_owned()
            }
            _ => row.message.into_owned(),
        };
        let mut details = ErrorDetails::with_error_info(row.reason, ERROR_DOMAIN, metadata);
        let retry_after = row.retry_after.map(spread);
        details.set_retry_info(retry_after);
        if let Self::Invalid(offences) = self {
            let named = |offence: &Offence| FieldViolation::new(&*offence.field, &offence.says);
            details.set_bad_request(offences.iter().map(named).collect::<Vec<_>>());
        }
        let mut status = Status::with_error_details(row.code, message, details);
        if let Some(after) = retry_after {
            // What clients obey that repeat calls by gRPC's own retry policy (gRFC A6).
            let pushback = status.metadata_mut();
            let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            pushback.insert(PUSHBACK, MetadataValue::from(ms));
        }
        status
    }

    /// As a stream carries it: the same code, message and details.
    pub fn to_message(&self) -> pb::Status {
        let status = self.to_status();
        pb::Status::decode(status.details()).expect("we encoded it a line above")
    }
}

impl Behind {
    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creates => "creates_behind",
            Self::Grabs => "grabs_behind",
        }
    }
}

impl Full {
    fn says(self) -> &'static str {
        match self {
            Self::HotStore => "too many grabs wait: try again later",
            Self::LookUps => "too many unknown envelopes are asked for: try again later",
            Self::Watchers => "too many watch: look again later, or read the envelope instead",
            Self::Publishes => "too many envelopes are being published: try again later",
            Self::Audits => "an audit is running: ask again when it has ended",
            Self::Closes => "too many calls wait: try again later",
            Self::Grabs => "this server is too busy for another grab: try again later",
            Self::Creates => "grabs come first, and there are too many: try again later",
            Self::Looks => "grabs and new envelopes come first: look again later",
            Self::Untaken => "too many answers wait to be taken: take them, then look again",
        }
    }

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::HotStore => "hot_store",
            Self::LookUps => "look_ups",
            Self::Watchers => "watchers",
            Self::Publishes => "publishes",
            Self::Audits => "audits",
            Self::Closes => "closes",
            Self::Grabs => "grabs",
            Self::Creates => "creates",
            Self::Looks => "looks",
            Self::Untaken => "untaken",
        }
    }
}

/// Names the first offence; the details name all.
fn told(offences: &[Offence]) -> String {
    match offences {
        [] => "the request can't be served".to_owned(),
        [only] => format!("{}: {}", only.field, only.says),
        [first, rest @ ..] => format!("{}: {} (and {} more)", first.field, first.says, rest.len()),
    }
}

/// `EMPTY`, `EXPIRED`, `RECALLED`.
fn close_reason(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::Empty => "EMPTY",
        CloseReason::Expired => "EXPIRED",
        CloseReason::Recalled => "RECALLED",
    }
}

/// Half to one and a half of it, so that those who were turned away together don't come back together.
fn spread(after: Duration) -> Duration {
    after.mul_f64(0.5 + rand::random::<f64>())
}

fn error_id() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// The name of a code as gRPC writes it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        error.to_status()
    }
}

impl From<HotError> for ApiError {
    fn from(error: HotError) -> Self {
        match error {
            // Whoever can look the epoch up again does so before it gets here.
            HotError::Epoch(_) | HotError::Unavailable(_) => Self::Unavailable(error.to_string()),
            HotError::Shed => Self::Shed(Full::HotStore),
            HotError::Mismatch(_) => Self::Internal(error.to_string()),
            HotError::Stopped(_) => Self::Stopped(error.to_string()),
        }
    }
}

impl From<LedgerError> for ApiError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::RequestIdReused => Self::RequestIdReused,
            LedgerError::InsufficientFunds {
                available_minor,
                needed_minor,
            } => Self::InsufficientFunds {
                available_minor,
                needed_minor,
            },
            LedgerError::BalanceTooLarge => Self::BalanceTooLarge,
            LedgerError::MakeGoodCapped => Self::MakeGoodCapped,
            LedgerError::NotFound => Self::NotFound,
            LedgerError::Frozen => Self::Frozen,
            LedgerError::AlreadyOver(reason) => Self::AlreadyOver(reason),
            // Whoever can read anew does so before it gets here.
            LedgerError::Epoch(_) | LedgerError::Unavailable(_) => {
                Self::Unavailable(error.to_string())
            }
            LedgerError::Broken(_) => Self::Internal(error.to_string()),
        }
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::NotFound => Self::NotFound,
            PublishError::Frozen => Self::Frozen,
            PublishError::Shed => Self::Shed(Full::Publishes),
            PublishError::Unavailable(_) => Self::Unavailable(error.to_string()),
            PublishError::Stopped(_) => Self::Stopped(error.to_string()),
            PublishError::Broken(_) => Self::Internal(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
