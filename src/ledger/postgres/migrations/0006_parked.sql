-- ledger.migrate_0006: what was parked is posted an envelope at a time, in the order in which it was parked.
--
-- Why: one record that the books refuse stopped those of all envelopes, and each batch sorted all of them.
-- What the previous release sees meanwhile: nothing but a wait while the index is built, and few records are
-- parked. A process of it that starts afterwards is refused.

CREATE INDEX parked_in_order ON parked (envelope_row, row);
