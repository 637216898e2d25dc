//! A GrabStream as a gateway holds it: many callers, one stream, answers matched by tag.
//!
//! A stream that broke is opened again by the next grab. Grabs that were on it have no answer; their
//! callers ask again, as the contract says.
//!
//! **Bounds**: the caller bounds how many grabs are on the way; nothing else queues here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use red_envelope_proto::v1;
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use red_envelope_proto::v1::grab_stream_response::Result as StreamResult;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Beyond the server's own deadline: an answer that takes longer is lost on the way.
const GRACE: Duration = Duration::from_secs(2);
/// Requests between a caller and the connection. Small: what waits here is late already.
const QUEUE: usize = 64;

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<v1::GrabResponse, Status>>>>>;

/// One gateway with one stream at a time.
pub struct Gateway {
    client: EnvelopeServiceClient<Channel>,
    open: tokio::sync::Mutex<Option<OpenStream>>,
    next_tag: AtomicU64,
}

#[derive(Clone)]
struct OpenStream {
    requests: mpsc::Sender<v1::GrabStreamRequest>,
    waiting: Waiting,
}

impl Gateway {
    /// Opens nothing yet.
    pub fn new(channel: Channel) -> Self {
        Self {
            client: EnvelopeServiceClient::new(channel),
            open: tokio::sync::Mutex::new(None),
            next_tag: AtomicU64::new(0),
        }
    }

    /// One grab and its answer.
    pub async fn grab(
        &self,
        grab: v1::GrabRequest,
        timeout_ms: u32,
    ) -> Result<v1::GrabResponse, Status> {
        let stream = self.stream().await?;
        let tag = self.next_tag.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        stream.lock().insert(tag, tell);
        let request = v1::GrabStreamRequest {
            tag,
            timeout_ms,
            grab: Some(grab),
        };
        if stream.requests.send(request).await.is_err() {
            stream.lock().remove(&tag);
            return Err(Status::unavailable("the stream broke before the grab left"));
        }
        let wait = Duration::from_millis(timeout_ms.into()) + GRACE;
        match tokio::time::timeout(wait, told).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Status::unavailable("the stream broke before the answer")),
            Err(_) => {
                stream.lock().remove(&tag);
                Err(Status::deadline_exceeded("no answer on the stream"))
            }
        }
    }

    async fn stream(&self) -> Result<OpenStream, Status> {
        let mut open = self.open.lock().await;
        if let Some(stream) = open.as_ref().filter(|it| !it.requests.is_closed()) {
            return Ok(stream.clone());
        }
        let (requests, queue) = mpsc::channel(QUEUE);
        let answers = self
            .client
            .clone()
            .grab_stream(ReceiverStream::new(queue))
            .await?
            .into_inner();
        let waiting = Waiting::default();
        tokio::spawn(listen(answers, Arc::clone(&waiting)));
        let stream = OpenStream { requests, waiting };
        *open = Some(stream.clone());
        Ok(stream)
    }
}

impl OpenStream {
    fn lock(&self) -> Lock<'_> {
        self.waiting.lock().expect("nothing panics with this lock")
    }
}

type Lock<'a> =
    std::sync::MutexGuard<'a, HashMap<u64, oneshot::Sender<Result<v1::GrabResponse, Status>>>>;

/// Hands answers to their callers until the stream ends; whoever still waits then learns that.
async fn listen(mut answers: Streaming<v1::GrabStreamResponse>, waiting: Waiting) {
    while let Ok(Some(answer)) = answers.message().await {
        let caller = waiting
            .lock()
            .expect("nothing panics with this lock")
            .remove(&answer.tag);
        let told = match answer.result {
            Some(StreamResult::Outcome(outcome)) => Ok(outcome),
            Some(StreamResult::Status(status)) => {
                Err(Status::new(Code::from_i32(status.code), status.message))
            }
            None => Err(Status::internal("an answer without a result")),
        };
        // A caller that gave up has gone.
        if let Some(caller) = caller {
            let _gone = caller.send(told);
        }
    }
    waiting
        .lock()
        .expect("nothing panics with this lock")
        .clear();
}
