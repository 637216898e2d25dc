//! Every share of one envelope: what the seed, the ledger and the hot store say of it.
//!
//! *Bounds.* A page of claims and a page of grants at a time, however many shares there are; all grants of an
//! envelope that the hot store can't page.
//!
//! *Ordering.* For each range of share numbers: claims first, grants after them. See `audit`.

use std::collections::BTreeMap;

use super::AuditError;
use super::report::Findings;
use crate::domain::books::{DiscrepancyKind, ShareFacts, ShareVerdict};
use crate::domain::envelope::BookState;
use crate::domain::grab::HeldShare;
use crate::hot::{GRANTS_PER_PAGE_MAX, GrantWalk, HotStore};
use crate::ledger::{EnvelopeRow, Ledger, PAGE_ROWS_MAX};

/// What the shares of one envelope add up to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ShareSums {
    /// Claims that were paid.
    pub(super) paid_minor: i128,
    /// Claims that were declined.
    pub(super) declined_minor: i128,
    /// Grants without a claim.
    pub(super) unsettled_minor: i128,
    /// What the seed says of all shares that have a claim or a grant.
    pub(super) taken_said_minor: i128,
    /// Claims and grants.
    pub(super) claims: u64,
    /// Grants, as far as the hot store holds the envelope.
    pub(super) grants: u64,
    /// What the grants are worth.
    pub(super) granted_minor: i128,
}

/// A walk over the shares of one envelope.
pub(super) struct Shares<'a> {
    pub(super) hot: &'a dyn HotStore,
    pub(super) ledger: &'a dyn Ledger,
    /// Read before anything that this walk reads.
    pub(super) row: &'a EnvelopeRow,
    /// From the seed.
    pub(super) amounts: &'a [i64],
    /// Turns false when the hot store forgets the envelope meanwhile.
    pub(super) hot_holds: bool,
    /// The hot store has it in this epoch: it knows every grant that the books have.
    pub(super) hot_whole: bool,
    /// What the hot store has read of it.
    pub(super) grants: GrantWalk,
    pub(super) sums: ShareSums,
}

impl Shares<'_> {
    /// Judges every share.
    pub(super) async fn walk(&mut self, findings: &mut Findings) -> Result<(), AuditError> {
        let mut from = Some(0);
        while let Some(first) = from {
            let claims = self.claims(first).await?;
            // A full page ends the range; a page that is not full goes to the last share.
            let full = claims.len() >= PAGE_ROWS_MAX;
            let next = claims.last_key_value().filter(|_| full);
            let next = next.and_then(|(share, _)| share.checked_add(1));
            self.walk_range(first, next, claims, findings).await?;
            from = next;
        }
        Ok(())
    }

    async fn claims(&self, first: u32) -> Result<BTreeMap<u32, HeldShare>, AuditError> {
        let id = self.row.id;
        let claims = self.ledger.claims(id, first, PAGE_ROWS_MAX).await?;
        let by_share = claims.into_iter().map(|claim| (claim.grant.share, claim));
        Ok(by_share.collect())
    }

    /// Shares from `first` to below `end`, if it has one.
    async fn walk_range(
        &mut self,
        first: u32,
        end: Option<u32>,
        mut claims: BTreeMap<u32, HeldShare>,
        findings: &mut Findings,
    ) -> Result<(), AuditError> {
        let mut from = Some(first).filter(|_| self.hot_holds);
        while let Some(first) = from {
            let page = self
                .hot
                .walk_grants(&mut self.grants, self.row.id, first, GRANTS_PER_PAGE_MAX)
                .await?;
            let Some(page) = page else {
                self.hot_holds = false;
                break;
            };
            let full = page.len() >= GRANTS_PER_PAGE_MAX;
            let next = page.last().filter(|_| full);
            let next = next.and_then(|grant| grant.grant.share.checked_add(1));
            let in_range = |share: u32| end.is_none_or(|end| share < end);
            let mut late = Vec::new();
            for grant in page.iter().filter(|grant| in_range(grant.grant.share)) {
                let claim = claims.remove(&grant.grant.share);
                if self.judge(claim.as_ref(), Some(grant), findings) {
                    late.push(grant);
                }
            }
            self.look_again(&late, findings).await?;
            from = next.filter(|share| in_range(*share));
        }
        for claim in claims.values() {
            self.judge(Some(claim), None, findings);
        }
        Ok(())
    }

    /// Adds one share up and judges it. Answers whether it is late.
    fn judge(
        &mut self,
        claim: Option<&HeldShare>,
        grant: Option<&HeldShare>,
        findings: &mut Findings,
    ) -> bool {
        let Some(either) = claim.or(grant) else {
            return false;
        };
        let share = either.grant.share;
        let place = usize::try_from(share).ok();
        let said_minor = place.and_then(|place| self.amounts.get(place)).copied();
        self.sums.taken_said_minor += i128::from(said_minor.unwrap_or(0));
        if let Some(grant) = grant {
            self.sums.grants += 1;
            self.sums.granted_minor += i128::from(grant.grant.amount_minor);
        }
        match (claim, grant) {
            (Some(claim), _) => {
                self.sums.claims += 1;
                let minor = i128::from(claim.grant.amount_minor);
                if claim.declined {
                    self.sums.declined_minor += minor;
                } else {
                    self.sums.paid_minor += minor;
                }
            }
            (None, Some(grant)) => {
                self.sums.unsettled_minor += i128::from(grant.grant.amount_minor);
            }
            (None, None) => {}
        }
        let facts = ShareFacts {
            said_minor,
            claim,
            grant,
            hot_holds: self.hot_holds && self.hot_whole,
            closed: matches!(self.row.state, BookState::Closed(_)),
        };
        match facts.verdict(self.ledger.now()) {
            ShareVerdict::Open | ShareVerdict::Settled => false,
            ShareVerdict::InFlight => {
                findings.report.in_flight_count += 1;
                false
            }
            ShareVerdict::Late => true,
            ShareVerdict::Wrong(kind) => {
                let paid = claim.map(|claim| claim.grant.amount_minor);
                let granted = grant.map(|grant| grant.grant.amount_minor);
                self.wrong(
                    kind,
                    format!(
                        "share {share}: the seed says {}, the ledger {}, the hot store {}",
                        amount(said_minor),
                        amount(paid),
                        amount(granted)
                    ),
                    findings,
                );
                false
            }
        }
    }

    /// Grants that should have a claim by now: their claims may have come since they were read.
    async fn look_again(
        &self,
        late: &[&HeldShare],
        findings: &mut Findings,
    ) -> Result<(), AuditError> {
        let mut late = late.iter().peekable();
        while let Some(first) = late.peek() {
            let claims = self.claims(first.grant.share).await?;
            let last = claims.last_key_value().map(|(share, _)| *share);
            let seen_to = last.filter(|_| claims.len() >= PAGE_ROWS_MAX);
            let seen = |share: u32| seen_to.is_none_or(|to| share <= to);
            while let Some(grant) = late.next_if(|grant| seen(grant.grant.share)) {
                match claims.get(&grant.grant.share) {
                    // It was settled meanwhile, to whom the hot store says.
                    Some(claim) if claim.grabber == grant.grabber => {
                        findings.report.in_flight_count += 1;
                    }
                    _ => {
                        let share = grant.grant.share;
                        let age_ms = self.ledger.now().0.saturating_sub(grant.grant.at.0);
                        let detail = format!("share {share}: granted {age_ms} ms ago, not paid");
                        self.wrong(DiscrepancyKind::GrantWithoutClaim, detail, findings);
                    }
                }
            }
        }
        Ok(())
    }

    fn wrong(&self, kind: DiscrepancyKind, detail: String, findings: &mut Findings) {
        findings.wrong(kind, &self.row.terms.tenant, self.row.id, detail);
    }
}

fn amount(minor: Option<i64>) -> String {
    minor.map_or_else(|| "nothing".to_owned(), |minor| minor.to_string())
}
