//! The money audit at the end: the server's own books, checked by the server, believed by nobody
//! who has not seen `clean` and `quiet`.

use std::time::Duration;

use anyhow::Context as _;
use red_envelope_proto::v1;
use red_envelope_proto::v1::admin_service_client::AdminServiceClient;
use tokio::time::Instant;

use crate::server::Address;

/// Between two audits while something is still in flight.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Audits until the server is quiet or `wait` is over; answers the last audit.
pub async fn audit(admin: &Address, wait: Duration) -> anyhow::Result<v1::AuditResponse> {
    let mut client = AdminServiceClient::new(admin.connect().await?);
    let began = Instant::now();
    loop {
        let found = client
            .audit(v1::AuditRequest {
                operator: "loadtest".to_owned(),
                reason: "the end of a rehearsal".to_owned(),
                ..v1::AuditRequest::default()
            })
            .await
            .context("Audit failed")?
            .into_inner();
        if found.quiet || began.elapsed() > wait {
            return Ok(found);
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}
