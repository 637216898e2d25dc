//! Before the firing: the server says what it does with large envelopes, senders get their money, envelopes come to
//! be.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use red_envelope_proto::v1;
use red_envelope_proto::v1::account_service_client::AccountServiceClient;
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use red_envelope_proto::v1::info_service_client::InfoServiceClient;
use tonic::transport::Channel;

use crate::abreast;
use crate::profile::Crowd;
use crate::world::World;

/// How often an envelope above 100,000 shares, which may answer before it is live, is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Looks before the run gives up: half a minute.
const LOOKS_MAX: u32 = 600;

/// What a crowd's sender needs for all envelopes.
pub fn deposit_minor(crowd: &Crowd) -> i64 {
    crowd.total_minor() * i64::from(crowd.envelopes)
}

/// Asks, deposits and creates. Afterwards `world.ids` is filled and every envelope can be grabbed.
pub async fn prepare(world: &mut World, channel: &Channel) -> anyhow::Result<()> {
    let facts = InfoServiceClient::new(channel.clone())
        .get_service_info(v1::GetServiceInfoRequest::default())
        .await
        .context("GetServiceInfo failed")?
        .into_inner();
    let limits = facts.limits.unwrap_or_default();
    world.deals_above(limits.stripe_above_shares);
    let mut accounts = AccountServiceClient::new(channel.clone());
    for crowd in &world.profile.crowds {
        accounts
            .deposit(v1::DepositRequest {
                owner: world.sender(crowd),
                request_id: format!("{}-{}", world.run, crowd.name),
                amount: Some(v1::Money {
                    currency_code: crowd.currency.clone(),
                    minor_units: deposit_minor(crowd),
                }),
                reference: "loadtest".into(),
                ..v1::DepositRequest::default()
            })
            .await
            .with_context(|| format!("the deposit for crowd {:?} failed", crowd.name))?;
    }
    let requests = (0..world.schedule.envelopes.len()).map(|envelope| world.create(envelope));
    world.ids = abreast::all(requests, |request| {
        create(EnvelopeServiceClient::new(channel.clone()), request)
    })
    .await?;
    Ok(())
}

async fn create(
    mut client: EnvelopeServiceClient<Channel>,
    request: v1::CreateEnvelopeRequest,
) -> anyhow::Result<String> {
    let sender = request.sender.clone();
    let created = client
        .create_envelope(request)
        .await
        .with_context(|| format!("{sender} could not send an envelope"))?
        .into_inner();
    ensure!(!created.replayed, "a new request_id was called a replay");
    let mut envelope = created.envelope.context("an answer without an envelope")?;
    for _ in 0..LOOKS_MAX {
        if envelope.state() == v1::EnvelopeState::Live {
            return Ok(envelope.envelope_id);
        }
        tokio::time::sleep(LOOK_EVERY).await;
        let seen = client
            .get_envelope(v1::GetEnvelopeRequest {
                envelope_id: envelope.envelope_id.clone(),
                viewer: sender.clone(),
                ..v1::GetEnvelopeRequest::default()
            })
            .await
            .context("GetEnvelope failed")?
            .into_inner();
        envelope = seen.envelope.context("an answer without an envelope")?;
    }
    anyhow::bail!("envelope {} did not become live", envelope.envelope_id)
}
