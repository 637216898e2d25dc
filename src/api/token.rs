//! Paging tokens: where a listing goes on, for the same question only.
//!
//! # Shape
//! base64url of cursor (8 bytes) ‖ the first 16 bytes of HMAC-SHA256 over method, arguments and
//! cursor, under a key that is derived from the server's pepper. A token of another method, of
//! other arguments, or one that somebody wrote is INVALID_ARGUMENT naming `page_token`.
//!
//! # Not here
//! Secrets: a cursor is a row's number, and whoever holds a token may read it.

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::admission::Admission;
use crate::domain::audience::Pepper;

const CURSOR_BYTES: usize = 8;
const SEAL_BYTES: usize = 16;
const TOKEN_BYTES: usize = CURSOR_BYTES + SEAL_BYTES;
const TOKEN_CHARS: usize = TOKEN_BYTES.div_ceil(3) * 4;

/// The row (or share number) at which the page before ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor(pub i64);

/// Writes and reads tokens.
pub struct Tokens {
    key: [u8; 32],
}

/// A question: a method and its arguments.
pub struct Page(Hmac<Sha256>);

impl Tokens {
    /// Tokens that every process with the same pepper understands, before and after a restart.
    pub fn new(pepper: &Pepper) -> Self {
        let mut mac = mac(&pepper.0);
        mac.update(b"red-envelope/page-token/1");
        Self {
            key: mac.finalize().into_bytes().into(),
        }
    }

    /// The question to which a page belongs. The page's size is none of its arguments: it may
    /// change from page to page.
    pub fn page(&self, method: &'static str, arguments: &[&str]) -> Page {
        let mut mac = mac(&self.key);
        for part in [method].iter().chain(arguments) {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        Page(mac)
    }
}

impl Page {
    /// The token under which the listing goes on.
    pub fn token(&self, cursor: Cursor) -> String {
        let mut bytes = [0; TOKEN_BYTES];
        let (head, tail) = bytes.split_at_mut(CURSOR_BYTES);
        head.copy_from_slice(&cursor.0.to_be_bytes());
        tail.copy_from_slice(&self.seal(cursor));
        BASE64URL_NOPAD.encode(&bytes)
    }

    /// Where to go on; `None`: at the beginning. A token that is not this question's offends.
    pub fn cursor(&self, a: &mut Admission, token: &str) -> Option<Cursor> {
        if token.is_empty() {
            return None;
        }
        let cursor = self.read(token);
        if cursor.is_none() {
            a.offend(
                "page_token",
                "is not from the page before of the same listing: start without one",
            );
        }
        cursor
    }

    fn read(&self, token: &str) -> Option<Cursor> {
        if token.len() != TOKEN_CHARS {
            return None;
        }
        let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).ok()?;
        let (head, tail) = bytes.split_at_checked(CURSOR_BYTES)?;
        let cursor = Cursor(i64::from_be_bytes(head.try_into().ok()?));
        bool::from(self.seal(cursor).ct_eq(tail)).then_some(cursor)
    }

    fn seal(&self, cursor: Cursor) -> [u8; SEAL_BYTES] {
        let mut mac = self.0.clone();
        mac.update(&cursor.0.to_be_bytes());
        let whole: [u8; 32] = mac.finalize().into_bytes().into();
        let mut seal = [0; SEAL_BYTES];
        seal.copy_from_slice(&whole[..SEAL_BYTES]);
        seal
    }
}

fn mac(key: &[u8; 32]) -> Hmac<Sha256> {
    Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any size")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens() -> Tokens {
        Tokens::new(&Pepper([7; 32]))
    }

    fn offends(page: &Page, token: &str) -> bool {
        let mut a = Admission::default();
        page.cursor(&mut a, token);
        !a.clean()
    }

    proptest! {
        #[test]
        fn a_token_reads_back_as_it_was_written(row: i64) {
            let page = tokens().page("ListGrabs", &["default", "abc", "bob"]);
            let mut a = Admission::default();
            prop_assert_eq!(page.cursor(&mut a, &page.token(Cursor(row))), Some(Cursor(row)));
            prop_assert!(a.clean());
        }

        #[test]
        fn text_that_is_no_token_offends_without_a_panic(text in "\\PC{1,60}") {
            prop_assert!(offends(&tokens().page("ListGrabs", &[]), &text));
        }

        #[test]
        fn a_token_with_another_bit_offends(row: i64, byte in 0..TOKEN_BYTES, bit in 0..8_u32) {
            let page = tokens().page("ListGrabs", &["a"]);
            let mut bytes = BASE64URL_NOPAD.decode(page.token(Cursor(row)).as_bytes()).unwrap();
            bytes[byte] ^= 1 << bit;
            prop_assert!(offends(&page, &BASE64URL_NOPAD.encode(&bytes)));
        }
    }

    #[test]
    fn a_token_belongs_to_its_method_and_arguments_and_server() {
        let token = tokens().page("ListGrabs", &["ab", "c"]).token(Cursor(5));
        assert!(!offends(&tokens().page("ListGrabs", &["ab", "c"]), &token));
        assert!(offends(&tokens().page("ListEntries", &["ab", "c"]), &token));
        assert!(offends(&tokens().page("ListGrabs", &["a", "bc"]), &token));
        assert!(offends(&tokens().page("ListGrabs", &["ab"]), &token));
        let other = Tokens::new(&Pepper([8; 32]));
        assert!(offends(&other.page("ListGrabs", &["ab", "c"]), &token));
    }
}
