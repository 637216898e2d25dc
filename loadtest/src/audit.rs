//! The money audit at the end: the server's own books, checked by the server, believed by nobody
//! who has not seen `clean` and `quiet`.

use std::time::Duration;

use anyhow::Context as _;
use red_envelope_proto::v1;
use red_envelope_proto::v1::admin_service_client::AdminServiceClient;
use tokio::time::Instant;
use tonic::Status;

use crate::again::{again, told};
use crate::server::Address;

/// Between two audits while something is still in flight.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Audits until the server is quiet or `wait` is over; answers the last audit.
pub async fn audit(admin: &Address, wait: Duration) -> anyhow::Result<v1::AuditResponse> {
    let began = Instant::now();
    loop {
        let found = again(|| once(admin))
            .await
            .map_err(told)
            .context("Audit failed")?;
        if found.quiet || began.elapsed() > wait {
            return Ok(found);
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// On a connection of its own: the server may have been another process a moment ago.
async fn once(admin: &Address) -> Result<tonic::Response<v1::AuditResponse>, Status> {
    let channel = admin.connect().await;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let request = v1::AuditRequest {
        operator: "loadtest".to_owned(),
        reason: "the end of a rehearsal".to_owned(),
        ..v1::AuditRequest::default()
    };
    AdminServiceClient::new(channel).audit(request).await
}
