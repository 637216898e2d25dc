//! PreviewSplit: the distribution that a split would give, before anyone pays.
//!
//! # Bounds
//! The domain samples at most `PREVIEW_SHARES_MAX` shares, about 20 ms of one core; the work runs
//! beside the tasks that answer grabs, at most [`PREVIEWS_MAX`] at a time.
//!
//! # Not here
//! The laws: `domain::split`.

use red_envelope_proto::v1;

use super::Api;
use super::draft;
use super::status::ApiError;
use super::wire;
use crate::domain::split::PREVIEW_SHARES_MAX;

/// Previews that are computed at once: with one, a machine of two cores keeps half for grabs.
pub const PREVIEWS_MAX: usize = 1;

/// The RPC.
pub(super) async fn preview_split(
    api: &Api,
    request: v1::PreviewSplitRequest,
) -> Result<v1::PreviewSplitResponse, ApiError> {
    let (currency, cut) = draft::preview(&request, &api.currencies)?;
    let turn = api.previews.acquire().await;
    let _turn = turn.map_err(|_| ApiError::Internal("the previews' turns are closed".into()))?;
    let sampled = cut.share_count.min(PREVIEW_SHARES_MAX);
    let preview = tokio::task::spawn_blocking(move || cut.preview())
        .await
        .map_err(|error| ApiError::Internal(error.to_string()))?
        .map_err(|error| ApiError::Internal(format!("a checked cut failed: {error}")))?;
    let quantiles = |points: Vec<(u32, i64)>| {
        points
            .into_iter()
            .map(|(permille, amount_minor)| v1::Quantile {
                permille,
                amount_minor,
            })
            .collect()
    };
    Ok(v1::PreviewSplitResponse {
        mean: Some(wire::money(currency, preview.mean_minor)),
        share_min_minor: preview.share_min_minor,
        share_max_minor: preview.share_max_minor,
        share_quantiles: quantiles(preview.quantiles),
        best_luck_quantiles: quantiles(preview.best_luck_quantiles),
        example_minor: preview.example,
        sampled_shares: sampled,
    })
}
