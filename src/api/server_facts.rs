//! GetServiceInfo: the level in force, limits, versions, fairness batches.
//!
//! # Not here
//! What moves with load: `/metrics`.

use red_envelope_proto::v1;

use super::Api;
use super::admission::Admission;
use super::grab_stream::IN_FLIGHT_MAX;
use super::status::ApiError;
use super::{MESSAGE_BYTES_MAX, wire};
use crate::domain::ack::AckLevel;
use crate::domain::envelope::{EXCLUSIVE_SHARES_MAX, EXPIRES_IN_MS_MAX, GREETING_BYTES_MAX};
use crate::domain::fairness::LEAVES_PER_BATCH;
use crate::domain::id::{ID_BYTES_MAX, Partition};
use crate::domain::money::AMOUNT_MINOR_MAX;
use crate::domain::split::SHARE_COUNT_MAX;
use crate::hot::VIEWS_PER_CALL_MAX;
use crate::ledger::LeafBatch;

/// Fairness batches that are listed.
pub const BATCHES_LISTED_MAX: usize = 16;

/// The RPC.
pub(super) async fn get_service_info(
    api: &Api,
    request: v1::GetServiceInfoRequest,
) -> Result<v1::GetServiceInfoResponse, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let tenant = a.admit(tenant)?;
    let batches = api.ledger.leaf_batches(tenant, BATCHES_LISTED_MAX).await?;
    let count = api.hot.partitions();
    let epoch = |partition: Partition| v1::PartitionEpoch {
        partition: u32::from(partition.index()),
        epoch: api.hot.epoch(partition).0,
    };
    let declared = api.currencies.declared();
    Ok(v1::GetServiceInfoResponse {
        version: api.version.to_owned(),
        ack_level: ack_level(api).into(),
        ack_level_declared: false,
        hot_store: api.hot.kind().to_owned(),
        ledger: api.ledger.kind().to_owned(),
        partition_count: u32::from(count.get()),
        epochs: count.all().map(epoch).collect(),
        limits: Some(limits(api)),
        declared_units: declared
            .map(|(currency, decimals)| v1::DeclaredUnit {
                code: currency.code().to_owned(),
                decimals: u32::from(decimals),
            })
            .collect(),
        fairness_batches: batches.into_iter().map(batch).collect(),
        sender_may_grab: api.sender_may_grab,
    })
}

fn ack_level(api: &Api) -> v1::AckLevel {
    match api.hot.ack_level() {
        None => v1::AckLevel::Unspecified,
        Some(AckLevel::Embedded) => v1::AckLevel::Embedded,
        Some(AckLevel::Memory) => v1::AckLevel::Memory,
        Some(AckLevel::Fsync) => v1::AckLevel::Fsync,
        Some(AckLevel::Ledger) => v1::AckLevel::Ledger,
    }
}

fn limits(api: &Api) -> v1::Limits {
    let small = |bound: usize| u32::try_from(bound).unwrap_or(u32::MAX);
    v1::Limits {
        amount_minor_max: AMOUNT_MINOR_MAX,
        share_count_max: SHARE_COUNT_MAX,
        exclusive_share_count_max: small(EXCLUSIVE_SHARES_MAX),
        greeting_bytes_max: small(GREETING_BYTES_MAX),
        person_id_bytes_max: small(ID_BYTES_MAX),
        expires_in_max: Some(wire::duration(EXPIRES_IN_MS_MAX)),
        batch_get_max: small(VIEWS_PER_CALL_MAX),
        stream_in_flight_max: small(IN_FLIGHT_MAX),
        message_bytes_max: small(MESSAGE_BYTES_MAX),
        stripe_above_shares: api.stripe_above_shares,
    }
}

fn batch(batch: LeafBatch) -> v1::FairnessBatch {
    v1::FairnessBatch {
        batch_number: batch.batch_number,
        batch_root: batch.batch_root.to_vec(),
        first_leaf_number: batch.batch_number * u64::from(LEAVES_PER_BATCH),
        leaf_count: LEAVES_PER_BATCH,
        commit_time: Some(wire::timestamp(batch.committed_at)),
    }
}
