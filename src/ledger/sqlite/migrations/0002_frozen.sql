-- ledger.migrate_0002: frozen envelopes are found without looking at the others.
--
-- Why: settlement asks every second which envelopes are frozen, to count them for operators and to
-- have the hot store follow the books.
-- What the previous release sees meanwhile: it refuses this schema. The tables are as they were.

CREATE INDEX envelope_frozen ON envelope (row) WHERE frozen = 1;
