-- ledger.migrate_0004: which hot store the books belong to, and its incarnations.
--
-- Why: a hot store across a network may be restarted, replaced or emptied under a process. A batch
-- is posted only in the epoch in which it was read, and the ledger is where all processes agree on
-- that epoch. Another store, layout or partition count would look for the same grabs elsewhere.
-- What the previous release sees meanwhile: it refuses the file, whose schema it does not know.

-- The hot store's kind, the number of its set of keys or rows, its partitions. At most one row,
-- written at the first start.
CREATE TABLE hot_layout (
    row             INTEGER NOT NULL PRIMARY KEY CHECK (row = 1),
    store           TEXT    NOT NULL CHECK (store <> ''),
    layout          INTEGER NOT NULL CHECK (layout BETWEEN 0 AND 65535),
    partition_count INTEGER NOT NULL CHECK (partition_count BETWEEN 1 AND 1024)
) STRICT;

-- The previous release knew one hot store only. Books that nobody used yet may get another one.
INSERT INTO hot_layout (row, store, layout, partition_count)
SELECT 1, 'embedded', 1, 1 WHERE EXISTS (SELECT 1 FROM envelope);

-- In which epoch a partition stands, and for which process of the hot store. A partition that was
-- never registered has no row and stands in epoch 1.
CREATE TABLE hot_partition (
    partition INTEGER NOT NULL PRIMARY KEY CHECK (partition BETWEEN 0 AND 1023),
    epoch     INTEGER NOT NULL CHECK (epoch >= 2),
    server    TEXT    NOT NULL CHECK (server <> '')
) STRICT;

CREATE TRIGGER hot_layout_is_not_changed BEFORE UPDATE ON hot_layout
BEGIN SELECT RAISE(ABORT, 'the hot store never changes its layout'); END;
CREATE TRIGGER hot_layout_is_not_deleted BEFORE DELETE ON hot_layout
BEGIN SELECT RAISE(ABORT, 'the hot store never changes its layout'); END;
-- An epoch that came back would let a batch pass that was read before the store was replaced; a
-- server that changed within one would let two processes grant in it.
CREATE TRIGGER hot_partition_only_advances BEFORE UPDATE ON hot_partition
WHEN NEW.partition <> OLD.partition OR NEW.epoch <> OLD.epoch + 1
BEGIN SELECT RAISE(ABORT, 'an epoch only advances'); END;
CREATE TRIGGER hot_partition_is_not_deleted BEFORE DELETE ON hot_partition
BEGIN SELECT RAISE(ABORT, 'an epoch only advances'); END;
