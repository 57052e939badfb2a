-- The operations on the log, each of which Redis executes as a whole. ``__init__.py`` calls them; they stand at the
-- end. It puts a line before this file that sets DEFAULTS, the limits of a new log.
--
-- KEYS  1 the log, a stream; each entry has one field, v1: "<epoch> <time> <stamp> <previous stamp> <envelope>"
--       2 its state, a hash: epoch, top, oldest, time, stamp, bytes, trimmed, and the limits of 9 to 12
--       3 the nodes, a hash; for publications 3... the idempotency key of each, or of all
-- ARGV  1 the operation
--       2 epoch, 3 offset: the newest position that the caller knows   4 offset, 5 stamp: an entry that the caller has
--       seen   6 a name for a new epoch, if one begins now   7 the clock, 8 the wall clock, or "" for the server's own
--       9 entries, 10 bytes, 11 age that the log may have, 12 how long a key is kept, or "" to leave that as it is
--       13... the arguments of the operation
--
-- Times are whole microseconds. The stamp is the clock when an entry is appended; two servers never have the same one
-- for one offset. Each entry also has the stamp of the one before, so that they form a chain. The time of an entry is
-- never before that of an older one. Every operation returns {epoch, oldest, top, ...}; oldest is the offset just
-- before the oldest entry held.

local LOG, STATE = KEYS[1], KEYS[2]
local OVERHEAD = 64 -- bytes of an entry beside its value: MEMORY USAGE of Redis 7.0 says 24 to 400
local LIMITS = {'history', 'history_bytes', 'history_age', 'idempotency_window'}
local TRIM_COUNT, TRIM_BYTES = 256, 8 * 1024 * 1024 -- in one call: some 2 ms, in which Redis does nothing else
local FOREIGN = 1000 -- entries of other programs that are removed in one call
local PIECE = 32 -- entries that are read at once, when the sizes of those before give only an average
local ABSENT = 5 -- seconds after which a node that has not written its number is gone

local function microseconds(given)
  if given ~= '' then return tonumber(given) end
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local function whole(number)
  return string.format('%.0f', number)
end

local function id(offset)
  return '0-' .. whole(offset)
end

local now = microseconds(ARGV[7])
local known_epoch, known_top = ARGV[2], tonumber(ARGV[3])
local epoch, top, oldest, time, stamp, bytes, trimmed -- trimmed: the time of the newest publication that was
local limits = {}

local function load_state()
  local state = redis.call('HMGET', STATE, 'epoch', 'top', 'oldest', 'time', 'stamp', 'bytes', 'trimmed')
  epoch, top, oldest, time = state[1], tonumber(state[2] or 0), tonumber(state[3] or 0), tonumber(state[4] or 0)
  stamp, bytes, trimmed = state[5] or '0', tonumber(state[6] or 0), tonumber(state[7] or -1)
  local kept = redis.call('HMGET', STATE, unpack(LIMITS))
  for index, default in ipairs(DEFAULTS) do
    limits[index] = tonumber(kept[index] or nil) or tonumber(ARGV[8 + index]) or default
  end
end

local function save_limits()
  for index, name in ipairs(LIMITS) do redis.call('HSET', STATE, name, whole(limits[index])) end
end

local function save_state()
  redis.call('HSET', STATE, 'epoch', epoch, 'top', whole(top), 'oldest', whole(oldest), 'time', whole(time),
    'stamp', stamp, 'bytes', whole(bytes), 'trimmed', whole(trimmed))
end

local function begin_anew()
  redis.call('XLEN', LOG) -- fails when the key is no stream: then it is not ours to delete
  redis.call('UNLINK', LOG, STATE)
  epoch, top, oldest, time, stamp, bytes, trimmed = ARGV[6], 0, 0, 0, '0', 0, -1
  save_state()
  save_limits()
end

-- Returns an entry's offset, and of an entry of ours its time, stamp and size. Other entries may have any fields.
local function parse(entry)
  local value = #entry[2] == 2 and entry[2][1] == 'v1' and entry[2][2] or ''
  local its_time, its_stamp = string.match(value, '^%w+ (%d+) (%d+) %d+ ')
  local size = its_stamp and #value + OVERHEAD or 0
  return tonumber(string.match(entry[1], '%d+$')), tonumber(its_time or nil), its_stamp, size
end

local function first_from(offset)
  return redis.call('XRANGE', LOG, id(offset), '+', 'COUNT', 1)[1]
end

-- Takes in what another program has appended to the stream. An entry with an id 0-<offset> has a place in the log.
-- Behind an entry with any other id none of ours could be appended, so it is removed. Returns true if there was one.
local function adopt()
  local foreign = redis.call('XRANGE', LOG, '1-0', '+', 'COUNT', FOREIGN)
  for index, entry in ipairs(foreign) do foreign[index] = entry[1] end
  if #foreign > 0 then redis.call('XDEL', LOG, unpack(foreign)) end
  local newest = redis.call('XREVRANGE', LOG, '(1-0', '-', 'COUNT', 1)[1]
  local offset = newest and parse(newest) or 0
  if offset > top then
    top = offset
    save_state()
  end
  local more = #redis.call('XRANGE', LOG, '1-0', '+', 'COUNT', 1) > 0
  if #foreign > 0 and not more and redis.pcall('XSETID', LOG, id(top)).err then begin_anew() end
  return #foreign > 0
end

-- Removes the oldest entries that are too many, too large or too old, some at_most. Returns true if there may be more.
local function trim(checks_age, at_most)
  local history, history_bytes, age = limits[1], limits[2], limits[3]
  local count, before, gone, read = redis.call('XLEN', LOG), oldest, {}, 0
  local function is_too_much() return count > history or (bytes > history_bytes and count > 1) end
  while (checks_age or is_too_much()) and #gone < at_most and read < TRIM_BYTES do
    local entry = first_from(oldest + 1)
    if not entry then
      oldest, bytes = top, 0
      break
    end
    local offset, its_time, its_stamp, size = parse(entry)
    local young = not its_stamp or now - its_stamp <= age
    oldest = offset - 1
    if young and not is_too_much() then break end
    oldest, count, bytes, trimmed = offset, count - 1, math.max(0, bytes - size), its_time or trimmed
    gone[#gone + 1], read = entry[1], read + size
  end
  -- XDEL, since XTRIM stops at entries that adopt() has removed. Before save_state: a script that has removed something
  -- may write though the memory is full.
  if #gone > 0 then redis.call('XDEL', LOG, unpack(gone)) end
  if oldest ~= before then save_state() end
  return #gone == at_most or read >= TRIM_BYTES
end

local function trim_for_reader()
  -- With full memory Redis refuses to save the state; the log can still be read.
  local _, more = pcall(trim, true, TRIM_COUNT)
  return more == true
end

-- Begins a new epoch when the log was deleted, or lacks the newest position that the caller knows: it is another log.
local function check()
  load_state()
  if not epoch or (top > 0 and redis.call('EXISTS', LOG) == 0) then
    begin_anew()
  elseif known_epoch == epoch and known_top > top then
    adopt()
    if known_top > top then begin_anew() end
  end
end

-- Begins a new epoch when another entry is in the place of one that the caller has seen; also when there is none in
-- that place, if the caller has met a broken chain.
local function check_entry_seen(chain_broken)
  if known_epoch ~= epoch or ARGV[5] == '' then return end
  local entry = redis.call('XRANGE', LOG, id(ARGV[4]), id(ARGV[4]))[1]
  local _, _, its_stamp = parse(entry or {'', {}})
  if entry and its_stamp ~= ARGV[5] or chain_broken and not entry then begin_anew() end
end

-- Returns at least one entry, and as many more as argument 16 (entries) and 17 (bytes) leave room for: a few are read
-- at a time, by the average size of those before.
local function pages(command, from, to, step)
  local found, size, count, limit, asked = {}, 0, tonumber(ARGV[16]), tonumber(ARGV[17]), 1
  repeat
    local chunk = redis.call(command, LOG, id(from), id(to), 'COUNT', asked)
    for _, entry in ipairs(chunk) do
      if #found > 0 and size >= limit then break end
      found[#found + 1] = entry
      for _, text in ipairs(entry[2]) do size = size + #text end
      from = parse(entry) + step
    end
    local done = #chunk < asked or #found >= count or size >= limit
    asked = math.min(count - #found, PIECE, math.ceil((limit - size) * #found / math.max(1, size)))
  until done
  return found
end

-- Takes over the limits that the caller names, which are those of all nodes from now on; a new log has the defaults for
-- those that nobody names. Returns true if one changed.
local function set_limits()
  local changed = false
  for index, given in ipairs({ARGV[9], ARGV[10], ARGV[11], ARGV[12]}) do
    if given ~= '' and tonumber(given) ~= limits[index] then
      limits[index], changed = tonumber(given), true
    end
  end
  return changed
end

local operations = {}

-- Returns the epoch and the offset of the publication that came with a key, nothing if none did; false if it was another
-- one than that of this digest.
local function find_key(key, digest)
  local kept = redis.call('GET', key) or ''
  local its_digest, its_epoch, offset, expires = string.match(kept, '^(%x+) (%w+) (%d+) (%d+)$')
  if not its_digest or tonumber(expires) <= now then return end
  if its_digest ~= digest then return false end
  return its_epoch, tonumber(offset)
end

local function keep_key(key, digest, offset)
  local window = limits[4]
  local kept = digest .. ' ' .. epoch .. ' ' .. whole(offset) .. ' ' .. whole(now + window)
  redis.call('SET', key, kept, 'PX', whole(math.max(1, window / 1000)))
end

-- Appends envelopes one behind the other, and trims. Returns the offset of the first, or an error before any is there.
local function append_all(envelopes)
  local value
  local function append(envelope)
    time = math.max(time, microseconds(ARGV[8]))
    value = table.concat({epoch, whole(time), whole(now), stamp, envelope}, ' ')
    return redis.pcall('XADD', LOG, '0-*', 'v1', value)
  end
  local first
  for _, envelope in ipairs(envelopes) do
    local added = append(envelope)
    if added.err and not first and adopt() then added = append(envelope) end
    if added.err and not first then return nil, added end
    if added.err then error(added.err) end
    local offset = tonumber(string.match(added, '%d+$'))
    if offset <= top then -- another program has deleted the stream and made it again
      begin_anew()
      append(envelope)
      offset = 1
    end
    top, stamp, bytes = offset, whole(now), bytes + #value + OVERHEAD
    first = first or offset
  end
  save_state()
  trim(false, #envelopes + TRIM_COUNT)
  return first
end

-- Appends publications together. 13 the digest of all of them, or "" without a key, 14... their envelopes. Returns
-- {.., epoch, offset of the first, stamp of the last}, with an empty stamp if their key came before, or {.., "reused"} if
-- it came with others.
function operations.publish()
  local digest = ARGV[13]
  if digest ~= '' then
    local its_epoch, offset = find_key(KEYS[3], digest)
    if its_epoch == false then return {epoch, oldest, top, 'reused'} end
    if its_epoch then return {epoch, oldest, top, its_epoch, offset, ''} end
  end
  local first, failed = append_all({unpack(ARGV, 14)})
  if failed then return failed end
  if digest ~= '' then keep_key(KEYS[3], digest, first) end
  return {epoch, oldest, top, epoch, first, stamp}
end

-- Appends publications with keys of their own, KEYS[3]..., together. 13... digest, or "" without a key, and envelope of
-- each. Returns {.., "<epoch>-<offset> ..." of each, stamp of the last}, with an empty stamp if all their keys came
-- before, or {.., "reused"} if one came with another publication.
function operations.publish_each()
  local places, envelopes, used, fresh = {}, {}, {}, {}
  for index = 1, (#ARGV - 12) / 2 do
    local key, digest, envelope = KEYS[2 + index], ARGV[11 + 2 * index], ARGV[12 + 2 * index]
    local its_epoch, offset
    if digest ~= '' and used[key] then
      if used[key].digest ~= digest then return {epoch, oldest, top, 'reused'} end
      places[index] = used[key].place
    elseif digest ~= '' then
      its_epoch, offset = find_key(key, digest)
      if its_epoch == false then return {epoch, oldest, top, 'reused'} end
    end
    if its_epoch then
      places[index] = its_epoch .. '-' .. whole(offset)
    elseif not places[index] then
      envelopes[#envelopes + 1] = envelope
      places[index] = #envelopes -- behind the one before the first, once that is known
    end
    if digest ~= '' and not used[key] then
      used[key] = {digest = digest, place = places[index]}
      if not its_epoch then fresh[#fresh + 1] = key end
    end
  end
  if #envelopes == 0 then return {epoch, oldest, top, table.concat(places, ' '), ''} end
  local first, failed = append_all(envelopes)
  if failed then return failed end
  for _, key in ipairs(fresh) do keep_key(key, used[key].digest, first - 1 + used[key].place) end
  for index, place in ipairs(places) do
    if type(place) == 'number' then places[index] = epoch .. '-' .. whole(first - 1 + place) end
  end
  return {epoch, oldest, top, table.concat(places, ' '), stamp}
end

-- Trims, and takes over the caller's limits. 13 the caller's node or "", 14 its subscribers, 15 "1" if it has met a
-- broken chain, 16 "1" if it hears what is sent over the board. Returns {.., the subscribers of all other nodes, 1 if
-- there may be more to remove, bytes of the log, {node, seconds since it wrote its number, node, seconds, ...}}: of the
-- other nodes those that hear the board, or have subscribers; a program that only publishes does neither.
function operations.refresh()
  check_entry_seen(ARGV[15] == '1')
  local changed, adopted = set_limits(), adopt()
  local more = trim_for_reader() or adopted
  if changed then pcall(save_limits) end
  local others, heard = 0, {}
  if ARGV[13] ~= '' then
    local seconds = redis.call('TIME')[1]
    local fields = {ARGV[13], ARGV[14] .. ' ' .. seconds}
    -- A field of its own: a node of version 0.1 removes one whose value has another form.
    if ARGV[16] == '1' then fields[3], fields[4] = 'board:' .. ARGV[13], '0 ' .. seconds end
    local said = redis.pcall('HSET', KEYS[3], unpack(fields))
    if type(said) == 'table' and not string.find(said.err, '^OOM') then return said end
    local nodes = redis.call('HGETALL', KEYS[3])
    for index = 1, #nodes, 2 do
      local count, written = string.match(nodes[index + 1], '^(%d+) (%d+)$')
      local name, hears = string.gsub(nodes[index], '^board:', '')
      local age = count and math.abs(seconds - written)
      if not count or age > ABSENT then
        redis.call('HDEL', KEYS[3], nodes[index])
      elseif name ~= ARGV[13] then
        others = others + count
        if hears == 1 or tonumber(count) > 0 then heard[#heard + 1], heard[#heard + 2] = name, age end
      end
    end
  end
  return {epoch, oldest, top, others, more and 1 or 0, bytes, heard, {limits[1], limits[2], limits[3]}}
end

-- Reads behind 13 epoch and 14 offset, up to 15 offset, about 16 entries or 17 bytes. Returns {.., the offset behind
-- which the page begins, which is a later one if entries were trimmed, entries}.
function operations.page()
  trim_for_reader()
  local after = ARGV[13] == epoch and math.max(oldest, tonumber(ARGV[14])) or oldest
  return {epoch, oldest, top, after, pages('XRANGE', after + 1, math.min(top, tonumber(ARGV[15])), 1)}
end

-- Reads from 15 offset down, about 16 entries or 17 bytes. Returns {.., entries, newest first}.
function operations.newest()
  trim_for_reader()
  return {epoch, oldest, top, pages('XREVRANGE', math.min(top, tonumber(ARGV[15])), oldest + 1, -1)}
end

-- Searches a time, 13. Returns {.., the offset before the first publication at or after it, 1 if none of those is
-- trimmed}.
function operations.since()
  trim_for_reader()
  local wanted, low, high = tonumber(ARGV[13]), oldest + 1, top + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    local entry = first_from(middle)
    local offset, its_time
    while entry do
      offset, its_time = parse(entry)
      if its_time then break end
      entry = first_from(offset + 1)
    end
    if its_time and its_time < wanted then low = offset + 1 else high = middle end
  end
  return {epoch, oldest, top, low - 1, wanted > trimmed and 1 or 0}
end

check()
return operations[ARGV[1]]()
