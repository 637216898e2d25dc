//! What every hot store must do, whatever it is made of: the cases are written against the door.
//!
//! # Shape
//! `hot_conformance!(stage)` makes a test of each case; `stage` is an expression that sets up a
//! [`Stage`](stage::Stage). After each step that matters the stage is asked to crash, since an
//! answer that a crash undoes was never durable.
//!
//! # Not here
//! What only one store can do wrong: torn files, replication.

pub mod ends;
pub mod grabs;
pub mod model;
pub mod stage;
#[cfg(test)]
pub mod world;

/// Makes a test of every case.
#[cfg(test)]
macro_rules! hot_conformance {
    ($stage:expr) => {
        $crate::hot::conformance::hot_conformance! { $stage;
            grabs:
            grabs_of_one_call_are_answered_in_their_order_with_duplicates_and_the_last_share,
            a_repeated_grab_is_answered_with_the_first_share_for_ever,
            ten_thousand_grabbers_share_a_hundred_shares_and_nobody_gets_two,
            a_thousand_calls_of_one_grabber_take_one_share,
            a_chunk_may_be_loaded_twice_and_only_the_whole_envelope_opens,
            wrong_shares_are_refused_and_nothing_is_published,
            every_function_refuses_another_epoch,
            an_envelope_of_another_tenant_is_missing,
            an_exclusive_share_goes_to_its_name_or_back_to_the_sender,
            an_envelope_opens_once_even_if_the_clock_steps_back,
            wrong_passphrases_are_counted_for_ever;
            ends:
            an_envelope_expires_once_even_if_the_clock_steps_back,
            a_close_before_expiry_is_not_due,
            the_first_reason_of_the_end_stands,
            a_tombstone_stops_a_late_loader,
            a_frozen_envelope_stands_still_until_it_is_unfrozen,
            the_best_share_shows_at_the_end_and_ties_go_to_the_lowest_number,
            the_outbox_keeps_a_debt_until_it_is_settled_by_id_and_nonce,
            the_watermark_stops_before_the_first_unsettled_entry,
            only_what_is_over_and_settled_is_removed,
            what_somebody_won_is_pending_until_it_is_settled,
            a_walk_tells_what_was_granted_when_each_page_was_asked_for,
            envelopes_are_listed_by_pages_in_order,
        }
    };
    ($stage:expr; grabs: $($grabs:ident),+; ends: $($ends:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $grabs() {
                let mut stage = $stage;
                $crate::hot::conformance::grabs::$grabs(&mut stage).await;
            }
        )+
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $ends() {
                let mut stage = $stage;
                $crate::hot::conformance::ends::$ends(&mut stage).await;
            }
        )+
    };
}

#[cfg(test)]
pub(crate) use hot_conformance;
