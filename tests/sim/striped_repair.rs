//! The repair of a stripe, step by step as in `hot::redis::repair`, with its own plan; and the registration of
//! partitions that were lost.

use red_envelope::domain::envelope::HotState;
use red_envelope::domain::id::Epoch;
use red_envelope::domain::stripes::Stripe;
use red_envelope::hot::redis::law::{Asked, Fields, Plan, has_gathered, in_turn, may_stand, plan};
use red_envelope::hot::{Epochs, Halted, HotError, Repair};
use red_envelope::ledger::LedgerError;

use crate::net::To;
use crate::stores::Rule;
use crate::striped::{partitions, places, sum_of};
use crate::striped_door::{StripedDoor, at};
use crate::striped_law::{At, crossed};

impl StripedDoor {
    pub async fn repair_stripe(
        &self,
        under: &Epochs,
        repair: Repair,
    ) -> Result<HotState, HotError> {
        let (id, terms) = (repair.envelope, &repair.terms);
        self.knows(id, terms);
        let all = places(id, terms.stripes);
        let at = at(under, id, all[usize::from(repair.stripe.index())]);
        let sum = sum_of(under, &all);
        let stands = repair.gathered.as_ref().is_some_and(|all| all.stands);
        let gathers = repair.gathered.is_some() && repair.stripe == Stripe::FIRST;
        let halts = self.keeps(Rule::FirstHalted);
        if gathers {
            if let Some(state) = self.gathered_before(at, sum).await? {
                return Ok(state);
            }
            let halted = match halts {
                true => self.step(move |s| s.halt(at, sum)).await?,
                false => Some(Halted::default()),
            };
            if stands && halted.is_none() {
                return crossed();
            }
        }
        // 1. read
        let (partition, epoch) = (at.partition, at.epoch);
        let lies = self.step(move |s| Ok(s.read(partition, id))).await?;
        let before = lies.as_ref().map(|lies| &lies.meta);
        let here = before.filter(|meta| meta.epoch == epoch);
        if gathers && stands {
            match here.map(|meta| (meta.is_dry() || !halts, meta.state)) {
                Some((true, _)) => {}
                Some((false, state @ HotState::Over(_))) => return Ok(state),
                _ => return crossed(),
            }
        }
        // 2. plan
        let none = Fields::new();
        let plan = plan(&Asked {
            repair: &repair,
            under: (epoch, sum),
            before,
            fields: lies.as_ref().map_or(&none, |lies| &lies.fields),
            orphans: &[],
        })?;
        // 3. stamp
        let sound =
            before.filter(|meta| !gathers && may_stand(meta, &plan) && in_turn(meta, &plan));
        if let Some(seen) = sound.filter(|_| plan.puts.is_empty() && plan.drops.is_empty()) {
            let (seen, wanted) = (seen.clone(), copy(&plan));
            let stamped = self.step(move |s| s.stamp(at, &seen, &wanted)).await?;
            if let Some(state) = stamped {
                return Ok(state);
            }
        }
        for anew in [false, true] {
            if let Some(state) = self.rebuild((at, &repair), &plan, anew).await? {
                return Ok(state);
            }
        }
        crossed()
    }

    async fn gathered_before(&self, at: At, sum: u64) -> Result<Option<HotState>, HotError> {
        let by_epochs = self.keeps(Rule::StaleUnderOld);
        self.step(move |s| {
            let meta = s.lies(at.partition, at.id).map(|lies| &lies.meta);
            let has = meta.filter(|meta| {
                let then = meta.part.as_ref().map_or(0, |part| part.under);
                has_gathered(meta, (at.epoch, if by_epochs { sum } else { then }))
            });
            Ok(has.map(|meta| meta.state))
        })
        .await
    }

    /// Steps 4 to 6; `None`: what is there does not fit the plan.
    async fn rebuild(
        &self,
        (at, repair): (At, &Repair),
        plan: &Plan,
        anew: bool,
    ) -> Result<Option<HotState>, HotError> {
        let (wanted, terms) = (copy(plan), repair.terms.clone());
        let stood = self.step(move |s| s.rebuild(at, (&wanted.meta, &terms, wanted.state), anew));
        if let Some(state) = stood.await? {
            return Ok(Some(state));
        }
        let wanted = copy(plan);
        let put = self.step(move |s| s.put((at, &wanted.meta), &[], (&wanted.drops, &wanted.puts)));
        let mut fits = put.await?;
        let wanted = copy(plan);
        let put = self.step(move |s| s.put((at, &wanted.meta), &wanted.shares, (&[], &[])));
        fits &= put.await?;
        if !fits {
            return Ok(None);
        }
        let wanted = copy(plan);
        self.step(move |s| s.rebuilt(at, &wanted)).await
    }

    /// Registers partitions that were lost, as `publish::registrar`: the books accept who serves one before it
    /// grants.
    ///
    /// # Errors
    /// A store is out of reach: the next round goes on.
    pub async fn register_lost(&self) -> Result<(), HotError> {
        let found = self.step(|s| Ok(s.found())).await?;
        for (partition, seen) in partitions().all().zip(found) {
            let place = usize::from(partition.index());
            let stands = seen.fence.filter(|fence| Some(*fence) == seen.epoch);
            if let Some(epoch) = stands {
                self.epochs.lock().expect("a panic ends the history")[place] = epoch;
                continue;
            }
            let route = (self.process, To::Books);
            let asked = self.net.call(route, LedgerError::Unavailable, move |s| {
                Ok(s.accept(partition, seen.life))
            });
            let accepted: Result<Option<Epoch>, LedgerError> = asked.await;
            let Ok(Some(epoch)) = accepted else { continue };
            let registered = self
                .step(move |s| Ok(s.register(partition, (seen, epoch))))
                .await?;
            if registered {
                self.epochs.lock().expect("a panic ends the history")[place] = epoch;
            }
        }
        Ok(())
    }
}

fn copy(plan: &Plan) -> Plan {
    Plan {
        meta: plan.meta.clone(),
        state: plan.state,
        dry: plan.dry,
        taken: plan.taken.clone(),
        puts: plan.puts.clone(),
        drops: plan.drops.clone(),
        shares: plan.shares.clone(),
    }
}
