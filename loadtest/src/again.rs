//! Repeats a call while the server is away, as the contract says of UNAVAILABLE that it may be: reads, and
//! what has a request id.
//!
//! **Bounds**: [`TRIES_MAX`] tries, [`AGAIN_AFTER`] and its doubles between them.

use std::time::Duration;

use tonic::{Code, Response, Status};

/// Tries of one call, the first included.
const TRIES_MAX: u32 = 8;
/// Before a call is repeated; each further time twice as long: 6 s in all.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// The answer of the first try that finds the server, or what the last one was told.
pub async fn again<T, F>(call: impl Fn() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    repeated(call, AGAIN_AFTER).await
}

async fn repeated<T, F>(call: impl Fn() -> F, mut pause: Duration) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    for _ in 1..TRIES_MAX {
        match call().await {
            Err(status) if is_away(&status) => tokio::time::sleep(pause).await,
            ended => return ended.map(Response::into_inner),
        }
        pause *= 2;
    }
    call().await.map(Response::into_inner)
}

/// For a report: a status without the chain of what made it.
pub fn told(status: Status) -> anyhow::Error {
    anyhow::anyhow!("{:?}, {}", status.code(), status.message())
}

/// Whether nobody was there: the server says so, or the connection broke, of which tonic says UNKNOWN.
pub fn is_away(status: &Status) -> bool {
    let broke =
        std::error::Error::source(status).is_some_and(|it| it.is::<tonic::transport::Error>());
    status.code() == Code::Unavailable || (broke && status.code() == Code::Unknown)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    async fn tries(code: Code, fails: u32) -> (u32, Result<u32, Code>) {
        let tried = AtomicU32::new(0);
        let call = || {
            let number = tried.fetch_add(1, Ordering::Relaxed);
            async move {
                match number < fails {
                    true => Err(Status::new(code, "no")),
                    false => Ok(Response::new(number)),
                }
            }
        };
        let ended = repeated(call, Duration::from_millis(1));
        let ended = ended.await.map_err(|status| status.code());
        (tried.into_inner(), ended)
    }

    #[tokio::test]
    async fn a_call_is_repeated_while_the_server_is_away_and_at_no_other_error() {
        assert_eq!(tries(Code::Unavailable, 2).await, (3, Ok(2)));
        assert_eq!(tries(Code::NotFound, 2).await, (1, Err(Code::NotFound)));
    }

    #[tokio::test]
    async fn a_server_that_stays_away_is_given_up() {
        let ended = tries(Code::Unavailable, u32::MAX).await;
        assert_eq!(ended, (TRIES_MAX, Err(Code::Unavailable)));
    }
}
