//! What every ledger must do, asked through the door: one suite for all implementations.
//!
//! An implementation's tests open a [`World`] of their own and expand `ledger_conformance!`; the
//! books are audited after every case.

pub mod capped;
pub mod close;
pub mod corrected;
pub mod dismissed;
pub mod fund;
pub mod gather;
pub mod listings;
pub mod make_good;
#[cfg(test)]
pub mod model;
pub mod money;
pub mod operators;
pub mod partitions;
pub mod restored;
pub mod settle;
pub mod sheet;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::ManualClock;
use crate::domain::audience::Audience;
use crate::domain::books::{Discrepancy, DiscrepancyKind};
use crate::domain::envelope::{Draft, Kind, Reveal};
use crate::domain::grab::{Grant, OutboxRecord};
use crate::domain::id::{EnvelopeId, Epoch, Partition, PersonId, TenantId};
use crate::domain::money::{Currency, Money};
use crate::domain::split::Split;
use crate::domain::stripes::StripeCount;
use crate::ledger::{
    AdminAct, AuditPage, EnvelopeRow, Fund, Ledger, LedgerError, MakeGood, PAGE_ROWS_MAX, Parked,
    SETTLE_BATCH_MAX, SettleItem, Settled, Transfer, Under,
};

/// When a world begins: noon, UTC, on 2026-11-23.
pub const NOON_MS: i64 = 1_795_435_200_000;

/// Where batches of a store are read that nothing replaces.
pub const FIRST: Under = Under {
    partition: Partition::ZERO,
    epoch: Epoch::FIRST,
};

/// In these epochs of partitions, by their numbers.
pub fn unders(epochs: &[(u16, u64)]) -> Vec<Under> {
    let under = |(index, epoch): &(u16, u64)| Under {
        partition: Partition::new(*index).expect("cases name partitions that there can be"),
        epoch: Epoch(*epoch),
    };
    epochs.iter().map(under).collect()
}

/// An hour.
pub const HOUR_MS: i64 = 3_600_000;

/// Books under test, and the clock that they go by.
pub struct World {
    /// The books.
    pub ledger: Arc<dyn Ledger>,
    /// Theirs.
    pub clock: ManualClock,
}

/// The default tenant.
pub fn tenant() -> TenantId {
    TenantId::parse("").expect("an empty name means the default tenant")
}

/// Somebody.
pub fn person(name: &str) -> PersonId {
    PersonId::parse(name).expect("tests give good names")
}

/// Yuan, in fen.
pub fn cny(minor: i64) -> Money {
    Money {
        currency: Currency::from_code("CNY").expect("a code of three letters"),
        minor,
    }
}

/// A plain envelope of `share_count` shares that anyone may grab for an hour.
pub fn draft(sender: &str, total_minor: i64, share_count: u32) -> Draft {
    Draft {
        tenant: tenant(),
        sender: person(sender),
        kind: Kind::Lucky,
        currency: cny(0).currency,
        total_minor,
        share_count,
        min_minor: 1,
        max_minor: total_minor,
        split: Some(Split::DoubleMean),
        exclusive: Vec::new(),
        audience: Audience::Anyone,
        passphrase: None,
        greeting: "恭喜发财".to_owned(),
        cover_id: String::new(),
        reveal: Reveal::AfterGrab,
        labels: BTreeMap::new(),
        opens_at: None,
        expires_in_ms: HOUR_MS,
        client_nonce: b"nonce".to_vec(),
        stripes: StripeCount::ONE,
    }
}

/// A record of the outbox.
pub fn record(id: EnvelopeId, share: u32, grabber: &str, amount_minor: i64) -> OutboxRecord {
    OutboxRecord {
        envelope: id,
        grabber: person(grabber),
        grant: Grant {
            share,
            amount_minor,
            at: crate::domain::id::UnixMs(NOON_MS + 1),
        },
        declined: false,
    }
}

/// A record to be paid.
pub fn pay(id: EnvelopeId, share: u32, grabber: &str, amount_minor: i64) -> SettleItem {
    SettleItem::Pay(record(id, share, grabber, amount_minor))
}

/// A declined share.
pub fn decline(id: EnvelopeId, share: u32, grabber: &str, amount_minor: i64) -> SettleItem {
    SettleItem::Pay(OutboxRecord {
        declined: true,
        ..record(id, share, grabber, amount_minor)
    })
}

/// An operator's act.
pub fn act(name: &str, id: EnvelopeId) -> AdminAct {
    AdminAct {
        act: name.to_owned(),
        envelope: Some(id),
        operator: person("olga"),
        reason: "a test".to_owned(),
        at: crate::domain::id::UnixMs(0),
        result: "done".to_owned(),
    }
}

impl World {
    /// Brings money in.
    pub async fn deposit(&self, owner: &str, minor: i64, request_id: &str) {
        let done = self
            .ledger
            .deposit(transfer(owner, minor, request_id))
            .await;
        assert!(!done.expect("the deposit stands").replayed);
    }

    /// Funds an envelope under a request id of its own; its sender must have the money.
    pub async fn fund(&self, draft: Draft, request_id: &str) -> EnvelopeRow {
        let funded = self.ledger.fund(fund(draft, request_id)).await;
        funded.expect("the envelope is funded").envelope
    }

    /// An envelope of alice's, with the money it needs, Live.
    pub async fn live(&self, total_minor: i64, share_count: u32, request_id: &str) -> EnvelopeId {
        self.live_in(1, (total_minor, share_count), request_id)
            .await
    }

    /// The same, which lies in so many partitions.
    pub async fn live_in(
        &self,
        stripes: u16,
        (total_minor, share_count): (i64, u32),
        request_id: &str,
    ) -> EnvelopeId {
        self.deposit("alice", total_minor, request_id).await;
        let draft = Draft {
            stripes: StripeCount::new(stripes).expect("as many as there may be"),
            ..draft("alice", total_minor, share_count)
        };
        let id = self.fund(draft, request_id).await.id;
        self.ledger.mark_live(id).await.expect("it becomes Live");
        id
    }

    /// So much may be made good from now on, in CNY.
    pub fn make_good_up_to(&self, minor: i64, records_max: u32) {
        self.ledger.make_good_up_to(MakeGood {
            minor_max: [(cny(0).currency, minor)].into(),
            records_max,
        });
    }

    /// Settles a batch.
    pub async fn settle(&self, items: Vec<SettleItem>) -> Vec<Settled> {
        self.ledger
            .settle(FIRST, items)
            .await
            .expect("the batch is posted")
    }

    /// What is parked of an envelope.
    pub async fn parked(&self, id: EnvelopeId) -> Option<Parked> {
        let row = self.envelope(id).await.row;
        let rows = self.ledger.parked_of(row, i64::MIN, SETTLE_BATCH_MAX).await;
        Parked::of(row, &rows.expect("a list"))
    }

    /// Posts what is parked of envelopes that are not frozen. Answers how many records were paid or made good.
    pub async fn unparked(&self) -> usize {
        let envelopes = self.ledger.parked(i64::MIN, PAGE_ROWS_MAX).await;
        let mut paid = 0;
        for (_, id) in envelopes.expect("a list") {
            let parked = self.parked(id).await.expect("something is parked");
            let posted = self.ledger.settle_parked(parked, None).await;
            let posted = posted.expect("the batch is posted");
            let is_paid = |verdict: &&Settled| matches!(verdict, Settled::Paid | Settled::MadeGood);
            paid += posted.iter().filter(is_paid).count();
        }
        paid
    }

    /// What somebody has: (available, held).
    pub async fn has(&self, owner: &str) -> (i64, i64) {
        let asked = self.ledger.balances(tenant(), person(owner), Vec::new());
        let (rows, _) = asked.await.expect("balances are read");
        let row = rows.iter().find(|row| row.currency == cny(0).currency);
        row.map_or((0, 0), |row| (row.available_minor, row.held_minor))
    }

    /// The envelope as it stands.
    pub async fn envelope(&self, id: EnvelopeId) -> EnvelopeRow {
        let rows = self.ledger.envelopes(vec![id]).await.expect("it is read");
        rows.into_iter().flatten().next().expect("it is known")
    }

    /// Every sum in the books is what its entries say.
    pub async fn audit(&self) {
        let totals = self.ledger.audit_totals(None).await.expect("an audit");
        assert_eq!(totals.discrepancies, Vec::new());
        for sums in totals.currencies {
            let came = sums.outside_minor + sums.made_good_minor;
            assert_eq!(came, sums.available_minor + sums.escrow_minor, "{sums:?}");
        }
        let rows = self
            .ledger
            .audit_envelopes(None, AuditPage::After(0, 1_000))
            .await;
        for row in rows.expect("an audit of envelopes") {
            assert_eq!(row.contradicts, None);
            let envelope = row.envelope.as_ref().expect("a row that can be read");
            assert_eq!(row.entries_in_minor, envelope.terms.total_minor);
            let out = envelope.settled_minor + envelope.refunded_minor;
            assert_eq!(row.entries_out_minor, out, "{envelope:?}");
            assert_eq!(row.paid, (envelope.settled_count, envelope.settled_minor));
            assert_eq!(row.declined.0, envelope.declined_count);
        }
    }
}

/// What the audit says of books that somebody edited: kinds and details. It names no person; what it says of
/// the envelope in a row names that envelope.
pub async fn named(
    ledger: &dyn Ledger,
    (row_of_it, id_of_it): (i64, EnvelopeId),
) -> Vec<(DiscrepancyKind, String)> {
    let totals = ledger.audit_totals(None).await.expect("an audit");
    let mut found = totals.discrepancies;
    let rows = ledger
        .audit_envelopes(None, AuditPage::After(0, 1_000))
        .await;
    for row in rows.expect("an audit of envelopes") {
        let unread = row.envelope.err();
        let unread = unread.map(|why| format!("envelope row {} can't be read: {why}", row.row));
        found.extend(unread.or(row.contradicts).map(|detail| Discrepancy {
            kind: DiscrepancyKind::EnvelopeUnbalanced,
            tenant: None,
            envelope: row.id,
            detail,
        }));
    }
    for discrepancy in &found {
        let detail = &discrepancy.detail;
        let names = ["alice", "bob", "carol", "mallory"];
        assert!(!names.iter().any(|name| detail.contains(name)), "{detail}");
        if detail.contains(&format!("envelope row {row_of_it}")) {
            let of = discrepancy.envelope;
            assert!(of.is_none_or(|id| id == id_of_it), "{detail}");
        }
    }
    found.into_iter().map(|d| (d.kind, d.detail)).collect()
}

/// A transfer under a request id.
pub fn transfer(owner: &str, minor: i64, request_id: &str) -> Transfer {
    Transfer {
        tenant: tenant(),
        owner: person(owner),
        request_id: person(request_id),
        amount: cny(minor),
        reference: "a payment".to_owned(),
    }
}

/// A request for an envelope. Its hash is that of what tests vary.
pub fn fund(draft: Draft, request_id: &str) -> Fund {
    let mut request_hash = [0; 32];
    request_hash[..8].copy_from_slice(&draft.total_minor.to_be_bytes());
    request_hash[8..12].copy_from_slice(&draft.share_count.to_be_bytes());
    Fund {
        request_id: person(request_id),
        request_hash,
        draft,
    }
}

/// That a call was refused for want of money, with both numbers.
pub fn assert_insufficient<T: std::fmt::Debug>(
    answer: Result<T, LedgerError>,
    available: i64,
    needed: i64,
) {
    match answer {
        Err(LedgerError::InsufficientFunds {
            available_minor,
            needed_minor,
        }) => assert_eq!((available_minor, needed_minor), (available, needed)),
        other => panic!("expected insufficient funds, not {other:?}"),
    }
}

/// Expands to one test a case, each on books of its own from `$open`, a function (`async` or not) that
/// answers a [`World`] and whatever must outlive it.
#[cfg(test)]
macro_rules! ledger_conformance {
    (async $open:path) => {
        $crate::ledger::conformance::ledger_conformance! { ($open().await);
            @cases
        }
    };
    ($open:path) => {
        $crate::ledger::conformance::ledger_conformance! { ($open());
            @cases
        }
    };
    (($opened:expr); @cases) => {
        $crate::ledger::conformance::ledger_conformance! { ($opened);
            money::a_deposit_is_made_once_however_often_it_is_asked_for,
            money::a_withdrawal_is_made_once_and_never_overdraws,
            money::one_request_id_is_not_two_transfers,
            money::an_account_holds_at_most_the_limit,
            money::a_refund_always_fits_and_the_limit_binds_what_comes_from_outside,
            money::tenants_do_not_see_each_other,
            money::the_auditor_reads_the_envelopes_that_it_names,
            fund::funding_moves_the_total_from_the_sender_into_the_escrow,
            fund::funding_again_answers_the_same_envelope,
            fund::the_same_request_id_with_another_body_is_refused,
            fund::a_sender_without_the_money_funds_nothing,
            fund::a_thousand_concurrent_requests_of_one_id_make_one_debit,
            fund::into_how_many_stripes_an_envelope_is_dealt_stands_once_it_is_funded,
            fund::a_tenants_first_batch_comes_with_its_first_deposit_and_no_question_makes_one,
            fund::every_envelope_uses_the_next_leaf_of_a_published_batch,
            fund::the_id_and_the_commitment_follow_from_the_seed,
            settle::a_batch_pays_each_grabber_once,
            settle::the_same_record_again_is_a_duplicate,
            settle::a_share_or_a_grabber_with_another_claim_is_superseded,
            settle::conflicts_inside_one_batch_are_found_too,
            settle::a_declined_share_goes_back_to_the_sender,
            settle::what_cannot_be_paid_is_a_dead_letter_and_the_others_settle,
            settle::a_grabber_of_many_envelopes_is_credited_with_all_of_them,
            settle::the_best_claim_is_the_largest_with_the_lowest_number,
            settle::a_frozen_envelope_parks_until_it_is_unfrozen,
            settle::what_was_parked_is_posted_an_envelope_at_a_time_in_its_order,
            settle::a_parked_record_may_be_set_aside_and_replayed,
            settle::a_batch_over_the_limit_is_not_begun,
            close::a_close_waits_until_claims_cover_what_was_granted,
            close::the_remainder_is_refunded_to_the_last_minor_unit,
            close::one_other_epoch_of_several_refunds_nothing,
            close::a_close_forgives_what_any_of_several_partitions_lost,
            close::a_close_names_each_partition_of_its_envelope_once,
            close::the_first_reason_stands_until_the_hot_store_decides,
            close::marks_that_arrive_together_are_each_answered_by_its_own_row,
            close::a_closed_envelope_pays_nothing_more,
            close::a_dead_letter_blocks_the_close_until_it_is_replayed,
            close::the_sweeper_is_told_what_is_due_and_goes_on_above_what_is_blocked,
            close::a_proof_is_revealed_after_the_close_and_verifies,
            gather::what_is_gathered_stays_on_record_for_ever,
            gather::an_envelope_may_be_gathered_before_it_is_marked_live,
            gather::nothing_is_gathered_of_a_frozen_envelope_or_one_that_is_over,
            gather::an_envelope_of_one_stripe_is_never_gathered_and_an_unknown_one_not_found,
            gather::gathering_and_closing_at_once_both_end_and_answer_what_stands,
            operators::freezing_is_recorded_with_who_and_why,
            operators::a_frozen_envelope_neither_closes_nor_is_due,
            operators::a_dead_letter_that_is_paid_after_all_no_longer_blocks,
            operators::a_dead_letter_whose_share_another_won_blocks_until_it_is_replayed,
            operators::a_replay_pays_nobody_to_whom_the_terms_give_nothing,
            operators::a_replay_that_settled_its_letter_answers_the_same_for_ever,
            make_good::what_was_shown_and_went_to_another_is_made_good_once,
            make_good::who_has_another_share_is_made_good_the_difference_and_no_more,
            make_good::a_share_that_comes_after_all_gives_back_what_it_pays,
            make_good::every_order_of_arrival_ends_with_the_larger_amount,
            make_good::all_of_it_in_one_batch_is_the_same,
            make_good::nothing_is_made_good_against_the_plan_or_of_a_declined_share,
            capped::beyond_the_cap_a_letter_waits_for_an_operator_and_blocks_nothing,
            capped::of_a_loss_of_many_so_much_is_made_good_as_the_cap_leaves,
            capped::a_letter_that_nobody_will_make_good_is_dismissed,
            capped::the_cap_is_of_any_day_and_of_each_tenant_and_counts_records,
            make_good::a_frozen_envelope_makes_nothing_good_until_it_is_unfrozen,
            capped::a_full_account_waits_and_a_closed_envelope_does_not,
            capped::a_full_account_that_gives_back_what_it_takes_needs_no_room,
            capped::what_the_books_refuse_to_make_good_is_a_letter_that_is_replayed,
            capped::what_is_set_aside_and_then_another_s_in_one_transaction_blocks_nothing,
            capped::a_letter_of_an_envelope_that_is_closed_is_dismissed,
            make_good::the_grabber_sees_it_in_his_entries_and_the_share_is_of_another,
            dismissed::a_letter_that_can_never_be_owed_is_dismissed_and_its_envelope_closes,
            dismissed::a_letter_that_may_be_owed_is_not_dismissed,
            dismissed::a_record_that_comes_again_after_its_letter_was_dismissed_is_a_letter_again,
            corrected::a_letter_of_a_wrong_amount_is_corrected_to_what_the_seed_says,
            corrected::a_correction_pays_no_share_twice_and_nobody_beyond_the_terms,
            corrected::a_correction_that_cannot_be_paid_changes_nothing,
            corrected::what_stands_in_the_way_of_a_close_is_told_page_by_page,
            partitions::a_batch_read_under_an_older_epoch_posts_nothing,
            partitions::a_close_of_an_older_epoch_refunds_nothing,
            partitions::a_close_forgives_a_replaced_store_what_it_lost,
            partitions::an_epoch_advances_once_however_many_race_for_it,
            partitions::a_partition_that_stands_elsewhere_stays_and_the_others_advance,
            partitions::more_partitions_than_there_can_be_are_not_begun,
            partitions::the_layout_is_recorded_once,
            restored::leaves_begin_anew_in_every_tenant_and_go_on_from_there,
            restored::a_second_restore_begins_behind_the_first_and_old_proofs_still_verify,
            restored::what_was_read_before_a_restore_is_not_posted_after_it,
            restored::a_store_that_is_absurdly_far_ahead_changes_nothing,
            listings::entries_tell_the_whole_history_of_an_account,
            listings::sent_and_received_page_from_the_newest,
            listings::a_periods_totals_count_what_was_grabbed_and_funded_in_it,
            listings::pending_shares_are_those_without_a_claim,
            listings::the_postings_of_an_envelope_tell_where_its_money_went,
        }
    };
    (($opened:expr); $($file:ident :: $case:ident),+ $(,)?) => {
        $(
            #[tokio::test]
            async fn $case() {
                let (world, _outlives) = $opened;
                $crate::ledger::conformance::$file::$case(&world).await;
                world.audit().await;
            }
        )+
    };
}
#[cfg(test)]
pub(crate) use ledger_conformance;
