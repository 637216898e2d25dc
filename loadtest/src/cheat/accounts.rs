//! The accounts, the audit and the facts of the cheating server.

use red_envelope_proto::v1;
use red_envelope_proto::v1::account_service_server::AccountService;
use red_envelope_proto::v1::admin_service_server::AdminService;
use red_envelope_proto::v1::info_service_server::InfoService;
use tonic::{Request, Response, Status, async_trait};

use super::{Cheat, Cheater, money};

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("the rehearsal does not ask for it"))
}

#[async_trait]
impl AccountService for Cheater {
    async fn deposit(
        &self,
        request: Request<v1::DepositRequest>,
    ) -> Result<Response<v1::DepositResponse>, Status> {
        let request = request.into_inner();
        let minor = request.amount.unwrap().minor_units;
        *self.books().deposits.entry(request.owner).or_default() += minor;
        Ok(Response::new(Default::default()))
    }

    async fn get_balance(
        &self,
        request: Request<v1::GetBalanceRequest>,
    ) -> Result<Response<v1::GetBalanceResponse>, Status> {
        let v1::GetBalanceRequest {
            owner,
            currency_code,
            ..
        } = request.into_inner();
        self.is_there("GetBalance", &owner)?;
        let books = self.books();
        let mut available = books.deposits.get(&owner).copied().unwrap_or(0);
        for sent in books.sent.values() {
            if sent.sender == owner {
                available -= sent.paid();
            }
            available += sent
                .shares()
                .filter(|(_, holder, _)| **holder == owner)
                .map(|(_, _, amount)| amount)
                .sum::<i64>();
        }
        if self.cheat == Cheat::PaysLess && available > 0 {
            available -= 1;
        }
        Ok(Response::new(v1::GetBalanceResponse {
            balances: vec![v1::Balance {
                available: money(&currency_code, available),
                pending: money(&currency_code, 0),
                held: money(&currency_code, 0),
            }],
        }))
    }

    async fn withdraw(
        &self,
        _: Request<v1::WithdrawRequest>,
    ) -> Result<Response<v1::WithdrawResponse>, Status> {
        not_here()
    }

    async fn list_entries(
        &self,
        _: Request<v1::ListEntriesRequest>,
    ) -> Result<Response<v1::ListEntriesResponse>, Status> {
        not_here()
    }
}

#[async_trait]
impl AdminService for Cheater {
    async fn audit(
        &self,
        _: Request<v1::AuditRequest>,
    ) -> Result<Response<v1::AuditResponse>, Status> {
        self.is_there("Audit", "")?;
        let clean = self.cheat != Cheat::AuditFails;
        let mut found = v1::AuditResponse {
            clean,
            quiet: true,
            ..v1::AuditResponse::default()
        };
        if !clean {
            found.discrepancy_count = 1;
            let mut discrepancy = v1::Discrepancy::default();
            discrepancy.set_kind(v1::DiscrepancyKind::PostingUnbalanced);
            found.discrepancies.push(discrepancy);
        }
        Ok(Response::new(found))
    }

    async fn trace_envelope(
        &self,
        _: Request<v1::TraceEnvelopeRequest>,
    ) -> Result<Response<v1::TraceEnvelopeResponse>, Status> {
        not_here()
    }

    async fn freeze_envelope(
        &self,
        _: Request<v1::FreezeEnvelopeRequest>,
    ) -> Result<Response<v1::FreezeEnvelopeResponse>, Status> {
        not_here()
    }

    async fn unfreeze_envelope(
        &self,
        _: Request<v1::UnfreezeEnvelopeRequest>,
    ) -> Result<Response<v1::UnfreezeEnvelopeResponse>, Status> {
        not_here()
    }

    async fn list_dead_letters(
        &self,
        _: Request<v1::ListDeadLettersRequest>,
    ) -> Result<Response<v1::ListDeadLettersResponse>, Status> {
        not_here()
    }

    async fn replay_dead_letter(
        &self,
        _: Request<v1::ReplayDeadLetterRequest>,
    ) -> Result<Response<v1::ReplayDeadLetterResponse>, Status> {
        not_here()
    }

    async fn dismiss_dead_letter(
        &self,
        _: Request<v1::DismissDeadLetterRequest>,
    ) -> Result<Response<v1::DismissDeadLetterResponse>, Status> {
        not_here()
    }
}

#[async_trait]
impl InfoService for Cheater {
    async fn get_service_info(
        &self,
        _: Request<v1::GetServiceInfoRequest>,
    ) -> Result<Response<v1::GetServiceInfoResponse>, Status> {
        // It deals no envelope: each hands out its shares by number.
        Ok(Response::new(Default::default()))
    }
}
