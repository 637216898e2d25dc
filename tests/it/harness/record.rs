//! What was asked and answered of every envelope, and whether envelopes could have answered so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use red_envelope_history::{Answer, Asked, Handing, Recorder, Rule, Share};
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use red_envelope_proto::v1::{
    Envelope, EnvelopeKind, GrabOutcome, GrabRequest, GrabResponse, RecallEnvelopeRequest,
};
use tonic::Status;
use tonic::transport::Channel;

/// Histories of grabs. Clones record into the same ones.
#[derive(Clone, Debug, Default)]
pub struct Record {
    all: Arc<Recorder<String, String>>,
    /// Envelopes of more shares are dealt; 0: none is.
    dealt_above: Arc<AtomicU32>,
}

impl Record {
    /// What a server says of itself: it deals envelopes of more shares to stripes, which hand them out in no order
    /// that numbers tell. 0: it deals none.
    pub fn deals_above(&self, shares: u32) {
        self.dealt_above.store(shares, Ordering::SeqCst);
    }

    /// Whether an envelope of so many shares is dealt.
    pub fn deals(&self, shares: u32) -> bool {
        let above = self.dealt_above.load(Ordering::SeqCst);
        above > 0 && shares > above
    }

    /// An envelope that is going to be grabbed.
    pub fn begin(&self, envelope: &Envelope) {
        let handing = match envelope.kind() {
            EnvelopeKind::Exclusive => Handing::Unordered,
            _ if self.deals(envelope.share_count) => Handing::Unordered,
            _ => Handing::ByNumber,
        };
        let id = envelope.envelope_id.clone();
        self.all.begin(id, envelope.share_count, handing);
    }

    /// Grabs, and remembers what was answered when.
    pub async fn grab(
        &self,
        client: &mut EnvelopeServiceClient<Channel>,
        request: GrabRequest,
    ) -> Result<GrabResponse, Status> {
        let asked = self.ask(&request);
        let answer = client.grab(request).await?.into_inner();
        self.hear(asked, &answer);
        Ok(answer)
    }

    /// A grab leaves, by whatever way.
    pub fn ask(&self, request: &GrabRequest) -> Option<Asked<String>> {
        let grabber = request.grabber.clone();
        self.all.ask(&request.envelope_id, grabber)
    }

    /// Its answer is here.
    pub fn hear(&self, asked: Option<Asked<String>>, answer: &GrabResponse) {
        if let Some((asked, told)) = asked.zip(told(answer)) {
            self.all.answer(asked, told);
        }
    }

    /// Recalls, and remembers when it was over.
    pub async fn recall(
        &self,
        client: &mut EnvelopeServiceClient<Channel>,
        request: RecallEnvelopeRequest,
    ) -> Result<Envelope, Status> {
        let asked = self.all.close(&request.envelope_id);
        let recalled = client.recall_envelope(request).await?.into_inner();
        if let Some(asked) = asked {
            self.all.closed(asked);
        }
        Ok(recalled.envelope.unwrap())
    }

    /// The hot store is another one from now on, or lost something.
    pub fn replaced(&self) {
        self.all.replaced();
    }

    /// How many grabs were recorded.
    pub fn grabs(&self) -> usize {
        self.all.attempts()
    }

    /// Every rule that was broken.
    pub fn broken(&self) -> Vec<Rule> {
        let found = self.all.violations();
        found.into_iter().map(|(_, found)| found.rule).collect()
    }

    /// Envelopes could have answered so.
    pub fn judge(&self) {
        let found = self.all.violations();
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
