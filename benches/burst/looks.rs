//! Looks at envelopes by unary calls: what chats ask when everybody opens what was just sent.
//!
//! The messages hold what is asked and looked at, and nothing else of the contract's.

use anyhow::{Context as _, ensure};
use prost::bytes::Bytes;

use crate::unary::{Question, ToldShare};

/// Who holds a share of an envelope that is looked at.
pub fn holder(number: u64) -> String {
    format!("holder-{number}")
}

/// Who looks at what.
pub struct Looks {
    envelope_ids: Vec<Bytes>,
    /// So many hold a share, each look is by one of them in turn; 0: nobody who looks holds one.
    holders: u32,
}

/// The parts of `GetEnvelopeRequest` and `ListGrabsRequest` that are filled.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Asked {
    #[prost(bytes = "bytes", tag = "2")]
    envelope_id: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    viewer: Bytes,
}

impl Looks {
    /// At these in turn.
    pub fn new(envelope_ids: Vec<Bytes>, holders: u32) -> Self {
        Self {
            envelope_ids,
            holders,
        }
    }

    fn envelope_id(&self, number: u64) -> &Bytes {
        let count = self.envelope_ids.len() as u64;
        let place = usize::try_from(number % count).expect("a place in a list");
        &self.envelope_ids[place]
    }

    fn ask(&self, number: u64) -> Asked {
        let holder_number = number.checked_rem(self.holders.into());
        Asked {
            envelope_id: self.envelope_id(number).clone(),
            viewer: holder_number.map_or_else(|| "a-viewer".into(), |it| holder(it).into()),
        }
    }
}

/// GetEnvelope.
pub struct Look(pub Looks);

/// The parts of `GetEnvelopeResponse` that are looked at.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Seen {
    #[prost(message, optional, tag = "1")]
    envelope: Option<SeenEnvelope>,
    #[prost(message, optional, tag = "2")]
    own_share: Option<ToldShare>,
}

/// The part of `Envelope` that is looked at.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SeenEnvelope {
    #[prost(bytes = "bytes", tag = "1")]
    envelope_id: Bytes,
}

impl Question for Look {
    type Asked = Asked;
    type Told = Seen;
    const PATH: &'static str = "/redenvelope.v1.EnvelopeService/GetEnvelope";

    fn ask(&self, number: u64) -> Asked {
        self.0.ask(number)
    }

    fn won(&self, number: u64, told: &Seen) -> anyhow::Result<Option<u32>> {
        let seen = told.envelope.as_ref().context("an envelope")?;
        ensure!(seen.envelope_id == self.0.envelope_id(number), "{seen:?}");
        let (holds, own) = (self.0.holders > 0, &told.own_share);
        ensure!(own.is_some() == holds, "holds one: {holds}, sees {own:?}");
        Ok(None)
    }
}

/// ListGrabs.
pub struct List(pub Looks);

/// The part of `ListGrabsResponse` that is looked at.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Listed {
    #[prost(message, repeated, tag = "1")]
    shares: Vec<ToldShare>,
}

impl Question for List {
    type Asked = Asked;
    type Told = Listed;
    const PATH: &'static str = "/redenvelope.v1.EnvelopeService/ListGrabs";

    fn ask(&self, number: u64) -> Asked {
        self.0.ask(number)
    }

    fn won(&self, _: u64, told: &Listed) -> anyhow::Result<Option<u32>> {
        let numbers = told.shares.iter().map(|share| share.number);
        let all = numbers.eq(0..self.0.holders);
        ensure!(all, "not all are listed: {told:?}");
        Ok(None)
    }
}
