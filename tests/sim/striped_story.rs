//! What is different in a history of dealt envelopes: few shares in several stripes, crowds, and partitions
//! that are lost.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::net::{Shared, Weather};
use crate::people::Sending;
use crate::stores::Rule;
use crate::striped::{PARTITIONS, Striped, partitions};

/// Deals the envelopes of a history, and makes the store that they lie in.
pub fn deal(
    rng: &mut StdRng,
    (weather, sendings): (&mut Weather, &mut Vec<Sending>),
    off: Option<Rule>,
) -> Striped {
    for sending in sendings.iter_mut() {
        sending.stripes = rng.random_range(2..=PARTITIONS);
        sending.share_count = u32::from(sending.stripes) + rng.random_range(0..7);
        sending.total_minor = i64::from(sending.share_count) * rng.random_range(1..100);
    }
    weather.outbox_lost = 0;
    weather.partition_lost = [0, 30, 150][rng.random_range(0..3)];
    // In some histories answers are heard that no replica has: then only money is promised.
    let keeps_told = rng.random_range(0..4) > 0;
    Striped::new(StdRng::seed_from_u64(rng.random()), keeps_told, off)
}

/// One partition is lost.
pub fn lose_one(shared: &mut Shared) {
    let index = shared.rng.random_range(0..PARTITIONS);
    let partition = partitions().all().nth(usize::from(index));
    let partition = partition.expect("it is one of them");
    let (rng, stores) = (&mut shared.rng, &mut shared.stores);
    let among = |count| rng.random_range(0..count);
    stores.striped_mut().lose(partition, among);
}
