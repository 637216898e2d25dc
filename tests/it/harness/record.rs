//! What was asked and answered of every envelope, and whether envelopes could have answered so.

use std::sync::Arc;

use red_envelope_history::{Answer, Handing, Recorder, Rule, Share};
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use red_envelope_proto::v1::{
    Envelope, EnvelopeKind, GrabOutcome, GrabRequest, GrabResponse, RecallEnvelopeRequest,
};
use tonic::Status;
use tonic::transport::Channel;

/// Histories of grabs. Clones record into the same ones.
#[derive(Clone, Debug, Default)]
pub struct Record(Arc<Recorder<String, String>>);

impl Record {
    /// An envelope that is going to be grabbed.
    pub fn begin(&self, envelope: &Envelope) {
        let handing = match envelope.kind() {
            EnvelopeKind::Exclusive => Handing::Unordered,
            _ => Handing::ByNumber,
        };
        let id = envelope.envelope_id.clone();
        self.0.begin(id, envelope.share_count, handing);
    }

    /// Grabs, and remembers what was answered when.
    pub async fn grab(
        &self,
        client: &mut EnvelopeServiceClient<Channel>,
        request: GrabRequest,
    ) -> Result<GrabResponse, Status> {
        let asked = self.0.ask(&request.envelope_id, request.grabber.clone());
        let answer = client.grab(request).await?.into_inner();
        if let Some((asked, told)) = asked.zip(told(&answer)) {
            self.0.answer(asked, told);
        }
        Ok(answer)
    }

    /// Recalls, and remembers when it was over.
    pub async fn recall(
        &self,
        client: &mut EnvelopeServiceClient<Channel>,
        request: RecallEnvelopeRequest,
    ) -> Result<Envelope, Status> {
        let asked = self.0.close(&request.envelope_id);
        let recalled = client.recall_envelope(request).await?.into_inner();
        if let Some(asked) = asked {
            self.0.closed(asked);
        }
        Ok(recalled.envelope.unwrap())
    }

    /// The hot store is another one from now on, or lost something.
    pub fn replaced(&self) {
        self.0.replaced();
    }

    /// How many grabs were recorded.
    pub fn grabs(&self) -> usize {
        self.0.attempts()
    }

    /// Every rule that was broken.
    pub fn broken(&self) -> Vec<Rule> {
        let found = self.0.violations();
        found.into_iter().map(|(_, found)| found.rule).collect()
    }

    /// Envelopes could have answered so.
    pub fn judge(&self) {
        let found = self.0.violations();
        assert!(found.is_empty(), "{found:#?}");
    }
}

/// `None`: an answer that says nothing of shares.
fn told(answer: &GrabResponse) -> Option<Answer> {
    let share = answer.share.as_ref().map(|share| Share {
        number: share.number,
        amount_minor: share.amount.as_ref().map_or(0, |amount| amount.minor_units),
    });
    Some(match (answer.outcome(), share) {
        (GrabOutcome::Won, Some(share)) => Answer::Won(share),
        (GrabOutcome::AlreadyGrabbed, Some(share)) => Answer::Already(share),
        (GrabOutcome::Empty, None) => Answer::Empty,
        (GrabOutcome::Expired | GrabOutcome::Recalled, None) => Answer::Over,
        _ => return None,
    })
}
