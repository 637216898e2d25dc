//! Rows read back as they were written, and nothing else reads as a row.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::record::{Change, Damage, Row, What, decode, encode};
use crate::domain::envelope::CloseReason;
use crate::domain::grab::Grant;
use crate::domain::id::{EnvelopeId, PersonId, UnixMs};
use crate::hot::Mark;
use crate::hot::conformance::stage::Cast;

fn names() -> impl Strategy<Value = PersonId> {
    "[a-z小明é0-9]{1,16}".prop_map(|name| PersonId::parse(&name).unwrap())
}

fn reasons() -> impl Strategy<Value = CloseReason> {
    prop_oneof![
        Just(CloseReason::Empty),
        Just(CloseReason::Expired),
        Just(CloseReason::Recalled),
    ]
}

fn whats(at: UnixMs) -> impl Strategy<Value = What> {
    let amounts = || 1..=i64::MAX;
    prop_oneof![
        Just(What::Created(
            Cast::exclusive(&[("ann", 5), ("bob", 7)]).terms
        )),
        Just(What::Created(Arc::clone(&Cast::locked(&[1]).terms))),
        (any::<u32>(), vec(amounts(), 0..20)).prop_map(|(offset, amounts_minor)| What::Loaded {
            offset,
            amounts_minor
        }),
        Just(What::Opened),
        Just(What::OpeningSeen),
        reasons().prop_map(What::Over),
        (names(), any::<u32>(), amounts(), any::<bool>()).prop_map(
            move |(grabber, share, amount_minor, declined)| What::Taken {
                grabber,
                grant: Grant {
                    share,
                    amount_minor,
                    at
                },
                declined,
            }
        ),
        names().prop_map(What::WrongTry),
        prop_oneof![
            Just(None),
            Just(Some(Mark::Books)),
            Just(Some(Mark::Broken))
        ]
        .prop_map(What::Frozen),
        Just(What::Removed),
    ]
}

fn rows() -> impl Strategy<Value = Row> {
    any::<i64>().prop_flat_map(|at| {
        let at = UnixMs(at);
        let ids = (0..3_u8).prop_map(|n| EnvelopeId::from_bytes([n; 16]));
        let change = (ids, whats(at)).prop_map(|(envelope, what)| Change { envelope, what });
        let settled = vec(any::<u64>(), 0..10).prop_map(|mut settled| {
            settled.sort_unstable();
            settled
        });
        (any::<u64>(), vec(change, 0..12), settled).prop_map(move |(nonce, changes, settled)| Row {
            nonce,
            at,
            changes,
            settled,
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_row_reads_back_as_it_was_written(row in rows(), seq: u64) {
        let mut body = Vec::new();
        encode(seq, &row, &mut body);
        prop_assert_eq!(decode(seq, &body), Ok(row));
    }

    #[test]
    fn a_row_that_is_cut_or_has_a_flipped_bit_is_damaged(row in rows(), seq: u64) {
        let mut body = Vec::new();
        encode(seq, &row, &mut body);
        for end in 0..body.len() {
            prop_assert_eq!(decode(seq, &body[..end]), Err(Damage::Checksum), "cut at {}", end);
        }
        for place in 0..body.len() {
            let mut flipped = body.clone();
            flipped[place] ^= 1 << (place % 8);
            prop_assert_eq!(decode(seq, &flipped), Err(Damage::Checksum), "flip at {}", place);
        }
        prop_assert_eq!(decode(seq.wrapping_add(1), &body), Err(Damage::Checksum));
    }

    #[test]
    fn bytes_under_a_right_checksum_never_panic(mut body in vec(any::<u8>(), 0..200), seq: u64) {
        // The layout, so that the reader goes beyond it.
        if let Some(first) = body.first_mut() {
            *first = 1;
        }
        super::super::record::seal(seq, &mut body);
        if let Ok(row) = decode(seq, &body) {
            let mut again = Vec::new();
            encode(seq, &row, &mut again);
            prop_assert_eq!(decode(seq, &again), Ok(row));
        }
    }
}

#[test]
fn a_row_of_a_later_release_is_named_as_such() {
    let mut body = vec![2; 30];
    super::super::record::seal(1, &mut body);
    assert_eq!(decode(1, &body), Err(Damage::Version(2)));
}

#[test]
fn a_grab_of_a_hot_envelope_takes_a_few_bytes_and_the_name() {
    let row = |grabs: u32| {
        let changes = (0..grabs).map(|share| Change {
            envelope: EnvelopeId::from_bytes([7; 16]),
            what: What::Taken {
                grabber: PersonId::parse(&format!("{share:020}")).unwrap(),
                grant: Grant {
                    share,
                    amount_minor: 888,
                    at: UnixMs(0),
                },
                declined: false,
            },
        });
        let row = Row {
            nonce: 1,
            at: UnixMs(0),
            changes: changes.collect(),
            settled: Vec::new(),
        };
        let mut body = Vec::new();
        encode(1, &row, &mut body);
        body.len()
    };
    let per_grab = (row(256) - row(0)) / 256;
    println!("{per_grab} bytes a grab with a name of 20 bytes");
    assert!(per_grab <= 26);
}
