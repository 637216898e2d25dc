//! The envelopes of the cheating server.

use std::pin::Pin;

use red_envelope_proto::v1;
use red_envelope_proto::v1::create_envelope_request::Amount;
use red_envelope_proto::v1::envelope_service_server::EnvelopeService;
use red_envelope_proto::v1::grab_stream_response::Result as StreamResult;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{Cheat, Cheater, Sent, money};

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("the rehearsal does not ask for it"))
}

/// Amounts that differ where the kind allows it.
fn cut(request: &v1::CreateEnvelopeRequest) -> (String, Vec<i64>) {
    let count = i64::from(request.share_count);
    let even = matches!(
        request.split.as_ref().and_then(|it| it.rule.as_ref()),
        Some(v1::split::Rule::Even(_))
    );
    match &request.amount {
        Some(Amount::PerShare(each)) => {
            let amounts = (0..count).map(|_| each.minor_units).collect();
            (each.currency_code.clone(), amounts)
        }
        Some(Amount::Total(total)) => {
            let mean = total.minor_units / count;
            let apart = |number: i64| match number % 2 {
                _ if even || number == count / 2 * 2 => 0,
                0 => number / 2 % mean,
                _ => -(number / 2 % mean),
            };
            let amounts = (0..count).map(|number| mean + apart(number)).collect();
            (total.currency_code.clone(), amounts)
        }
        None => {
            let named = request.exclusive_shares.iter();
            let amounts = named.map(|it| it.amount_minor).collect();
            (request.exclusive_currency_code.clone(), amounts)
        }
    }
}

impl Cheater {
    fn answer(&self, grab: &v1::GrabRequest) -> Result<v1::GrabResponse, Status> {
        let mut books = self.books();
        let sent = books
            .sent
            .get_mut(&grab.envelope_id)
            .ok_or_else(|| Status::not_found("no such envelope"))?;
        let in_group = sent.group.as_ref().is_none_or(|it| *it == grab.group_id);
        let on_list = sent
            .named
            .as_ref()
            .is_none_or(|it| it.contains(&grab.grabber));
        if !in_group && self.cheat == Cheat::LetsStrangersIn {
            return Ok(response(v1::GrabOutcome::Empty, None));
        }
        if !in_group || !on_list {
            return Err(Status::not_found("no such envelope"));
        }
        let shown = |sent: &Sent, taken: usize| {
            let number = sent.number(taken, &grab.grabber);
            Some((number, sent.amounts[number], sent.currency.clone()))
        };
        if let Some(taken) = sent.holders.iter().position(|it| *it == grab.grabber) {
            let mut held = shown(sent, taken);
            if self.cheat == Cheat::AnotherAmount
                && let Some((_, amount, _)) = &mut held
            {
                *amount += 1;
            }
            return Ok(response(v1::GrabOutcome::AlreadyGrabbed, held));
        }
        let capacity = match self.cheat {
            Cheat::SharesTwice => sent.amounts.len() + 1,
            Cheat::EmptyEarly => sent.amounts.len() - 1,
            _ => sent.amounts.len(),
        };
        if sent.holders.len() >= capacity {
            return Ok(response(v1::GrabOutcome::Empty, None));
        }
        sent.holders.push(grab.grabber.clone());
        let held = shown(sent, sent.holders.len() - 1);
        Ok(response(v1::GrabOutcome::Won, held))
    }

    fn show(&self, sent: &Sent) -> v1::Envelope {
        let paid = sent.paid();
        let refunded = match self.cheat {
            Cheat::KeepsTheRest => 0,
            _ => sent.total() - paid,
        };
        let best = sent
            .shares()
            .max_by_key(|(number, _, amount)| (*amount, std::cmp::Reverse(*number)))
            .map(|(number, holder, amount)| share(number, holder, amount, &sent.currency));
        let mut envelope = v1::Envelope {
            envelope_id: sent.id.clone(),
            progress: Some(v1::Progress {
                taken_count: u32::try_from(sent.holders.len()).unwrap(),
                settled: money(&sent.currency, paid),
                refunded: money(&sent.currency, refunded),
                ..v1::Progress::default()
            }),
            best_luck: best,
            ..v1::Envelope::default()
        };
        let closes = sent.is_over() && self.cheat != Cheat::NeverCloses;
        envelope.set_state(match closes {
            true => v1::EnvelopeState::Closed,
            false => v1::EnvelopeState::Live,
        });
        envelope
    }
}

fn share(number: usize, holder: &str, amount: i64, currency: &str) -> v1::Share {
    v1::Share {
        number: u32::try_from(number).unwrap(),
        grabber: holder.to_owned(),
        amount: money(currency, amount),
        ..v1::Share::default()
    }
}

fn response(outcome: v1::GrabOutcome, held: Option<(usize, i64, String)>) -> v1::GrabResponse {
    v1::GrabResponse {
        outcome: outcome.into(),
        share: held.map(|(number, amount, currency)| share(number, "", amount, &currency)),
        ..v1::GrabResponse::default()
    }
}

#[async_trait]
impl EnvelopeService for Cheater {
    type GrabStreamStream =
        Pin<Box<dyn Stream<Item = Result<v1::GrabStreamResponse, Status>> + Send>>;
    type WatchEnvelopeStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchEnvelopeResponse, Status>> + Send>>;

    async fn create_envelope(
        &self,
        request: Request<v1::CreateEnvelopeRequest>,
    ) -> Result<Response<v1::CreateEnvelopeResponse>, Status> {
        let request = request.into_inner();
        let (currency, amounts) = cut(&request);
        let group = request.audience.and_then(|it| match it.audience {
            Some(v1::audience::Audience::Group(group)) => Some(group.group_id),
            _ => None,
        });
        let named: Vec<String> = request
            .exclusive_shares
            .into_iter()
            .map(|it| it.grabber)
            .collect();
        let sent = Sent {
            id: request.request_id,
            sender: request.sender,
            currency,
            group,
            named: (!named.is_empty()).then_some(named),
            amounts,
            holders: Vec::new(),
            recalled: false,
            backwards: self.cheat == Cheat::Backwards,
        };
        let envelope = Some(self.show(&sent));
        self.books().sent.insert(sent.id.clone(), sent);
        Ok(Response::new(v1::CreateEnvelopeResponse {
            envelope,
            replayed: false,
        }))
    }

    async fn batch_get_envelopes(
        &self,
        request: Request<v1::BatchGetEnvelopesRequest>,
    ) -> Result<Response<v1::BatchGetEnvelopesResponse>, Status> {
        let ids = request.into_inner().envelope_ids;
        self.is_there("BatchGetEnvelopes", &ids.join(" "))?;
        let books = self.books();
        let envelopes = ids.iter().map(|id| v1::GetEnvelopeResponse {
            envelope: Some(self.show(&books.sent[id])),
            own_share: None,
        });
        Ok(Response::new(v1::BatchGetEnvelopesResponse {
            envelopes: envelopes.collect(),
            missing: Vec::new(),
        }))
    }

    async fn grab(
        &self,
        request: Request<v1::GrabRequest>,
    ) -> Result<Response<v1::GrabResponse>, Status> {
        self.answer(request.get_ref()).map(Response::new)
    }

    async fn grab_stream(
        &self,
        request: Request<Streaming<v1::GrabStreamRequest>>,
    ) -> Result<Response<Self::GrabStreamStream>, Status> {
        let cheater = self.clone();
        let answers = request.into_inner().map(move |asked| {
            let asked = asked?;
            let result = match cheater.answer(&asked.grab.unwrap()) {
                Ok(outcome) => StreamResult::Outcome(outcome),
                Err(status) => {
                    let mut failed = v1::GrabStreamResponse {
                        tag: asked.tag,
                        result: Some(StreamResult::Status(Default::default())),
                    };
                    if let Some(StreamResult::Status(told)) = &mut failed.result {
                        told.code = status.code().into();
                    }
                    return Ok(failed);
                }
            };
            Ok(v1::GrabStreamResponse {
                tag: asked.tag,
                result: Some(result),
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn list_grabs(
        &self,
        request: Request<v1::ListGrabsRequest>,
    ) -> Result<Response<v1::ListGrabsResponse>, Status> {
        self.is_there("ListGrabs", &request.get_ref().envelope_id)?;
        let books = self.books();
        let sent = &books.sent[&request.get_ref().envelope_id];
        let hidden = usize::from(self.cheat == Cheat::HidesAShare);
        let mut shares: Vec<v1::Share> = sent
            .shares()
            .skip(hidden)
            .map(|(number, holder, amount)| share(number, holder, amount, &sent.currency))
            .collect();
        shares.sort_by_key(|share| share.number);
        Ok(Response::new(v1::ListGrabsResponse {
            shares,
            next_page_token: String::new(),
        }))
    }

    async fn recall_envelope(
        &self,
        request: Request<v1::RecallEnvelopeRequest>,
    ) -> Result<Response<v1::RecallEnvelopeResponse>, Status> {
        let id = &request.get_ref().envelope_id;
        self.is_there("RecallEnvelope", id)?;
        let mut books = self.books();
        books.sent.get_mut(id).unwrap().recalled = true;
        Ok(Response::new(Default::default()))
    }

    async fn get_envelope(
        &self,
        _: Request<v1::GetEnvelopeRequest>,
    ) -> Result<Response<v1::GetEnvelopeResponse>, Status> {
        not_here()
    }

    async fn watch_envelope(
        &self,
        _: Request<v1::WatchEnvelopeRequest>,
    ) -> Result<Response<Self::WatchEnvelopeStream>, Status> {
        not_here()
    }

    async fn decline_envelope(
        &self,
        _: Request<v1::DeclineEnvelopeRequest>,
    ) -> Result<Response<v1::DeclineEnvelopeResponse>, Status> {
        not_here()
    }

    async fn preview_split(
        &self,
        _: Request<v1::PreviewSplitRequest>,
    ) -> Result<Response<v1::PreviewSplitResponse>, Status> {
        not_here()
    }

    async fn get_fairness_proof(
        &self,
        _: Request<v1::GetFairnessProofRequest>,
    ) -> Result<Response<v1::GetFairnessProofResponse>, Status> {
        not_here()
    }

    async fn list_sent_envelopes(
        &self,
        _: Request<v1::ListSentEnvelopesRequest>,
    ) -> Result<Response<v1::ListSentEnvelopesResponse>, Status> {
        not_here()
    }

    async fn get_year_totals(
        &self,
        _: Request<v1::GetYearTotalsRequest>,
    ) -> Result<Response<v1::GetYearTotalsResponse>, Status> {
        not_here()
    }

    async fn list_received_shares(
        &self,
        _: Request<v1::ListReceivedSharesRequest>,
    ) -> Result<Response<v1::ListReceivedSharesResponse>, Status> {
        not_here()
    }
}
