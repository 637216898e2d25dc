//! Starts, kills, cuts and asks a real server, in the words of the domain.

pub mod cores;
pub mod crowd;
pub mod faults;
pub mod fleet;
pub mod frames;
pub mod hop;
pub mod power;
pub mod proxy;
mod proxy_is_true;
pub mod record;
pub mod scene;
pub mod server;
pub mod storm;
pub mod world;

pub use server::{Hot, Start};
pub use world::{World, cny, equal, exclusive, lucky};

/// Makes two tests of each of these functions: one on the embedded hot store, one on Redis.
macro_rules! on_both_stores {
    ($($sentence:ident),+ $(,)?) => {
        mod on_the_embedded_store {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $sentence() {
                    super::$sentence($crate::harness::Hot::Embedded).await;
                }
            )+
        }
        mod on_redis {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $sentence() {
                    super::$sentence($crate::harness::Hot::Redis).await;
                }
            )+
        }
    };
}

pub(crate) use on_both_stores;
