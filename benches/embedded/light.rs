//! A client that spends little on a grab, so that the machine's two cores go to the server.
//!
//! The generated client allocates a dozen times for each grab: strings of the request, strings and
//! nested messages of the answer. This one writes a request's bytes straight into the frame and
//! reads of an answer only what the measurement checks: tag, outcome and amount. It is the same
//! protocol on the wire; `a_light_request_is_the_contract_s_request` compares the bytes when the
//! benchmark starts.

use std::sync::Arc;

use anyhow::ensure;
use prost::Message;
use prost::bytes::BufMut;
use red_envelope_proto::v1;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Bytes that one frame to the server gathers before it leaves: about 400 requests.
const FRAME_BYTES: usize = 32 * 1024;

/// One grab, ready to be written.
#[derive(Clone)]
pub struct LightGrab {
    /// Comes back in the answer.
    pub tag: u64,
    /// Who: the same number is the same person.
    pub grabber: u64,
    /// The envelope's id as it goes over the wire.
    pub envelope_id: Arc<str>,
}

/// The name of a grabber.
fn grabber(number: u64) -> [u8; 17] {
    let mut name = *b"g0000000000000000";
    let digits = b"0123456789abcdef";
    let mut rest = number;
    for place in name.iter_mut().skip(1).rev() {
        *place = digits[usize::from((rest & 0xf) as u8)];
        rest >>= 4;
    }
    name
}

/// The parts of `GrabStreamResponse` that the measurement looks at.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LightAnswer {
    /// As sent.
    #[prost(uint64, tag = "1")]
    pub tag: u64,
    /// Present unless the grab failed.
    #[prost(message, optional, tag = "2")]
    pub outcome: Option<LightOutcome>,
    /// Present if the grab failed.
    #[prost(message, optional, tag = "3")]
    pub status: Option<LightStatus>,
}

/// The parts of `GrabResponse` that the measurement looks at.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LightOutcome {
    /// `GrabOutcome`.
    #[prost(int32, tag = "1")]
    pub outcome: i32,
    /// The share of a win.
    #[prost(message, optional, tag = "2")]
    pub share: Option<LightShare>,
}

/// The parts of `Share` that the measurement looks at.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LightShare {
    /// The amount.
    #[prost(message, optional, tag = "3")]
    pub amount: Option<LightMoney>,
}

/// The number in `Money`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LightMoney {
    /// Minor units.
    #[prost(int64, tag = "2")]
    pub minor_units: i64,
}

/// Why a grab failed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LightStatus {
    /// The code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// The words.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// Writes grabs and reads answers.
#[derive(Clone, Copy, Default)]
pub struct LightCodec;

impl Codec for LightCodec {
    type Encode = LightGrab;
    type Decode = LightAnswer;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for LightCodec {
    type Item = LightGrab;
    type Error = Status;

    fn encode(&mut self, grab: LightGrab, frame: &mut EncodeBuf<'_>) -> Result<(), Status> {
        put_request(&grab, frame);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(FRAME_BYTES, FRAME_BYTES)
    }
}

impl Decoder for LightCodec {
    type Item = LightAnswer;
    type Error = Status;

    fn decode(&mut self, frame: &mut DecodeBuf<'_>) -> Result<Option<LightAnswer>, Status> {
        LightAnswer::decode(frame)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(FRAME_BYTES, FRAME_BYTES)
    }
}

/// `GrabStreamRequest{tag: 1, grab: 3 → GrabRequest{envelope_id: 2, grabber: 3}}`.
fn put_request(grab: &LightGrab, frame: &mut impl BufMut) {
    let (envelope_id, grabber) = (grab.envelope_id.as_bytes(), grabber(grab.grabber));
    let inner = 2 + envelope_id.len() + 2 + grabber.len();
    let length =
        u8::try_from(inner).expect("an id of 26 and a name of 17 bytes fit one length byte");
    frame.put_u8(0x08);
    prost::encoding::encode_varint(grab.tag, frame);
    frame.put_u8(0x1a);
    frame.put_u8(length);
    frame.put_u8(0x12);
    frame.put_u8(length - 4 - 17);
    frame.put_slice(envelope_id);
    frame.put_u8(0x1a);
    frame.put_u8(17);
    frame.put_slice(&grabber);
}

/// Refuses to measure with a client that no longer speaks the contract.
pub fn a_light_request_is_the_contract_s_request() -> anyhow::Result<()> {
    let envelope_id = "abcdefghijklmnopqrstuvwxyz";
    let grab = LightGrab {
        tag: 0x1234_5678,
        grabber: 0x9abc_def0,
        envelope_id: envelope_id.into(),
    };
    let mut light = Vec::new();
    put_request(&grab, &mut light);
    let contract = v1::GrabStreamRequest {
        tag: grab.tag,
        timeout_ms: 0,
        grab: Some(v1::GrabRequest {
            envelope_id: envelope_id.into(),
            grabber: String::from_utf8(grabber(grab.grabber).to_vec())?,
            ..v1::GrabRequest::default()
        }),
    };
    ensure!(
        light == contract.encode_to_vec(),
        "benches/embedded/light.rs writes another GrabStreamRequest than the contract"
    );
    let answer = v1::GrabStreamResponse {
        tag: 7,
        result: Some(v1::grab_stream_response::Result::Outcome(
            v1::GrabResponse {
                outcome: v1::GrabOutcome::Won.into(),
                share: Some(v1::Share {
                    amount: Some(v1::Money {
                        currency_code: "CNY".into(),
                        minor_units: 888,
                    }),
                    ..v1::Share::default()
                }),
                ..v1::GrabResponse::default()
            },
        )),
    };
    let read = LightAnswer::decode(answer.encode_to_vec().as_slice())?;
    let minor = read
        .outcome
        .and_then(|it| it.share)
        .and_then(|it| it.amount);
    ensure!(
        read.tag == 7 && minor == Some(LightMoney { minor_units: 888 }),
        "benches/embedded/light.rs reads another GrabStreamResponse than the contract"
    );
    Ok(())
}
