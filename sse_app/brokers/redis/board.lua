-- The operations on the board, each of which Redis executes as a whole. ``board.py`` calls them; they stand at the end.
--
-- KEYS  1 the values of the entries, a hash
--       2 when they end, a sorted set; whole microseconds, which a score is exact for until the year 2255
--       3 their keys, a sorted set of equal scores: in the order of its bytes, so that a kind is one piece of it
-- ARGV  1 the operation   2 the clock, or "" for the server's own
--       3... the arguments of the operation
--
-- What has ended is removed by the next calls, of whatever kind it is.

local VALUES, ENDS, NAMES = KEYS[1], KEYS[2], KEYS[3]
local SWEPT = 256 -- entries that one call removes: some 0.5 ms, in which Redis does nothing else

local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

local function whole(number)
  return string.format('%.0f', number)
end

local function remove(keys)
  redis.call('HDEL', VALUES, unpack(keys))
  redis.call('ZREM', ENDS, unpack(keys))
  redis.call('ZREM', NAMES, unpack(keys))
end

-- Before anything is written: a script that has removed something may write though the memory is full.
local function sweep()
  local ended = redis.call('ZRANGE', ENDS, '-inf', whole(now), 'BYSCORE', 'LIMIT', 0, SWEPT)
  if #ended > 0 then remove(ended) end
end

-- Returns the value of an entry, or false.
local function standing(key)
  local ends = redis.call('ZSCORE', ENDS, key)
  return ends and tonumber(ends) > now and redis.call('HGET', VALUES, key)
end

local function write(key, value, ttl)
  redis.call('HSET', VALUES, key, value)
  redis.call('ZADD', ENDS, whole(now + ttl), key)
  redis.call('ZADD', NAMES, 0, key)
end

local operations = {}

-- Writes 4 value at 3 key for 5 microseconds, if nothing is there. Returns what is there, or nil.
function operations.claim(key, value, ttl)
  sweep()
  local there = standing(key)
  if there then return there end
  write(key, value, ttl)
end

-- Writes 4 value at 3 key for 5 microseconds.
function operations.put(key, value, ttl)
  sweep()
  write(key, value, ttl)
end

-- Writes 5 value at 3 key for 6 microseconds if 4 value is there. Returns 1 if it was.
function operations.replace(key, old, new, ttl)
  sweep()
  if standing(key) ~= old then return 0 end
  write(key, new, ttl)
  return 1
end

-- Returns the value at 3 key, or nil.
function operations.get(key)
  return standing(key)
end

-- Removes 3 key.
function operations.delete(key)
  remove({key})
end

-- Reads the entries of 3 kind behind 4 key, about 5 entries or 6 bytes. Returns {the key to go on behind or "", key,
-- value, key, value, ...}.
function operations.list(kind, after, count, bytes)
  sweep()
  local found, size = {''}, 0
  local keys = redis.call('ZRANGE', NAMES, '(' .. after, '(' .. kind .. '/', 'BYLEX', 'LIMIT', 0, count)
  for index, key in ipairs(keys) do
    local value = standing(key)
    if value then
      found[#found + 1], found[#found + 2] = key, value
      size = size + #key + #value
    end
    if index == tonumber(count) or size >= tonumber(bytes) then
      found[1] = key
      break
    end
  end
  return found
end

return operations[ARGV[1]](unpack(ARGV, 3))
