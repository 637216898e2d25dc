//! Runs many like calls, so many abreast, and stops at the first that fails.

use std::future::Future;

use anyhow::Context as _;
use tokio::task::JoinSet;

/// Calls on the way at once: enough to hide the round trip, too few to be a load of their own.
const ABREAST: usize = 64;

/// Runs `call` for every item; the results come in the order of the items.
pub async fn all<I, T, F>(items: I, call: impl Fn(I::Item) -> F) -> anyhow::Result<Vec<T>>
where
    I: IntoIterator,
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
    T: Send + 'static,
{
    let mut running = JoinSet::new();
    let mut done: Vec<(usize, T)> = Vec::new();
    for (place, item) in items.into_iter().enumerate() {
        if running.len() >= ABREAST
            && let Some(ended) = running.join_next().await
        {
            done.push(ended.context("a call panicked")??);
        }
        let called = call(item);
        running.spawn(async move { called.await.map(|result| (place, result)) });
    }
    while let Some(ended) = running.join_next().await {
        done.push(ended.context("a call panicked")??);
    }
    done.sort_unstable_by_key(|(place, _)| *place);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn results_come_in_the_order_of_the_items() {
        let doubled = all(0..1_000_u32, |item| async move {
            if item % 3 == 0 {
                tokio::task::yield_now().await;
            }
            Ok(2 * item)
        });
        let expected: Vec<u32> = (0..1_000).map(|item| 2 * item).collect();
        assert_eq!(doubled.await.unwrap(), expected);
    }

    #[tokio::test]
    async fn the_first_failure_stops_all() {
        let failed = all(0..1_000_u32, |item| async move {
            anyhow::ensure!(item != 500, "item {item}");
            Ok(item)
        });
        assert_eq!(failed.await.unwrap_err().to_string(), "item 500");
    }
}
