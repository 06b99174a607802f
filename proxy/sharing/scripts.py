"""The Lua that runs on the server. Each script is one atomic step and one round trip.

The clock is always the server's (``TIME``), so that a gateway whose own is wrong does no harm.
Times are UTC milliseconds.

A sliding window is a hash: the number of a step (a sixtieth of the window; of a day, six minutes)
and what was counted in it. A step is dropped only when all of it is older than the window, so the
sum goes over one step more than the window has: no window of that length ever holds more than the
limit, and at least 60/61 of it can be used. ``routing/limits.py`` counts in the same steps.
A fixed window is one number. Both keys stand in a sorted set by when they end, for ``WINDOWS``.
"""

from __future__ import annotations

_CLOCK = """
local function clock()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
"""

_STEPS = """
local function steps_of(seconds)
  if seconds <= 3600 then return 60 end
  return 240
end

-- Multiplied before it is divided, so that a step begins exactly where it should.
local function step_of(at, seconds)
  return math.floor(at * steps_of(seconds) / (seconds * 1000))
end

-- What counts in a sliding window, as {step, count} pairs and their sum; what is old goes.
local function steps_in(key, now_step, seconds)
  local found = redis.call('HGETALL', key)
  local kept, sum = {}, 0
  for i = 1, #found, 2 do
    local step, count = tonumber(found[i]), tonumber(found[i + 1])
    if step < now_step - steps_of(seconds) then
      redis.call('HDEL', key, found[i])
    else
      kept[#kept + 1] = {step, count}
      sum = sum + count
    end
  end
  return kept, sum
end
"""

_EXPIRY = """
-- A sliding window ends when its newest step has left it. A fixed one is kept for a day after it
-- has ended, or after it was counted in: gateways may disagree on when their day begins.
local function keep(key, windows, at, seconds, start)
  local stop
  if start then
    stop = math.max(start + seconds * 1000, at) + 90000000
  else
    stop = at + math.ceil(seconds * 1000 * 62 / 60) + 1000
  end
  redis.call('PEXPIREAT', key, stop)
  redis.call('ZADD', windows, stop, key)
  if redis.call('PTTL', windows) < stop - at then redis.call('PEXPIREAT', windows, stop) end
end
"""

CLAIM = (
    _CLOCK
    + _STEPS
    + _EXPIRY
    + """
-- KEYS: rests, windows, probe, then one key a window.
-- ARGV: token of the probe or '', its milliseconds, how many places, the places, then for each
-- window: limit, cost, seconds, start or ''.
-- Returns {0, now, what each window holds}, or {1 place | 2 window | 3 probe, which, milliseconds
-- to wait, rest}.
local at, places = clock(), tonumber(ARGV[3])
local function window(i)
  local a = 4 + places + (i - 1) * 4
  return KEYS[3 + i], tonumber(ARGV[a]), tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]),
    tonumber(ARGV[a + 3])
end

-- Of several that say no, the one that does so the longest: before that, asking again is vain.
local which, wait = nil, 0
if places > 0 then
  local found = redis.call('HMGET', KEYS[1], unpack(ARGV, 4, 3 + places))
  for i = 1, places do
    local left = found[i] and cjson.decode(found[i])['until'] - at or 0
    if left > wait then which, wait = i, left end
  end
  if which then return {1, which, wait, found[which]} end
end

-- How long until there is room; nil where there is. A window in which nothing is counted takes
-- anything: a cost that is larger than the limit must not wait for ever.
local sums = {}
local function sliding(key, limit, cost, seconds)
  local kept, sum = steps_in(key, step_of(at, seconds), seconds)
  sums[#sums + 1] = sum + cost
  if sum == 0 or sum + cost <= limit then return nil end
  table.sort(kept, function(a, b) return a[1] < b[1] end)
  for _, step in ipairs(kept) do
    sum = sum - step[2]
    if sum == 0 or sum + cost <= limit then
      return math.ceil((step[1] + steps_of(seconds) + 1) * seconds * 1000 / steps_of(seconds)) - at
    end
  end
end
local function fixed(key, limit, cost, seconds, start)
  local sum = tonumber(redis.call('GET', key) or 0)
  sums[#sums + 1] = sum + cost
  if sum == 0 or sum + cost <= limit then return nil end
  return math.max(1, start + seconds * 1000 - at)
end
for i = 1, #KEYS - 3 do
  local key, limit, cost, seconds, start = window(i)
  local left = (start and fixed or sliding)(key, limit, cost, seconds, start) or 0
  if left > wait then which, wait = i, left end
end
if which then return {2, which, wait} end

if ARGV[1] ~= '' then
  local holder = redis.call('GET', KEYS[3])
  if holder and holder ~= ARGV[1] then return {3, 0, redis.call('PTTL', KEYS[3])} end
  redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2])
end
for i = 1, #KEYS - 3 do
  local key, _, cost, seconds, start = window(i)
  if cost > 0 then
    local count
    if start then
      count = redis.call('INCRBY', key, cost)
    else
      count = redis.call('HINCRBY', key, step_of(at, seconds), cost)
    end
    if count == cost then keep(key, KEYS[2], at, seconds, start) end  -- the first in its step
  end
end
return {0, at, sums}
"""
)

HOLD = (
    _CLOCK
    + """
-- KEYS: slots, nodes. ARGV: limit, token, milliseconds after which a silent node is dead.
-- A token begins with the node that holds it; those of the dead are free. Returns 1, or 0: all are
-- taken. What is held for a day without another call is forgotten.
local at, taken = clock(), 0
for _, token in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local seen = tonumber(redis.call('ZSCORE', KEYS[2], string.match(token, '^[^:]*')) or 0)
  if seen < at - ARGV[3] then redis.call('SREM', KEYS[1], token) else taken = taken + 1 end
end
if taken >= tonumber(ARGV[1]) then return 0 end
redis.call('SADD', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], 86400000)
return 1
"""
)

FREE = """
-- KEYS: slots. ARGV: a token.
redis.call('SREM', KEYS[1], ARGV[1])
"""

REST = (
    _CLOCK
    + """
-- KEYS: rests, the probe of that name. ARGV: place, the rest as JSON, channel.
-- What rests longer already is not shortened, and refusals in a row are never forgotten. Whoever
-- probed has its answer: the probe is free for when the rest is over.
local at, rest = clock(), cjson.decode(ARGV[2])
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old then
  old = cjson.decode(old)
  if old['until'] > at then
    local count = math.max(old.count, rest.count)
    if old['until'] >= rest['until'] then rest = old end
    rest.count = count
  end
end
local left = rest['until'] - at
redis.call('DEL', KEYS[2])
if left > 0 then
  redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(rest))
  if redis.call('PTTL', KEYS[1]) < left + 60000 then
    redis.call('PEXPIRE', KEYS[1], left + 60000)
  end
end
redis.call('PUBLISH', ARGV[3], '')
"""
)

LIFT = """
-- KEYS: rests, then the probes of those names. ARGV: channel, then the places.
redis.call('HDEL', KEYS[1], unpack(ARGV, 2))
redis.call('DEL', unpack(KEYS, 2))
redis.call('PUBLISH', ARGV[1], '')
"""

SETTLE = (
    _CLOCK
    + _STEPS
    + _EXPIRY
    + """
-- KEYS: window, windows. ARGV: difference, when it was counted, seconds, start or ''.
local difference, counted, seconds, start =
  tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local at = clock()
if start then
  local count = math.max(0, tonumber(redis.call('GET', KEYS[1]) or 0) + difference)
  redis.call('SET', KEYS[1], count)
else
  local step = step_of(counted, seconds)
  if step < step_of(at, seconds) - steps_of(seconds) then return end  -- it no longer counts
  local count = math.max(0, tonumber(redis.call('HGET', KEYS[1], step) or 0) + difference)
  redis.call('HSET', KEYS[1], step, count)
end
keep(KEYS[1], KEYS[2], at, seconds, start)
"""
)

REFRESH = (
    _CLOCK
    + """
-- KEYS: rests, nodes, windows. ARGV: this node, milliseconds after which a silent one is dead.
-- Returns {now, how many nodes are alive, rests}, and drops what is over.
-- What ends when is read without decoding: there may be thousands, and the server stands still.
-- Inside a JSON string the quote before "until" would carry a backslash.
local at = clock()
redis.call('ZADD', KEYS[2], at, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', at - ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', at)
local found, rests = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #found, 2 do
  local stop = tonumber(string.match(found[i + 1], '"until":(%d+)') or 0)
  if stop > at then
    rests[#rests + 1] = found[i + 1]
  else
    redis.call('HDEL', KEYS[1], found[i])
  end
end
return {at, redis.call('ZCARD', KEYS[2]), rests}
"""
)

LEAVE = """
-- KEYS: nodes. ARGV: this node.
redis.call('ZREM', KEYS[1], ARGV[1])
"""

WINDOWS = (
    _CLOCK
    + """
-- KEYS: windows. Returns the keys of those that have not ended, the first to end first.
return redis.call('ZRANGEBYSCORE', KEYS[1], clock(), '+inf')
"""
)

COUNT = (
    _CLOCK
    + _STEPS
    + """
-- KEYS: windows of both kinds. ARGV: for each, the seconds of a sliding one, '' for a fixed one.
local at, counts = clock(), {}
for i, key in ipairs(KEYS) do
  local seconds, _ = tonumber(ARGV[i])
  if seconds then
    _, counts[i] = steps_in(key, step_of(at, seconds), seconds)
  else
    counts[i] = tonumber(redis.call('GET', key) or 0)
  end
end
return counts
"""
)

PUSH = """
-- KEYS: the newest rows. ARGV: how many are held, then rows, the oldest first.
redis.call('LPUSH', KEYS[1], unpack(ARGV, 2))
redis.call('LTRIM', KEYS[1], 0, ARGV[1] - 1)
"""

NEWEST = """
-- KEYS: the newest rows. ARGV: how many. Returns them, the newest first.
return redis.call('LRANGE', KEYS[1], 0, ARGV[1] - 1)
"""
