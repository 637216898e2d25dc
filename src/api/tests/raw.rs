//! Bytes that no generated client sends: what the transport refuses, refused with details.

use prost::Message;
use red_envelope_proto::v1::grab_stream_response::Result as Answer;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;

use super::*;
use crate::api::MESSAGE_BYTES_MAX;
use crate::api::grab_stream::TIMEOUT_MS_MAX;

/// Sends bytes as they are, and reads answers of a stream.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = v1::GrabStreamResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::bytes::BufMut::put_slice(buffer, &item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = v1::GrabStreamResponse;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let answer = v1::GrabStreamResponse::decode(buffer);
        answer
            .map(Some)
            .map_err(|e| Status::internal(e.to_string()))
    }
}

fn path(method: &str) -> PathAndQuery {
    let path = format!("/redenvelope.v1.EnvelopeService/{method}");
    path.parse().unwrap()
}

async fn refused_by(world: &World, method: &str, bytes: Vec<u8>) -> Status {
    let mut client = tonic::client::Grpc::new(world.public.clone());
    client.ready().await.unwrap();
    let answer = client.unary(tonic::Request::new(bytes), path(method), Raw);
    answer.await.unwrap_err()
}

fn grab(tag: u64, id: &str, grabber: &str) -> Vec<u8> {
    let request = v1::GrabStreamRequest {
        tag,
        timeout_ms: TIMEOUT_MS_MAX,
        grab: Some(v1::GrabRequest {
            envelope_id: id.into(),
            grabber: grabber.into(),
            ..Default::default()
        }),
    };
    request.encode_to_vec()
}

#[tokio::test]
async fn what_is_no_message_is_an_invalid_argument_with_details() {
    let world = World::new().await;
    let status = refused_by(&world, "Grab", vec![0xff; 10]).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(
        status.get_details_error_info().unwrap().domain,
        "redenvelope.v1"
    );
    let named = status.get_details_bad_request().unwrap().field_violations;
    assert_eq!(named[0].field, "", "the message as a whole");
    assert!(!named[0].description.is_empty());
}

#[tokio::test]
async fn what_is_too_large_and_what_is_not_there_are_refused_with_details() {
    let world = World::new().await;
    let large = refused_by(&world, "Grab", vec![0; MESSAGE_BYTES_MAX + 1]).await;
    let told = (Code::OutOfRange, "MESSAGE_TOO_LARGE".to_owned());
    assert_eq!(failure::<()>(Err(large)), told);
    let nowhere = refused_by(&world, "NoSuchMethod", Vec::new()).await;
    let told = (Code::Unimplemented, "UNIMPLEMENTED".to_owned());
    assert_eq!(failure::<()>(Err(nowhere)), told);
}

#[tokio::test]
async fn bytes_that_are_no_message_are_answered_and_the_stream_goes_on() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 4)).await;
    let mut client = tonic::client::Grpc::new(world.public.clone());
    client.ready().await.unwrap();
    let cut = [&grab(7, &id, "bob")[..2], &[0x1a, 9, 1, 1]].concat();
    let messages = [
        grab(1, &id, "bob"),
        cut,
        vec![0xff; 10],
        grab(2, &id, "carol"),
    ];
    let stream = tonic::Request::new(tokio_stream::iter(messages));
    let answers = client.streaming(stream, path("GrabStream"), Raw).await;
    let mut answers = answers.unwrap().into_inner();
    let mut told = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let code = match answer.result.unwrap() {
            Answer::Outcome(_) => Code::Ok,
            Answer::Status(status) => {
                assert!(!status.details.is_empty());
                Code::from_i32(status.code)
            }
        };
        told.push((answer.tag, code));
    }
    told.sort_by_key(|(tag, _)| *tag);
    let invalid = Code::InvalidArgument;
    assert_eq!(
        told,
        [(0, invalid), (1, Code::Ok), (2, Code::Ok), (7, invalid)]
    );
}

#[tokio::test]
async fn a_length_beyond_the_limit_ends_the_stream_with_details_after_what_came_before() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 4)).await;
    let mut client = tonic::client::Grpc::new(world.public.clone());
    client.ready().await.unwrap();
    let messages = [grab(1, &id, "bob"), vec![0; MESSAGE_BYTES_MAX + 1]];
    let stream = tonic::Request::new(tokio_stream::iter(messages));
    let answers = client.streaming(stream, path("GrabStream"), Raw).await;
    let mut answers = answers.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().tag, 1);
    let ended = answers.message().await;
    let told = (Code::OutOfRange, "MESSAGE_TOO_LARGE".to_owned());
    assert_eq!(failure(ended), told);
}
