//! GrabStream's messages on the wire: bytes that are no message are one bad message, not the end of
//! the stream.
//!
//! # Shape
//! The codec that tonic generates fails the stream with the message. Here a message that can't be
//! decoded is an item like the others: [`Unreadable`], with the tag if that much can be read. tonic
//! cuts the stream into messages by their lengths before anything is decoded, so the next one begins
//! where it should.
//!
//! # Not here
//! What tonic refuses before it decodes, which still ends the stream: a length beyond
//! `MESSAGE_BYTES_MAX`, a compression flag that nobody agreed on, a stream that is cut in the middle
//! of a message. Where such a length or cut is wrong, so is every message after it.

use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use red_envelope_proto::v1;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// The field of `GrabStreamRequest` that names the message.
const TAG_FIELD: u32 = 1;

/// A message that is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Under which it is answered: 0 where it can't be read either.
    pub tag: u64,
    /// Why.
    pub says: String,
}

/// One message of a stream.
pub type Arrived = Result<v1::GrabStreamRequest, Unreadable>;

/// Decodes requests leniently, encodes answers as usual.
#[derive(Clone, Copy, Debug, Default)]
pub struct GrabCodec;

impl Codec for GrabCodec {
    type Encode = v1::GrabStreamResponse;
    type Decode = Arrived;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for GrabCodec {
    type Item = v1::GrabStreamResponse;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for GrabCodec {
    type Item = Arrived;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Arrived>, Status> {
        // tonic gives the whole message in one piece; all of it is taken, whatever it is.
        let arrived = arrived(buffer.chunk());
        buffer.advance(buffer.remaining());
        Ok(Some(arrived))
    }
}

fn arrived(bytes: &[u8]) -> Arrived {
    v1::GrabStreamRequest::decode(bytes).map_err(|error| Unreadable {
        tag: tag_of(bytes).unwrap_or(0),
        says: format!("can't be read as the message: {error}"),
    })
}

/// The tag, if it stands before what can't be read.
fn tag_of(mut bytes: &[u8]) -> Option<u64> {
    while bytes.has_remaining() {
        let (field, kind) = decode_key(&mut bytes).ok()?;
        if field == TAG_FIELD && kind == WireType::Varint {
            return decode_varint(&mut bytes).ok();
        }
        skip_field(kind, field, &mut bytes, DecodeContext::default()).ok()?;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(tag: u64) -> v1::GrabStreamRequest {
        v1::GrabStreamRequest {
            tag,
            timeout_ms: 5,
            grab: Some(v1::GrabRequest {
                grabber: "bob".into(),
                ..Default::default()
            }),
        }
    }

    #[test]
    fn what_can_be_read_is_read_and_the_tag_of_what_cannot_is_found() {
        assert_eq!(arrived(&request(7).encode_to_vec()), Ok(request(7)));
        // The grab (field 3) is said to be of 9 bytes, and there are 2.
        let cut = [&request(7).encode_to_vec()[..2], &[0x1a, 9, 1, 1]].concat();
        assert_eq!(arrived(&cut).unwrap_err().tag, 7);
        // No UTF-8 in the grabber's name, and the tag after it.
        let late = [0x1a, 4, 0x1a, 2, 0xff, 0xff, 0x08, 9];
        let unreadable = arrived(&late).unwrap_err();
        assert_eq!(unreadable.tag, 9, "{}", unreadable.says);
        assert_eq!(arrived(&[0xff; 20]).unwrap_err().tag, 0);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = arrived(&bytes);
            let _ = tag_of(&bytes);
        }
    }
}
