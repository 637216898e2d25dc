#!lua name=redenvelope
-- revision 1
-- Who may take which share, decided inside Redis: one atomic call, no lock, no rollback.
--
-- Shape. Redis has no rollback: a command that fails in the middle leaves what was written before
-- it. So every function that writes has three phases: read (types, placeholder, count), decide in
-- tables, write with commands that can't fail, the outbox first. A bad envelope gets its own code
-- and the others of the call go on.
--
-- Keys. See keys.rs: every key of a partition has its hash tag. The grabs hash of an envelope has
-- the meta under the empty field, which no grabber can be called, so it exists before the first
-- grab. Amounts are opaque bytes (little endian, `width` of them): a Lua number can't hold each
-- of them as text, so there is no arithmetic on them here.
--
-- Epochs. `fence` lives in this process only: neither replication nor the AOF carries it and a
-- REPLACE of the library clears it. A function does nothing unless the caller's epoch is the
-- fence's and the one under the partition's epoch key, so a server that was restarted, flushed
-- or promoted grants nothing before it is registered.
--
-- Revision. Any other text has a higher number above (a test sees to it). A process leaves a library
-- of a higher number than its own where it is, so that two releases don't replace each other's in
-- turn: for as long as they run together each function of the older one is there and means the same.
--
-- Ordering. Functions are idempotent: clients and proxies replay calls whose answer was lost.
--
-- Bounds. No loop runs longer than the arguments that the caller counted (GRABS_PER_CALL_MAX,
-- LOAD_CHUNK_SHARES_MAX, PAIRS_PER_CALL_MAX) or than the constants below.

-- Compared with reply.rs by a test.
local REPLY = {
  OK = 0, WON = 1, ALREADY_GRABBED = 2, EMPTY = 3, EXPIRED = 4, RECALLED = 5, NOT_OPEN_YET = 6,
  WRONG_PASSPHRASE = 7, TOO_MANY_TRIES = 8, DECLINED = 9, MISSING = 10, FUNDING = 11, FROZEN = 12,
  STALE = 13, EPOCH = 14, FAULT = 15, NOT_DUE = 16, OUT_OF_ORDER = 17, OTHER_TERMS = 18,
  OTHER_AMOUNTS = 19, INCOMPLETE = 20, DAMAGED = 21, NOT_EMPTY = 22,
}
local FUNDING, LIVE, EMPTY, EXPIRED, RECALLED = 0, 1, 2, 3, 4
local OVER = { [EMPTY] = REPLY.EMPTY, [EXPIRED] = REPLY.EXPIRED, [RECALLED] = REPLY.RECALLED }
local LAYOUT = 1
local UNMARKED = 0 -- 1: the books have the mark; 2: an invariant would have broken
-- meta = layout state frozen opening_seen named locked listed compact width
--        next base length count declined · opens_at expires_at epoch · base_minor(8 bytes) tenant
local META = '<BBBBBBBBBI4I4I4I4I4I6I6I6c8'
local META_BYTES = 55
local ENTRY_BYTES_MIN = 19
-- lock = the digest of the phrase (32) and the wrong tries so far (u32), under the empty field of `p`
local LOCK_BYTES = 36
-- domain/audience.rs: WRONG_TRIES_PER_GRABBER_MAX, WRONG_TRIES_PER_ENVELOPE_MAX.
local TRIES_OF_GRABBER_MAX, TRIES_OF_ENVELOPE_MAX = 5, 10000
-- Entries that a look over the outbox reads at once, and how many such looks a call makes.
local SCAN_ENTRIES, SCAN_ROUNDS_MAX = 250, 40

local fence = {} -- partition → epoch
local debt = {} -- partition → records in the outbox: for operators only, counted anew by register_1

local function clock(arg)
  -- '=…': a test's clock that stands still; else milliseconds beside the server's own time.
  if string.sub(arg, 1, 1) == '=' then return tonumber(string.sub(arg, 2)) end
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000) + tonumber(arg)
end

-- nil where the caller's epoch stands; else the one that does, 0 for none.
local function other_epoch(partition, epoch, key)
  local mine = fence[partition]
  if mine == nil then return 0 end
  local stored = redis.pcall('GET', key)
  if type(stored) ~= 'string' then return 0 end
  if mine == epoch and tonumber(stored) == epoch then return nil end
  if tonumber(stored) ~= mine then return 0 end
  return mine
end

local function meta_of(raw)
  if type(raw) ~= 'string' or #raw < META_BYTES or string.byte(raw, 1) ~= LAYOUT then return nil end
  local layout, state, frozen, opening_seen, named, locked, listed, compact, width, next_, base,
    length, count, declined, opens_at, expires_at, epoch, base_minor, at = struct.unpack(META, raw)
  -- In one piece: a table that grows field by field is copied five times.
  local m = { layout = layout, state = state, frozen = frozen, opening_seen = opening_seen,
    named = named, locked = locked, listed = listed, compact = compact, width = width, next = next_,
    base = base, length = length, count = count, declined = declined, opens_at = opens_at,
    expires_at = expires_at, epoch = epoch, base_minor = base_minor, tenant = string.sub(raw, at) }
  if m.state > RECALLED or m.width < 1 or m.width > 8 then return nil end
  if m.state == LIVE and m.next >= m.length then return nil end
  return m
end

local function packed(m)
  return struct.pack(META, m.layout, m.state, m.frozen, m.opening_seen, m.named, m.locked, m.listed,
    m.compact, m.width, m.next, m.base, m.length, m.count, m.declined, m.opens_at, m.expires_at,
    m.epoch, m.base_minor) .. m.tenant
end

local function record_bytes(m)
  if m.compact == 1 then return m.width + 4 end
  return m.width
end

-- How many fields the grabs hash must have: the meta and one a taken share, or one a name.
local function fields(m)
  if m.state == FUNDING then return nil end
  if m.named == 1 then return 1 + m.count end
  return 1 + m.base + m.next
end

-- Whether the shares that can still be taken are there, or those that were, and the lock. `s` and
-- `p` may be nil.
local function equipped(m, s, p)
  if m.state == FUNDING then return true end
  if s and m.named == 0 then
    local have, bytes = redis.pcall('STRLEN', s), record_bytes(m)
    if m.state == LIVE and have ~= m.length * bytes then return false end
    if m.next > 0 and (type(have) ~= 'number' or have < m.next * bytes) then return false end
  end
  if m.state ~= LIVE then return true end
  if p and m.locked == 1 then
    local lock = redis.pcall('HGET', p, '')
    return type(lock) == 'string' and #lock == LOCK_BYTES
  end
  return true
end

-- The meta of an envelope that is whole. Else nil, and whether anything is there.
local function sound(g, s, p)
  local raw = redis.pcall('HGET', g, '')
  if type(raw) == 'table' then return nil, true end
  local m = meta_of(raw)
  if m == nil then return nil, redis.call('EXISTS', g) == 1 end
  local expected = fields(m)
  -- A tombstone of a named envelope has no names.
  if expected and redis.call('HLEN', g) ~= expected and not (m.named == 1 and m.length == 0) then
    return nil, true
  end
  if not equipped(m, s, p) then return nil, true end
  return m, true
end

-- value = share u32 · at u48 · amount, then 'd' if declined; a name's untaken one: share · amount.
local function is_taken(value, width) return value and #value >= width + 10 end
local function is_declined(value, width) return value and #value == width + 11 end
-- A field that is neither: somebody else wrote it, so nobody is served from it.
local function is_cut(value, m)
  if not value or #value == m.width + 10 or #value == m.width + 11 then return false end
  return m.named == 0 or #value ~= m.width + 4
end

local EIGHT_ZEROS = '\0\0\0\0\0\0\0\0'
local function wide(amount) return amount .. string.sub(EIGHT_ZEROS, #amount + 1) end

-- reply = code · share u32 · amount(8 bytes) · at u48
local function grant_reply(code, value, width)
  return string.char(code) .. string.sub(value, 1, 4) .. wide(string.sub(value, 11, 10 + width))
    .. string.sub(value, 5, 10)
end

-- entry = layout u8 · at u48 · nonce(8) · records u32 · group*
-- group = id(16) · width u8 · declined u8 · count u16 · (share u32 · amount · length u8 · grabber)*
local function owe(outbox, partition, epoch, now, nonce, records, groups)
  local head = struct.pack('<BI6', LAYOUT, now) .. nonce .. struct.pack('<I4', records)
  local id = string.format('%.0f-*', epoch)
  local entry = head .. table.concat(groups)
  local added = redis.pcall('XADD', outbox, id, 'r', entry)
  if type(added) ~= 'string' and redis.pcall('XLEN', outbox) == 0 then
    -- Somebody else's entry moved the ids ahead of this epoch, and is gone: begin anew.
    redis.call('UNLINK', outbox)
    added = redis.pcall('XADD', outbox, id, 'r', entry)
  end
  if type(added) ~= 'string' then return false end
  debt[partition] = (debt[partition] or 0) + records
  return true
end

local function group_of(id, width, declined, records, parts)
  return id .. struct.pack('<BBI2', width, declined, records) .. table.concat(parts)
end

-- ── grab ─────────────────────────────────────────────────────────────────────────────────────────

-- Reads what the grabs of one envelope need. Answers a code where nobody can be served.
local function read_envelope(e, epoch)
  e.values = redis.pcall('HMGET', e.g, '', unpack(e.grabbers))
  if e.values.err then return REPLY.MISSING end
  local m = meta_of(e.values[1])
  if m == nil or m.tenant ~= e.tenant then return REPLY.MISSING end
  e.meta = m
  if m.frozen ~= UNMARKED then return REPLY.FROZEN end
  -- Half rebuilt: whoever asks goes on with it.
  if m.state == FUNDING then return m.compact == 1 and REPLY.STALE or REPLY.FUNDING end
  if redis.call('HLEN', e.g) ~= fields(m) and not (m.named == 1 and m.length == 0) then
    return REPLY.MISSING
  end
  if m.epoch ~= epoch then return REPLY.STALE end
  if m.state ~= LIVE then return nil end
  -- The list is for readers only. One that lacks somebody would tell them wrong, so it ends.
  if m.listed == 1 and redis.pcall('LLEN', e.l) ~= m.next then m.listed = 0 end
  if m.named == 0 then
    -- What is taken now must be there; who has a share is answered without it.
    local takers = 0
    for i = 1, #e.grabbers do
      if not e.values[i + 1] then takers = takers + 1 end
    end
    if takers > m.length - m.next then takers = m.length - m.next end
    if takers > 0 then
      local bytes = record_bytes(m)
      e.from = m.next
      e.shares = redis.pcall('GETRANGE', e.s, m.next * bytes, (m.next + takers) * bytes - 1)
      if type(e.shares) ~= 'string' or #e.shares ~= takers * bytes then return REPLY.MISSING end
    end
  end
  if m.locked == 1 then
    e.tries = redis.pcall('HMGET', e.p, '', unpack(e.grabbers))
    if e.tries.err or not e.tries[1] or #e.tries[1] ~= LOCK_BYTES then return REPLY.MISSING end
    e.digest = string.sub(e.tries[1], 1, 32)
    e.tries_in_all = struct.unpack('<I4', e.tries[1], 33)
  end
  return nil
end

-- The next share of an envelope that is taken by turns: its number and amount.
local function next_share(e)
  local m = e.meta
  local bytes = record_bytes(m)
  local at = (m.next - e.from) * bytes
  local record = string.sub(e.shares, at + 1, at + bytes)
  if m.compact == 1 then return string.sub(record, 1, 4), string.sub(record, 5) end
  return struct.pack('<I4', m.next), record
end

-- Whether the lock lets somebody pass; counts a wrong try.
local function wrong_phrase(e, i, grabber)
  local tries = (e.tried and e.tried[grabber]) or tonumber(e.tries[i + 1] or '0')
    or TRIES_OF_GRABBER_MAX
  if tries >= TRIES_OF_GRABBER_MAX or e.tries_in_all >= TRIES_OF_ENVELOPE_MAX then
    return REPLY.TOO_MANY_TRIES
  end
  -- Both are digests under the server's pepper: how long the comparison takes tells nothing.
  if e.phrases and e.phrases[i] == e.digest then return nil end
  e.tried = e.tried or {}
  e.tried[grabber] = tries + 1
  e.tries_in_all = e.tries_in_all + 1
  return REPLY.WRONG_PASSPHRASE
end

-- Decides about one grab, in memory.
local function decide(e, i, now, now_bytes)
  local m, grabber = e.meta, e.grabbers[i]
  local value = e.fresh[grabber] or e.values[i + 1]
  if is_cut(value, m) then return string.char(REPLY.MISSING) end
  if is_declined(value, m.width) then return string.char(REPLY.DECLINED) end
  if is_taken(value, m.width) then return grant_reply(REPLY.ALREADY_GRABBED, value, m.width) end
  if m.state ~= LIVE then return string.char(OVER[m.state]) end
  if now >= m.expires_at then
    m.state, e.dirty = EXPIRED, true
    return string.char(REPLY.EXPIRED)
  end
  if m.named == 1 and not value then return string.char(REPLY.MISSING) end
  if m.opening_seen == 0 then
    if now < m.opens_at then return string.char(REPLY.NOT_OPEN_YET) .. struct.pack('<I6', m.opens_at) end
    m.opening_seen, e.dirty = 1, true
  end
  if m.locked == 1 then
    local no = wrong_phrase(e, i, grabber)
    if no then return string.char(no) end
  end
  local share, amount
  if m.named == 1 then
    share, amount = string.sub(value, 1, 4), string.sub(value, 5)
  else
    share, amount = next_share(e)
  end
  value = share .. now_bytes .. amount
  e.fresh[grabber] = value
  m.next, e.dirty = m.next + 1, true
  local taken, all = m.next, m.length
  if taken == all then m.state = EMPTY end
  local n = #e.sets
  e.sets[n + 1], e.sets[n + 2] = grabber, value
  e.owed[#e.owed + 1] = share .. amount .. string.char(#grabber) .. grabber
  if m.listed == 1 then
    e.names = e.names or {}
    e.names[#e.names + 1] = grabber
  end
  return grant_reply(REPLY.WON, value, m.width)
end

-- Writes what was decided about one envelope. The types were seen, so nothing here can fail.
local function write_envelope(e)
  if e.dirty then
    redis.call('HSET', e.g, '', packed(e.meta), unpack(e.sets))
    if e.names then redis.call('RPUSH', e.l, unpack(e.names)) end
  end
  if e.tried then
    local sets = {}
    for grabber, tries in pairs(e.tried) do
      sets[#sets + 1], sets[#sets + 2] = grabber, tostring(tries)
    end
    redis.call('HSET', e.p, '', e.digest .. struct.pack('<I4', e.tries_in_all), unpack(sets))
  end
end

-- KEYS     a partition: epoch, outbox, then an envelope: g, s, l, p
-- ARGV     clock, then a partition: partition, epoch, nonce(8), envelopes, then an envelope: id,
--          tenant, grabs, locked 0|1, then a grab: grabber (and, if locked, the phrase's digest)
-- Replies  one string: a code a grab, in order. WON, ALREADY_GRABBED: grant_reply. NOT_OPEN_YET:
--          u48. EPOCH: u48. Others: the code alone.
-- Keeps    an outbox entry is written with its wins or neither is; fields = 1 + taken
-- Costs    O(grabs), and four commands an envelope: meta and grabbers, fields, shares, the write
local function grab(keys, args)
  local k, a = 1, 2
  local now = clock(args[1])
  local now_bytes = struct.pack('<I6', now)
  local partitions = {}
  while a <= #args do
    local p = { index = tonumber(args[a]), epoch = tonumber(args[a + 1]), nonce = args[a + 2],
      outbox = keys[k + 1], envelopes = {} }
    local other = other_epoch(p.index, p.epoch, keys[k])
    if not other and type(redis.pcall('XLEN', p.outbox)) ~= 'number' then p.fault = true end
    local envelopes = tonumber(args[a + 3])
    k, a = k + 2, a + 4
    for n = 1, envelopes do
      local grabs, locked = tonumber(args[a + 2]), args[a + 3] == '1'
      local e = { g = keys[k], s = keys[k + 1], l = keys[k + 2], p = keys[k + 3], id = args[a],
        tenant = args[a + 1], grabbers = {}, phrases = locked and {}, fresh = {}, sets = {}, owed = {},
        names = false, values = false, meta = false, shares = false, replies = false, all = false,
        dirty = false, from = 0 }
      k, a = k + 4, a + 4
      for i = 1, grabs do
        e.grabbers[i] = args[a]
        if locked then e.phrases[i] = args[a + 1] end
        a = a + (locked and 2 or 1)
      end
      if other then
        e.all = string.char(REPLY.EPOCH) .. struct.pack('<I6', other)
      elseif p.fault then
        e.all = string.char(REPLY.FAULT)
      else
        local code = read_envelope(e, p.epoch)
        if code then e.all = string.char(code) end
      end
      p.envelopes[n] = e
    end
    partitions[#partitions + 1] = p
  end
  for _, p in ipairs(partitions) do
    p.records, p.groups = 0, {}
    for _, e in ipairs(p.envelopes) do
      e.replies = {}
      for i = 1, #e.grabbers do
        e.replies[i] = e.all or decide(e, i, now, now_bytes)
      end
      if #e.owed > 0 then
        p.records = p.records + #e.owed
        p.groups[#p.groups + 1] = group_of(e.id, e.meta.width, 0, #e.owed, e.owed)
      end
    end
  end
  local replies = {}
  for _, p in ipairs(partitions) do
    local owed = p.records == 0
      or owe(p.outbox, p.index, p.epoch, now, p.nonce, p.records, p.groups)
    for _, e in ipairs(p.envelopes) do
      if not owed then
        for i = 1, #e.replies do e.replies[i] = string.char(REPLY.FAULT) end
      elseif not e.all then
        write_envelope(e)
      end
      replies[#replies + 1] = table.concat(e.replies)
    end
  end
  return table.concat(replies)
end

-- KEYS     epoch, outbox, g
-- ARGV     clock, partition, epoch, nonce(8), id, tenant, grabber
-- Replies  {code} or {code, grant_reply}: OK newly declined, DECLINED before, ALREADY_GRABBED
local function decline(keys, args)
  local now = clock(args[1])
  local partition, epoch = tonumber(args[2]), tonumber(args[3])
  local other = other_epoch(partition, epoch, keys[1])
  if other then return { REPLY.EPOCH, other } end
  local m = sound(keys[3])
  if m == nil or m.tenant ~= args[6] or m.named ~= 1 then return { REPLY.MISSING } end
  local value = redis.call('HGET', keys[3], args[7])
  if m.frozen ~= UNMARKED then return { REPLY.FROZEN } end
  if m.state == FUNDING then return { m.compact == 1 and REPLY.STALE or REPLY.FUNDING } end
  if is_cut(value, m) or (not value and m.length > 0) then return { REPLY.MISSING } end
  if is_declined(value, m.width) then return { REPLY.DECLINED, grant_reply(0, value, m.width) } end
  if is_taken(value, m.width) then return { REPLY.ALREADY_GRABBED, grant_reply(0, value, m.width) } end
  if m.epoch ~= epoch then return { REPLY.STALE } end
  if m.state ~= LIVE then return { OVER[m.state] } end
  if now >= m.expires_at then
    m.state = EXPIRED
    redis.call('HSET', keys[3], '', packed(m))
    return { REPLY.EXPIRED }
  end
  local share, amount = string.sub(value, 1, 4), string.sub(value, 5)
  local record = share .. amount .. string.char(#args[7]) .. args[7]
  local groups = { group_of(args[5], m.width, 1, 1, { record }) }
  if not owe(keys[2], partition, epoch, now, args[4], 1, groups) then return { REPLY.FAULT } end
  m.next, m.declined = m.next + 1, m.declined + 1
  if m.next == m.length then m.state = EMPTY end
  value = share .. struct.pack('<I6', now) .. amount .. 'd'
  redis.call('HSET', keys[3], '', packed(m), args[7], value)
  return { REPLY.OK, grant_reply(0, value, m.width) }
end

-- ── publish ──────────────────────────────────────────────────────────────────────────────────────

-- Puts a chunk down at its offset, or finds it there.
local function put_shares(s, bytes, offset, chunk)
  local have = redis.pcall('STRLEN', s)
  if type(have) ~= 'number' then return REPLY.DAMAGED end
  if offset * bytes > have then return REPLY.OUT_OF_ORDER end
  local known = math.min(have - offset * bytes, #chunk)
  if known > 0 then
    local there = redis.call('GETRANGE', s, offset * bytes, offset * bytes + known - 1)
    if there ~= string.sub(chunk, 1, known) then return REPLY.OTHER_AMOUNTS end
  end
  if known < #chunk then redis.call('SETRANGE', s, offset * bytes, chunk) end
  return REPLY.OK
end

-- What an envelope is before its shares come: terms, lock, a place in the index.
local function begin(keys, id, meta, terms, lock)
  redis.call('UNLINK', keys[3], keys[5])
  redis.call('HSET', keys[2], '', meta)
  redis.call('SET', keys[4], terms)
  if lock ~= '' then
    local there = redis.call('HGET', keys[6], '')
    if not there or #there ~= LOCK_BYTES then
      redis.call('HSET', keys[6], '', lock .. struct.pack('<I4', 0))
    end
  end
  redis.call('ZADD', keys[7], 0, id)
end

-- Whether the keys beside the grabs hash have the types that `begin` needs.
local function misplaced(keys)
  local zset, hash = redis.call('TYPE', keys[7]).ok, redis.call('TYPE', keys[6]).ok
  return not ((zset == 'none' or zset == 'zset') and (hash == 'none' or hash == 'hash'))
end

-- KEYS     epoch, g, s, t, l, p, index
-- ARGV     partition, epoch, id, offset, shares, meta of a Funding envelope, terms, lock's digest
-- Replies  {code}: OK, or why the chunk is not there; DAMAGED where it must be repaired first
-- Keeps    bytes that were put down under this epoch never change; over stays over; a repair that
--          was begun is ended by a repair, since the grants are in the hash
-- Costs    O(chunk)
local function load(keys, args)
  local epoch, offset = tonumber(args[2]), tonumber(args[4])
  local other = other_epoch(tonumber(args[1]), epoch, keys[1])
  if other then return { REPLY.EPOCH, other } end
  local fresh = meta_of(args[6])
  local m, there = sound(keys[2])
  if m == nil and there then return { REPLY.DAMAGED } end
  if m ~= nil then
    local terms = redis.pcall('GET', keys[4])
    if type(terms) ~= 'string' then return { REPLY.DAMAGED } end
    if terms ~= args[7] then return { REPLY.OTHER_TERMS } end
    if m.state ~= FUNDING then return { REPLY.OK } end
    if m.compact == 1 then return { REPLY.DAMAGED } end
  end
  if m == nil or m.epoch ~= epoch then
    if offset > 0 then return { REPLY.OUT_OF_ORDER } end
    if misplaced(keys) then return { REPLY.DAMAGED } end
    begin(keys, args[3], args[6], args[7], args[8])
    m = fresh
  elseif offset == 0 and type(redis.pcall('STRLEN', keys[3])) ~= 'number' then
    redis.call('UNLINK', keys[3])
  end
  return { put_shares(keys[3], record_bytes(m), offset, args[5]) }
end

-- KEYS     epoch, g, s
-- ARGV     partition, epoch, then the names of an EXCLUSIVE envelope in the order of their shares
-- Replies  {OK, state}, INCOMPLETE, MISSING; STALE while it is being rebuilt
local function open(keys, args)
  local epoch = tonumber(args[2])
  local other = other_epoch(tonumber(args[1]), epoch, keys[1])
  if other then return { REPLY.EPOCH, other } end
  local m = sound(keys[2])
  if m == nil then return { REPLY.MISSING } end
  if m.state ~= FUNDING then return { REPLY.OK, m.state } end
  if m.compact == 1 then return { REPLY.STALE } end
  local bytes = record_bytes(m)
  local have = redis.pcall('STRLEN', keys[3])
  if m.epoch ~= epoch or type(have) ~= 'number' or have ~= m.length * bytes then
    return { REPLY.INCOMPLETE }
  end
  local sets = {}
  if m.named == 1 then
    if #args - 2 ~= m.count then return { REPLY.INCOMPLETE } end
    local shares = redis.call('GETRANGE', keys[3], 0, -1)
    for share = 0, m.count - 1 do
      sets[#sets + 1] = args[3 + share]
      sets[#sets + 1] = struct.pack('<I4', share)
        .. string.sub(shares, share * bytes + 1, (share + 1) * bytes)
    end
  end
  m.state = LIVE
  redis.call('HSET', keys[2], '', packed(m), unpack(sets))
  return { REPLY.OK, m.state }
end

-- ── end ──────────────────────────────────────────────────────────────────────────────────────────

-- KEYS     epoch, g, s, t, l, p, index
-- ARGV     clock, partition, epoch, id, state wanted, expires_at, tombstone 0|1, meta of a Funding
--          envelope, terms
-- Replies  {OK, state, taken}, {NOT_DUE, now}, FROZEN, NOT_EMPTY, DAMAGED; MISSING where it would
--          take a tombstone and the caller did not allow one
-- Keeps    what is missing, not whole, or half rebuilt ends as a tombstone, once nothing of it is
--          owed: its grabs are in the books or were brought back before, from what a process still
--          remembered, and its money must not wait for a repair
local function close(keys, args)
  local now, epoch = clock(args[1]), tonumber(args[3])
  local other = other_epoch(tonumber(args[2]), epoch, keys[1])
  if other then return { REPLY.EPOCH, other } end
  local seen = meta_of(redis.pcall('HGET', keys[2], ''))
  if seen and seen.frozen ~= UNMARKED then return { REPLY.FROZEN } end
  local m = sound(keys[2])
  if m and m.state == FUNDING and m.compact == 1 then m = nil end
  if m and OVER[m.state] then return { REPLY.OK, m.state, m.base + m.next } end
  local wanted, expires_at = tonumber(args[5]), seen and seen.expires_at or tonumber(args[6])
  if now >= expires_at then
    wanted = EXPIRED
  elseif wanted == EXPIRED then
    return { REPLY.NOT_DUE, now }
  elseif wanted == EMPTY and m then
    return { REPLY.NOT_EMPTY }
  end
  if m == nil then
    if args[7] ~= '1' then return { REPLY.MISSING } end
    local index = redis.call('TYPE', keys[7]).ok
    if index ~= 'none' and index ~= 'zset' then return { REPLY.DAMAGED } end
    m = meta_of(args[8])
    m.length = 0
    redis.call('UNLINK', keys[2])
    begin(keys, args[4], packed(m), args[9], '')
  end
  if m.state == FUNDING and m.named == 1 then m.length = 0 end
  m.state = wanted
  redis.call('HSET', keys[2], '', packed(m))
  return { REPLY.OK, m.state, m.base + m.next }
end

-- KEYS     epoch, g, marked
-- ARGV     partition, epoch, id, mark that is set or 0 to lift, the heaviest that is lifted
-- Replies  {OK}, also where nothing is there
-- Keeps    a heavier mark stays
local function freeze(keys, args)
  local other = other_epoch(tonumber(args[1]), tonumber(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local kind = redis.call('TYPE', keys[3]).ok
  if kind ~= 'none' and kind ~= 'zset' then return { REPLY.DAMAGED, keys[3] } end
  local m = sound(keys[2])
  if m == nil then return { REPLY.OK } end
  local mark = tonumber(args[4])
  if mark ~= UNMARKED then
    if m.frozen >= mark then return { REPLY.OK } end
    redis.call('ZADD', keys[3], 0, args[3])
  else
    if m.frozen > tonumber(args[5]) then return { REPLY.OK } end
    redis.call('ZREM', keys[3], args[3])
  end
  m.frozen = mark
  redis.call('HSET', keys[2], '', packed(m))
  return { REPLY.OK }
end

-- KEYS     epoch, index, then an envelope: g, s, t, l, p
-- ARGV     partition, epoch, then ids
-- Replies  {OK, removed}: what is not over, or frozen, stays. The caller saw that nothing is owed.
local function remove(keys, args)
  local other = other_epoch(tonumber(args[1]), tonumber(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local kind = redis.call('TYPE', keys[2]).ok
  if kind ~= 'none' and kind ~= 'zset' then return { REPLY.DAMAGED, keys[2] } end
  local removed = 0
  for i = 3, #args do
    local k = 3 + (i - 3) * 5
    local m = sound(keys[k])
    if m and OVER[m.state] and m.frozen == UNMARKED then
      redis.call('UNLINK', keys[k], keys[k + 1], keys[k + 2], keys[k + 3], keys[k + 4])
      redis.call('ZREM', keys[2], args[i])
      removed = removed + 1
    end
  end
  return { REPLY.OK, removed }
end

-- ── repair ───────────────────────────────────────────────────────────────────────────────────────

-- Whether an envelope stands as it is: whole, and in this epoch.
local function stands(m, epoch) return m ~= nil and m.epoch == epoch and m.state ~= FUNDING end

-- KEYS     epoch, g, s, p
-- ARGV     partition, epoch, the raw meta that was compared with the books
-- Replies  {OK, state}; STALE where it changed meanwhile
-- Keeps    an envelope whose grabs were compared with the books comes into this epoch as it is
local function stamp(keys, args)
  local epoch = tonumber(args[2])
  local other = other_epoch(tonumber(args[1]), epoch, keys[1])
  if other then return { REPLY.EPOCH, other } end
  local m = sound(keys[2], keys[3], keys[4])
  if stands(m, epoch) then return { REPLY.OK, m.state } end
  if m == nil or m.state == FUNDING or packed(m) ~= args[3] then return { REPLY.STALE } end
  m.epoch = epoch
  redis.call('HSET', keys[2], '', packed(m))
  return { REPLY.OK, m.state }
end

-- KEYS     epoch, g, s, t, l, p, index
-- ARGV     partition, epoch, id, meta of the Funding envelope to be built, terms, lock's digest,
--          anew 0|1
-- Replies  {OK} it stands empty under this epoch and is built next; {STALE, state} it stands whole
-- Keeps    the grabs that are there stay until `rebuild_put_1` drops them; a repair that was begun
--          with the same plan goes on where it stands, unless it is begun anew
local function rebuild(keys, args)
  local epoch = tonumber(args[2])
  local other = other_epoch(tonumber(args[1]), epoch, keys[1])
  if other then return { REPLY.EPOCH, other } end
  local m = sound(keys[2], keys[3], keys[6])
  if stands(m, epoch) then return { REPLY.STALE, m.state } end
  if m and packed(m) == args[4] and args[7] ~= '1' then return { REPLY.OK } end
  local types = { [2] = 'hash', [6] = 'hash', [7] = 'zset' }
  for k, type_wanted in pairs(types) do
    if redis.call('TYPE', keys[k]).ok ~= type_wanted then redis.call('UNLINK', keys[k]) end
  end
  begin(keys, args[3], args[4], args[5], args[6])
  return { REPLY.OK }
end

-- KEYS     epoch, g, s
-- ARGV     partition, epoch, offset of the shares, shares, how many are dropped, these grabbers,
--          then (grabber, value) pairs
-- Replies  {OK}; STALE where no repair is under way; OUT_OF_ORDER, OTHER_AMOUNTS, DAMAGED where
--          the shares that are there are not those of this plan
local function rebuild_put(keys, args)
  local epoch = tonumber(args[2])
  local other = other_epoch(tonumber(args[1]), epoch, keys[1])
  if other then return { REPLY.EPOCH, other } end
  local m = sound(keys[2])
  if m == nil or m.state ~= FUNDING or m.compact == 0 or m.epoch ~= epoch then
    return { REPLY.STALE }
  end
  if args[4] ~= '' then
    local put = put_shares(keys[3], record_bytes(m), tonumber(args[3]), args[4])
    if put ~= REPLY.OK then return { put } end
  end
  local dropped = tonumber(args[5])
  if dropped > 0 then redis.call('HDEL', keys[2], unpack(args, 6, 5 + dropped)) end
  if #args > 5 + dropped then redis.call('HSET', keys[2], unpack(args, 6 + dropped)) end
  return { REPLY.OK }
end

-- KEYS     epoch, g, s, p
-- ARGV     partition, epoch, the state that it goes to
-- Replies  {OK, state}; INCOMPLETE; STALE where no repair is under way
local function rebuilt(keys, args)
  local epoch = tonumber(args[2])
  local other = other_epoch(tonumber(args[1]), epoch, keys[1])
  if other then return { REPLY.EPOCH, other } end
  local m = sound(keys[2], keys[3], keys[4])
  if stands(m, epoch) then return { REPLY.OK, m.state } end
  if m == nil or m.compact == 0 or m.epoch ~= epoch then return { REPLY.STALE } end
  local expected = m.named == 1 and 1 + m.count or 1 + m.base + m.next
  local whole = m.named == 1 or redis.pcall('STRLEN', keys[3]) == m.length * record_bytes(m)
  if not whole or redis.call('HLEN', keys[2]) ~= expected then return { REPLY.INCOMPLETE } end
  m.state = tonumber(args[3])
  redis.call('HSET', keys[2], '', packed(m))
  return { REPLY.OK, m.state }
end

-- ── read ─────────────────────────────────────────────────────────────────────────────────────────

-- KEYS     epoch, then an envelope: g, s, p
-- ARGV     partition, epoch, bytes at most, then an envelope: shares that the caller knows
-- Replies  {OK, then an envelope: meta, bytes of the taken shares after those}; '' where missing
local function view(keys, args)
  local other = other_epoch(tonumber(args[1]), tonumber(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local replies, bytes_max = { REPLY.OK }, tonumber(args[3])
  for i = 4, #args do
    local k = 2 + (i - 4) * 3
    local m = sound(keys[k], keys[k + 1], keys[k + 2])
    local meta, shares = '', ''
    if m then
      meta = packed(m)
      local bytes, known = record_bytes(m), tonumber(args[i])
      if m.named == 0 and known < m.next then
        local to = math.min(m.next * bytes, known * bytes + math.floor(bytes_max / bytes) * bytes)
        shares = redis.pcall('GETRANGE', keys[k + 1], known * bytes, to - 1)
        if type(shares) ~= 'string' or #shares ~= to - known * bytes then meta, shares = '', '' end
      end
    end
    replies[#replies + 1], replies[#replies + 2] = meta, shares
  end
  return replies
end

-- KEYS     epoch, then g of each pair
-- ARGV     partition, epoch, then the grabber of each pair
-- Replies  {OK, then a pair: width of amounts, value or ''}: what somebody was given. Reads only,
--          so it answers where memory is full.
local function result(keys, args)
  local other = other_epoch(tonumber(args[1]), tonumber(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local replies = { REPLY.OK }
  for i = 3, #args do
    local m = sound(keys[i - 1])
    local width, value = 0, ''
    if m then width, value = m.width, redis.call('HGET', keys[i - 1], args[i]) or '' end
    replies[#replies + 1], replies[#replies + 2] = width, value
  end
  return replies
end

-- KEYS     epoch, g, l
-- ARGV     partition, epoch, from, limit
-- Replies  {OK, width, (grabber, value)*} of listed shares from there; {STALE, meta} where the
--          caller must read the whole hash; MISSING
local function grants(keys, args)
  local other = other_epoch(tonumber(args[1]), tonumber(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local m = sound(keys[2])
  if m == nil then return { REPLY.MISSING } end
  if m.listed == 0 or m.compact == 1 then return { REPLY.STALE, packed(m) } end
  if redis.pcall('LLEN', keys[3]) ~= m.next then return { REPLY.STALE, packed(m) } end
  local from, limit = tonumber(args[3]), tonumber(args[4])
  local names = redis.pcall('LRANGE', keys[3], from, from + limit - 1)
  if names.err or #names ~= math.max(0, math.min(limit, m.next - from)) then
    return { REPLY.STALE, packed(m) }
  end
  local replies = { REPLY.OK, m.width }
  if #names > 0 then
    local values = redis.call('HMGET', keys[2], unpack(names))
    for i = 1, #names do
      if not is_taken(values[i], m.width) then return { REPLY.STALE, packed(m) } end
      replies[#replies + 1], replies[#replies + 2] = names[i], values[i]
    end
  end
  return replies
end

-- ── outbox ───────────────────────────────────────────────────────────────────────────────────────

-- An entry's records; an entry that is not ours counts as one.
local function records_of(entry)
  local bytes = entry[2][2]
  if #bytes < ENTRY_BYTES_MIN or string.byte(bytes, 1) ~= LAYOUT then return 1 end
  return (struct.unpack('<I4', bytes, 16))
end

-- KEYS     epoch, outbox
-- ARGV     partition, epoch, where it begins, records at most
-- Replies  {OK, (id, entry)*} up to the entry that reaches the limit
local function outbox(keys, args)
  local other = other_epoch(tonumber(args[1]), tonumber(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local replies, from, left, entries = { REPLY.OK }, args[3], tonumber(args[4]), 8
  for _ = 1, SCAN_ROUNDS_MAX do
    local page = redis.call('XRANGE', keys[2], from, '+', 'COUNT', entries)
    for _, entry in ipairs(page) do
      replies[#replies + 1], replies[#replies + 2] = entry[1], entry[2][2]
      left = left - records_of(entry)
      if left <= 0 then return replies end
    end
    if #page < entries then return replies end
    from, entries = '(' .. page[#page][1], math.min(entries * 2, SCAN_ENTRIES)
  end
  return replies
end

-- KEYS     epoch, outbox
-- ARGV     partition, epoch, where it begins, then what to look for
-- Replies  {OK, where it stopped or '', entry*}: entries that hold one of these byte strings
local function find(keys, args)
  local other = other_epoch(tonumber(args[1]), tonumber(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local page = redis.call('XRANGE', keys[2], args[3], '+', 'COUNT', SCAN_ENTRIES)
  local stopped = ''
  if #page == SCAN_ENTRIES then stopped = '(' .. page[#page][1] end
  local replies = { REPLY.OK, stopped }
  for _, entry in ipairs(page) do
    for i = 4, #args do
      if string.find(entry[2][2], args[i], 1, true) then
        replies[#replies + 1] = entry[2][2]
        break
      end
    end
  end
  return replies
end

-- KEYS     epoch, outbox
-- ARGV     partition, epoch, then (id, nonce) pairs
-- Replies  {OK, id of the first entry that is left or '', last id ever given}
-- Keeps    an entry under the same id with another nonce stays: ids come back after a loss
local function settled(keys, args)
  local partition = tonumber(args[1])
  local other = other_epoch(partition, tonumber(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local ids = {}
  for i = 3, #args, 2 do
    local entry = redis.call('XRANGE', keys[2], args[i], args[i])[1]
    if entry and string.sub(entry[2][2], 8, 15) == args[i + 1] then
      ids[#ids + 1] = args[i]
      debt[partition] = math.max(0, (debt[partition] or 0) - records_of(entry))
    end
  end
  if #ids > 0 then redis.call('XDEL', keys[2], unpack(ids)) end
  local first = redis.call('XRANGE', keys[2], '-', '+', 'COUNT', 1)[1]
  if first then return { REPLY.OK, first[1], '' } end
  local facts = redis.pcall('XINFO', 'STREAM', keys[2])
  for i = 1, #facts, 2 do
    if facts[i] == 'last-generated-id' then return { REPLY.OK, '', facts[i + 1] } end
  end
  return { REPLY.OK, '', '0-0' }
end

-- KEYS     epoch, outbox, poison
-- ARGV     partition, epoch, id
-- Replies  {OK, how many were set aside so far}
-- Keeps    an entry that nobody can read leaves the head of the outbox and is kept for people
local function set_aside(keys, args)
  local partition = tonumber(args[1])
  local other = other_epoch(partition, tonumber(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local kind = redis.call('TYPE', keys[3]).ok
  if kind ~= 'none' and kind ~= 'list' then return { REPLY.DAMAGED } end
  local entry = redis.call('XRANGE', keys[2], args[3], args[3])[1]
  if entry then
    redis.call('RPUSH', keys[3], entry[1] .. ' ' .. table.concat(entry[2], ' '))
    redis.call('XDEL', keys[2], args[3])
    debt[partition] = math.max(0, (debt[partition] or 0) - records_of(entry))
  end
  return { REPLY.OK, redis.call('LLEN', keys[3]) }
end

-- KEYS     epoch, outbox, index
-- ARGV     partition, epoch
-- Replies  {OK, records that wait, when the oldest was granted or 0, envelopes}
local function vitals(keys, args)
  local partition = tonumber(args[1])
  local other = other_epoch(partition, tonumber(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local first = redis.call('XRANGE', keys[2], '-', '+', 'COUNT', 1)[1]
  local at = 0
  if first and #first[2][2] >= ENTRY_BYTES_MIN then at = struct.unpack('<I6', first[2][2], 2) end
  return { REPLY.OK, first and debt[partition] or 0, at, redis.call('ZCARD', keys[3]) }
end

-- ── register ─────────────────────────────────────────────────────────────────────────────────────

-- KEYS     epoch, outbox, index
-- ARGV     partition, epoch, run_id
-- Replies  {OK}; {EPOCH, the newer one that stands, 0 for none}; {DAMAGED, which key has another type}
-- Keeps    an epoch never goes back. Called only after the ledger accepted this process for it: one
--          that started since has another run_id, and stays without a fence.
local function register(keys, args)
  local partition, epoch = tonumber(args[1]), tonumber(args[2])
  if string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') ~= args[3] then
    return { REPLY.EPOCH, 0 }
  end
  local types = { 'string', 'stream', 'zset' }
  for i = 1, 3 do
    local there = redis.call('TYPE', keys[i]).ok
    if there ~= 'none' and there ~= types[i] then return { REPLY.DAMAGED, keys[i] } end
  end
  local stored = tonumber(redis.call('GET', keys[1]) or '0') or 0
  if stored > epoch then return { REPLY.EPOCH, stored } end
  -- Flushed under a process that goes on: what was lost was lost in this epoch, so it wants a newer.
  if stored < epoch and (fence[partition] or 0) >= epoch then return { REPLY.EPOCH, 0 } end
  if redis.call('EXISTS', keys[2]) == 0 then
    -- The stream exists before the first grab.
    local id = redis.call('XADD', keys[2], string.format('%.0f-*', epoch), 'r', '')
    redis.call('XDEL', keys[2], id)
  end
  redis.call('SET', keys[1], args[2])
  fence[partition] = epoch
  local waiting, from = 0, '-'
  for _ = 1, SCAN_ROUNDS_MAX do
    local page = redis.call('XRANGE', keys[2], from, '+', 'COUNT', SCAN_ENTRIES)
    for _, entry in ipairs(page) do waiting = waiting + records_of(entry) end
    if #page < SCAN_ENTRIES then break end
    from = '(' .. page[#page][1]
  end
  debt[partition] = waiting
  return { REPLY.OK }
end

local function writes(name, callback)
  redis.register_function { function_name = name, callback = callback }
end
-- What gives memory back, or ends what would take more, goes on where memory is full.
local function frees(name, callback)
  redis.register_function { function_name = name, callback = callback, flags = { 'allow-oom' } }
end
local function reads(name, callback)
  redis.register_function { function_name = name, callback = callback, flags = { 'no-writes' } }
end

writes('register_1', register)
writes('load_1', load)
writes('open_1', open)
writes('grab_1', grab)
writes('decline_1', decline)
frees('close_1', close)
frees('freeze_1', freeze)
frees('remove_1', remove)
writes('stamp_1', stamp)
writes('rebuild_1', rebuild)
writes('rebuild_put_1', rebuild_put)
writes('rebuilt_1', rebuilt)
frees('settled_1', settled)
frees('set_aside_1', set_aside)
reads('view_1', view)
reads('result_1', result)
reads('grants_1', grants)
reads('outbox_1', outbox)
reads('find_1', find)
reads('vitals_1', vitals)
