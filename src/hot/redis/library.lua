#!lua name=redenvelope
-- revision 5
-- Who may take which share, decided inside Redis: one atomic call, no lock, no rollback.
--
-- Shape. Redis has no rollback: a command that fails in the middle leaves what was written before
-- it. So every function that writes has three phases: read (types, placeholder, count), decide in
-- tables, write with commands that can't fail, the outbox first. A bad envelope gets its own code
-- and the others of the call go on. What still could refuse a command behind the outbox is the user's
-- rights, which an administrator may take at any moment: they are asked for before anything is owed.
--
-- Keys. See keys.rs: every key of a partition has its hash tag. The grabs hash of an envelope has
-- the meta under the empty field, which no grabber can be called, so it exists before the first
-- grab. Amounts are opaque bytes (little endian, `width` of them): a Lua number can't hold each
-- of them as text, so there is no arithmetic on them here.
--
-- Stripes. An envelope that is dealt has one such set of keys in each of its partitions (ADR 0010). What is
-- used up or halted is DRY: it answers who has a share there, and tells nobody else anything but to ask the
-- first one. Only an envelope that lies in one piece, or a first stripe that has what was left in all of
-- them, is EMPTY.
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
-- LOAD_CHUNK_SHARES_MAX, PAIRS_PER_CALL_MAX, partitions) or than the constants below.

-- Compared with reply.rs by a test.
local REPLY = {
  OK = 0, WON = 1, ALREADY_GRABBED = 2, EMPTY = 3, EXPIRED = 4, RECALLED = 5, NOT_OPEN_YET = 6,
  WRONG_PASSPHRASE = 7, TOO_MANY_TRIES = 8, DECLINED = 9, MISSING = 10, FUNDING = 11, FROZEN = 12,
  STALE = 13, EPOCH = 14, FAULT = 15, NOT_DUE = 16, OUT_OF_ORDER = 17, OTHER_TERMS = 18,
  OTHER_AMOUNTS = 19, INCOMPLETE = 20, DAMAGED = 21, NOT_EMPTY = 22, DRY = 23,
}
local FUNDING, LIVE, EMPTY, EXPIRED, RECALLED, DRY = 0, 1, 2, 3, 4, 5
local OVER = { [EMPTY] = REPLY.EMPTY, [EXPIRED] = REPLY.EXPIRED, [RECALLED] = REPLY.RECALLED }
local LAYOUT, DEALT = 1, 2 -- the second one: the meta of a stripe
local UNMARKED = 0 -- 1: the books have the mark; 2: an invariant would have broken
-- meta = layout state frozen opening_seen named locked listed compact width
--        next base length count declined · opens_at expires_at epoch · base_minor(8 bytes) tenant
--        of a stripe, before the tenant: first held · whole · under
local META = '<BBBBBBBBBI4I4I4I4I4I6I6I6c8'
local META_OF_STRIPE = META .. 'I4I4BI6'
local META_BYTES, META_OF_STRIPE_BYTES = 55, 70
local ENTRY_BYTES_MIN = 19
-- lock = digest of the phrase (32) · wrong tries so far (u32), under the empty field of `p`
local LOCK_BYTES = 36
-- domain/audience.rs: WRONG_TRIES_PER_GRABBER_MAX, WRONG_TRIES_PER_ENVELOPE_MAX.
local TRIES_OF_GRABBER_MAX, TRIES_OF_ENVELOPE_MAX = 5, 10000
-- Entries that a look over the outbox reads at once, and how many such looks a call makes.
local SCAN_ENTRIES, SCAN_ROUNDS_MAX = 250, 40
-- Bytes at which a look for something in the outbox stops: below a millisecond.
local LOOK_BYTES = 131072

-- While Redis loads a library there are no globals, and later it looks each of them up through two
-- tables. So the first call keeps those that a grab needs.
local call, try_call, may, kind, number, items, sub, byte, char, rep, format, pack, unpacked, concat
local CODE = {} -- code → the byte that answers with it
local function bind()
  if call then return end
  kind, number, items = type, tonumber, unpack
  sub, byte, char, rep, format = string.sub, string.byte, string.char, string.rep, string.format
  pack, unpacked, concat = struct.pack, struct.unpack, table.concat
  for _, code in pairs(REPLY) do CODE[code] = char(code) end
  call, try_call, may = redis.call, redis.pcall, redis.acl_check_cmd
end

local fence = {} -- partition → epoch
local debt = {} -- partition → records in the outbox: for operators only, counted anew by register_2

local function missing_right(command)
  return redis.error_reply('NOPERM this user has no permissions to run the ' .. command .. ' command')
end

local function clock(arg)
  -- '=…': a test's clock that stands still; else milliseconds beside the server's own time.
  if sub(arg, 1, 1) == '=' then return number(sub(arg, 2)) end
  local t = call('TIME')
  return number(t[1]) * 1000 + math.floor(number(t[2]) / 1000) + number(arg)
end

-- nil where the caller's epoch stands; else the one that does, 0 for none.
local function other_epoch(partition, epoch, key)
  local mine = fence[partition]
  if mine == nil then return 0 end
  local stored = try_call('GET', key)
  if kind(stored) ~= 'string' then return 0 end
  if mine == epoch and number(stored) == epoch then return nil end
  if number(stored) ~= mine then return 0 end
  return mine
end

-- In one piece: a table that grows field by field is copied five times.
local function new_meta()
  return { layout = 0, state = 0, frozen = 0, opening_seen = 0, named = 0, locked = 0, listed = 0,
    compact = 0, width = 0, next = 0, base = 0, length = 0, count = 0, declined = 0, opens_at = 0,
    expires_at = 0, epoch = 0, base_minor = '', tenant = '', first = 0, held = 0, whole = 1, under = 0 }
end

-- What the bytes say, in a table that the caller has or in a new one; nil where they are no meta.
local function meta_of(raw, m)
  if kind(raw) ~= 'string' or #raw < META_BYTES then return nil end
  local layout, at = byte(raw, 1)
  m = m or new_meta()
  if layout == LAYOUT then
    m.layout, m.state, m.frozen, m.opening_seen, m.named, m.locked, m.listed, m.compact, m.width,
      m.next, m.base, m.length, m.count, m.declined, m.opens_at, m.expires_at, m.epoch, m.base_minor,
      at = unpacked(META, raw)
    m.first, m.held, m.whole, m.under = 0, m.base, 1, 0
    if m.state > RECALLED then return nil end
  elseif layout == DEALT and #raw >= META_OF_STRIPE_BYTES then
    m.layout, m.state, m.frozen, m.opening_seen, m.named, m.locked, m.listed, m.compact, m.width,
      m.next, m.base, m.length, m.count, m.declined, m.opens_at, m.expires_at, m.epoch, m.base_minor,
      m.first, m.held, m.whole, m.under, at = unpacked(META_OF_STRIPE, raw)
    if m.state > DRY then return nil end
  else
    return nil
  end
  m.tenant = sub(raw, at)
  if m.width < 1 or m.width > 8 then return nil end
  if m.state == LIVE and m.next >= m.length then return nil end
  return m
end

local function packed(m)
  if m.layout == DEALT then
    return pack(META_OF_STRIPE, m.layout, m.state, m.frozen, m.opening_seen, m.named, m.locked,
      m.listed, m.compact, m.width, m.next, m.base, m.length, m.count, m.declined, m.opens_at,
      m.expires_at, m.epoch, m.base_minor, m.first, m.held, m.whole, m.under) .. m.tenant
  end
  return pack(META, m.layout, m.state, m.frozen, m.opening_seen, m.named, m.locked, m.listed,
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
  return 1 + m.held + m.next
end

-- Whether the shares that can still be taken are there, or those that were, and the lock. `s` and
-- `p` may be nil.
local function equipped(m, s, p)
  if m.state == FUNDING then return true end
  if s and m.named == 0 then
    local have, bytes = try_call('STRLEN', s), record_bytes(m)
    if (m.state == LIVE or m.state == DRY) and have ~= m.length * bytes then return false end
    if m.next > 0 and (kind(have) ~= 'number' or have < m.next * bytes) then return false end
  end
  if m.state ~= LIVE then return true end
  if p and m.locked == 1 then
    local lock = try_call('HGET', p, '')
    return kind(lock) == 'string' and #lock == LOCK_BYTES
  end
  return true
end

-- The meta of an envelope that is whole. Else nil, and whether anything is there.
local function sound(g, s, p)
  local raw = try_call('HGET', g, '')
  if kind(raw) == 'table' then return nil, true end
  local m = meta_of(raw)
  if m == nil then return nil, call('EXISTS', g) == 1 end
  local expected = fields(m)
  -- A tombstone of a named envelope has no names.
  if expected and call('HLEN', g) ~= expected and not (m.named == 1 and m.length == 0) then
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
local function wide(amount) return amount .. sub(EIGHT_ZEROS, #amount + 1) end

-- reply = code · share u32 · amount(8 bytes) · at u48
local function grant_reply(code, value, width)
  return char(code) .. sub(value, 1, 4) .. wide(sub(value, 11, 10 + width))
    .. sub(value, 5, 10)
end

-- entry = layout u8 · at u48 · nonce(8) · records u32 · group*
-- group = id(16) · width u8 · declined u8 · count u16 · (share u32 · amount · length u8 · grabber)*
local function owe(outbox, partition, epoch, now, nonce, records, groups)
  local entry = pack('<BI6', LAYOUT, now) .. nonce .. pack('<I4', records) .. groups
  local id = format('%.0f-*', epoch)
  local added = try_call('XADD', outbox, id, 'r', entry)
  if kind(added) ~= 'string' and try_call('XLEN', outbox) == 0 then
    -- Somebody else's entry moved the ids ahead of this epoch, and is gone: begin anew.
    call('UNLINK', outbox)
    added = try_call('XADD', outbox, id, 'r', entry)
  end
  if kind(added) ~= 'string' then return false end
  debt[partition] = (debt[partition] or 0) + records
  return true
end

local function group_head(id, width, declined, records)
  return id .. pack('<BBI2', width, declined, records)
end

-- ── grab ─────────────────────────────────────────────────────────────────────────────────────────

-- An envelope of a call. One table serves for all, since each is decided before the next is read.
local function begin_envelope(e, keys, k, args, a, grabs)
  e.g, e.s, e.l, e.p = keys[k], keys[k + 1], keys[k + 2], keys[k + 3]
  e.id, e.tenant, e.names, e.first, e.last = args[a], args[a + 1], args, a + 4, a + 3 + grabs
  -- Nothing of the one before is left. (False, since a field that is nil would be made anew.)
  e.phrases = false
  e.values, e.shares, e.from, e.tries, e.tried, e.digest = false, false, false, false, false, false
  e.tries_in_all, e.dirty = false, false
end

-- Reads what the grabs of one envelope need. Answers a code where nobody can be served.
local function read_envelope(e, epoch)
  local names, first, last = e.names, e.first, e.last
  local values = try_call('HMGET', e.g, '', items(names, first, last))
  if values.err then return REPLY.MISSING end
  local m = meta_of(values[1], e.meta)
  if m == nil or m.tenant ~= e.tenant then return REPLY.MISSING end
  e.values = values
  if m.frozen ~= UNMARKED then return REPLY.FROZEN end
  -- Half rebuilt: whoever asks goes on with it.
  if m.state == FUNDING then return m.compact == 1 and REPLY.STALE or REPLY.FUNDING end
  if call('HLEN', e.g) ~= fields(m) and not (m.named == 1 and m.length == 0) then
    return REPLY.MISSING
  end
  if m.epoch ~= epoch then return REPLY.STALE end
  if m.state ~= LIVE then return nil end
  -- The list is for readers only. One that lacks somebody would tell them wrong, so it ends.
  if m.listed == 1 and try_call('LLEN', e.l) ~= m.next then m.listed = 0 end
  if m.named == 0 then
    -- What is taken now must be there; who has a share is answered without it.
    local takers = 0
    for i = 2, last - first + 2 do
      if not values[i] then takers = takers + 1 end
    end
    if takers > m.length - m.next then takers = m.length - m.next end
    if takers > 0 then
      local bytes = record_bytes(m)
      e.from = m.next
      local shares = try_call('GETRANGE', e.s, m.next * bytes, (m.next + takers) * bytes - 1)
      if kind(shares) ~= 'string' or #shares ~= takers * bytes then return REPLY.MISSING end
      e.shares = shares
    end
  end
  if m.locked == 1 then
    local tries = try_call('HMGET', e.p, '', items(names, first, last))
    if tries.err or not tries[1] or #tries[1] ~= LOCK_BYTES then return REPLY.MISSING end
    e.tries, e.tried = tries, {}
    e.digest = sub(tries[1], 1, 32)
    e.tries_in_all = unpacked('<I4', tries[1], 33)
  end
  return nil
end

-- Whether the lock lets somebody pass; counts a wrong try.
local function wrong_phrase(e, i, grabber)
  local tries = e.tried[grabber] or number(e.tries[i + 1] or '0') or TRIES_OF_GRABBER_MAX
  if tries >= TRIES_OF_GRABBER_MAX or e.tries_in_all >= TRIES_OF_ENVELOPE_MAX then
    return REPLY.TOO_MANY_TRIES
  end
  -- Both are digests under the server's pepper: how long the comparison takes tells nothing.
  if e.phrases and e.phrases[i] == e.digest then return nil end
  e.tried[grabber] = tries + 1
  e.tries_in_all = e.tries_in_all + 1
  return REPLY.WRONG_PASSPHRASE
end

-- The answer to who does not win, decided in memory; nil: the next share is his.
local function no_win(e, m, i, grabber, value, now)
  if value then
    if is_cut(value, m) then return CODE[REPLY.MISSING] end
    if is_declined(value, m.width) then return CODE[REPLY.DECLINED] end
    if is_taken(value, m.width) then return grant_reply(REPLY.ALREADY_GRABBED, value, m.width) end
  end
  if m.state ~= LIVE then
    -- Beside the first stripe nobody knows whether he has one of the shares that were gathered.
    if m.state == DRY or m.first > 0 then return CODE[REPLY.DRY] end
    return CODE[OVER[m.state]]
  end
  if now >= m.expires_at then
    m.state, e.dirty = EXPIRED, true
    return CODE[REPLY.EXPIRED]
  end
  if m.named == 1 and not value then return CODE[REPLY.MISSING] end
  if m.opening_seen == 0 then
    if now < m.opens_at then return CODE[REPLY.NOT_OPEN_YET] .. pack('<I6', m.opens_at) end
    m.opening_seen, e.dirty = 1, true
  end
  if m.locked == 1 then
    local no = wrong_phrase(e, i, grabber)
    if no then return CODE[no] end
  end
  return nil
end

-- The next share of an envelope that is taken by turns: its number and amount.
local function next_share(e, m)
  if m.compact == 0 then
    local at = (m.next - e.from) * m.width
    return pack('<I4', m.first + m.next), sub(e.shares, at + 1, at + m.width)
  end
  local at = (m.next - e.from) * (m.width + 4)
  return sub(e.shares, at + 1, at + 4), sub(e.shares, at + 5, at + 4 + m.width)
end

-- The names, out of between the phrases.
local function spread(e, args, grabs)
  local names, phrases, a = {}, {}, e.first
  for i = 1, grabs do
    names[i], phrases[i] = args[a], args[a + 1]
    a = a + 2
  end
  e.names, e.phrases, e.first, e.last = names, phrases, 1, grabs
end

-- The list of who won goes behind the command of the grabs.
local function list(t, e, head, wins)
  local writes, w = t.writes, t.writes_n
  writes[w + 1], writes[w + 2], writes[w + 3] = 'RPUSH', e.l, wins
  for i = 1, wins do writes[w + 3 + i] = writes[head + 4 + 2 * i] end
  t.writes_n = w + 3 + wins
end

-- So do the wrong tries.
local function count_tries(t, e)
  local writes, head = t.writes, t.writes_n
  local w = head + 5
  for grabber, tries in pairs(e.tried) do
    writes[w + 1], writes[w + 2] = grabber, tostring(tries)
    w = w + 2
  end
  if w == head + 5 then return end
  writes[head + 1], writes[head + 2], writes[head + 3] = 'HSET', e.p, w - head - 3
  writes[head + 4], writes[head + 5] = '', e.digest .. pack('<I4', e.tries_in_all)
  t.writes_n = w
end

-- Decides about the grabs of one envelope, in memory. Its answers, debts and commands go behind
-- those of the envelopes before it: a call has one list of each, and makes no string that is only a
-- piece of another. A command is its name, its key, how many arguments follow, and those.
local function decide(t, e, now, now_bytes)
  local m, values, names, before, last = e.meta, e.values, e.names, e.first - 1, e.last
  local answers, writes, owed = t.answers, t.writes, t.owed
  local a, w, o = t.answers_n, t.writes_n, t.owed_n
  local head, group, wins, fresh = w, o, 0, nil
  w, o = w + 5, o + 1
  for at = before + 1, last do
    local i, grabber = at - before, names[at]
    local value = fresh and fresh[grabber] or values[i + 1]
    local no = no_win(e, m, i, grabber, value, now)
    if no then
      a = a + 1
      answers[a] = no
    else
      local share, amount
      if m.named == 1 then
        share, amount = sub(value, 1, 4), sub(value, 5)
      else
        share, amount = next_share(e, m)
      end
      value = share .. now_bytes .. amount
      if at < last then
        fresh = fresh or {}
        fresh[grabber] = value
      end
      m.next, wins = m.next + 1, wins + 1
      if m.next == m.length then m.state = m.whole == 1 and EMPTY or DRY end
      writes[w + 1], writes[w + 2] = grabber, value
      owed[o + 1], owed[o + 2], owed[o + 3], owed[o + 4] = share, amount, char(#grabber), grabber
      answers[a + 1], answers[a + 2], answers[a + 3] = CODE[REPLY.WON], share, wide(amount)
      answers[a + 4] = now_bytes
      w, o, a = w + 2, o + 4, a + 4
    end
  end
  t.answers_n = a
  if wins > 0 then
    owed[group + 1] = group_head(e.id, m.width, 0, wins)
    t.owed_n, t.records = o, t.records + wins
  end
  if wins > 0 or e.dirty then
    writes[head + 1], writes[head + 2], writes[head + 3] = 'HSET', e.g, w - head - 3
    writes[head + 4], writes[head + 5] = '', packed(m)
    t.writes_n = w
    if wins > 0 and m.listed == 1 then list(t, e, head, wins) end
  end
  if e.tried then count_tries(t, e) end
end

-- Writes what was decided in a partition. The types were seen, so nothing here can fail.
local function write(writes, at, to)
  while at < to do
    local last = at + 3 + writes[at + 3]
    call(writes[at + 1], writes[at + 2], items(writes, at + 4, last))
    at = last
  end
end

-- nil where the user may write all of this; else the reply that says what is missing.
local function refusal(writes, to)
  local at, asked = 0, {}
  while at < to do
    local command, key = writes[at + 1], writes[at + 2]
    if not asked[command] then
      asked[command] = true
      if not may(command, key, '', '') then return missing_right(command) end
    end
    at = at + 3 + writes[at + 3]
  end
end

-- The debt of a partition, then its commands; what it answers. Where nothing is owed the outbox is
-- only looked at: before one that is broken nobody hears anything.
local function commit(t, p, now)
  local there
  if p.records == 0 then
    there = kind(try_call('XLEN', p.outbox)) == 'number'
  else
    local groups = concat(t.owed, '', p.owed_from + 1, p.owed_to)
    there = owe(p.outbox, p.index, p.epoch, now, p.nonce, p.records, groups)
  end
  if not there then return rep(CODE[REPLY.FAULT], p.grabs) end
  write(t.writes, p.writes_from, p.writes_to)
  return concat(t.answers, '', p.answers_from + 1, p.answers_to)
end

-- KEYS     a partition: epoch, outbox, then an envelope: g, s, l, p
-- ARGV     clock, then a partition: partition, epoch, nonce(8), envelopes, then an envelope: id,
--          tenant, grabs, locked 0|1, then a grab: grabber (and, if locked, the phrase's digest)
-- Replies  one string: a code a grab, in order. WON, ALREADY_GRABBED: grant_reply. NOT_OPEN_YET:
--          u48. EPOCH: u48. Others: the code alone.
-- Keeps    an outbox entry is written with its wins or neither is; fields = 1 + taken
-- Costs    O(grabs); two commands a partition: epoch, debt; four an envelope: meta and grabbers,
--          fields, shares, the write
local function grab(keys, args)
  local k, a, now = 1, 2, clock(args[1])
  local now_bytes, partitions = pack('<I6', now), {}
  local e = { g = '', s = '', l = '', p = '', id = '', tenant = '', names = false, first = 0,
    last = 0, phrases = false, values = false, shares = false, from = false, tries = false,
    tried = false, digest = false, tries_in_all = false, dirty = false, meta = new_meta() }
  local t = { answers = {}, answers_n = 0, owed = {}, owed_n = 0, writes = {}, writes_n = 0,
    records = 0 }
  while a <= #args do
    local index, epoch, envelopes = number(args[a]), number(args[a + 1]), number(args[a + 3])
    local p = { index = index, epoch = epoch, nonce = args[a + 2], outbox = keys[k + 1],
      other = other_epoch(index, epoch, keys[k]), grabs = 0, records = 0,
      answers_from = t.answers_n, answers_to = 0, owed_from = t.owed_n, owed_to = 0,
      writes_from = t.writes_n, writes_to = 0 }
    t.records, k, a = 0, k + 2, a + 4
    for _ = 1, envelopes do
      local grabs, locked = number(args[a + 2]), args[a + 3] == '1'
      begin_envelope(e, keys, k, args, a, grabs)
      k, a = k + 4, a + 4 + grabs
      if locked then
        spread(e, args, grabs)
        a = a + grabs
      end
      p.grabs = p.grabs + grabs
      local code = not p.other and read_envelope(e, epoch)
      if code then
        t.answers_n = t.answers_n + 1
        t.answers[t.answers_n] = rep(CODE[code], grabs)
      elseif not p.other then
        decide(t, e, now, now_bytes)
      end
    end
    p.records, p.answers_to, p.owed_to, p.writes_to = t.records, t.answers_n, t.owed_n, t.writes_n
    partitions[#partitions + 1] = p
  end
  local refused = refusal(t.writes, t.writes_n)
  if refused then return refused end
  local answers = {}
  for i, p in ipairs(partitions) do
    if p.other then
      answers[i] = rep(CODE[REPLY.EPOCH] .. pack('<I6', p.other), p.grabs)
    else
      answers[i] = commit(t, p, now)
    end
  end
  return concat(answers)
end

-- KEYS     epoch, outbox, g
-- ARGV     clock, partition, epoch, nonce(8), id, tenant, grabber
-- Replies  {code} or {code, grant_reply}: OK newly declined, DECLINED before, ALREADY_GRABBED
local function decline(keys, args)
  local now = clock(args[1])
  local partition, epoch = number(args[2]), number(args[3])
  local other = other_epoch(partition, epoch, keys[1])
  if other then return { REPLY.EPOCH, other } end
  local m = sound(keys[3])
  if m == nil or m.tenant ~= args[6] or m.named ~= 1 then return { REPLY.MISSING } end
  local value = call('HGET', keys[3], args[7])
  if m.frozen ~= UNMARKED then return { REPLY.FROZEN } end
  if m.state == FUNDING then return { m.compact == 1 and REPLY.STALE or REPLY.FUNDING } end
  if is_cut(value, m) or (not value and m.length > 0) then return { REPLY.MISSING } end
  if is_declined(value, m.width) then return { REPLY.DECLINED, grant_reply(0, value, m.width) } end
  if is_taken(value, m.width) then return { REPLY.ALREADY_GRABBED, grant_reply(0, value, m.width) } end
  if m.epoch ~= epoch then return { REPLY.STALE } end
  if m.state ~= LIVE then return { OVER[m.state] } end
  if now >= m.expires_at then
    m.state = EXPIRED
    call('HSET', keys[3], '', packed(m))
    return { REPLY.EXPIRED }
  end
  local share, amount = sub(value, 1, 4), sub(value, 5)
  local group = group_head(args[5], m.width, 1, 1) .. share .. amount .. char(#args[7]) .. args[7]
  if not may('HSET', keys[3], '', '') then return missing_right('HSET') end
  if not owe(keys[2], partition, epoch, now, args[4], 1, group) then return { REPLY.FAULT } end
  m.next, m.declined = m.next + 1, m.declined + 1
  if m.next == m.length then m.state = EMPTY end
  value = share .. pack('<I6', now) .. amount .. 'd'
  call('HSET', keys[3], '', packed(m), args[7], value)
  return { REPLY.OK, grant_reply(0, value, m.width) }
end

-- ── publish ──────────────────────────────────────────────────────────────────────────────────────

-- Puts a chunk down at its offset, or finds it there.
local function put_shares(s, bytes, offset, chunk)
  local have = try_call('STRLEN', s)
  if kind(have) ~= 'number' then return REPLY.DAMAGED end
  if offset * bytes > have then return REPLY.OUT_OF_ORDER end
  local known = math.min(have - offset * bytes, #chunk)
  if known > 0 then
    local there = call('GETRANGE', s, offset * bytes, offset * bytes + known - 1)
    if there ~= sub(chunk, 1, known) then return REPLY.OTHER_AMOUNTS end
  end
  if known < #chunk then call('SETRANGE', s, offset * bytes, chunk) end
  return REPLY.OK
end

-- What an envelope is before its shares come: terms, lock, a place in the index.
local function begin(keys, id, meta, terms, lock)
  call('UNLINK', keys[3], keys[5])
  call('HSET', keys[2], '', meta)
  call('SET', keys[4], terms)
  if lock ~= '' then
    local there = call('HGET', keys[6], '')
    if not there or #there ~= LOCK_BYTES then
      call('HSET', keys[6], '', lock .. pack('<I4', 0))
    end
  end
  call('ZADD', keys[7], 0, id)
end

-- Whether the keys beside the grabs hash have the types that `begin` needs.
local function misplaced(keys)
  local zset, hash = call('TYPE', keys[7]).ok, call('TYPE', keys[6]).ok
  return not ((zset == 'none' or zset == 'zset') and (hash == 'none' or hash == 'hash'))
end

-- KEYS     epoch, g, s, t, l, p, index
-- ARGV     partition, epoch, id, offset, shares, meta of a Funding envelope, terms, lock's digest
-- Replies  {code}: OK, or why the chunk is not there; DAMAGED where it must be repaired first
-- Keeps    bytes that were put down under this epoch never change; over stays over; a repair that
--          was begun is ended by a repair, since the grants are in the hash
-- Costs    O(chunk)
local function load(keys, args)
  local epoch, offset = number(args[2]), number(args[4])
  local other = other_epoch(number(args[1]), epoch, keys[1])
  if other then return { REPLY.EPOCH, other } end
  local fresh = meta_of(args[6])
  local m, there = sound(keys[2])
  if m == nil and there then return { REPLY.DAMAGED } end
  if m ~= nil then
    local terms = try_call('GET', keys[4])
    if kind(terms) ~= 'string' then return { REPLY.DAMAGED } end
    if terms ~= args[7] then return { REPLY.OTHER_TERMS } end
    if m.state ~= FUNDING then return { REPLY.OK } end
    if m.compact == 1 then return { REPLY.DAMAGED } end
  end
  if m == nil or m.epoch ~= epoch then
    if offset > 0 then return { REPLY.OUT_OF_ORDER } end
    if misplaced(keys) then return { REPLY.DAMAGED } end
    begin(keys, args[3], args[6], args[7], args[8])
    m = fresh
  elseif offset == 0 and kind(try_call('STRLEN', keys[3])) ~= 'number' then
    call('UNLINK', keys[3])
  end
  return { put_shares(keys[3], record_bytes(m), offset, args[5]) }
end

-- KEYS     epoch, g, s
-- ARGV     partition, epoch, then the names of an EXCLUSIVE envelope in the order of their shares
-- Replies  {OK, state}, INCOMPLETE, MISSING; STALE while it is being rebuilt
local function open(keys, args)
  local epoch = number(args[2])
  local other = other_epoch(number(args[1]), epoch, keys[1])
  if other then return { REPLY.EPOCH, other } end
  local m = sound(keys[2])
  if m == nil then return { REPLY.MISSING } end
  if m.state ~= FUNDING then return { REPLY.OK, m.state } end
  if m.compact == 1 then return { REPLY.STALE } end
  local bytes = record_bytes(m)
  local have = try_call('STRLEN', keys[3])
  if m.epoch ~= epoch or kind(have) ~= 'number' or have ~= m.length * bytes then
    return { REPLY.INCOMPLETE }
  end
  local sets = {}
  if m.named == 1 then
    if #args - 2 ~= m.count then return { REPLY.INCOMPLETE } end
    local shares = call('GETRANGE', keys[3], 0, -1)
    for share = 0, m.count - 1 do
      sets[#sets + 1] = args[3 + share]
      sets[#sets + 1] = pack('<I4', share)
        .. sub(shares, share * bytes + 1, (share + 1) * bytes)
    end
  end
  m.state = LIVE
  call('HSET', keys[2], '', packed(m), items(sets))
  return { REPLY.OK, m.state }
end

-- ── end ──────────────────────────────────────────────────────────────────────────────────────────

-- An index that was deleted, by an operator's mistake, is made up for when its envelopes end: it is by the
-- index that they are forgotten, and that what nobody owes of them is found.
local function enlist(index, id)
  local kind = call('TYPE', index).ok
  if kind == 'none' or kind == 'zset' then call('ZADD', index, 'NX', 0, id) end
end

-- A stripe of which every share is taken, or one that was halted: what was left in it is the first one's.
local function is_used_up(m) return m.state == DRY and (m.next == m.length or m.first > 0) end

-- KEYS     epoch, g, s, t, l, p, index
-- ARGV     clock, partition, epoch, id, state wanted, expires_at, tombstone 0|1, meta of a Funding
--          envelope, terms
-- Replies  {OK, state, taken}, {NOT_DUE, now}, FROZEN, NOT_EMPTY, DAMAGED; MISSING where it would
--          take a tombstone and the caller did not allow one
-- Keeps    what is missing, not whole, or half rebuilt ends as a tombstone, once nothing of it is
--          owed: its grabs are in the books or were brought back before, from what a process still
--          remembered, and its money must not wait for a repair
local function close(keys, args)
  local now, epoch = clock(args[1]), number(args[3])
  local other = other_epoch(number(args[2]), epoch, keys[1])
  if other then return { REPLY.EPOCH, other } end
  local seen = meta_of(try_call('HGET', keys[2], ''))
  if seen and seen.frozen ~= UNMARKED then return { REPLY.FROZEN } end
  local m = sound(keys[2])
  if m and m.state == FUNDING and m.compact == 1 then m = nil end
  if m then enlist(keys[7], args[4]) end
  if m and OVER[m.state] then return { REPLY.OK, m.state, m.base + m.next } end
  local wanted, expires_at = number(args[5]), seen and seen.expires_at or number(args[6])
  if now >= expires_at then
    wanted = EXPIRED
  elseif wanted == EXPIRED then
    return { REPLY.NOT_DUE, now }
  elseif wanted == EMPTY and m and not is_used_up(m) then
    return { REPLY.NOT_EMPTY }
  end
  if m == nil then
    if args[7] ~= '1' then return { REPLY.MISSING } end
    local index = call('TYPE', keys[7]).ok
    if index ~= 'none' and index ~= 'zset' then return { REPLY.DAMAGED } end
    m = meta_of(args[8])
    m.length = 0
    call('UNLINK', keys[2])
    begin(keys, args[4], packed(m), args[9], '')
  end
  if m.state == FUNDING and m.named == 1 then m.length = 0 end
  m.state = wanted
  call('HSET', keys[2], '', packed(m))
  return { REPLY.OK, m.state, m.base + m.next }
end

-- KEYS     epoch, g, marked
-- ARGV     partition, epoch, id, mark that is set or 0 to lift, the heaviest that is lifted
-- Replies  {OK}, also where nothing is there
-- Keeps    a heavier mark stays
local function freeze(keys, args)
  local other = other_epoch(number(args[1]), number(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local kind = call('TYPE', keys[3]).ok
  if kind ~= 'none' and kind ~= 'zset' then return { REPLY.DAMAGED, keys[3] } end
  local m = sound(keys[2])
  if m == nil then return { REPLY.OK } end
  local mark = number(args[4])
  if mark ~= UNMARKED then
    if m.frozen >= mark then return { REPLY.OK } end
    call('ZADD', keys[3], 0, args[3])
  else
    if m.frozen > number(args[5]) then return { REPLY.OK } end
    call('ZREM', keys[3], args[3])
  end
  m.frozen = mark
  call('HSET', keys[2], '', packed(m))
  return { REPLY.OK }
end

-- KEYS     epoch, index, then an envelope: g, s, t, l, p
-- ARGV     partition, epoch, then ids
-- Replies  {OK, removed}: what is not over, or frozen, stays. The caller saw that nothing is owed.
local function remove(keys, args)
  local other = other_epoch(number(args[1]), number(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local kind = call('TYPE', keys[2]).ok
  if kind ~= 'none' and kind ~= 'zset' then return { REPLY.DAMAGED, keys[2] } end
  local removed = 0
  for i = 3, #args do
    local k = 3 + (i - 3) * 5
    local m = sound(keys[k])
    if m and OVER[m.state] and m.frozen == UNMARKED then
      call('UNLINK', keys[k], keys[k + 1], keys[k + 2], keys[k + 3], keys[k + 4])
      call('ZREM', keys[2], args[i])
      removed = removed + 1
    elseif m == nil and call('EXISTS', keys[k]) == 0 then
      -- What is left of one whose grabs are gone.
      call('UNLINK', keys[k + 1], keys[k + 2], keys[k + 3], keys[k + 4])
      call('ZREM', keys[2], args[i])
    end
  end
  return { REPLY.OK, removed }
end

-- ── repair ───────────────────────────────────────────────────────────────────────────────────────

-- Whether an envelope stands as it is: whole, and in this epoch.
local function stands(m, epoch) return m ~= nil and m.epoch == epoch and m.state ~= FUNDING end

-- KEYS     epoch, g, s, p
-- ARGV     partition, epoch, the raw meta that was compared with the books, the state that it goes to
-- Replies  {OK, state}; STALE where it changed meanwhile
-- Keeps    an envelope whose grabs were compared with the books comes into this epoch as it is, or over
--          where the books have begun to close it
local function stamp(keys, args)
  local epoch = number(args[2])
  local other = other_epoch(number(args[1]), epoch, keys[1])
  if other then return { REPLY.EPOCH, other } end
  local m = sound(keys[2], keys[3], keys[4])
  if stands(m, epoch) then return { REPLY.OK, m.state } end
  if m == nil or m.state == FUNDING or packed(m) ~= args[3] then return { REPLY.STALE } end
  m.epoch = epoch
  local wanted = number(args[4])
  if (m.state == LIVE and wanted ~= FUNDING) or (m.state == DRY and OVER[wanted]) then
    m.state = wanted
  end
  call('HSET', keys[2], '', packed(m))
  return { REPLY.OK, m.state }
end

-- KEYS     epoch, g, s
-- ARGV     partition, epoch, the sum of the epochs of all its partitions (revision 4 had none)
-- Replies  {OK, meta} no grab takes from it any more; STALE, MISSING where it must be repaired first
-- Keeps    what it has left stays in it as it is, and what is over stays over, but for a first stripe that
--          is empty under older epochs: it may be given what was lost elsewhere since
local function halt(keys, args)
  local epoch = number(args[2])
  local other = other_epoch(number(args[1]), epoch, keys[1])
  if other then return { REPLY.EPOCH, other } end
  local m = sound(keys[2], keys[3])
  if m == nil or m.layout ~= DEALT then return { REPLY.MISSING } end
  if not stands(m, epoch) then return { REPLY.STALE } end
  local sum = args[3] and number(args[3])
  local reopens = m.state == EMPTY and m.whole == 1 and (sum == nil or sum > m.under)
  if m.state == LIVE or reopens then
    m.state = DRY
    call('HSET', keys[2], '', packed(m))
  end
  return { REPLY.OK, packed(m) }
end

-- Whether a first stripe that stands is given what is left in all of them: halted, or over with all that was
-- left where something was lost elsewhere since it was. One that ended before it had that counts its own grabs, as the
-- others do theirs; and what has ended otherwise than by being empty stays over for the same reason, whatever an
-- older plan knew.
local function gathers(m, wanted, becomes)
  if wanted.layout ~= DEALT or wanted.whole ~= 1 or m.layout ~= DEALT or m.first > 0 then
    return false
  end
  if m.state == DRY then return true end
  local may = m.state == EMPTY or becomes == m.state
  return OVER[m.state] and m.whole == 1 and may and wanted.under > m.under
end

-- Whether a plan is older than what is there: what was gathered once is not taken apart again.
local function is_late(m, wanted)
  if m == nil or m.layout ~= DEALT or m.whole == 0 then return false end
  return wanted.whole == 0 or wanted.under < m.under
end

-- Whether an envelope is being built, and by another plan. A mark that came meanwhile makes no other.
local function is_others(m, plan)
  local wanted = meta_of(plan)
  if m == nil or m.state ~= FUNDING or wanted == nil then return false end
  local frozen = m.frozen
  m.frozen = wanted.frozen
  local same = packed(m) == plan
  m.frozen = frozen
  return not same
end

-- KEYS     epoch, g, s, t, l, p, index
-- ARGV     partition, epoch, id, meta of the Funding envelope to be built, terms, lock's digest,
--          anew 0|1, the state that it gets when it is built
-- Replies  {OK} it stands empty under this epoch and is built next; {STALE, state} it stands whole;
--          INCOMPLETE where the plan is older than what is there
-- Keeps    the grabs that are there stay until `rebuild_put_1` drops them; a repair that was begun
--          with the same plan goes on where it stands, unless it is begun anew
local function rebuild(keys, args)
  local epoch = number(args[2])
  local other = other_epoch(number(args[1]), epoch, keys[1])
  if other then return { REPLY.EPOCH, other } end
  local m = sound(keys[2], keys[3], keys[6])
  local wanted = meta_of(args[4])
  if is_late(m, wanted) then return { REPLY.INCOMPLETE } end
  local becomes = args[8] and number(args[8])
  if stands(m, epoch) and not gathers(m, wanted, becomes) then return { REPLY.STALE, m.state } end
  if m and packed(m) == args[4] and args[7] ~= '1' then return { REPLY.OK } end
  local types = { [2] = 'hash', [6] = 'hash', [7] = 'zset' }
  for k, type_wanted in pairs(types) do
    if call('TYPE', keys[k]).ok ~= type_wanted then call('UNLINK', keys[k]) end
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
  local epoch = number(args[2])
  local other = other_epoch(number(args[1]), epoch, keys[1])
  if other then return { REPLY.EPOCH, other } end
  local m = sound(keys[2])
  if m == nil or m.state ~= FUNDING or m.compact == 0 or m.epoch ~= epoch then
    return { REPLY.STALE }
  end
  if args[4] ~= '' then
    local put = put_shares(keys[3], record_bytes(m), number(args[3]), args[4])
    if put ~= REPLY.OK then return { put } end
  end
  local dropped = number(args[5])
  if dropped > 0 then call('HDEL', keys[2], items(args, 6, 5 + dropped)) end
  if #args > 5 + dropped then call('HSET', keys[2], items(args, 6 + dropped)) end
  return { REPLY.OK }
end

-- As `rebuild_put_1` and `rebuilt_1`, with the meta of the plan behind the epoch: STALE where another plan is
-- under way.
local function of_plan(callback)
  return function(keys, args)
    local plan = table.remove(args, 3)
    if other_epoch(number(args[1]), number(args[2]), keys[1]) == nil
      and is_others(sound(keys[2]), plan) then
      return { REPLY.STALE }
    end
    return callback(keys, args)
  end
end

-- KEYS     epoch, g, s, p
-- ARGV     partition, epoch, the state that it goes to
-- Replies  {OK, state}; INCOMPLETE; STALE where no repair is under way
local function rebuilt(keys, args)
  local epoch = number(args[2])
  local other = other_epoch(number(args[1]), epoch, keys[1])
  if other then return { REPLY.EPOCH, other } end
  local m = sound(keys[2], keys[3], keys[4])
  if stands(m, epoch) then return { REPLY.OK, m.state } end
  if m == nil or m.compact == 0 or m.epoch ~= epoch then return { REPLY.STALE } end
  local expected = m.named == 1 and 1 + m.count or 1 + m.held + m.next
  local whole = m.named == 1 or try_call('STRLEN', keys[3]) == m.length * record_bytes(m)
  if not whole or call('HLEN', keys[2]) ~= expected then return { REPLY.INCOMPLETE } end
  m.state = number(args[3])
  call('HSET', keys[2], '', packed(m))
  return { REPLY.OK, m.state }
end

-- ── read ─────────────────────────────────────────────────────────────────────────────────────────

-- KEYS     epoch, then an envelope: g, s, p
-- ARGV     partition, epoch, bytes at most, then an envelope: shares that the caller knows
-- Replies  {OK, then an envelope: meta, bytes of the taken shares after those}; '' where missing
local function view(keys, args)
  local other = other_epoch(number(args[1]), number(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local replies, bytes_max = { REPLY.OK }, number(args[3])
  for i = 4, #args do
    local k = 2 + (i - 4) * 3
    local m = sound(keys[k], keys[k + 1], keys[k + 2])
    local meta, shares = '', ''
    if m then
      meta = packed(m)
      local bytes, known = record_bytes(m), number(args[i])
      if m.named == 0 and known < m.next then
        local to = math.min(m.next * bytes, known * bytes + math.floor(bytes_max / bytes) * bytes)
        shares = try_call('GETRANGE', keys[k + 1], known * bytes, to - 1)
        if kind(shares) ~= 'string' or #shares ~= to - known * bytes then meta, shares = '', '' end
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
  local other = other_epoch(number(args[1]), number(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local replies = { REPLY.OK }
  for i = 3, #args do
    local m = sound(keys[i - 1])
    local width, value = 0, ''
    if m then width, value = m.width, call('HGET', keys[i - 1], args[i]) or '' end
    replies[#replies + 1], replies[#replies + 2] = width, value
  end
  return replies
end

-- KEYS     epoch, g, l
-- ARGV     partition, epoch, from, limit
-- Replies  {OK, width, (grabber, value)*} of listed shares from there; {STALE, meta} where the
--          caller must read the whole hash; MISSING
local function grants(keys, args)
  local other = other_epoch(number(args[1]), number(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local m = sound(keys[2])
  if m == nil then return { REPLY.MISSING } end
  if m.listed == 0 or m.compact == 1 then return { REPLY.STALE, packed(m) } end
  if try_call('LLEN', keys[3]) ~= m.next then return { REPLY.STALE, packed(m) } end
  local from, limit = number(args[3]), number(args[4])
  local names = try_call('LRANGE', keys[3], from, from + limit - 1)
  if names.err or #names ~= math.max(0, math.min(limit, m.next - from)) then
    return { REPLY.STALE, packed(m) }
  end
  local replies = { REPLY.OK, m.width }
  if #names > 0 then
    local values = call('HMGET', keys[2], items(names))
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
  if #bytes < ENTRY_BYTES_MIN or byte(bytes, 1) ~= LAYOUT then return 1 end
  return (unpacked('<I4', bytes, 16))
end

-- KEYS     a partition: epoch, outbox
-- ARGV     a partition: partition, epoch
-- Replies  {OK, then a partition: 1 where its outbox holds something, else 0}; {EPOCH, the one that
--          stands} where a partition stands in another: whoever reads its outbox hears which
local function owing(keys, args)
  local replies = { REPLY.OK }
  for i = 1, #args, 2 do
    local other = other_epoch(number(args[i]), number(args[i + 1]), keys[i])
    if other then return { REPLY.EPOCH, other } end
    replies[#replies + 1] = try_call('XLEN', keys[i + 1]) == 0 and 0 or 1
  end
  return replies
end

-- KEYS     epoch, outbox
-- ARGV     partition, epoch, where it begins, records at most
-- Replies  {OK, (id, entry)*} up to the entry that reaches the limit
local function outbox(keys, args)
  local other = other_epoch(number(args[1]), number(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local replies, from, left, entries = { REPLY.OK }, args[3], number(args[4]), 8
  for _ = 1, SCAN_ROUNDS_MAX do
    local page = call('XRANGE', keys[2], from, '+', 'COUNT', entries)
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

local function holds_any(bytes, needles, from)
  for i = from, #needles do
    if string.find(bytes, needles[i], 1, true) then return true end
  end
  return false
end

-- KEYS     epoch, outbox
-- ARGV     partition, epoch, where it begins, then what to look for
-- Replies  {OK, where it stopped or '', entry*}: entries that hold one of these byte strings
-- Costs    O(LOOK_BYTES) and the entry that reaches it: an entry may have 15 KB
local function find(keys, args)
  local other = other_epoch(number(args[1]), number(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local replies, from, looked, left, entries = { REPLY.OK, '' }, args[3], 0, LOOK_BYTES, 8
  while true do
    local page = call('XRANGE', keys[2], from, '+', 'COUNT', entries)
    for _, entry in ipairs(page) do
      left = left - #entry[2][2]
      if holds_any(entry[2][2], args, 4) then replies[#replies + 1] = entry[2][2] end
    end
    if #page < entries then return replies end
    from, looked = '(' .. page[#page][1], looked + entries
    if left <= 0 or looked >= SCAN_ENTRIES then break end
    entries = math.min(entries * 2, SCAN_ENTRIES - looked)
  end
  replies[2] = from
  return replies
end

-- KEYS     epoch, outbox
-- ARGV     partition, epoch, then (id, nonce) pairs
-- Replies  {OK, id of the first entry that is left or '', last id ever given}
-- Keeps    an entry under the same id with another nonce stays: ids come back after a loss
local function settled(keys, args)
  local partition = number(args[1])
  local other = other_epoch(partition, number(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local ids = {}
  for i = 3, #args, 2 do
    local entry = call('XRANGE', keys[2], args[i], args[i])[1]
    if entry and sub(entry[2][2], 8, 15) == args[i + 1] then
      ids[#ids + 1] = args[i]
      debt[partition] = math.max(0, (debt[partition] or 0) - records_of(entry))
    end
  end
  if #ids > 0 then call('XDEL', keys[2], items(ids)) end
  local first = call('XRANGE', keys[2], '-', '+', 'COUNT', 1)[1]
  if first then return { REPLY.OK, first[1], '' } end
  local facts = try_call('XINFO', 'STREAM', keys[2])
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
  local partition = number(args[1])
  local other = other_epoch(partition, number(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local kind = call('TYPE', keys[3]).ok
  if kind ~= 'none' and kind ~= 'list' then return { REPLY.DAMAGED } end
  local entry = call('XRANGE', keys[2], args[3], args[3])[1]
  if entry then
    call('RPUSH', keys[3], entry[1] .. ' ' .. concat(entry[2], ' '))
    call('XDEL', keys[2], args[3])
    debt[partition] = math.max(0, (debt[partition] or 0) - records_of(entry))
  end
  return { REPLY.OK, call('LLEN', keys[3]) }
end

-- KEYS     epoch, outbox, index
-- ARGV     partition, epoch
-- Replies  {OK, records that wait, when the oldest was granted or 0, envelopes}
local function vitals(keys, args)
  local partition = number(args[1])
  local other = other_epoch(partition, number(args[2]), keys[1])
  if other then return { REPLY.EPOCH, other } end
  local first = call('XRANGE', keys[2], '-', '+', 'COUNT', 1)[1]
  local at = 0
  if first and #first[2][2] >= ENTRY_BYTES_MIN then at = unpacked('<I6', first[2][2], 2) end
  return { REPLY.OK, first and debt[partition] or 0, at, call('ZCARD', keys[3]) }
end

-- ── register ─────────────────────────────────────────────────────────────────────────────────────

-- KEYS     epoch, outbox, index
-- ARGV     partition, epoch, run_id, the epoch that the data carried when the ledger was asked or 0
-- Replies  {OK}; {EPOCH, the newer one that stands, 0 for none}; {DAMAGED, which key has another type}
-- Keeps    an epoch never goes back. Called only after the ledger accepted this process and its
--          data for it: a process that started since has another run_id, data that were emptied
--          since carry another epoch, and they stay without a fence.
local function register(keys, args)
  local partition, epoch = number(args[1]), number(args[2])
  if string.match(call('INFO', 'server'), 'run_id:(%w+)') ~= args[3] then
    return { REPLY.EPOCH, 0 }
  end
  local types = { 'string', 'stream', 'zset' }
  for i = 1, 3 do
    local there = call('TYPE', keys[i]).ok
    if there ~= 'none' and there ~= types[i] then return { REPLY.DAMAGED, keys[i] } end
  end
  local stored = number(call('GET', keys[1]) or '0') or 0
  if stored > epoch then return { REPLY.EPOCH, stored } end
  -- A repetition, and another process before us, find the new epoch there already.
  if stored ~= number(args[4]) and stored ~= epoch then return { REPLY.EPOCH, 0 } end
  -- Flushed under a process that goes on: what was lost was lost in this epoch, so it wants a newer.
  if stored < epoch and (fence[partition] or 0) >= epoch then return { REPLY.EPOCH, 0 } end
  if call('EXISTS', keys[2]) == 0 then
    -- The stream exists before the first grab.
    local id = call('XADD', keys[2], format('%.0f-*', epoch), 'r', '')
    call('XDEL', keys[2], id)
  end
  call('SET', keys[1], args[2])
  fence[partition] = epoch
  local waiting, from = 0, '-'
  for _ = 1, SCAN_ROUNDS_MAX do
    local page = call('XRANGE', keys[2], from, '+', 'COUNT', SCAN_ENTRIES)
    for _, entry in ipairs(page) do waiting = waiting + records_of(entry) end
    if #page < SCAN_ENTRIES then break end
    from = '(' .. page[#page][1]
  end
  debt[partition] = waiting
  return { REPLY.OK }
end

local function bound(callback)
  return function(keys, args)
    bind()
    return callback(keys, args)
  end
end

local function register_as(name, callback, flags)
  redis.register_function { function_name = name, callback = bound(callback), flags = flags }
end
local function writes(name, callback) register_as(name, callback, {}) end
-- What gives memory back, ends what would take more, or comes before either, goes on where memory is full.
local function frees(name, callback) register_as(name, callback, { 'allow-oom' }) end
local function reads(name, callback) register_as(name, callback, { 'no-writes' }) end

writes('load_1', load)
writes('open_1', open)
writes('grab_1', grab)
writes('decline_1', decline)
frees('register_2', register)
frees('close_1', close)
frees('freeze_1', freeze)
frees('remove_1', remove)
frees('stamp_1', stamp)
frees('halt_1', halt)
writes('rebuild_1', rebuild)
writes('rebuild_put_1', rebuild_put)
writes('rebuilt_1', rebuilt)
writes('rebuild_put_2', of_plan(rebuild_put))
writes('rebuilt_2', of_plan(rebuilt))
frees('settled_1', settled)
frees('set_aside_1', set_aside)
reads('view_1', view)
reads('result_1', result)
reads('grants_1', grants)
reads('owing_1', owing)
reads('outbox_1', outbox)
reads('find_1', find)
reads('vitals_1', vitals)
