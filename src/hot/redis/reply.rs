//! What the functions answer: small integers, the same here and in `library.lua`.

use redis::Value;

use crate::hot::HotError;

macro_rules! replies {
    ($($(#[$doc:meta])+ $name:ident = $code:literal $lua:literal,)+) => {
        /// An answer's code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reply {
            $($(#[$doc])+ $name = $code,)+
        }

        impl Reply {
            /// From the wire.
            pub fn of(code: i64) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// Code and name as `library.lua` has them.
            #[cfg(test)]
            pub const TABLE: &[(&str, i64)] = &[$(($lua, $code),)+];
        }
    };
}

replies! {
    /// Done, or it was so before.
    Ok = 0 "OK",
    /// Taken by this call.
    Won = 1 "WON",
    /// Taken by an earlier call.
    AlreadyGrabbed = 2 "ALREADY_GRABBED",
    /// Every share is taken.
    Empty = 3 "EMPTY",
    /// The time is over.
    Expired = 4 "EXPIRED",
    /// The sender ended it.
    Recalled = 5 "RECALLED",
    /// Not before an instant.
    NotOpenYet = 6 "NOT_OPEN_YET",
    /// The passphrase is wrong.
    WrongPassphrase = 7 "WRONG_PASSPHRASE",
    /// The tries are used up.
    TooManyTries = 8 "TOO_MANY_TRIES",
    /// The grabber declined.
    Declined = 9 "DECLINED",
    /// Nothing sound is there: the books know more.
    Missing = 10 "MISSING",
    /// Shares are being loaded.
    Funding = 11 "FUNDING",
    /// Nothing moves.
    Frozen = 12 "FROZEN",
    /// It was last seen in an older epoch, or changed under a repair.
    Stale = 13 "STALE",
    /// Another epoch stands; 0: none.
    Epoch = 14 "EPOCH",
    /// The outbox did not take the debt, so nothing was given.
    Fault = 15 "FAULT",
    /// Not expired by the store's clock.
    NotDue = 16 "NOT_DUE",
    /// A chunk overtook the one before it.
    OutOfOrder = 17 "OUT_OF_ORDER",
    /// It was begun under other terms.
    OtherTerms = 18 "OTHER_TERMS",
    /// A share was loaded before with another amount.
    OtherAmounts = 19 "OTHER_AMOUNTS",
    /// Not everything is there yet.
    Incomplete = 20 "INCOMPLETE",
    /// What is there is not whole.
    Damaged = 21 "DAMAGED",
    /// A full envelope ends by itself.
    NotEmpty = 22 "NOT_EMPTY",
    /// The stripe has nothing to give, and others may.
    Dry = 23 "DRY",
}

/// What Redis said is none of our answers: another program's function, or a damaged reply.
pub fn nonsense(value: &Value) -> HotError {
    let mut text = format!("{value:?}");
    text.truncate(text.floor_char_boundary(200));
    HotError::Unavailable(format!(
        "Redis answered what no function of this release says: {text}"
    ))
}

/// A whole number.
pub fn number(value: &Value) -> Result<i64, HotError> {
    match value {
        Value::Int(n) => Ok(*n),
        other => Err(nonsense(other)),
    }
}

/// A byte string.
pub fn bytes(value: &Value) -> Result<&[u8], HotError> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        other => Err(nonsense(other)),
    }
}

/// The code of an array and what follows it.
pub fn split(value: Value) -> Result<(Reply, Vec<Value>), HotError> {
    let Value::Array(mut items) = value else {
        return Err(nonsense(&value));
    };
    let code = match items.first() {
        Some(Value::Int(code)) => Reply::of(*code),
        _ => None,
    };
    let code = code.ok_or_else(|| nonsense(&Value::Array(items.clone())))?;
    items.remove(0);
    Ok((code, items))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_table_of_the_library_is_this_one() {
        let source = include_str!("library.lua");
        let (_, rest) = source.split_once("local REPLY = {").unwrap();
        let (table, _) = rest.split_once('}').unwrap();
        let mut theirs: Vec<(&str, i64)> = table
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, code)| (name.trim(), code.trim().parse().unwrap()))
            .collect();
        theirs.sort_by_key(|(_, code)| *code);
        assert_eq!(theirs, Reply::TABLE);
    }
}
