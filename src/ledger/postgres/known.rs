//! What was found before, and would be asked for again and again: rows of accounts, which are most of what
//! a batch asks for, and the secrets from which seeds follow.
//!
//! *Bounds.* [`KNOWN_MAX`] accounts, some 100 bytes each, and [`SECRETS_MAX`] secrets; what was not used for
//! long is forgotten.
//!
//! *Ordering.* An account keeps its row for as long as the books stand. Books that were restored behind a
//! running process may have given the row to somebody else: so a batch says whose each row is when it
//! uses it, and one that is wrong is forgotten with the batch's others and looked up again. Their leaves may
//! have begun anew, too: a seed is used where the terms commit to it.

use std::sync::Arc;

use quick_cache::sync::Cache;

use crate::domain::fairness::BatchSecret;
use crate::domain::id::TenantId;
use crate::domain::money::Currency;

/// Accounts whose rows are kept.
const KNOWN_MAX: usize = 1 << 20;
/// Batches of leaves whose secrets are kept: a million envelopes' for one tenant, the newest batch of each for a
/// thousand.
const SECRETS_MAX: usize = 1_024;

/// See the module.
pub(super) struct Known(Cache<Box<str>, i64>);

/// How the accounts of one tenant and currency are named.
pub(super) struct Names {
    name: String,
    prefix: usize,
}

impl Names {
    pub fn of(tenant: &str, currency: Currency) -> Self {
        // No name of a tenant or of a person has a line's end in it.
        let name = format!("{tenant}\n{}\n", currency.code());
        let prefix = name.len();
        Self { name, prefix }
    }

    fn of_owner(&mut self, owner: &str) -> &str {
        self.name.truncate(self.prefix);
        self.name.push_str(owner);
        &self.name
    }
}

impl Known {
    pub fn new() -> Self {
        Self(Cache::new(KNOWN_MAX))
    }

    pub fn row(&self, names: &mut Names, owner: &str) -> Option<i64> {
        self.0.get(names.of_owner(owner))
    }

    pub fn note(&self, names: &mut Names, owner: &str, row: i64) {
        self.0.insert(names.of_owner(owner).into(), row);
    }

    pub fn forget(&self, names: &mut Names, owner: &str) {
        self.0.remove(names.of_owner(owner));
    }
}

/// Secrets of batches of leaves that were opened before.
pub(super) struct Secrets(Cache<(TenantId, u64), Arc<BatchSecret>>);

impl Secrets {
    pub fn new() -> Self {
        Self(Cache::new(SECRETS_MAX))
    }

    pub fn get(&self, tenant: &TenantId, batch_number: u64) -> Option<Arc<BatchSecret>> {
        self.0.get(&(tenant.clone(), batch_number))
    }

    pub fn forget(&self) {
        self.0.clear();
    }

    pub fn keep(&self, tenant: &TenantId, batch_number: u64, secret: Arc<BatchSecret>) {
        self.0.insert((tenant.clone(), batch_number), secret);
    }
}
