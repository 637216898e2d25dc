//! An amount in minor units of a currency. No float touches money.

#![deny(clippy::float_arithmetic, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The largest amount of one request, envelope or account, in minor units. A sum of a thousand of
/// them still fits an i64, so a report cannot overflow where a single amount did not.
pub const AMOUNT_MINOR_MAX: i64 = 9_000_000_000_000_000;

/// Letters and digits of a currency code: ISO 4217 has three, declared units up to eight.
pub const CURRENCY_CODE_CHARS_MAX: usize = 8;

/// Decimals that a declared unit may have.
pub const DECIMALS_MAX: u8 = 6;

/// Why money was rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// Neither ISO 4217 nor declared.
    #[error(
        "unknown currency {0:?}: use an ISO 4217 code such as CNY, or a unit the operator declared"
    )]
    UnknownCurrency(String),
    /// Zero or negative where money must move.
    #[error("must be at least 1 minor unit, not {0}")]
    NotPositive(i64),
    /// Above [`AMOUNT_MINOR_MAX`].
    #[error("{0} minor units are more than the limit of {AMOUNT_MINOR_MAX}")]
    TooLarge(i64),
    /// Text that is no amount.
    #[error("{0:?} is no amount: write digits with at most {1} decimals, such as {2}")]
    NotAnAmount(String, u8, String),
    /// A declaration that can't be used.
    #[error("unit {0:?} can't be declared: {1}")]
    BadDeclaration(String, &'static str),
}

/// A currency code that was checked by [`Currencies`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency([u8; CURRENCY_CODE_CHARS_MAX]);

impl Currency {
    /// A code that a store wrote earlier, or one to be looked up: upper-case ASCII letters and
    /// digits only, so that it can be printed anywhere.
    pub fn from_code(code: &str) -> Option<Self> {
        let fits = (3..=CURRENCY_CODE_CHARS_MAX).contains(&code.len());
        let plain = code
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
        if !fits || !plain {
            return None;
        }
        let mut bytes = [0; CURRENCY_CODE_CHARS_MAX];
        bytes[..code.len()].copy_from_slice(code.as_bytes());
        Some(Self(bytes))
    }

    /// As in the contract.
    pub fn code(&self) -> &str {
        let end = self.0.iter().position(|b| *b == 0).unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..end]).expect("a code is ASCII by construction")
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl Serialize for Currency {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = String::deserialize(deserializer)?;
        Self::from_code(&code).ok_or_else(|| serde::de::Error::custom("not a currency code"))
    }
}

/// An amount of one currency. Signed: an entry may take money out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Money {
    /// Of which currency.
    pub currency: Currency,
    /// How many minor units.
    pub minor: i64,
}

/// Accepts an amount that is about to move: 1…[`AMOUNT_MINOR_MAX`].
///
/// # Errors
/// Zero, negative, or above the limit.
pub fn checked_amount(minor: i64) -> Result<i64, MoneyError> {
    match minor {
        ..=0 => Err(MoneyError::NotPositive(minor)),
        1..=AMOUNT_MINOR_MAX => Ok(minor),
        _ => Err(MoneyError::TooLarge(minor)),
    }
}

/// The currencies that this server accepts: ISO 4217 and what the operator declared.
#[derive(Clone, Debug, Default)]
pub struct Currencies {
    declared: BTreeMap<Currency, u8>,
}

impl Currencies {
    /// ISO 4217 and the declared units (code → decimals).
    ///
    /// # Errors
    /// A code that is not 3…8 upper-case letters and digits, that ISO 4217 has already, or with
    /// more than [`DECIMALS_MAX`] decimals.
    pub fn with_declared<'a>(
        units: impl IntoIterator<Item = (&'a str, u8)>,
    ) -> Result<Self, MoneyError> {
        let mut declared = BTreeMap::new();
        for (code, decimals) in units {
            let bad = |why| MoneyError::BadDeclaration(code.to_owned(), why);
            let currency = Currency::from_code(code)
                .ok_or_else(|| bad("the code must be 3 to 8 upper-case letters or digits"))?;
            if iso_decimals(code).is_some() {
                return Err(bad("ISO 4217 has this code already"));
            }
            if decimals > DECIMALS_MAX {
                return Err(bad("at most 6 decimals are supported"));
            }
            declared.insert(currency, decimals);
        }
        Ok(Self { declared })
    }

    /// Looks a code up.
    ///
    /// # Errors
    /// The code is unknown here.
    pub fn find(&self, code: &str) -> Result<Currency, MoneyError> {
        let unknown = || MoneyError::UnknownCurrency(code.chars().take(16).collect());
        let currency = Currency::from_code(code).ok_or_else(unknown)?;
        if iso_decimals(code).is_some() || self.declared.contains_key(&currency) {
            return Ok(currency);
        }
        Err(unknown())
    }

    /// Decimals of the minor unit: 2 for CNY, 0 for JPY, 3 for KWD. An unknown code has none.
    pub fn decimals(&self, currency: Currency) -> u8 {
        self.declared
            .get(&currency)
            .copied()
            .or_else(|| iso_decimals(currency.code()))
            .unwrap_or(0)
    }

    /// The declared units, by code.
    pub fn declared(&self) -> impl Iterator<Item = (Currency, u8)> + '_ {
        self.declared.iter().map(|(c, d)| (*c, *d))
    }
}

fn iso_decimals(code: &str) -> Option<u8> {
    let exponent = iso_currency::Currency::from_code(code)?.exponent()?;
    u8::try_from(exponent).ok()
}

/// An amount as people write it: 888 with two decimals is `8.88`.
pub fn print_amount(minor: i64, decimals: u8) -> String {
    let sign = if minor < 0 { "-" } else { "" };
    let digits = minor.unsigned_abs().to_string();
    let decimals = usize::from(decimals);
    if decimals == 0 {
        return format!("{sign}{digits}");
    }
    let padded = format!("{digits:0>width$}", width = decimals.saturating_add(1));
    let (units, rest) = padded.split_at(padded.len().saturating_sub(decimals));
    format!("{sign}{units}.{rest}")
}

/// Reads an amount as people write it: `8.88` with two decimals is 888.
///
/// # Errors
/// Signs, exponents, separators, more decimals than the currency has, or too much money.
pub fn read_amount(text: &str, decimals: u8) -> Result<i64, MoneyError> {
    let bad = || MoneyError::NotAnAmount(text.to_owned(), decimals, print_amount(888, decimals));
    let (units, rest) = text.split_once('.').unwrap_or((text, ""));
    let dangling = text.contains('.') && rest.is_empty();
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if units.is_empty() || dangling || !plain(units) || !plain(rest) {
        return Err(bad());
    }
    if rest.len() > usize::from(decimals) {
        return Err(bad());
    }
    let digits = format!("{units}{rest:0<width$}", width = usize::from(decimals));
    let minor: i64 = digits.parse().map_err(|_| MoneyError::TooLarge(i64::MAX))?;
    checked_amount(minor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn points() -> Currencies {
        Currencies::with_declared([("POINTS", 0)]).unwrap()
    }

    proptest! {
        #[test]
        fn an_amount_reads_back_as_it_was_printed(minor in 1..=AMOUNT_MINOR_MAX, decimals in 0..=DECIMALS_MAX) {
            prop_assert_eq!(read_amount(&print_amount(minor, decimals), decimals), Ok(minor));
        }

        #[test]
        fn text_that_is_no_amount_is_rejected_without_a_panic(text in "\\PC{0,30}", decimals in 0..=DECIMALS_MAX) {
            if let Ok(minor) = read_amount(&text, decimals) {
                prop_assert!((1..=AMOUNT_MINOR_MAX).contains(&minor));
            }
        }
    }

    #[test]
    fn amounts_have_the_decimals_of_their_currency() {
        let all = points();
        for (code, decimals) in [("CNY", 2), ("JPY", 0), ("KWD", 3), ("POINTS", 0)] {
            assert_eq!(all.decimals(all.find(code).unwrap()), decimals, "{code}");
        }
        assert_eq!(print_amount(888, 2), "8.88");
        assert_eq!(print_amount(5, 2), "0.05");
        assert_eq!(print_amount(-5, 3), "-0.005");
        assert_eq!(print_amount(500, 0), "500");
        assert_eq!(read_amount("8.8", 2), Ok(880));
    }

    #[test]
    fn what_is_no_amount_is_rejected_with_an_example() {
        for bad in [
            "", ".", "1.", ".5", "-1", "+1", "1e3", "1,000", "1.234", "0x1",
        ] {
            assert!(
                matches!(read_amount(bad, 2), Err(MoneyError::NotAnAmount(..))),
                "{bad:?}"
            );
        }
        assert_eq!(read_amount("0.00", 2), Err(MoneyError::NotPositive(0)));
        assert!(matches!(
            read_amount("90000000000000.01", 2),
            Err(MoneyError::TooLarge(_))
        ));
        assert!(matches!(
            read_amount("99999999999999999999", 2),
            Err(MoneyError::TooLarge(_))
        ));
    }

    #[test]
    fn only_amounts_between_one_and_the_limit_may_move() {
        assert_eq!(checked_amount(1), Ok(1));
        assert_eq!(checked_amount(AMOUNT_MINOR_MAX), Ok(AMOUNT_MINOR_MAX));
        for bad in [0, -1, i64::MIN] {
            assert_eq!(checked_amount(bad), Err(MoneyError::NotPositive(bad)));
        }
        for bad in [AMOUNT_MINOR_MAX + 1, i64::MAX] {
            assert_eq!(checked_amount(bad), Err(MoneyError::TooLarge(bad)));
        }
    }

    #[test]
    fn unknown_currencies_are_rejected_and_declared_ones_are_not() {
        let all = points();
        assert!(all.find("POINTS").is_ok());
        for bad in ["", "cny", "XYZ1", "CNYCNYCNY", "ÄÖÜ", "C\nY"] {
            assert!(
                matches!(all.find(bad), Err(MoneyError::UnknownCurrency(_))),
                "{bad:?}"
            );
        }
        assert!(Currencies::with_declared([("CNY", 2)]).is_err());
        assert!(Currencies::with_declared([("x", 2)]).is_err());
        assert!(Currencies::with_declared([("STARS", 7)]).is_err());
    }
}
