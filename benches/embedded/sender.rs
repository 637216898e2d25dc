//! Who brings in money and sends envelopes, before the clock runs.

use anyhow::Context as _;
use red_envelope_proto::v1;
use red_envelope_proto::v1::account_service_client::AccountServiceClient;
use red_envelope_proto::v1::create_envelope_request::Amount;
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use tonic::transport::Channel;

use crate::server::ServerProcess;

/// Brings in what a sender needs.
pub async fn deposit(
    server: &ServerProcess,
    sender: &str,
    request_id: String,
    minor_units: i64,
) -> anyhow::Result<()> {
    let request = v1::DepositRequest {
        owner: sender.to_owned(),
        request_id,
        amount: Some(cny(minor_units)),
        ..v1::DepositRequest::default()
    };
    let mut accounts = AccountServiceClient::new(server.connect().await?);
    accounts.deposit(request).await.context("Deposit failed")?;
    Ok(())
}

/// Sends a LUCKY envelope. A large one may not be live yet.
pub async fn send(
    envelopes: &mut EnvelopeServiceClient<Channel>,
    sender: &str,
    request_id: String,
    share_count: u32,
    total_minor: i64,
) -> anyhow::Result<v1::Envelope> {
    let request = v1::CreateEnvelopeRequest {
        sender: sender.to_owned(),
        request_id,
        kind: v1::EnvelopeKind::Lucky.into(),
        amount: Some(Amount::Total(cny(total_minor))),
        share_count,
        ..v1::CreateEnvelopeRequest::default()
    };
    let created = envelopes.create_envelope(request).await;
    let created = created.context("CreateEnvelope failed")?.into_inner();
    created.envelope.context("an answer without an envelope")
}

fn cny(minor_units: i64) -> v1::Money {
    v1::Money {
        currency_code: "CNY".to_owned(),
        minor_units,
    }
}
