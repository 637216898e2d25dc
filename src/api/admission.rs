//! Checks what a request says before anything is looked up, and collects all that is wrong.
//!
//! # Shape
//! An [`Admission`] is opened for a request; each field passes through one of its checks, which
//! answers a value that is safe to go on with and remembers what was wrong. [`Admission::close`]
//! answers INVALID_ARGUMENT with every offence, so that a caller mends a request in one go.
//!
//! # Bounds
//! [`OFFENCES_MAX`] offences are remembered: a request of 1,000 bad shares is answered by as many
//! as a person reads.
//!
//! # Not here
//! The rules of a new envelope: `draft`. What the stores know: an id that looks right may be
//! unknown.

use std::borrow::Cow;

use super::status::{ApiError, Offence};
use crate::domain::id::{EnvelopeId, PersonId, TenantId};
use crate::domain::money::{Currencies, Currency, checked_amount};

/// Offences of one request that are told. A status travels in HTTP/2 headers, which peers bound at
/// 16 KiB (8 KiB for grpc-java): 32 offences of about 120 bytes are 4 KiB, 6 KiB in base64.
pub const OFFENCES_MAX: usize = 32;

/// What is wrong with one request.
#[derive(Debug, Default)]
pub struct Admission {
    offences: Vec<Offence>,
    /// Wrong now, and perhaps not when the same request first came.
    by_now: Vec<Offence>,
}

impl Admission {
    /// Remembers that a field is wrong.
    pub fn offend(&mut self, field: impl Into<Cow<'static, str>>, says: impl Into<String>) {
        if self.offences.len() < OFFENCES_MAX {
            self.offences.push(Offence {
                field: field.into(),
                says: says.into(),
            });
        }
    }

    /// Remembers what is wrong by now: it hangs on the hour or on what this server accepts, so the
    /// same request may have been served before.
    pub fn offend_by_now(&mut self, field: impl Into<Cow<'static, str>>, says: impl Into<String>) {
        if self.by_now.len() < OFFENCES_MAX {
            self.by_now.push(Offence {
                field: field.into(),
                says: says.into(),
            });
        }
    }

    /// Whether nothing was wrong so far.
    #[cfg(test)]
    pub fn clean(&self) -> bool {
        self.offences.is_empty() && self.by_now.is_empty()
    }

    /// Ends the checks.
    ///
    /// # Errors
    /// Everything that was wrong.
    pub fn close(mut self) -> Result<(), ApiError> {
        self.offences.append(&mut self.by_now);
        self.offences.truncate(OFFENCES_MAX);
        if self.offences.is_empty() {
            return Ok(());
        }
        Err(ApiError::Invalid(self.offences))
    }

    /// As [`Admission::admit`], but for what is wrong by now: that is answered too, and a request
    /// that was served before passes in spite of it.
    ///
    /// # Errors
    /// Everything that was wrong, if something was wrong at any time.
    pub fn admit_before_now<T>(mut self, made: Option<T>) -> Result<(T, Vec<Offence>), ApiError> {
        let mut by_now = Vec::new();
        if self.offences.is_empty() {
            by_now.append(&mut self.by_now);
        }
        Ok((self.admit(made)?, by_now))
    }

    /// As [`Admission::close`], with what the checks made of the request. A check that failed left
    /// `None` and an offence.
    ///
    /// # Errors
    /// Everything that was wrong.
    pub fn admit<T>(self, made: Option<T>) -> Result<T, ApiError> {
        self.close()?;
        made.ok_or_else(|| ApiError::Internal("a check failed without an offence".into()))
    }

    /// A tenant; empty is the default one.
    pub fn tenant(&mut self, text: &str) -> Option<TenantId> {
        match TenantId::parse(text) {
            Ok(tenant) => Some(tenant),
            Err(error) => {
                self.offend("tenant", error.to_string());
                None
            }
        }
    }

    /// A tenant to narrow a listing; empty is no tenant in particular.
    pub fn tenant_or_all(&mut self, text: &str) -> Option<Option<TenantId>> {
        if text.is_empty() {
            return Some(None);
        }
        self.tenant(text).map(Some)
    }

    /// A person, a group, or a request's id.
    pub fn name(&mut self, field: impl Into<Cow<'static, str>>, text: &str) -> Option<PersonId> {
        match PersonId::parse(text) {
            Ok(person) => Some(person),
            Err(error) => {
                self.offend(field, error.to_string());
                None
            }
        }
    }

    /// An envelope's id.
    pub fn envelope(
        &mut self,
        field: impl Into<Cow<'static, str>>,
        text: &str,
    ) -> Option<EnvelopeId> {
        match text.parse() {
            Ok(id) => Some(id),
            Err(error) => {
                let error: crate::domain::id::IdError = error;
                self.offend(field, error.to_string());
                None
            }
        }
    }

    /// The group through which a caller comes, if any, and the ticket that nobody may send yet.
    pub fn group(&mut self, group_id: &str, group_ticket: &[u8]) {
        if !group_id.is_empty() {
            let _ = self.name("group_id", group_id);
        }
        if !group_ticket.is_empty() {
            self.offend("group_ticket", "is reserved and must be empty");
        }
    }

    /// A currency code.
    pub fn currency(
        &mut self,
        field: impl Into<Cow<'static, str>>,
        code: &str,
        currencies: &Currencies,
    ) -> Option<Currency> {
        match currencies.find(code) {
            Ok(currency) => Some(currency),
            Err(error) => match Currency::from_code(code) {
                // A unit that an operator declared, and no longer does.
                Some(currency) => {
                    self.offend_by_now(field, error.to_string());
                    Some(currency)
                }
                None => {
                    self.offend(field, error.to_string());
                    None
                }
            },
        }
    }

    /// An amount that is about to move.
    pub fn amount(&mut self, field: impl Into<Cow<'static, str>>, minor: i64) -> Option<i64> {
        match checked_amount(minor) {
            Ok(minor) => Some(minor),
            Err(error) => {
                self.offend(field, error.to_string());
                None
            }
        }
    }

    /// Text of at most so many bytes, without characters that a terminal or a log obeys.
    pub fn text(&mut self, field: impl Into<Cow<'static, str>>, text: &str, bytes_max: usize) {
        if text.len() > bytes_max {
            let bytes = text.len();
            self.offend(
                field,
                format!("is {bytes} bytes long; at most {bytes_max} are allowed"),
            );
        } else if text.chars().any(unprintable) {
            self.offend(
                field,
                "may not hold control or bidirectional formatting characters",
            );
        }
    }

    /// A page's size: 0 is the usual one, more than the greatest is cut to it.
    pub fn page_size(&mut self, asked: i32, usual: usize, greatest: usize) -> usize {
        match usize::try_from(asked) {
            Ok(0) => usual,
            Ok(size) => size.min(greatest),
            Err(_) => {
                self.offend("page_size", format!("must not be negative, not {asked}"));
                usual
            }
        }
    }
}

/// Control characters, and the formatting characters that turn the reading direction around: with
/// them a greeting could show an amount that is not there.
pub fn unprintable(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}'
                | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let mut admission = Admission::default();
        assert_eq!(admission.tenant("NO"), None);
        assert_eq!(admission.name("grabber", ""), None);
        assert_eq!(admission.envelope("envelope_id", "short"), None);
        admission.group("a\nb", b"x");
        assert_eq!(admission.amount("amount.minor_units", -1), None);
        assert_eq!(admission.page_size(-5, 100, 1_000), 100);
        let Err(ApiError::Invalid(offences)) = admission.close() else {
            panic!("nothing was wrong");
        };
        let fields: Vec<_> = offences.iter().map(|o| o.field.as_ref()).collect();
        assert_eq!(
            fields,
            [
                "tenant",
                "grabber",
                "envelope_id",
                "group_id",
                "group_ticket",
                "amount.minor_units",
                "page_size"
            ]
        );
    }

    #[test]
    fn a_page_has_a_usual_and_a_greatest_size() {
        let mut admission = Admission::default();
        assert_eq!(admission.page_size(0, 100, 1_000), 100);
        assert_eq!(admission.page_size(7, 100, 1_000), 7);
        assert_eq!(admission.page_size(i32::MAX, 100, 1_000), 1_000);
        assert!(admission.clean());
    }

    #[test]
    fn text_that_a_terminal_obeys_is_rejected() {
        for bad in [
            "a\u{202e}b",
            "a\u{0}",
            "a\nb",
            "\u{1b}[2J",
            "\u{2066}x",
            "\u{200f}",
        ] {
            let mut admission = Admission::default();
            admission.text("greeting", bad, 128);
            assert!(!admission.clean(), "{bad:?}");
        }
        let mut admission = Admission::default();
        admission.text("greeting", "恭喜发财 🧧 مبروك", 128);
        assert!(admission.clean());
    }

    #[test]
    fn offences_are_bounded() {
        let mut admission = Admission::default();
        for _ in 0..1_000 {
            admission.offend("f", "no");
        }
        let Err(ApiError::Invalid(offences)) = admission.close() else {
            panic!("nothing was wrong");
        };
        assert_eq!(offences.len(), OFFENCES_MAX);
    }
}
